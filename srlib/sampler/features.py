"""The features of the sampler's content loss: local statistics of speckle texture, without weights."""

import torch
import torch.nn.functional as F
from torch import nn

from ..models.features import IMAGENET_STD


class LocalGrain(nn.Module):
    """Local statistics of speckle texture: its logarithmic power spectrum, skewness and kurtosis, and nothing of where each grain lies.

    (N, 3, H, W) to (N, 37, about H / 8, W / 8), of the mean of the channels, in windows of 16 pixels, 8 apart. The first 33 maps are the logarithm
    of the mean power of each wave of an 8 x 8 Fourier transform (33 frequencies and directions, all but the mean). The last four are skewness and
    the logarithm of the fourth moment over the squared second, of the image less its mean over 5 x 5 pixels, of the image and of one of half
    its size; times WEIGHT, so that four maps count beside 33. A floor of half a grey level hides the rounding to 8 bit.
    """

    FLOOR = (0.5 / 255) ** 2
    WEIGHT = 3.0

    def __init__(self):
        super().__init__()
        half = [(u, v) for v in range(5) for u in range(-3, 5) if (v or u > 0) and (v < 4 or u >= 0)]  # the rest are their mirror images
        y, x = torch.arange(8.0)[:, None], torch.arange(8.0)
        window = torch.sin(torch.pi * (y + 0.5) / 8) * torch.sin(torch.pi * (x + 0.5) / 8)
        phase = torch.stack([2 * torch.pi * (u * x + v * y) / 8 for u, v in half])
        waves = torch.cat([phase.cos(), phase.sin()])
        waves = window * (waves - (window * waves).sum((1, 2), keepdim=True) / window.sum()) / window.norm()  # blind to brightness
        # back to [0, 1], but for a constant; mean of channels
        self.register_buffer("to_grey", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) / 3)
        self.register_buffer("waves", waves[:, None] * self.to_grey)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            power = F.conv2d(image.float(), self.waves, stride=2).square().unflatten(1, (2, 33)).sum(1)
            power = (F.avg_pool2d(power, min(8, *power.shape[-2:]), 4) + self.FLOOR).log()
            grey = (image.float() * self.to_grey).sum(1, keepdim=True)
            moments = [m for x, side in ((grey, 16), (F.avg_pool2d(grey, 2), 8)) for m in self._moments(x, side)]
            return torch.cat([power, *(self.WEIGHT * F.interpolate(m, size=power.shape[-2:]) for m in moments)], 1)

    def _moments(self, grey: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        detail, side = grey - F.avg_pool2d(grey, 5, 1, 2, count_include_pad=False), min(side, *grey.shape[-2:])
        second, third, fourth = (F.avg_pool2d(detail**k, side, side // 2) for k in (2, 3, 4))
        second, fourth = second + 9 * self.FLOOR, fourth + 81 * self.FLOOR**2
        return third / second**1.5, fourth.log() - 2 * second.log()
