"""The second stage as Ledig et al. 2017 have it (sections 2.1 and 2.2): discriminator and generator in turn, an update of each in a step."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from ..config import Config, own_part
from ..device import FASTEST, autocast_dtype, pick_device
from ..models import Discriminator
from ..models.features import feature_extractor
from ..trained import save_weights
from . import diagnostics, parallel
from .loop import Stage, run_steps
from .losses import ADVERSARIAL, ContentLoss, LossWeights
from .stage import adam, autocast, placed, pretrained_generator, training_pairs, turn_log, update
from .validation import Validation

CALIBRATION_BATCHES = 4


class LedigTraining:
    """Ledig's SRGAN: the pretrained `generator` G and a discriminator D in turn, on the same batch; `extractor` gives the content loss's features.

    `step(k, lr, hr)` makes one turn on a batch in [0, 1] and returns what is logged (`train_srgan` names it); `first_batches()`: what a calibration
    takes, in step 0. `parts`: what a checkpoint needs."""

    def __init__(
        self, config: Config, device: torch.device, generator: torch.nn.Module, extractor: torch.nn.Module, first_batches: Callable
    ):
        self.config, self.device, self.first_batches = config, device, first_batches
        torch.manual_seed(config.seed + 1)
        self.generator = placed(generator, device)
        self.discriminator = placed(Discriminator(config.channels, config.gan_crop, config.d_width), device)
        self.g_optimizer, self.d_optimizer = (adam(model, config.gan_lr, device) for model in (self.generator, self.discriminator))
        self.weights = LossWeights(content=config.content_weight, adversarial=config.adversarial_weight)
        self.content_loss = ContentLoss(extractor).to(device, memory_format=FASTEST)
        self.adversarial = ADVERSARIAL.get(config.adversarial_loss) or own_part(config.adversarial_loss)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        kept = ("generator", "discriminator", "g_optimizer", "d_optimizer", "scaler", "weights")
        self.parts = {name: getattr(self, name) for name in kept}

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        config, D = self.config, self.discriminator
        if k == 0 and not config.content_weight:
            self._calibrate()
        rate = 1.0 if k / config.gan_steps < config.gan_lr_drop else 0.1  # section 3.2: 1e-4, then 1e-5
        for group in self.g_optimizer.param_groups + self.d_optimizer.param_groups:
            group["lr"] = config.gan_lr * rate
        with autocast(self.device, self.dtype):
            sr = self.generator(lr)

        # D: a high logit for HR, a low one for SR (equation 2)
        D.requires_grad_(True)
        with autocast(self.device, self.dtype):
            d_hr, d_sr = D(2 * hr - 1), D(2 * sr.detach().float() - 1)
        d_loss = self.adversarial.discriminator(d_hr, d_sr)
        d_norm = update(d_loss, D, self.d_optimizer, self.scaler)

        # G: features like HR's, and a high logit from the D that has just learnt (equation 3)
        D.requires_grad_(False)
        terms = self.weights.times(self._terms(sr, hr, d_hr.detach()))
        g_norm = update(sum(terms.values()), self.generator, self.g_optimizer, self.scaler)
        self.scaler.update()
        d = dict(d_loss=d_loss, d_right=(d_hr.sigmoid().mean() + (-d_sr).sigmoid().mean()) / 2, d_norm=d_norm)
        return turn_log(terms, d_hr, d_sr, g_norm=g_norm, **d)

    def _terms(self, sr: torch.Tensor, hr: torch.Tensor, d_hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's losses (equations 5 and 6), not weighted."""
        with autocast(self.device, self.dtype):
            adversarial = self.adversarial.generator(self.discriminator(2 * sr.float() - 1), d_hr)
            return {"content": self.content_loss(sr, hr), "adversarial": adversarial}

    @torch.no_grad()
    def _calibrate(self) -> None:
        terms = []
        for lr, hr in itertools.islice(self.first_batches(), CALIBRATION_BATCHES):
            with autocast(self.device, self.dtype):
                sr, d_hr = self.generator(lr), self.discriminator(2 * hr - 1)
            terms.append(self._terms(sr, hr, d_hr))
        self.weights.calibrate(self.config.adversarial_share, terms)


def train_srgan(config: Config, train, val, folder, fingerprint: str = "") -> pd.DataFrame:
    """The adversarial training of Ledig's SRGAN, from `folder/srresnet.pt`, on crops of the image files `train`, validated on `val`.

    `folder/srgan/` gets checkpoint.pt and history.csv; `folder/srgan.pt` the last weights, as the paper's, never chosen by PSNR,
    and the factors of the loss terms, given or calibrated. Returns the history, from step 0 on, where only what is validated has a value: step, session, seconds; loss and its terms content and adversarial (weighted, as they enter
    it), each with its share; d_loss, d_hr and d_sr (D's mean logits for HR and SR), d_right (the mean probability that D gives
    to the truth); the gradients' norms g_norm and d_norm; gain_db, consistency_db, stripe_db and band1_db to
    bandN_db. What `diagnostics.adversarial_warnings` says of it is printed, each warning once.
    """
    folder, device = Path(folder), pick_device(config.device)
    if count := parallel.processes(config, device):
        return parallel.launch("srgan", count, config, folder)
    stream = training_pairs(train, dataclasses.replace(config, crop=config.gan_crop), device, config.gan_steps, config.seed + 1)
    extractor = feature_extractor(config.content_features, config.feature_weights)
    training = LedigTraining(config, device, pretrained_generator(config, folder), extractor, lambda: stream(0))
    return run_adversarial("srgan", config.gan_steps, training, training.generator, stream, val, folder, fingerprint)


def run_adversarial(
    name: str, total: int, training, generator: torch.nn.Module, stream: Callable, val, folder: Path, fingerprint: str
) -> pd.DataFrame:
    """Run `total` steps of `training`, a `LedigTraining` or one with its attributes; `generator` is validated, and in the end `folder`/`name`.pt."""
    config, validation = training.config, Validation(val, training.config)
    often = dataclasses.replace(config, validate_every=min(config.validate_every, -(-total // 9)))  # nine times at least

    def finish():
        save_weights(folder / f"{name}.pt", copy.deepcopy(generator).eval(), name=name, loss_weights=dict(training.weights))

    stage = Stage(
        name=name,
        total=total,
        parts=training.parts,
        stream=stream,
        step=training.step,
        validate=lambda: validation(generator),
        finish=finish,
        warnings=diagnostics.adversarial_warnings,
    )
    return run_steps(stage, often, folder, fingerprint)
