"""The perceptual loss of Ledig et al. 2017, section 2.2: content loss on features, adversarial loss on logits; and pretraining's losses.

A new loss is a function (or two) and a line in PRETRAIN or ADVERSARIAL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .degrade import KINDS


class ContentLoss(nn.Module):
    """Mean squared error between features of SR and HR (equation 5), mean over channels and positions.

    `extractor` takes (N, C, H, W) in [0, 1] and returns one feature map; it must be frozen (`features.feature_extractor`).
    The gradient reaches `sr` through it; `hr` needs none. The features follow the autocast, their difference is taken in float32.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.extractor(hr)
        return F.mse_loss(self.extractor(sr).float(), target.float())


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


def grid_loss(detail: torch.Tensor, scale: int) -> torch.Tensor:
    """How much the mean of `detail` (N, C, H, W) depends on the position within an LR pixel: the variance over the scale x scale
    positions. 0 without a grid. Give SR less bicubic, whose other detail averages out over a batch."""
    means = F.pixel_unshuffle(detail.flatten(0, 1)[:, None], scale).mean((0, 2, 3))
    return means.var(correction=0)


def lr_loss(sr: torch.Tensor, lr: torch.Tensor, scale: int, kind: str = "bicubic", amount: float = 0.0) -> torch.Tensor:
    """MSE on [-1, 1] between SR brought down again and LR, both in [0, 1]. SR's is not rounded to 8 bit, as that has no gradient; for
    the same reason bicubic stands in for bicubic-matlab, which rounds between its two passes."""
    again = KINDS["bicubic" if kind == "bicubic-matlab" else kind](sr, scale, amount)
    return F.mse_loss(2 * again, 2 * lr)


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
    """A game's two losses on logits (N, 1). `relative`: only the difference of HR's and SR's logits counts, so that the generator's loss
    gets HR's logits, too; otherwise it gets None in their place."""

    generator: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]  # of sr_logits, hr_logits
    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of hr_logits, sr_logits
    relative: bool = False


ADVERSARIAL: dict[str, Adversarial] = {
    "standard": Adversarial(adversarial_loss, discriminator_loss),
    "relativistic": Adversarial(adversarial_loss, partial(discriminator_loss, relativistic=True), relative=True),
}
