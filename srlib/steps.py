"""What one step of each training stage computes (Ledig et al. 2017, sections 2.1, 2.2, 3.2): networks, losses, optimisers.

How steps are repeated, saved, stopped and continued stands in `loop`; where the crops come from, in `training`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import parallel
from .config import Config, UserError
from .degrade import upsample
from .losses import ADVERSARIAL, PRETRAIN, ContentLoss, grid_loss, lr_loss
from .models import Discriminator, build

CALIBRATION_BATCHES = 4
FASTEST = torch.channels_last  # 1.6 times faster than NCHW in bf16 on a CPU


def make_generator(config: Config) -> torch.nn.Module:
    """The generator of the settings, one of `models.GENERATORS`; UserError for settings that it cannot have."""
    names = ("generator", "scale", "channels", "width", "blocks", "global_skip", "batch_norm", "smooth")
    try:
        return build({name: getattr(config, name) for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, None for float32. 'auto': bf16 where the hardware computes it, fp16 on an older GPU."""
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.6 cannot say
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    return None


def _schedule(optimizer, kind: str, total: int):
    if kind == "one-cycle":
        peak = optimizer.param_groups[0]["lr"]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1, pct_start=0.1, cycle_momentum=False)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _placed(model: torch.nn.Module, config: Config, device: torch.device) -> torch.nn.Module:
    """`model` on the device, in the fastest memory format, ready to train; BN over all processes where `sync_batch_norm` asks for it."""
    if config.sync_batch_norm:
        if device.type != "cuda":
            raise UserError("sync_batch_norm=True needs GPUs; set it to False")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.to(device, memory_format=FASTEST).train()


def _adam(model: torch.nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.999), fused=device.type != "mps")


def _update(loss: torch.Tensor, model: torch.nn.Module, optimizer, scaler, longest: float = 0.0) -> torch.Tensor:
    """One step of `optimizer` down the gradient of `loss`; returns the gradient's norm, before it was cut to `longest` (0: not cut)."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, longest or torch.inf)
    scaler.step(optimizer)
    return norm.nan_to_num(0, 0, 0) if scaler.is_enabled() else norm  # the scaler leaves out steps that overflow, and halves its scale


class Pretraining:
    """The `generator` alone (section 3.2; None: a new one of the settings). `step(k, lr, hr)` makes one update on a batch in [0, 1]
    and returns what is logged: loss (MSE on [-1, 1], whatever is minimised) and g_norm (of the gradient, before it is cut).
    `parts`: what a checkpoint needs."""

    def __init__(self, config: Config, device: torch.device, generator: torch.nn.Module | None = None):
        self.config, self.device = config, device
        self.generator = _placed(generator or make_generator(config), config, device)
        self.network = parallel.wrap(self.generator, device)
        self.optimizer = _adam(self.generator, config.pretrain_lr, device)
        self.scheduler = _schedule(self.optimizer, config.pretrain_schedule, config.pretrain_steps)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.parts = {name: getattr(self, name) for name in ("generator", "optimizer", "scheduler", "scaler")}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            sr = self.network(lr)
        mse = F.mse_loss(2 * sr.detach() - 1, 2 * hr - 1)
        loss = PRETRAIN[self.config.pretrain_loss](sr, hr)
        norm = _update(loss, self.generator, self.optimizer, self.scaler, self.config.pretrain_clip)
        self.scaler.update()
        self.scheduler.step()
        return {"loss": mse, "g_norm": norm}


class Weights:
    """The factors of the loss terms: given by the settings, or calibrated so that the adversarial term (and the pixel term) has
    its stated share of the loss on the first batches. A part of the checkpoint, so that a calibration is made once."""

    def __init__(self, config: Config):
        self.adversarial, self.content, self.pixel = config.adversarial_weight, config.content_weight, 0.0

    def calibrate(self, config: Config, content: float, adversarial: float, pixel: float) -> None:
        """From the terms' mean values before the first step. Raises UserError for an adversarial loss that has no size to go by."""
        if not adversarial > 0:
            raise UserError(
                f"adversarial_loss={config.adversarial_loss!r} is {adversarial:.3g} at the start, so content_weight=0 cannot be calibrated; set it"
            )
        unit = self.adversarial * adversarial / config.adversarial_share  # the whole loss at the start
        self.content = unit * (1 - config.adversarial_share - config.pixel_share) / max(content, 1e-12)
        self.pixel = unit * config.pixel_share / max(pixel, 1e-12)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Game:
    """D and G in turn, one update each (sections 2.1 and 2.2), from a pretrained `generator`; `extractor` is the content loss's.

    `step(k, lr, hr)` plays one turn on a batch in [0, 1] and returns what is logged (`train_srgan` names it); `first_batches()`, the
    batches that the calibration takes, is called in step 0 where `content_weight` is 0. `parts`: what a checkpoint needs.
    """

    def __init__(
        self, config: Config, device: torch.device, generator: torch.nn.Module, extractor: torch.nn.Module, first_batches: Callable
    ):
        self.config, self.device, self.first_batches = config, device, first_batches
        self.generator = _placed(generator, config, device)
        torch.manual_seed(config.seed + 1)
        self.discriminator = _placed(Discriminator(config.channels, config.crop, config.d_width), config, device)
        self.g_network, self.d_network = (parallel.wrap(model, device) for model in (self.generator, self.discriminator))
        self.content_loss = ContentLoss(extractor).to(device, memory_format=FASTEST)
        self.averaged = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
        self.g_optimizer, self.d_optimizer = (_adam(model, config.gan_lr, device) for model in (self.generator, self.discriminator))
        drop = max(1, round(config.gan_lr_drop * config.gan_steps))
        self.g_schedule, self.d_schedule = (
            torch.optim.lr_scheduler.MultiStepLR(o, [drop], 0.1) for o in (self.g_optimizer, self.d_optimizer)
        )
        self.adversarial = ADVERSARIAL[config.adversarial_loss]
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.weights = Weights(config)
        kept = ("generator", "discriminator", "averaged", "g_optimizer", "d_optimizer", "g_schedule", "d_schedule", "scaler", "weights")
        self.parts = {name: getattr(self, name) for name in kept}

    def _autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def _rolled(self, image, k):
        """The image as the losses' networks see it in step k: moved by the same random pixels for SR and HR."""
        if not self.config.loss_shift:
            return image
        rng = np.random.default_rng([self.config.seed, k])
        return image.roll(tuple(rng.integers(0, self.config.loss_shift, 2).tolist()), (2, 3))

    def _view(self, image, k, call):
        """What D sees: the image in [-1, 1], with noise of its own for each step and call where `d_noise` asks for it."""
        image = self._rolled(image, k)
        if self.config.d_noise:
            chance = torch.Generator(self.device).manual_seed(1_000_003 * self.config.seed + 3 * k + call)
            joint = (self.config.batch, *image.shape[1:])
            noise = torch.randn(joint, generator=chance, device=self.device)[parallel.share(self.config.batch)]
            image = image + self.config.d_noise * noise
        return 2 * image - 1

    def _generator_terms(self, k, sr, hr):
        """The generator's three losses, not weighted."""
        self.discriminator.requires_grad_(False)
        with self._autocast():
            with torch.no_grad():
                real = self.discriminator(self._view(hr, k, 0)) if self.adversarial.relative else None
            adversarial = self.adversarial.generator(self.discriminator(self._view(sr, k, 2)), real)
            content = self.content_loss(self._rolled(sr, k), self._rolled(hr, k))
        return dict(content=content, adversarial=adversarial, pixel=F.mse_loss(2 * sr - 1, 2 * hr - 1))

    def _calibrate(self):
        with torch.no_grad(), self._autocast():
            batches = itertools.islice(self.first_batches(), CALIBRATION_BATCHES)
            found = [self._generator_terms(0, self.generator(lr), hr) for lr, hr in batches]
        means = {key: np.mean([t[key].item() for t in found]) for key in found[0]}
        self.weights.calibrate(self.config, **{key: float(parallel.mean(torch.tensor(value))) for key, value in means.items()})

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        config = self.config
        if k == 0 and not config.content_weight:
            self._calibrate()
        with self._autocast():
            sr = self.g_network(lr)
            self.discriminator.requires_grad_(True)
            d_hr, d_sr = self.d_network(self._view(hr, k, 0)), self.d_network(self._view(sr.detach(), k, 1))
            d_loss = self.adversarial.discriminator(d_hr, d_sr)
        learns = not config.d_pause or parallel.mean(d_loss).item() >= config.d_pause
        d_norm = _update(d_loss, self.discriminator, self.d_optimizer, self.scaler) if learns else torch.zeros((), device=self.device)
        terms = {key: getattr(self.weights, key) * value for key, value in self._generator_terms(k, sr, hr).items()}
        if config.grid_weight:
            terms["grid"] = config.grid_weight * grid_loss(sr.float() - upsample(lr, config.scale), config.scale)
        if config.lr_weight:
            terms["lr"] = config.lr_weight * lr_loss(sr.float(), lr, *config.reduction)
        loss = sum(terms.values())
        g_norm = _update(loss, self.generator, self.g_optimizer, self.scaler)
        self.averaged.update_parameters(self.generator)
        self.scaler.update()
        self.g_schedule.step()
        self.d_schedule.step()
        shares = {f"{key}_share": value / loss for key, value in terms.items()}
        if self.adversarial.relative:  # a constant added to all logits means nothing
            d_hr, d_sr = d_hr - d_sr.mean(), d_sr - d_hr.mean()
        d = dict(d_loss=d_loss, d_hr=d_hr.sigmoid().mean(), d_sr=d_sr.sigmoid().mean(), d_learnt=torch.tensor(float(learns)), d_norm=d_norm)
        return dict(loss=loss, g_norm=g_norm, **d, **terms, **shares)

    def released(self) -> torch.nn.Module:
        """The generator that is validated and released: the averaged one, or the last where `ema` is 0."""
        if not self.config.ema:
            return self.generator
        self.averaged.module.train(self.generator.training)
        for own, other in zip(self.averaged.module.buffers(), self.generator.buffers(), strict=True):
            own.copy_(other)
        return self.averaged.module
