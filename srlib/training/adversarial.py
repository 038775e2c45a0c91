"""The second stage: discriminator and generator in turn (Ledig et al. 2017, sections 2.1 and 2.2), an update of each in a step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.optim.swa_utils import AveragedModel

from ..config import Config, UserError
from ..degrade import held_by
from ..device import FASTEST, autocast_dtype, pick_device
from ..models import Discriminator
from ..models.features import feature_extractor
from ..sampler.network import Sampler, SamplerDiscriminator, normal_noise
from ..trained import load_weights, save_weights
from . import diagnostics, parallel
from .loop import Stage, run_steps
from .losses import ADVERSARIAL, ContentLoss, gradient_penalty
from .stage import adam, make_generator, placed, training_pairs, update
from .validation import Validation, watcher

CALIBRATION_BATCHES = 4
LONGEST = 5.0  # G's gradient is cut to this norm; usual ones are 20 to 100
CONTRAST = 0.5  # standard deviation that HR less the base has for D
WARMUP = 50  # steps


class LossWeights:
    """The factors of the loss terms: given by the settings, or calibrated on the first batches. A part of the checkpoint, so that a
    calibration is made once."""

    def __init__(self, config: Config):
        self.adversarial, self.content, self.pixel = config.adversarial_weight, config.content_weight, 0.0

    def calibrate(self, config: Config, adversarial: float, content: float, pixel: float) -> None:
        """From the terms' mean values before the first step: the content weight, where the settings leave it open, so that the adversarial
        term has its stated share beside it; the pixel weight, so that its term starts at `pixel_weight`. Raises UserError for an adversarial
        loss that has no size to go by."""
        if not config.content_weight and content:
            if not adversarial > 0:
                raise UserError(
                    f"adversarial_loss={config.adversarial_loss!r} is {adversarial:.3g} at the start, so content_weight=0 cannot be calibrated; set it"
                )
            self.content = self.adversarial * adversarial * (1 / config.adversarial_share - 1) / content
        self.pixel = config.pixel_weight / max(pixel, 1e-12)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


class Game:
    """D and G in turn, one update each (Ledig et al. 2017, sections 2.1 and 2.2), from a pretrained `generator`; `extractor` is the content
    loss's. With the setting `texture` the generator is frozen and a head on it draws texture from noise (`sampler.network`); D then
    sees what lies between it and HR, and losses compare the mean of two draws.

    `step(k, lr, hr)` plays one turn on a batch in [0, 1] and returns what is logged (`train_srgan` names it); `first_batches()`, the
    batches that the calibration takes, is called in step 0. `parts`: what a checkpoint needs.
    """

    def __init__(
        self, config: Config, device: torch.device, generator: torch.nn.Module, extractor: torch.nn.Module, first_batches: Callable
    ):
        self.config, self.device, self.first_batches = config, device, first_batches
        torch.manual_seed(config.seed + 1)
        if config.texture:
            generator = Sampler(generator, config.texture, held_by(config))
            discriminator = SamplerDiscriminator(config.channels, config.d_width)
        else:
            discriminator = Discriminator(config.channels, config.gan_crop, config.d_width)
        self.generator, self.discriminator = (placed(model, device) for model in (generator, discriminator))
        silent = config.content_features == "none" and config.texture  # its pixel term is the content loss of no network
        self.content_loss = None if silent else ContentLoss(extractor).to(device, memory_format=FASTEST)
        self.averaged = AveragedModel(self.generator, multi_avg_fn=self._average, use_buffers=False)
        self.g_optimizer, self.d_optimizer = (adam(model, config.gan_lr, device) for model in (self.generator, self.discriminator))
        self.adversarial = ADVERSARIAL[config.adversarial_loss]
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.weights = LossWeights(config)
        kept = ("generator", "discriminator", "averaged", "g_optimizer", "d_optimizer", "scaler", "weights")
        self.parts = {name: getattr(self, name) for name in kept}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        config, D = self.config, self.discriminator
        if k == 0 and (config.texture or config.pixel_weight or not config.content_weight):
            self._calibrate()
        penalty_weight = self._schedule(k)
        base, sr, other = self._draw(k, lr)

        # D: tell HR from SR, with a small slope on either
        D.requires_grad_(True)
        real, fake = self._seen(hr, base), self._seen(sr.detach(), base)
        with self._autocast(penalty_weight):
            d_hr, d_sr = D(*real), D(*fake)
        d_loss = self.adversarial.discriminator(d_hr, d_sr)
        penalty = d_loss.new_zeros(())
        if penalty_weight:
            penalty = penalty_weight / 2 * (gradient_penalty(d_hr, real[0]) + gradient_penalty(d_sr, fake[0]))
        d_norm = update(d_loss + penalty, D, self.d_optimizer, self.scaler)

        # G: be taken for HR by the D that has just learnt, and keep the mean of draws where it is
        D.requires_grad_(False)
        terms = {name: getattr(self.weights, name) * value for name, value in self._terms(base, sr, other, hr).items()}
        loss = sum(terms.values())
        g_norm = update(loss, self.generator, self.g_optimizer, self.scaler, LONGEST if config.texture else 0.0)
        self.averaged.update_parameters(self.generator)
        self.scaler.update()

        right = (d_hr - d_sr).sigmoid() if self.adversarial.relative else (d_hr.sigmoid() + (-d_sr).sigmoid()) / 2
        d = dict(d_loss=d_loss, penalty=penalty, d_hr=d_hr.mean(), d_sr=d_sr.mean(), d_right=right.mean(), d_norm=d_norm)
        return dict(loss=loss, g_norm=g_norm, **d, **terms, **{f"{name}_share": value / loss for name, value in terms.items()})

    def _draw(self, k: int, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(base, draw, another draw) of step k. Without texture: one SR image three times; nothing uses it as the base."""
        with self._autocast():
            if not self.config.texture:
                sr = self.generator(lr)
                return sr.detach(), sr, sr
            smooth, *known = self.generator.prepare(lr)
            noise = (self._noise(k, call, smooth.shape) for call in (0, 1))
            images = (smooth, *(smooth + self.generator.head(*known, z) for z in noise))
            return tuple(self.generator.project(image, lr, 2).clamp(0, 1) for image in images)  # an image has nothing below black

    def _noise(self, k: int, call: int, shape: torch.Size) -> torch.Tensor:
        """This process's part of the joint batch's noise, a function of seed, step and call: a training that is continued needs no other state."""
        joint = normal_noise(((self.config.seed << 32) + k) * 2 + call, self.config.batch, *shape[-2:])
        return joint[parallel.share(self.config.batch)].to(self.device)

    def _seen(self, image: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What D takes: the image in [-1, 1], or, with texture, its detail and the base; the first has a gradient, for the penalty."""
        seen = (self.discriminator.see(image, base), base) if self.config.texture else (2 * image.float() - 1,)
        return (seen[0].requires_grad_(), *seen[1:])

    def _terms(self, base, sr, other, hr) -> dict[str, torch.Tensor]:
        """The generator's losses, not weighted."""
        terms = {}
        with self._autocast(self.config.penalty):
            with torch.no_grad():
                real = self.discriminator(*self._seen(hr, base)) if self.adversarial.relative else None
            terms["adversarial"] = self.adversarial.generator(self.discriminator(*self._seen(sr, base)), real)
        if self.content_loss is not None:
            with self._autocast():
                terms["content"] = self.content_loss(sr, hr, None if other is sr else other)
        if self.config.pixel_weight:
            terms["pixel"] = ((sr - hr) * (other - hr)).mean()
        return terms

    def _autocast(self, penalty: float = 0.0):
        """Autocast; not to float16 where D has a penalty, whose squares leave its range."""
        enabled = self.dtype is not None and not (penalty and self.dtype is torch.float16)
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Set the factors of the losses and the contrast of D's view from the first batches."""
        batches, contrast, found = itertools.islice(self.first_batches(), CALIBRATION_BATCHES), 0.0, []
        for lr, hr in batches:
            base, sr, other = self._draw(0, lr)
            contrast += (hr - base).square().mean().item() / CALIBRATION_BATCHES
            found.append(self._terms(base, sr, other, hr))
        means = {key: parallel.mean(torch.stack([t[key].float() for t in found]).mean()).item() for key in found[0]}
        self.weights.calibrate(self.config, **{"content": 0.0, "pixel": 0.0} | means)
        if self.config.texture:
            contrast = parallel.mean(torch.tensor(contrast)).item()
            self.discriminator.contrast.fill_(CONTRAST / max(math.sqrt(contrast), 1e-6))

    def _schedule(self, k: int) -> float:
        """Set the rates of step k, a function of k alone; returns the factor of the penalty."""
        config, part = self.config, k / self.config.gan_steps
        rate, betas = 1.0 if part < config.gan_lr_drop else 0.1, (0.9, 0.999)
        if config.texture:  # as R3GAN: no momentum, and a memory that grows; warmed up, and down to a fiftieth at the end
            fall = (1 - part) / max(1 - config.gan_lr_drop, 1e-9)
            rate = min(1.0, (k + 1) / min(WARMUP, config.gan_steps / 4), 0.02 + 0.98 * fall)
            betas = (0.0, 0.9 + 0.09 * min(1.0, 2 * part))
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"], group["betas"] = config.gan_lr * rate, betas
        area = (config.gan_crop / 96) ** 2  # D takes the mean over positions, so a pixel's slope falls with their number
        return config.penalty * area * (0.25 + 0.75 * (1 + math.cos(math.pi * min(1.0, part / 0.8))) / 2)

    def _average(self, averaged, current, count) -> None:
        """The running mean of the weights: `ema`, and less in the first steps, which it would otherwise remember."""
        n = count.item()
        torch._foreach_lerp_(averaged, current, 1 - min(self.config.ema, (n + 1) / (n + 10)))

    def released(self) -> torch.nn.Module:
        """The generator that is validated and released: the averaged one, or the last where `ema` is 0."""
        if not self.config.ema:
            return self.generator
        self.averaged.module.train(self.generator.training)
        for own, other in zip(self.averaged.module.buffers(), self.generator.buffers(), strict=True):
            own.copy_(other)
        return self.averaged.module


@parallel.on_every_gpu("srgan")
def train_srgan(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial stage (sections 2.1 and 2.2), from `folder/srresnet.pt`: D and G in turn, one step each.

    `folder/srgan/` gets checkpoint.pt, history.csv and frames/, `folder/srgan.pt` the averaged weights (EMA; the last ones where `ema` is 0), never
    chosen by PSNR, and the factors of the loss terms, given or calibrated. Returns the history, from step 0 on, where only
    what is validated has a value: step, session, seconds; loss and its terms adversarial, content and pixel (weighted, as they enter
    it), each with its share; d_loss, penalty (weighted), d_hr and d_sr (D's mean logits for HR and SR), d_right (the mean probability that D gives
    to the truth); the gradients' norms g_norm and d_norm; of the averaged weights gain_db, consistency_db, stripe_db and band1_db to
    bandN_db. What `diagnostics.warnings` says of it is printed, each warning once.
    """
    folder, device = Path(folder), pick_device(config.device)
    pretrained = load_weights(folder / "srresnet.pt")
    generator = make_generator(config)
    if generator.settings != {"generator": "srresnet"} | pretrained["settings"]:
        raise UserError(f"{folder / 'srresnet.pt'} has another shape than the settings; run notebook 03 again or choose another run_dir")
    generator.load_state_dict(pretrained["weights"])
    all_places = dataclasses.replace(config, crop=config.gan_crop)
    stream = training_pairs(train, all_places, device, config.gan_steps, config.seed + 1)
    extractor = feature_extractor(config.content_features, config.feature_weights)
    game, validation = Game(config, device, generator, extractor, lambda: stream(0)), Validation(val, config, device)

    def finish():
        model = copy.deepcopy(game.released()).eval()
        save_weights(folder / "srgan.pt", model, name="srgan", loss_weights=game.weights.state_dict())

    stage = Stage(
        name="srgan",
        total=config.gan_steps,
        parts=game.parts,
        stream=stream,
        step=game.step,
        validate=lambda: validation(game.released()),
        finish=finish,
        watch=watcher("srgan", folder, validation, diagnostics.warnings, show),
    )
    often = dataclasses.replace(config, validate_every=min(config.validate_every, -(-config.gan_steps // 9)))  # nine times at least
    return run_steps(stage, often, folder, fingerprint)
