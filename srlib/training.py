"""The two training stages of Ledig et al. 2017: pretraining of the generator on the MSE (or the PSNR), then the adversarial game.

What a step computes stands here; how steps are repeated, saved, stopped and continued stands in `loop`.
"""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import checkpoint, health, metrics
from .config import Config, UserError
from .data import Crops, batches, read_pair, valid_region
from .degrade import downsample, to_image, to_tensor, upsample
from .features import feature_extractor
from .loop import Best, run_steps
from .losses import ContentLoss, adversarial_loss, discriminator_loss, grid_loss, psnr_loss
from .models import Discriminator, Generator
from .sources import data_home

CALIBRATION_BATCHES = 4
FASTEST = torch.channels_last  # 1.6 times faster than NCHW in bf16 on a CPU


def pick_device(name: str = "auto") -> torch.device:
    """'auto' takes cuda, then mps, then cpu; a name that this machine lacks raises UserError."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(k for k, there in have.items() if there))
    if not have.get(name):
        raise UserError(f"device={name!r} is not on this machine; it has {', '.join(k for k in have if have[k])}")
    return torch.device(name)


def make_generator(config: Config) -> Generator:
    return Generator(config.scale, config.channels, config.width, config.blocks, config.global_skip, config.batch_norm, config.smooth)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, None for float32. 'auto': bf16 where the hardware computes it, fp16 on an older GPU."""
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None
    return None


class Validation:
    """PSNR gain over bicubic and LR consistency on centre crops of validation scans, in eval mode and float32."""

    def __init__(self, paths, config: Config, device: torch.device, count: int = 12, side: int = 256):
        self.device, self.reduction, self.pairs = device, config.reduction, []
        paths = list(paths)
        for path in paths[:: max(1, -(-len(paths) // count))]:
            lr, hr = read_pair(path, config)
            top, left = (max(0, (n - side) // 2) // config.scale for n in hr.shape[:2])
            lr = to_tensor(lr[top : top + side // config.scale, left : left + side // config.scale])
            top, left, height, width = (n * config.scale for n in (top, left, *lr.shape[-2:]))
            hr = hr[top : top + height, left : left + width]
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(lr, config.scale)), hr, region=region)
            if np.isfinite(start):  # an empty valid region or a flat square says nothing
                self.pairs.append((hr, lr, region, start))
        if not self.pairs:
            raise UserError("no validation image has a valid region to measure; give other images or a larger val_share")

    @torch.inference_mode()
    def __call__(self, generator: torch.nn.Module) -> dict[str, float]:
        """{gain_db (valid region), consistency_db}, means over the crops."""
        was_training, found = generator.training, []
        generator.eval()
        for hr, lr, region, start in self.pairs:
            sr = to_image(generator(lr.to(self.device)))
            found.append((metrics.psnr(sr, hr, region=region) - start, metrics.consistency(sr, to_image(lr), *self.reduction)))
        generator.train(was_training)
        return dict(zip(("gain_db", "consistency_db"), np.mean(found, 0).tolist(), strict=True))


def training_pairs(paths, config: Config, device: torch.device, steps: int, seed: int):
    """A function from the first step to the stream of (lr, hr) batches from there on; LR is made on the device, or read."""
    paired = config.scale if config.degradation == "paired" else 0
    decoded = data_home() / "cache" if config.decoded_cache else ""
    crops = Crops(paths, config.crop, steps * config.batch, config.channels, seed, paired, decoded, (4 << 30) // max(1, config.workers))

    def stream(first: int):
        for item in batches(crops, config.batch, first, config.workers):
            given, hr = item if paired else (None, item)
            hr = hr.to(device, non_blocking=True, memory_format=FASTEST)
            yield downsample(hr, *config.reduction) if given is None else given.to(device, memory_format=FASTEST), hr

    return stream


def _schedule(optimizer, kind: str, total: int):
    if kind == "one-cycle":
        peak = optimizer.param_groups[0]["lr"]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1, pct_start=0.1, cycle_momentum=False)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _adam(model: torch.nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.999), fused=device.type != "mps")


def _gradient_norm(model: torch.nn.Module, longest: float = 0.0) -> torch.Tensor:
    """The norm of the gradient, before it is cut to `longest` (0: not cut)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if longest:
        torch.nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return norm


def _update(loss: torch.Tensor, model: torch.nn.Module, optimizer, scaler, longest: float = 0.0) -> torch.Tensor:
    """One step of `optimizer` down the gradient of `loss`; returns the gradient's norm, before it was cut to `longest`."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = _gradient_norm(model, longest)
    scaler.step(optimizer)
    return norm.nan_to_num(0, 0, 0) if scaler.is_enabled() else norm  # the scaler leaves out steps that overflow, and halves its scale


def pretrain_generator(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """MSE pretraining (section 3.2), or another `pretrain_loss`: train on crops of the image files `train`, validate on `val`, write into `folder`.

    `folder/pretrain/` gets checkpoint.pt and history.csv, `folder/srresnet.pt` the weights with the best validation PSNR.
    A checkpoint with the same `fingerprint` is continued. `show(history)` is called after each validation. Returns the history:
    step, session, seconds, loss (MSE on [-1, 1], whatever is minimised), g_norm (of the gradient, before it is cut), gain_db (over
    bicubic, validation), consistency_db.
    """
    folder = Path(folder)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    generator = make_generator(config).to(device, memory_format=FASTEST).train()
    optimizer = _adam(generator, config.pretrain_lr, device)
    scheduler = _schedule(optimizer, config.pretrain_schedule, config.pretrain_steps)
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    validation, best = Validation(val, config, device), Best()

    def step(k, lr, hr):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            sr = generator(lr)
        mse = F.mse_loss(2 * sr - 1, 2 * hr - 1)
        loss = {"mse": lambda: mse, "l1": lambda: F.l1_loss(2 * sr - 1, 2 * hr - 1), "psnr": lambda: psnr_loss(sr, hr)}
        norm = _update(loss[config.pretrain_loss](), generator, optimizer, scaler, config.pretrain_clip)
        scaler.update()
        scheduler.step()
        return {"loss": mse, "g_norm": norm}

    def validate():
        found = validation(generator)
        best.offer(found["gain_db"], generator)
        return found

    def done():
        model = make_generator(config)
        model.load_state_dict(best.weights)
        checkpoint.save_weights(folder / "srresnet.pt", model, name="srresnet", validation_gain_db=best.score)

    parts = {"generator": generator, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "best": best}
    stream = training_pairs(train, config, device, config.pretrain_steps, config.seed)
    return run_steps("pretrain", config, folder, fingerprint, config.pretrain_steps, parts, stream, step, validate, done, show)


class Weights:
    """The factors of the loss terms: given by the settings, or calibrated so that the adversarial term (and the pixel term) has
    its stated share of the loss on the first batches. A part of the checkpoint, so that a calibration is made once."""

    def __init__(self, config: Config):
        self.adversarial, self.content, self.pixel = config.adversarial_weight, config.content_weight, 0.0

    def calibrate(self, config: Config, content: float, adversarial: float, pixel: float) -> None:
        """From the terms' mean values before the first step."""
        unit = self.adversarial * adversarial / config.adversarial_share  # the whole loss at the start
        self.content = unit * (1 - config.adversarial_share - config.pixel_share) / max(content, 1e-12)
        self.pixel = unit * config.pixel_share / max(pixel, 1e-12)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def train_srgan(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial stage (sections 2.1 and 2.2), from `folder/srresnet.pt`: D and G in turn, one step each.

    `folder/srgan/` gets checkpoint.pt and history.csv, `folder/srgan.pt` the averaged weights (EMA; the last ones where
    `ema` is 0), never chosen by PSNR. Returns the history: step, session, seconds, loss; content, adversarial, pixel and, with
    `grid_weight`, grid (each weighted, as they enter the loss), and the share of each; d_loss, d_hr and d_sr (D's mean probability for
    HR and SR), d_learnt (the share of steps in which D was updated), the gradients' norms g_norm and d_norm (0 where D paused);
    gain_db and consistency_db of the averaged weights. What `health.warnings` says of it is printed, each warning once.
    """
    folder = Path(folder)
    device = pick_device(config.device)
    pretrained = checkpoint.load_weights(folder / "srresnet.pt")
    generator = make_generator(config)
    if generator.settings != pretrained["settings"]:
        raise UserError(f"{folder / 'srresnet.pt'} has another shape than the settings; run notebook 03 again or choose another run_dir")
    generator.load_state_dict(pretrained["weights"])
    generator.to(device, memory_format=FASTEST).train()
    torch.manual_seed(config.seed + 1)
    discriminator = Discriminator(config.channels, config.crop, config.d_width).to(device, memory_format=FASTEST).train()
    content_loss = ContentLoss(feature_extractor(config.content_features, config.feature_weights)).to(device, memory_format=FASTEST)
    averaged = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    g_optimizer, d_optimizer = (_adam(model, config.gan_lr, device) for model in (generator, discriminator))
    relativistic = config.adversarial_loss == "relativistic"
    drop = max(1, round(config.gan_lr_drop * config.gan_steps))
    schedulers = [torch.optim.lr_scheduler.MultiStepLR(o, [drop], 0.1) for o in (g_optimizer, d_optimizer)]
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    validation, weights = Validation(val, config, device), Weights(config)

    def autocast():
        return torch.autocast(device.type, dtype, enabled=dtype is not None)

    def rolled(image, k):
        """The image as the losses' networks see it in step k: moved by the same random pixels for SR and HR."""
        if not config.loss_shift:
            return image
        rng = np.random.default_rng([config.seed, k])
        return image.roll(tuple(rng.integers(0, config.loss_shift, 2).tolist()), (2, 3))

    def view(image, k, call):
        """What D sees: the image in [-1, 1], with noise of its own for each step and call where `d_noise` asks for it."""
        image = rolled(image, k)
        if config.d_noise:
            chance = torch.Generator(device).manual_seed(1_000_003 * config.seed + 3 * k + call)
            image = image + config.d_noise * torch.randn(image.shape, generator=chance, device=device)
        return 2 * image - 1

    def generator_terms(k, sr, hr):
        """The generator's three losses, not weighted."""
        discriminator.requires_grad_(False)
        with autocast():
            with torch.no_grad():
                real = discriminator(view(hr, k, 0)) if relativistic else None
            adversarial = adversarial_loss(discriminator(view(sr, k, 2)), real)
            content = content_loss(rolled(sr, k), rolled(hr, k))
        return dict(content=content, adversarial=adversarial, pixel=F.mse_loss(2 * sr - 1, 2 * hr - 1))

    def calibrate():
        with torch.no_grad(), autocast():
            first = [generator_terms(0, generator(lr), hr) for lr, hr in itertools.islice(stream(0), CALIBRATION_BATCHES)]
        weights.calibrate(config, **{key: float(np.mean([t[key].item() for t in first])) for key in first[0]})

    def step(k, lr, hr):
        if k == 0 and not config.content_weight:
            calibrate()
        with autocast():
            sr = generator(lr)
            discriminator.requires_grad_(True)
            d_hr, d_sr = discriminator(view(hr, k, 0)), discriminator(view(sr.detach(), k, 1))
            d_loss = discriminator_loss(d_hr, d_sr, relativistic)
        learns = not config.d_pause or d_loss.item() >= config.d_pause
        d_norm = _update(d_loss, discriminator, d_optimizer, scaler) if learns else torch.zeros((), device=device)
        terms = {key: getattr(weights, key) * value for key, value in generator_terms(k, sr, hr).items()}
        if config.grid_weight:
            terms["grid"] = config.grid_weight * grid_loss(sr.float() - upsample(lr, config.scale), config.scale)
        loss = sum(terms.values())
        g_norm = _update(loss, generator, g_optimizer, scaler)
        averaged.update_parameters(generator)
        scaler.update()
        for scheduler in schedulers:
            scheduler.step()
        shares = {f"{key}_share": value / loss for key, value in terms.items()}
        d = dict(d_loss=d_loss, d_hr=d_hr.sigmoid().mean(), d_sr=d_sr.sigmoid().mean(), d_learnt=torch.tensor(float(learns)), d_norm=d_norm)
        return dict(loss=loss, g_norm=g_norm, **d, **terms, **shares)

    def released():
        if config.ema:
            averaged.module.train(generator.training)
            for own, other in zip(averaged.module.buffers(), generator.buffers(), strict=True):
                own.copy_(other)
            return averaged.module
        return generator

    def validate():
        return validation(released())

    told = set()

    def watched(history):
        for kind, sentence in health.warnings(history).items():
            if kind not in told:
                tqdm.write(f"srgan: warning at step {history.step.iloc[-1]}: {sentence}", file=sys.stdout)
                told.add(kind)
        show(history)

    def done():
        model = copy.deepcopy(released()).eval()
        checkpoint.save_weights(folder / "srgan.pt", model, name="srgan")

    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "averaged": averaged,
        "g_optimizer": g_optimizer,
        "d_optimizer": d_optimizer,
        "g_schedule": schedulers[0],
        "d_schedule": schedulers[1],
        "scaler": scaler,
        "weights": weights,
    }
    stream = training_pairs(train, config, device, config.gan_steps, config.seed + 1)
    return run_steps("srgan", config, folder, fingerprint, config.gan_steps, parts, stream, step, validate, done, watched)
