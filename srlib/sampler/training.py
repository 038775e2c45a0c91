"""The adversarial training of the sampler: D compares HR with a sample of the same LR, G's losses hold the mean of two samples at HR.

Its arithmetic differs from Ledig's (`training.adversarial`) in the networks, the losses and the schedules (R3GAN's: Huang et al. 2024)."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from ..config import Config
from ..degrade import held_by
from ..device import autocast_dtype, pick_device
from ..models.features import Frozen
from ..training import parallel
from ..training.adversarial import CALIBRATION_BATCHES, run_adversarial
from ..training.losses import ContentLoss, LossWeights
from ..training.stage import adam, autocast, placed, pretrained_generator, training_pairs, turn_log, update
from .features import LocalGrain
from .network import Sampler, SamplerDiscriminator, normal_noise, scan_statistics

SHARE = 0.05  # of the adversarial term beside the content loss, at the start
PIXEL = 1.0  # the pixel term at the start
DRIFT = 1e-3  # factor of D's mean logit, squared (Karras et al. 2018): only differences of logits count, so nothing else holds it
EMA = 0.998  # decay of the averaged weights
LONGEST = 5.0  # G's gradient is cut to this norm; usual ones are 20 to 100
CONTRAST = 0.5  # standard deviation that HR less the base has for D
WARMUP = 50  # steps
FALLS = 0.67  # share of the steps after which the rate falls


def pairing_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """-log of the probability that `real` is more real than `fake`, each logit beside that of its own LR (RpGAN, as in R3GAN, Huang et al. 2024);
    mean over the batch. The generator's is the same with the two exchanged."""
    return F.softplus(fake - real).mean()


def gradient_penalty(logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The squared norm of D's gradient with respect to its `inputs` (N, C, H, W), mean over the batch (R1 on HR, R2 on SR: Mescheder et al. 2018).
    It has a gradient of its own, for D's weights."""
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return slope.float().square().sum((1, 2, 3)).mean()


def penalty_at(k: int, config: Config) -> float:
    """The factor of D's gradient penalty in step k: `sampler_penalty` for crops of 96, falling by a cosine to a quarter over 80 % of the steps."""
    part = min(1.0, k / config.sampler_steps / 0.8)
    area = (config.sampler_crop / 96) ** 2  # D takes the mean over positions, so a pixel's slope falls with their number
    return config.sampler_penalty * area * (0.25 + 0.75 * (1 + math.cos(math.pi * part)) / 2)


class MeanContentLoss(ContentLoss):
    """(f(one) - f(hr)) (f(two) - f(hr)) of two samples of the same LR, mean over channels and positions: over samples it is the squared distance
    between the *mean* feature of SR and HR's, so that speckle texture is not punished for not being HR's."""

    def forward(self, one: torch.Tensor, two: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.extractor(hr).float()
        first = self.extractor(one).float() - target
        return (first * (self.extractor(two).float() - target)).mean()


class SamplerTraining:
    """A head that samples texture from noise, on the frozen `generator`, and its discriminator D, in turn. D sees what lies between the base, the
    projected image of the generator, and HR or a sample.

    `step` (`scan`: `scan_statistics`), `first_batches`, `parts` as in `LedigTraining`. `averaged`: the sampler with averaged weights, which is released.
    """

    def __init__(self, config: Config, device: torch.device, generator: torch.nn.Module, first_batches: Callable):
        self.config, self.device, self.first_batches = config, device, first_batches
        torch.manual_seed(config.seed + 1)
        self.generator = placed(Sampler(generator, config.sampler_width, held_by(config)), device)
        self.discriminator = placed(SamplerDiscriminator(config.channels, config.sampler_d_width), device)
        self.averaged = copy.deepcopy(self.generator)
        self.g_optimizer, self.d_optimizer = (adam(model, config.sampler_lr, device) for model in (self.generator, self.discriminator))
        self.weights = LossWeights(adversarial=1.0, content=0.0, pixel=0.0)
        self.content_loss = MeanContentLoss(Frozen(LocalGrain())).to(device)
        self.dtype = autocast_dtype(config.precision, device)
        # D and its penalty, whose squares leave float16's range
        self.d_dtype = None if config.sampler_penalty and self.dtype is torch.float16 else self.dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        kept = ("generator", "discriminator", "g_optimizer", "d_optimizer", "scaler", "weights", "averaged")
        self.parts = {name: getattr(self, name) for name in kept}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor, scan: torch.Tensor) -> dict[str, torch.Tensor]:
        if k == 0:
            self._calibrate()
        D, factor = self.discriminator, penalty_at(k, self.config)
        self._set_rates(k)
        base, one, two = self._samples(k, lr, scan)

        # D: HR above a sample, with a small slope at both, and its mean logit near 0
        D.requires_grad_(True)
        real, fake = (D.see(image, base).requires_grad_() for image in (hr, one.detach()))
        with autocast(self.device, self.d_dtype):
            d_hr, d_sr = D(real, base), D(fake, base)
        d_loss = pairing_loss(d_hr, d_sr)
        drift = DRIFT * (d_hr.mean() + d_sr.mean()).square() / 4
        penalty = d_loss.new_zeros(())
        if factor:
            penalty = factor / 2 * (gradient_penalty(d_hr, real) + gradient_penalty(d_sr, fake))
        d_norm = update(d_loss + penalty + drift, D, self.d_optimizer, self.scaler)

        # G: a sample above HR for the D that has just learnt; the mean of samples stays where it is
        D.requires_grad_(False)
        terms = self.weights.times(self._terms(base, one, two, hr))
        g_norm = update(sum(terms.values()), self.generator, self.g_optimizer, self.scaler, LONGEST)
        self._average(k)
        self.scaler.update()
        d = dict(d_loss=d_loss, penalty=penalty, d_right=(d_hr - d_sr).sigmoid().mean(), d_norm=d_norm)
        return turn_log(terms, d_hr, d_sr, g_norm=g_norm, **d)

    @torch.no_grad()
    def _average(self, k: int) -> None:
        """The running mean of weights, its decay smaller in the first steps, which it would otherwise remember. (torch's AveragedModel waits for the GPU.)"""
        pair = [[*model.parameters()] for model in (self.averaged, self.generator)]
        torch._foreach_lerp_(*pair, 1 - min(EMA, (k + 1) / (k + 10)) if k else 1.0)

    def _samples(self, k: int, lr: torch.Tensor, scan: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(base, a sample, another) of step k, in [0, 1]."""
        with autocast(self.device, self.dtype):
            smooth, *features = self.generator.prepare(lr, scan)
            noises = (self._noise(k, call, smooth.shape) for call in (0, 1))
            images = (smooth, *(smooth + self.generator.head(*features, noise) for noise in noises))
            return tuple(self.generator.project(image, lr, 2).clamp(0, 1) for image in images)

    def _noise(self, k: int, call: int, shape: torch.Size) -> torch.Tensor:
        """This process's part of the joint batch's noise, a function of seed, step and call: a training that is continued needs no other state."""
        joint = normal_noise(((self.config.seed << 32) + k) * 2 + call, self.config.batch, *shape[-2:])
        part = joint[parallel.share(self.config.batch)]
        return (part.pin_memory() if self.device.type == "cuda" else part).to(self.device, non_blocking=True)

    def _terms(self, base: torch.Tensor, one: torch.Tensor, two: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's losses, not weighted."""
        D, terms = self.discriminator, {}
        with autocast(self.device, self.d_dtype):
            with torch.no_grad():
                real = D(D.see(hr, base), base)
            terms["adversarial"] = pairing_loss(D(D.see(one, base), base), real)
        with autocast(self.device, self.dtype):
            terms["content"] = self.content_loss(one, two, hr)
        return terms | {"pixel": ((one - hr) * (two - hr)).mean()}

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Set what is usual in scans, the factors of the losses and the contrast of D's view from the first batches."""
        terms, contrast, batches = [], 0.0, list(itertools.islice(self.first_batches(), CALIBRATION_BATCHES))
        scans = torch.cat([scan for *_, scan in batches]).cpu().double()
        mean, square = parallel.mean(torch.stack([scans.mean(0), scans.square().mean(0)]))
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        for sampler in (self.generator, self.averaged):
            sampler.usual.copy_(torch.stack([mean, torch.where(deviation > 1e-3, 1 / deviation, 0)]))
        for lr, hr, scan in batches:
            base, one, two = self._samples(0, lr, scan)
            contrast += (hr - base).square().mean().item() / CALIBRATION_BATCHES
            terms.append(self._terms(base, one, two, hr))
        self.weights["pixel"] = PIXEL / max(self.weights.calibrate(SHARE, terms)["pixel"], 1e-12)
        contrast = parallel.mean(torch.tensor(contrast)).item()
        self.discriminator.contrast.fill_(CONTRAST / max(math.sqrt(contrast), 1e-6))

    def _set_rates(self, k: int) -> None:
        """As R3GAN: no momentum, and a memory that grows; warmed up, and down to a fiftieth at the end. A function of k alone."""
        steps, part = self.config.sampler_steps, k / self.config.sampler_steps
        rate = min(1.0, (k + 1) / min(WARMUP, steps / 4), 0.02 + 0.98 * (1 - part) / (1 - FALLS))
        for group in self.g_optimizer.param_groups + self.d_optimizer.param_groups:
            group["lr"], group["betas"] = self.config.sampler_lr * rate, (0.0, 0.9 + 0.09 * min(1.0, 2 * part))


def train_sampler(config: Config, train, val, folder, fingerprint: str = "") -> pd.DataFrame:
    """The adversarial training of the sampler, on the frozen `folder/srresnet.pt`, on crops of the image files `train`, validated on `val`.

    `folder/sampler/` gets checkpoint.pt and history.csv, `folder/sampler.pt` the averaged weights. Returns the history, as of
    `training.adversarial.train_srgan`, with the term pixel, and penalty (weighted), D's."""
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("sampler", count, config, folder)
    crops = dataclasses.replace(config, crop=config.sampler_crop)
    stream = training_pairs(train, crops, device, config.sampler_steps, config.seed + 1, scan_statistics)
    training = SamplerTraining(config, device, pretrained_generator(config, folder), lambda: stream(0))
    return run_adversarial("sampler", config.sampler_steps, training, training.averaged, stream, val, folder, fingerprint)
