"""The second stage as Ledig et al. 2017 have it (sections 2.1 and 2.2): discriminator and generator in turn, an update of each in a step."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from ..config import Config
from ..device import FASTEST, autocast_dtype, pick_device
from ..models import Discriminator
from ..models.features import feature_extractor
from ..trained import save_weights
from . import diagnostics, parallel
from .loop import Stage, run_steps
from .losses import ADVERSARIAL, CALIBRATION_BATCHES, ContentLoss, LossWeights, gradient_penalty, loss_of, penalty_at
from .stage import Average, adam, autocast, placed, pretrained_generator, training_pairs, turn_log, update
from .validation import Validation, watcher


class LedigTraining:
    """Ledig's SRGAN: the pretrained `generator` G and a discriminator D in turn, on the same batch; `extractor` gives the content loss's features.

    `step(k, lr, hr)` makes one turn on a batch in [0, 1] and returns what is logged (`train_srgan` names it); `first_batches()`, the
    batches that a calibration takes, is called in step 0. `parts`: what a checkpoint needs. Off in the paper are `penalty`, `pixel_weight`, `ema`,
    the losses on differences of logits, and `content_weight` 0, which is calibrated.
    """

    def __init__(
        self, config: Config, device: torch.device, generator: torch.nn.Module, extractor: torch.nn.Module, first_batches: Callable
    ):
        self.config, self.device, self.first_batches = config, device, first_batches
        torch.manual_seed(config.seed + 1)
        self.generator = placed(generator, device)
        self.discriminator = placed(Discriminator(config.channels, config.gan_crop, config.d_width), device)
        self.average = Average(self.generator, config.ema)
        self.g_optimizer, self.d_optimizer = (adam(model, config.gan_lr, device) for model in (self.generator, self.discriminator))
        self.weights = LossWeights(config)
        self.content_loss = ContentLoss(extractor).to(device, memory_format=FASTEST)
        self.adversarial = loss_of(config.adversarial_loss, ADVERSARIAL)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        kept = ("generator", "discriminator", "g_optimizer", "d_optimizer", "scaler", "weights")
        self.parts = {name: getattr(self, name) for name in kept} | {"averaged": self.average}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        config, D = self.config, self.discriminator
        if k == 0 and (config.pixel_weight or not config.content_weight):
            self._calibrate()
        rate = 1.0 if k / config.gan_steps < config.gan_lr_drop else 0.1  # section 3.2: 1e-4, then 1e-5
        for group in self.g_optimizer.param_groups + self.d_optimizer.param_groups:
            group["lr"] = config.gan_lr * rate
        factor = penalty_at(k, config)
        with autocast(self.device, self.dtype):
            sr = self.generator(lr)

        # D: a high logit for HR, a low one for SR (equation 2)
        D.requires_grad_(True)
        real, fake = ((2 * image.float() - 1).requires_grad_() for image in (hr, sr.detach()))
        with autocast(self.device, self.dtype, factor):
            d_hr, d_sr = D(real), D(fake)
        d_loss = self.adversarial.discriminator(d_hr, d_sr)
        penalty = d_loss.new_zeros(())
        if factor:
            penalty = factor / 2 * (gradient_penalty(d_hr, real) + gradient_penalty(d_sr, fake))
        d_norm = update(d_loss + penalty, D, self.d_optimizer, self.scaler)

        # G: features like HR's, and a high logit from the D that has just learnt (equation 3)
        D.requires_grad_(False)
        terms = self.weights.times(self._terms(sr, hr))
        g_norm = update(sum(terms.values()), self.generator, self.g_optimizer, self.scaler)
        self.average.update_parameters(self.generator)
        self.scaler.update()
        return turn_log(self.adversarial, terms, g_norm, d_hr, d_sr, d_loss=d_loss, penalty=penalty, d_norm=d_norm)

    def _terms(self, sr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's losses (equations 5 and 6), not weighted."""
        with autocast(self.device, self.dtype, self.config.penalty):
            with torch.no_grad():
                real = self.discriminator(2 * hr - 1) if self.adversarial.relative else None
            adversarial = self.adversarial.generator(self.discriminator(2 * sr.float() - 1), real)
        with autocast(self.device, self.dtype):
            terms = {"adversarial": adversarial, "content": self.content_loss(sr, hr)}
        return terms | ({"pixel": (sr - hr).square().mean()} if self.config.pixel_weight else {})

    @torch.no_grad()
    def _calibrate(self) -> None:
        terms = []
        for lr, hr in itertools.islice(self.first_batches(), CALIBRATION_BATCHES):
            with autocast(self.device, self.dtype):
                sr = self.generator(lr)
            terms.append(self._terms(sr, hr))
        self.weights.calibrate(self.config, terms)


def train_srgan(config: Config, train, val, folder, fingerprint: str = "", show=lambda history: None) -> pd.DataFrame:
    """The adversarial training of Ledig's SRGAN, from `folder/srresnet.pt`, on crops of the image files `train`, validated on `val`.

    `folder/srgan/` gets checkpoint.pt, history.csv and frames/, `folder/srgan.pt` the last weights (with `ema` the averaged ones), never
    chosen by PSNR, and the factors of the loss terms, given or calibrated. Returns the history, from step 0 on, where only
    what is validated has a value: step, session, seconds; loss and its terms adversarial, content and pixel (weighted, as they enter
    it), each with its share; d_loss, penalty (weighted), d_hr and d_sr (D's mean logits for HR and SR), d_right (the mean probability that D gives
    to the truth); the gradients' norms g_norm and d_norm; of the released weights gain_db, consistency_db, stripe_db and band1_db to
    bandN_db. What `diagnostics.adversarial_warnings` says of it is printed, each warning once.
    """
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("srgan", count, config, folder, show)
    stream = adversarial_pairs(train, config, device)
    extractor = feature_extractor(config.content_features, config.feature_weights)
    training = LedigTraining(config, device, pretrained_generator(config, folder), extractor, lambda: stream(0))
    return run_adversarial(training, stream, val, folder, fingerprint, show)


def adversarial_pairs(train, config: Config, device: torch.device):
    """`stage.training_pairs` of the adversarial training: its own crops, drawn with its own seed."""
    return training_pairs(train, dataclasses.replace(config, crop=config.gan_crop), device, config.gan_steps, config.seed + 1)


def run_adversarial(training, stream: Callable, val, folder: Path, fingerprint: str, show: Callable) -> pd.DataFrame:
    """Run the steps of `training`, a `LedigTraining` or one with its attributes, and write what `train_srgan` says."""
    config, validation = training.config, Validation(val, training.config, training.device)

    def finish():
        model = copy.deepcopy(training.average.released(training.generator)).eval()
        save_weights(folder / "srgan.pt", model, name="srgan", loss_weights=training.weights.state_dict())

    stage = Stage(
        name="srgan",
        total=config.gan_steps,
        parts=training.parts,
        stream=stream,
        step=training.step,
        validate=lambda: validation(training.average.released(training.generator)),
        finish=finish,
        watch=watcher("srgan", folder, validation, diagnostics.adversarial_warnings, show),
    )
    often = dataclasses.replace(config, validate_every=min(config.validate_every, -(-config.gan_steps // 9)))  # nine times at least
    return run_steps(stage, often, folder, fingerprint)
