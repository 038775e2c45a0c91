"""The adversarial training of the sampler: D compares HR with a sample of the same LR, G's losses hold the mean of two samples at HR.

Its arithmetic differs from Ledig's (`training.adversarial`) in the networks, the losses and the schedules (R3GAN's: Huang et al. 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from ..config import Config
from ..degrade import held_by
from ..device import FASTEST, autocast_dtype, pick_device
from ..models.features import Frozen, feature_extractor
from ..training import parallel
from ..training.adversarial import adversarial_pairs, run_adversarial
from ..training.losses import ADVERSARIAL, CALIBRATION_BATCHES, LossWeights, gradient_penalty, loss_of, penalty_at
from ..training.stage import Average, adam, autocast, placed, pretrained_generator, turn_log, update
from .features import LocalGrain
from .network import Sampler, SamplerDiscriminator, normal_noise

LONGEST = 5.0  # G's gradient is cut to this norm; usual ones are 20 to 100
CONTRAST = 0.5  # standard deviation that HR less the base has for D
WARMUP = 50  # steps


class MeanContentLoss(torch.nn.Module):
    """(f(one) - f(hr)) (f(two) - f(hr)) of two samples of the same LR, mean over channels and positions: over samples it is the squared distance
    between the *mean* feature of SR and HR's, so that speckle texture is not punished for not being HR's. `extractor` as in `ContentLoss`."""

    def __init__(self, extractor: torch.nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, one: torch.Tensor, two: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.extractor(hr).float()
        first = self.extractor(one).float() - target
        return (first * (self.extractor(two).float() - target)).mean()


class SamplerTraining:
    """A head that samples texture from noise, on the frozen `generator`, and its discriminator D, in turn. D sees what lies between the base, the
    projected image of the generator, and HR or a sample.

    `step`, `first_batches`, `extractor` and `parts` as in `training.adversarial.LedigTraining`; None as the extractor: no content loss.
    """

    def __init__(
        self, config: Config, device: torch.device, generator: torch.nn.Module, extractor: torch.nn.Module | None, first_batches: Callable
    ):
        self.config, self.device, self.first_batches = config, device, first_batches
        torch.manual_seed(config.seed + 1)
        self.generator = placed(Sampler(generator, config.texture, held_by(config)), device)
        self.discriminator = placed(SamplerDiscriminator(config.channels, config.d_width), device)
        self.average = Average(self.generator, config.ema)
        self.g_optimizer, self.d_optimizer = (adam(model, config.gan_lr, device) for model in (self.generator, self.discriminator))
        self.weights = LossWeights(config)
        self.content_loss = None if extractor is None else MeanContentLoss(extractor).to(device, memory_format=FASTEST)
        self.adversarial = loss_of(config.adversarial_loss, ADVERSARIAL)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        kept = ("generator", "discriminator", "g_optimizer", "d_optimizer", "scaler", "weights")
        self.parts = {name: getattr(self, name) for name in kept} | {"averaged": self.average}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        if k == 0:
            self._calibrate()
        D, factor = self.discriminator, penalty_at(k, self.config)
        self._set_rates(k)
        base, one, two = self._samples(k, lr)

        # D: HR above a sample, with a small slope at both
        D.requires_grad_(True)
        real, fake = (D.see(image, base).requires_grad_() for image in (hr, one.detach()))
        with autocast(self.device, self.dtype, factor):
            d_hr, d_sr = D(real, base), D(fake, base)
        d_loss = self.adversarial.discriminator(d_hr, d_sr)
        penalty = d_loss.new_zeros(())
        if factor:
            penalty = factor / 2 * (gradient_penalty(d_hr, real) + gradient_penalty(d_sr, fake))
        d_norm = update(d_loss + penalty, D, self.d_optimizer, self.scaler)

        # G: a sample above HR for the D that has just learnt; the mean of samples stays where it is
        D.requires_grad_(False)
        terms = self.weights.times(self._terms(base, one, two, hr))
        g_norm = update(sum(terms.values()), self.generator, self.g_optimizer, self.scaler, LONGEST)
        self.average.update_parameters(self.generator)
        self.scaler.update()
        return turn_log(self.adversarial, terms, g_norm, d_hr, d_sr, d_loss=d_loss, penalty=penalty, d_norm=d_norm)

    def _samples(self, k: int, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(base, a sample, another) of step k, in [0, 1]."""
        with autocast(self.device, self.dtype):
            smooth, *features = self.generator.prepare(lr)
            noises = (self._noise(k, call, smooth.shape) for call in (0, 1))
            images = (smooth, *(smooth + self.generator.head(*features, noise) for noise in noises))
            return tuple(self.generator.project(image, lr, 2).clamp(0, 1) for image in images)

    def _noise(self, k: int, call: int, shape: torch.Size) -> torch.Tensor:
        """This process's part of the joint batch's noise, a function of seed, step and call: a training that is continued needs no other state."""
        joint = normal_noise(((self.config.seed << 32) + k) * 2 + call, self.config.batch, *shape[-2:])
        return joint[parallel.share(self.config.batch)].to(self.device)

    def _terms(self, base: torch.Tensor, one: torch.Tensor, two: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's losses, not weighted."""
        D, terms = self.discriminator, {}
        with autocast(self.device, self.dtype, self.config.penalty):
            with torch.no_grad():
                real = D(D.see(hr, base), base) if self.adversarial.relative else None
            terms["adversarial"] = self.adversarial.generator(D(D.see(one, base), base), real)
        if self.content_loss is not None:
            with autocast(self.device, self.dtype):
                terms["content"] = self.content_loss(one, two, hr)
        if self.config.pixel_weight:
            terms["pixel"] = ((one - hr) * (two - hr)).mean()
        return terms

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Set the factors of the losses and the contrast of D's view from the first batches."""
        terms, contrast = [], 0.0
        for lr, hr in itertools.islice(self.first_batches(), CALIBRATION_BATCHES):
            base, one, two = self._samples(0, lr)
            contrast += (hr - base).square().mean().item() / CALIBRATION_BATCHES
            terms.append(self._terms(base, one, two, hr))
        self.weights.calibrate(self.config, terms)
        contrast = parallel.mean(torch.tensor(contrast)).item()
        self.discriminator.contrast.fill_(CONTRAST / max(math.sqrt(contrast), 1e-6))

    def _set_rates(self, k: int) -> None:
        """As R3GAN: no momentum, and a memory that grows; warmed up, and down to a fiftieth at the end. A function of k alone."""
        config, part = self.config, k / self.config.gan_steps
        fall = (1 - part) / max(1 - config.gan_lr_drop, 1e-9)
        rate = min(1.0, (k + 1) / min(WARMUP, config.gan_steps / 4), 0.02 + 0.98 * fall)
        for group in self.g_optimizer.param_groups + self.d_optimizer.param_groups:
            group["lr"], group["betas"] = config.gan_lr * rate, (0.0, 0.9 + 0.09 * min(1.0, 2 * part))


def train_sampler(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial training of the sampler, on the frozen `folder/srresnet.pt`; arguments, files and history as of
    `training.adversarial.train_srgan`. `content_features` is local-grain, an extractor of `models.features`, or none."""
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("srgan", count, config, folder, show)
    stream = adversarial_pairs(train, config, device)
    training = SamplerTraining(config, device, pretrained_generator(config, folder), content_extractor(config), lambda: stream(0))
    return run_adversarial(training, stream, val, folder, fingerprint, show)


def content_extractor(config: Config) -> torch.nn.Module | None:
    """The extractor of the content loss that the settings ask for, the paper's or the sampler's; UserError where it cannot be had.

    The sampler's may be local-grain, too; for 'none' it has no content loss (None), as its pixel term is there already."""
    if config.texture and config.content_features in ("local-grain", "none"):
        return Frozen(LocalGrain()) if config.content_features == "local-grain" else None
    return feature_extractor(config.content_features, config.feature_weights)
