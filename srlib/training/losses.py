"""The perceptual loss of Ledig et al. 2017, section 2.2: content loss on features, adversarial loss on logits; and pretraining's losses.

A loss of your own is MODULE:NAME in the settings `pretrain_loss` (a function of sr, hr in [0, 1]) or `adversarial_loss` (an `Adversarial`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..config import Config, UserError, own_part
from . import parallel

CALIBRATION_BATCHES = 4


class ContentLoss(nn.Module):
    """Squared distance between features of SR and HR (equation 5), mean over channels and positions.

    `extractor` takes (N, C, H, W) in [0, 1] and returns one feature map; it must be frozen (`features.feature_extractor`).
    The gradient reaches SR through it; `hr` needs none. The features follow the autocast, their difference is taken in float32.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.extractor(hr).float()
        return (self.extractor(sr).float() - target).square().mean()


def adversarial_loss(sr_logits: torch.Tensor, hr_logits: torch.Tensor | None = None) -> torch.Tensor:
    """-log D(G(lr)) (equation 6), mean over the batch; `sr_logits` are D's outputs before the sigmoid.

    With `hr_logits` the relativistic average loss (Jolicoeur-Martineau 2018, as in ESRGAN): D's loss with the roles exchanged, halved
    so that both forms are log 2 where D cannot tell.
    """
    if hr_logits is None:
        return F.softplus(-sr_logits).mean()
    return discriminator_loss(sr_logits, hr_logits, relativistic=True) / 2


def discriminator_loss(hr_logits: torch.Tensor, sr_logits: torch.Tensor, relativistic: bool = False) -> torch.Tensor:
    """-log D(hr) - log(1 - D(G(lr))) (equation 2), mean over the batch; `relativistic`: each logit less the mean of the other side's."""
    if relativistic:
        hr_logits, sr_logits = hr_logits - sr_logits.mean(), sr_logits - hr_logits.mean()
    return F.softplus(-hr_logits).mean() + F.softplus(sr_logits).mean()


def pairing_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """-log of the probability that `real` is more real than `fake`, each logit beside that of its own LR (RpGAN, as in R3GAN, Huang et al. 2024);
    mean over the batch. The generator's is the same with the two exchanged."""
    return F.softplus(fake - real).mean()


def gradient_penalty(logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The squared norm of D's gradient with respect to its `inputs` (N, C, H, W), mean over the batch (R1 on HR, R2 on SR: Mescheder et al. 2018).
    It has a gradient of its own, for D's weights."""
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return slope.float().square().sum((1, 2, 3)).mean()


def psnr_loss(sr: torch.Tensor, hr: torch.Tensor, floor: float = 2.5e-6) -> torch.Tensor:
    """Minus the mean PSNR (dB) of a batch (N, C, H, W) in [0, 1]: 10 log10 of each image's MSE, then the mean. `floor` is added to
    the MSE (56 dB), so that an image without error, such as a crop of fill, has no endless gradient."""
    return 10 * (F.mse_loss(sr, hr, reduction="none").mean((1, 2, 3)) + floor).log10().mean()


PRETRAIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {  # of sr, hr in [0, 1]
    "mse": lambda sr, hr: F.mse_loss(2 * sr - 1, 2 * hr - 1),
    "l1": lambda sr, hr: F.l1_loss(2 * sr - 1, 2 * hr - 1),
    "psnr": psnr_loss,
}


class Adversarial(NamedTuple):
    """The two adversarial losses, on logits (N, 1). `relative`: only the difference of HR's and SR's logits counts, so that the generator's loss
    gets HR's logits, too; otherwise it gets None in their place."""

    generator: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]  # of sr_logits, hr_logits
    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of hr_logits, sr_logits
    relative: bool = False

    def right(self, hr_logits: torch.Tensor, sr_logits: torch.Tensor) -> torch.Tensor:
        """The mean probability that D gives to the truth; 0.5 is guessing."""
        if self.relative:
            return (hr_logits - sr_logits).sigmoid().mean()
        return ((hr_logits.sigmoid() + (-sr_logits).sigmoid()) / 2).mean()


ADVERSARIAL: dict[str, Adversarial] = {
    "standard": Adversarial(adversarial_loss, discriminator_loss),
    "relativistic": Adversarial(adversarial_loss, partial(discriminator_loss, relativistic=True), relative=True),
    "pairing": Adversarial(pairing_loss, pairing_loss, relative=True),
}


def loss_of(name: str, known: dict):
    """The loss that a setting names: one of PRETRAIN or ADVERSARIAL (`known`), or one's own."""
    return known[name] if name in known else own_part(name)


def penalty_at(k: int, config: Config) -> float:
    """The factor of D's gradient penalty in step k: `penalty` for crops of 96, falling by a cosine to a quarter over 80 % of the steps."""
    part = min(1.0, k / config.gan_steps / 0.8)
    area = (config.gan_crop / 96) ** 2  # D takes the mean over positions, so a pixel's slope falls with their number
    return config.penalty * area * (0.25 + 0.75 * (1 + math.cos(math.pi * part)) / 2)


class LossWeights:
    """The factors of the loss terms: given by the settings, or calibrated on the first batches. A part of the checkpoint, so that a
    calibration is made once."""

    def __init__(self, config: Config):
        self.adversarial, self.content, self.pixel = config.adversarial_weight, config.content_weight, 0.0

    def times(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The terms, weighted."""
        return {name: getattr(self, name) * value for name, value in terms.items()}

    def calibrate(self, config: Config, terms: list[dict[str, torch.Tensor]]) -> None:
        """From the terms of some batches before the first step: the content weight, where the settings leave it open, so that the adversarial
        term has its stated share beside it; the pixel weight, so that its term starts at `pixel_weight`. Raises UserError for an adversarial
        loss that has no size to go by."""
        means = {key: parallel.mean(torch.stack([t[key].float() for t in terms]).mean()).item() for key in terms[0]}
        if not config.content_weight and means.get("content"):
            if not means["adversarial"] > 0:
                raise UserError(
                    f"adversarial_loss={config.adversarial_loss!r} is {means['adversarial']:.3g} at the start, so content_weight=0 cannot be "
                    "calibrated; set it"
                )
            self.content = self.adversarial * means["adversarial"] * (1 / config.adversarial_share - 1) / means["content"]
        self.pixel = config.pixel_weight / max(means.get("pixel", 0.0), 1e-12)

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)
