"""The networks of the sampler: SRResNet with a head that gets noise, and the discriminator that judges it.

Ledig's generator is a function of LR. LR does not say where each grain of speckle lies, so such a function can only blur it, or carve one
pattern for all. Here SR = project(SRResNet(lr) + texture(maps, noise), lr): other noise is another sample, and every sample reduces to LR.
Per-pixel noise: Karras et al. 2019 (arXiv 1812.04948, 3.2). Why a restorer must be random: Ohayon et al. 2023 (arXiv 2211.08944).
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..degrade import project
from ..models.networks import RowConv2d

NOISES = 4  # noise maps that a sample takes: one before each convolution of the head but the first
ROUNDS = 8  # of clamping and projecting, which bring data consistency of whole scans from 45 to 60 dB and more


def normal_noise(seed: int, images: int, height: int, width: int) -> torch.Tensor:
    """The noise of `images` samples of (height, width) pixels: (images, NOISES, height, width), normal, a function of these numbers on every machine."""
    if seed >= 1 << 32:  # torch's generator on the CPU looks at the last 32 bits alone
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.randn(images, NOISES, height, width, generator=torch.Generator().manual_seed(seed))


class Noise(nn.Module):
    """Adds one noise map (N, 1, H, W) to each of `width` maps, with a learnt strength for each."""

    def __init__(self, width: int):
        super().__init__()
        self.strength = nn.Parameter(0.5 * torch.randn(1, width, 1, 1))

    def forward(self, maps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return maps + self.strength.to(maps.dtype) * noise.to(maps.dtype)


class TextureHead(nn.Module):
    """Maps (N, `inputs`, H, W), clues (N, `clues`, h, w) at LR's size and noise (N, NOISES, H, W) to a texture (N, C, H, W) on the [0, 1] scale.

    Two k3 convolutions look at the clues; what they see joins the maps. Then a k1 convolution to `width` maps, three k3, one k5, noise before
    each but the first, LeakyReLU 0.2. Their last sum is of many small parts, so nearly Gaussian; speckle on a logarithmic display is not. So a
    small k1 network of the same maps says for each pixel how strong the texture is, how skewed and how heavy its tails (`sinh_arcsinh`). It is 0
    before the first step, and always where LR is `saturated`.
    """

    FAINT = -3.0  # logarithm of the strength at first

    def __init__(self, inputs: int, clues: int, channels: int, width: int):
        super().__init__()
        layers = (layer for n in (clues, width) for layer in (nn.Conv2d(n, width, 3, padding=1), nn.LeakyReLU(0.2)))
        self.look = nn.Sequential(*layers)
        inputs += width
        self.narrow = nn.Conv2d(inputs, width, 1)
        self.noises = nn.ModuleList(Noise(width) for _ in range(NOISES))
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(NOISES - 1))
        self.tail = RowConv2d(width, channels, 5, padding=2)
        narrow = max(width // 2, 1)
        self.shape = nn.Sequential(nn.Conv2d(inputs, narrow, 1), nn.LeakyReLU(0.2), nn.Conv2d(narrow, 3, 1))
        for layer in (self.tail, self.shape[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.shape[-1].bias.data[0] = self.FAINT

    def forward(self, maps: torch.Tensor, clues: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        clipped = F.interpolate(saturated(clues[:, : self.tail.out_channels]), size=maps.shape[-2:])
        seen = F.interpolate(self.look(clues).float(), size=maps.shape[-2:], mode="bilinear")
        maps = torch.cat([maps, seen.to(maps.dtype)], 1)
        x = self.narrow(maps)
        for k, convolution in enumerate(self.body):
            x = F.leaky_relu(convolution(self.noises[k](x, noise[:, k : k + 1])), 0.2)
        x = self.noises[-1](x, noise[:, -1:])
        with torch.autocast(x.device.type, enabled=False):
            strength, skew, tails = self.shape(maps.float()).split(1, 1)
            return strength.exp() * sinh_arcsinh(self.tail(x.float()), skew.tanh(), tails.tanh()) * (1 - clipped)


def sinh_arcsinh(x: torch.Tensor, skew: torch.Tensor, tails: torch.Tensor) -> torch.Tensor:
    """x, of any distribution, made skewed (`skew` above 0: to the right) and its tails heavier (`tails` above 0) or lighter: the sinh-arcsinh
    transformation of Jones & Pewsey 2009 (Biometrika 96, 761-780), moved so that 0 stays 0. x itself for skew 0 and tails 0."""
    return torch.sinh(tails.exp() * torch.asinh(x) + skew) - torch.sinh(skew)


def saturated(lr: torch.Tensor) -> torch.Tensor:
    """1 where LR (N, C, h, w) is black, or white, with its eight neighbours, or fill, else 0. Fill, the white of a turned scan, has no texture in HR
    either: 5 x 5 pixels of 250 or more, and the pixel around them, which the edge and the projection would give specks."""
    highest, lowest = (F.max_pool2d(sign * lr, 3, stride=1, padding=1) * sign for sign in (1, -1))
    fill = (-F.max_pool2d(-lr, 5, stride=1, padding=2) > 249.5 / 255).to(lr.dtype)
    return ((highest < 0.5 / 255) | (lowest > 254.5 / 255) | (F.max_pool2d(fill, 7, stride=1, padding=3) > 0)).to(lr.dtype)


def local_noise(lr: torch.Tensor) -> torch.Tensor:
    """How rough LR is around each pixel, (N, 2 C, h, w): log10 of the deviation of LR less its 3 x 3 mean, in windows of 5 and 17 pixels."""
    rough = (lr - _mean(lr, 3)) ** 2
    return 0.5 * torch.log10(torch.cat([_mean(rough, side) for side in (5, 17)], 1) + 1e-6) + 2


STATISTICS = 9  # of `scan_statistics`
DIFFERENCES = torch.tensor(  # second ones across and along depth, first ones in both
    [[[0.0, 0, 0], [1, -2, 1], [0, 0, 0]], [[0, 1, 0], [0, -2, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, -1], [0, -1, 1]]]
)[:, None]


def scan_statistics(lr: torch.Tensor) -> torch.Tensor:
    """What the LR of a whole scan (N, C, h, w) says of its roughness, (N, STATISTICS): log10 of the power of DIFFERENCES one and two pixels apart, the
    mean, log2 of width and height; without what is `saturated`.

    How many frames were averaged, and how densely A-scans lie, is not seen in a part of it."""
    grey, empty = lr.mean(1, keepdim=True), saturated(lr).amax(1, keepdim=True)
    weights = 1 - F.max_pool2d(empty, 5, stride=1, padding=2)
    weights = weights / weights.sum((2, 3), keepdim=True).clamp_min(1)
    found = []
    for step in (1, 2):
        detail = F.conv2d(F.pad(grey, 4 * (step,), mode="replicate"), DIFFERENCES.to(grey), dilation=step)
        found.append(((weights * detail.square()).sum((2, 3)) + 1e-7).log10())
    sides = [torch.ones_like(grey).narrow(other, 0, 1).sum((2, 3)).log2() for other in (2, 3)]
    return torch.cat([*found, (weights * grey).sum((2, 3)), *sides], 1)


def _mean(image: torch.Tensor, side: int) -> torch.Tensor:
    """The mean in windows of `side` pixels, fewer at the border."""
    return F.avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False)


class Sampler(nn.Module):
    """LR (N, C, h, w) in [0, 1] and noise (N, NOISES, scale * h, scale * w), normal, to SR (N, C, scale * h, scale * w), on the [0, 1] scale, not clamped.

    `trunk`: a generator, kept as it is (frozen, in eval mode); `width`: maps of the head; `kind`: the reduction of `degrade` that SR
    agrees with, '' for none (frame and given pairs, whose LR is not HR reduced: there SR is not projected). The head takes the trunk's
    `with_maps` (of a trunk that has none, its SR image again), its SR image, and as clues LR, first, its `local_noise`, and `scan`, the
    `scan_statistics` of the whole LR (None: of `lr`), by the mean and deviation of training scans (`usual`).
    """

    UNUSUAL = 2.5  # deviations, at most

    def __init__(self, trunk: nn.Module, width: int = 32, kind: str = "bicubic"):
        super().__init__()
        self.trunk = trunk.requires_grad_(False).eval()
        self.scale, channels = trunk.settings["scale"], trunk.settings["channels"]
        self.kind = kind
        self.settings = trunk.settings | {"texture": width, "kind": kind}
        self.register_buffer("usual", torch.zeros(2, STATISTICS))  # mean, and 1 / deviation, 0 where that is 0
        inputs = trunk.settings["width"] if hasattr(trunk, "with_maps") else channels
        self.head = TextureHead(inputs + channels, 3 * channels + STATISTICS, channels, width)

    def train(self, mode: bool = True):
        super().train(mode)
        self.trunk.eval()
        return self

    @torch.no_grad()
    def prepare(self, lr: torch.Tensor, scan: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(SR of the trunk; maps and clues for the head): all that does not depend on the noise, the same for every sample."""
        smooth, maps = self.trunk.with_maps(lr) if hasattr(self.trunk, "with_maps") else 2 * (self.trunk(lr),)
        with torch.autocast(lr.device.type, enabled=False):
            scan = scan_statistics(lr.float()) if scan is None else scan
            scan = ((scan - self.usual[0]) * self.usual[1]).clamp(-self.UNUSUAL, self.UNUSUAL)
            clues = [lr.float(), local_noise(lr.float()), scan[..., None, None].expand(-1, -1, *lr.shape[-2:])]
            clues = torch.cat(clues, 1)
        return smooth, torch.cat([maps, smooth.to(maps.dtype)], 1), clues

    def project(self, sr: torch.Tensor, lr: torch.Tensor, rounds: int = 1) -> torch.Tensor:
        """`degrade.project` by this network's reduction; SR as it is where there is none."""
        return project(sr, lr, self.scale, self.kind, rounds) if self.kind else sr

    def samples(self, lr: torch.Tensor, noises: Iterable[torch.Tensor], strength: float = 1.0, scan=None) -> list[torch.Tensor]:
        """SR for each of the noises, before it is projected; the trunk is computed once. `strength` 0 is the trunk's SR; `scan` as for `prepare`."""
        smooth, *known = self.prepare(lr, scan)
        return [smooth + strength * self.head(*known, noise) for noise in noises]

    def forward(self, lr: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.project(self.samples(lr, [noise])[0], lr)


class SamplerDiscriminator(nn.Module):
    """Is this what lies between the trunk's image and HR? Takes an image and the trunk's (`base`), (N, C, H, W) in [0, 1], of any size; returns
    logits (N, 1).

    It sees `contrast * (image - base)`, what LR does not say, beside `2 base - 1`, where it lies. The paper's eight k3 convolutions, without BN,
    with a 2 x 2 mean after every second in the place of its strides; one head after the second mean (a position sees 16 pixels: speckle), one
    at the end (76 pixels); each a k1 convolution, LeakyReLU, k1 to one map, mean over positions; their sum. `contrast`, set from the first
    batches, makes the detail of HR as strong as an image in [-1, 1].
    """

    def __init__(self, channels: int = 1, width: int = 32):
        super().__init__()
        self.register_buffer("contrast", torch.tensor(10.0))
        self.blocks, before = nn.ModuleList(), 2 * channels
        for out in (width * m for m in (1, 2, 4, 8)):
            pair = nn.Conv2d(before, out, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(out, out, 3, padding=1), nn.LeakyReLU(0.2)
            self.blocks.append(nn.Sequential(*pair))
            before = out
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(n, n, 1), nn.LeakyReLU(0.2), nn.Conv2d(n, 1, 1)) for n in (2 * width, 8 * width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, 0.2)
                nn.init.zeros_(module.bias)
        for head in self.heads:
            head[-1].weight.data *= 0.1

    def see(self, image: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """What stands between image and base, at the contrast that D sees."""
        return self.contrast * (image.float() - base.float())

    def forward(self, detail: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """`detail`: what `see` gives."""
        x, logits = torch.cat([detail, 2 * base - 1], 1), 0
        for k, block in enumerate(self.blocks):
            x = F.avg_pool2d(block(x), 2)
            if k in (1, 3):
                logits = logits + self.heads[k // 2](x).mean((2, 3))
        return logits.float()
