"""The two networks of Ledig et al. 2017 (figure 4).

A generator of your own, the setting `generator` = MODULE:CLASS, takes (N, C, h, w) in [0, 1] and gives (N, C, scale * h, scale * w); its
constructor takes what `Generator`'s takes. It can be the base of the sampler, too.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..config import own_part
from ..degrade import SCALES, upsample


class RowConv2d(nn.Conv2d):
    """A convolution with few output channels, as the generator's last, computed row by row of its kernel: the rows become output
    channels of a 1 x k convolution and are added with their shifts. The same sums, four times as fast on a CPU, whose kernels
    leave most of a vector idle at one output channel. Odd k, stride 1, zero padding of k // 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, channels, k, _ = self.weight.shape
        rows = self.weight.transpose(1, 2).reshape(out * k, channels, 1, k)
        z = F.pad(F.conv2d(x, rows, padding=(0, k // 2)), (0, 0, k // 2, k // 2))
        shifted = [z[:, d::k, d : d + x.shape[2]] for d in range(k)]
        return torch.stack(shifted).sum(0) + self.bias.view(1, -1, 1, 1)


class ResidualBlock(nn.Module):
    """k3 conv, BN, PReLU, k3 conv, BN, elementwise sum. `batch_norm=False` leaves the BN out and starts as the identity (a departure)."""

    def __init__(self, width: int, batch_norm: bool = True):
        super().__init__()
        bn = (lambda: nn.BatchNorm2d(width)) if batch_norm else nn.Identity
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), bn(), nn.PReLU(), nn.Conv2d(width, width, 3, padding=1), bn())
        if not batch_norm:  # nothing else keeps the sum of many blocks in bounds at the start
            nn.init.zeros_(self.body[3].weight)
            nn.init.zeros_(self.body[3].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Generator(nn.Module):
    """SRResNet: LR (N, C, h, w) in [0, 1] to SR (N, C, scale * h, scale * w), on the [0, 1] scale, not clamped.

    Inside, the paper's ranges: LR in [0, 1] enters, the last convolution gives SR in [-1, 1] (linear, no tanh), which is
    mapped to [0, 1] on the way out. Scale 4 has two x2 PixelShuffle stages, scale 8 three, scale 3 a single x3 stage.

    Departures from the paper, off by default: `global_skip` adds the bicubic image to the output (at initialisation the
    output *is* bicubic); `batch_norm=False`; `smooth=True` averages each 2 x 2 neighbourhood after every PixelShuffle, which
    removes the checkerboard that sub-pixel convolution can leave (Sugawara et al. 2018, arXiv 1806.02658).
    """

    def __init__(
        self,
        scale: int = 4,
        channels: int = 1,
        width: int = 64,
        blocks: int = 16,
        global_skip: bool = False,
        batch_norm: bool = True,
        smooth: bool = False,
    ):
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, not {scale}")
        self.settings = {
            "scale": scale,
            "channels": channels,
            "width": width,
            "blocks": blocks,
            "global_skip": global_skip,
            "batch_norm": batch_norm,
            "smooth": smooth,
        }
        self.head = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(width, batch_norm) for _ in range(blocks)))
        self.join = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width) if batch_norm else nn.Identity())
        stages = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
        self.upscale = nn.Sequential(*(upscale_stage(width, r, smooth) for r in stages))
        self.tail = RowConv2d(width, channels, 9, padding=4)
        if global_skip:
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.with_maps(lr)[0]

    def with_maps(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(SR, the `width` maps at SR's size that its last convolution is taken of)."""
        x = self.head(lr)
        x = self.upscale(x + self.join(self.blocks(x)))
        with torch.autocast(x.device.type, enabled=False):  # 8-bit output needs more than bfloat16's 8 bits
            y = self.tail(x.float())
            if self.settings["global_skip"]:
                return upsample(lr, self.settings["scale"]) + y / 2, x
            return (y + 1) / 2, x


def build(settings: dict) -> nn.Module:
    """The generator that `settings` describe: `generator` (srresnet, also where it is left out, or MODULE:CLASS) and the constructor's
    arguments. They become its attribute `settings`, which is saved with its weights. UserError for a class that cannot be loaded."""
    arguments = {"generator": "srresnet"} | settings
    name = arguments["generator"]
    network = (Generator if name == "srresnet" else own_part(name))(**{k: v for k, v in arguments.items() if k != "generator"})
    network.settings = arguments
    return network


def upscale_stage(width: int, factor: int, smooth: bool) -> nn.Sequential:
    """`width` maps to `width` maps of `factor` times the size: k3 convolution, PixelShuffle, with `smooth` a mean of factor x factor, PReLU."""
    layers = [nn.Conv2d(width, width * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    if smooth:
        layers += [nn.ReplicationPad2d((0, factor - 1, 0, factor - 1)), nn.AvgPool2d(factor, stride=1)]
    return nn.Sequential(*layers, nn.PReLU())


class Discriminator(nn.Module):
    """Eight k3 convolutions, `width` to 8 x `width` channels, strides 1, 2, 1, 2, ..., LeakyReLU 0.2, BN in all but the first,
    then dense 16 x `width` (1024) and dense 1. Takes (N, C, crop, crop) in [-1, 1]; returns logits (N, 1), no sigmoid.
    """

    def __init__(self, channels: int = 1, crop: int = 96, width: int = 64):
        super().__init__()
        if crop % 16:
            raise ValueError(f"crop must be a multiple of 16 (four strides of 2), not {crop}")
        layers: list[nn.Module] = []
        before = channels
        for k, out in enumerate(width * m for m in (1, 1, 2, 2, 4, 4, 8, 8)):
            layers.append(nn.Conv2d(before, out, 3, stride=1 + k % 2, padding=1, bias=k == 0))
            if k:
                layers.append(nn.BatchNorm2d(out))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            before = out
        self.features = nn.Sequential(*layers)
        self.classify = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * (crop // 16) ** 2, 16 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(16 * width, 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image)).float()
