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


class ContentLoss(nn.Module):
    """Squared distance between features of SR and HR (equation 5), mean over channels and positions.

    `extractor` takes (N, C, H, W) in [0, 1] and returns one feature map; it must be frozen (`features.feature_extractor`).
    The gradient reaches SR through it; `hr` needs none. The features follow the autocast, their difference is taken in float32.

    With `other`, a second draw of the same LR, (f(sr) - f(hr)) (f(other) - f(hr)): its mean over draws is the squared distance between the *mean*
    feature of SR and HR's, so that grain is not punished for not being HR's grain. Of a generator without chance both draws are one image, and
    this is the paper's loss.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor

    def forward(self, sr: torch.Tensor, hr: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            target = self.extractor(hr).float()
        first = self.extractor(sr).float() - target
        return (first * (first if other is None else self.extractor(other).float() - target)).mean()


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
    """A game's two losses on logits (N, 1). `relative`: only the difference of HR's and SR's logits counts, so that the generator's loss
    gets HR's logits, too; otherwise it gets None in their place."""

    generator: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]  # of sr_logits, hr_logits
    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of hr_logits, sr_logits
    relative: bool = False


ADVERSARIAL: dict[str, Adversarial] = {
    "standard": Adversarial(adversarial_loss, discriminator_loss),
    "relativistic": Adversarial(adversarial_loss, partial(discriminator_loss, relativistic=True), relative=True),
    "pairing": Adversarial(pairing_loss, pairing_loss, relative=True),
}
