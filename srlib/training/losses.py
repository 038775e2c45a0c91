"""The perceptual loss of Ledig et al. 2017, section 2.2: content loss on features, adversarial loss on logits; and pretraining's losses.

A loss of your own is MODULE:NAME in the settings `pretrain_loss` (a function of sr, hr in [0, 1]) or `adversarial_loss` (an `Adversarial`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..config import UserError
from . import parallel


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


def adversarial_loss(sr_logits: torch.Tensor) -> torch.Tensor:
    """-log D(G(lr)) (equation 6), mean over the batch; `sr_logits` are D's outputs before the sigmoid."""
    return F.softplus(-sr_logits).mean()


def discriminator_loss(hr_logits: torch.Tensor, sr_logits: torch.Tensor) -> torch.Tensor:
    """-log D(hr) - log(1 - D(G(lr))) (equation 2), mean over the batch."""
    return F.softplus(-hr_logits).mean() + F.softplus(sr_logits).mean()


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
    """The two adversarial losses, on logits (N, 1)."""

    generator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of sr_logits, hr_logits (those that D's own loss was taken of)
    discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of hr_logits, sr_logits


ADVERSARIAL: dict[str, Adversarial] = {"standard": Adversarial(lambda sr, hr: adversarial_loss(sr), discriminator_loss)}


class LossWeights(dict):
    """The factors of a generator's loss terms, by name; as a part of the checkpoint, so that a calibration is made once."""

    def times(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The terms, weighted."""
        return {name: self[name] * value for name, value in terms.items()}

    def calibrate(self, share: float, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Set the content loss's factor from the terms of some batches, so that the adversarial term has its `share` beside it; returns the terms'
        means. Raises UserError for an adversarial loss that has no size to go by."""
        means = {name: parallel.mean(torch.stack([t[name].float() for t in batches]).mean()).item() for name in batches[0]}
        if means.get("content"):
            if not means["adversarial"] > 0:
                raise UserError(
                    f"the adversarial loss is {means['adversarial']:.3g} at the start, so no share can be set; set content_weight"
                )
            self["content"] = self["adversarial"] * means["adversarial"] * (1 / share - 1) / means["content"]
        return means

    def state_dict(self):
        return dict(self)

    def load_state_dict(self, state):
        self.update(state)
