"""The methods that are compared. Each is a function of a `TestImage` and a line in METHODS; tables, figures, tests and `metrics.csv` take it from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..degrade import to_image, to_tensor, upsample
from ..upscaling import samples, upscale
from .gaussian import GaussianTexture


class LinearFilter(nn.Module):
    """The honest floor: the least-squares filter from a `size` x `size` LR neighbourhood to each HR sub-pixel, as a correction to bicubic; `fit`
    solves the normal equations. (N, C, h, w) in [0, 1], each channel alone."""

    def __init__(self, scale: int = 4, size: int = 11):
        super().__init__()
        self.scale, self.size = scale, size
        self.register_buffer("weight", torch.zeros(scale**2, size**2 + 1))

    def _patches(self, lr: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) to (N, size^2 + 1, h * w): each neighbourhood less its centre pixel, and a constant."""
        pad = self.size // 2
        patches = F.unfold(F.pad(lr, (pad,) * 4, mode="replicate"), self.size)
        patches = patches - patches[:, self.size**2 // 2, None]
        return torch.cat([patches, torch.ones_like(patches[:, :1])], 1)

    @torch.no_grad()
    def fit(self, pairs) -> LinearFilter:
        """`pairs`: batches (lr, hr) of tensors with sizes that match. Returns itself."""
        gram = torch.zeros(self.size**2 + 1, self.size**2 + 1, dtype=torch.float64)
        moment = torch.zeros(self.size**2 + 1, self.scale**2, dtype=torch.float64)
        for lr, hr in pairs:
            lr, hr = lr.flatten(0, 1)[:, None], hr.flatten(0, 1)[:, None]
            target = F.pixel_unshuffle(hr - upsample(lr, self.scale), self.scale).flatten(2)
            x = self._patches(lr).permute(1, 0, 2).flatten(1).double()
            gram += x @ x.T
            moment += x @ target.permute(1, 0, 2).flatten(1).T.double()
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        self.weight.copy_(torch.linalg.solve(gram + ridge, moment).T)
        return self

    @torch.no_grad()
    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        n, c, h, w = lr.shape
        flat = lr.reshape(n * c, 1, h, w)
        detail = (self.weight @ self._patches(flat)).unflatten(2, (h, w))
        return (upsample(flat, self.scale) + F.pixel_shuffle(detail, self.scale)).reshape(n, c, h * self.scale, w * self.scale)


class Networks(NamedTuple):
    """What the methods need beside LR, the same for all images: the run's networks, on `device`, and what was fitted to hold against them."""

    scale: int
    device: torch.device
    srresnet: nn.Module
    srgan: nn.Module
    linear: LinearFilter
    gaussian: GaussianTexture


class TestImage:
    """One LR image (uint8) as every method sees it: `image["srgan"]` is that method's SR image (uint8), made once. `name` seeds what is random."""

    def __init__(self, lr: np.ndarray, name: str, networks: Networks):
        self.lr, self.networks = lr, networks
        self.seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, method: str) -> np.ndarray:
        if method not in self._made:
            self._made[method] = METHODS[method].make(self)
        return self._made[method]

    def samples(self, count: int) -> list[np.ndarray]:
        """`count` images of SRGAN, seeds 0 on; the first is `image["srgan"]`."""
        images = samples(self.lr, self.networks.srgan, range(count))
        self._made["srgan"] = images[0]
        return images


class Method(NamedTuple):
    """`title`, `colour` and `marker`: in every table and figure; `notebook`: which measures it; `make`: its SR image; `against`: the methods that
    it is tested against, patient by patient; `texture`: whether its patches are compared with HR's."""

    title: str
    colour: str
    marker: str
    notebook: str
    make: Callable[[TestImage], np.ndarray]
    against: tuple[str, ...] = ()
    texture: bool = False


METHODS: dict[str, Method] = {
    "nearest": Method("LR (pixels)", "#999999", "v", "05", lambda x: x.lr.repeat(x.networks.scale, 0).repeat(x.networks.scale, 1)),
    "bicubic": Method("bicubic", "#0072B2", "s", "05", lambda x: to_image(upsample(to_tensor(x.lr), x.networks.scale))),
    "linear": Method("linear", "#56B4E9", "D", "05", lambda x: to_image(x.networks.linear(to_tensor(x.lr)))),
    "srresnet": Method("SRResNet", "#009E73", "o", "05", lambda x: upscale(x.lr, x.networks.srresnet), ("bicubic", "linear"), True),
    "srgan": Method("SRGAN", "#D55E00", "^", "05", lambda x: upscale(x.lr, x.networks.srgan), ("bicubic", "srresnet", "noise"), True),
    "noise": Method("Gaussian texture", "#CC79A7", "P", "05", lambda x: x.networks.gaussian.sample(x["srresnet"], x.lr, x.seed), (), True),
}
_OTHER = {"lr": ("LR", "#888888"), "hr": ("HR", "#000000")}


def named(name: str) -> str:
    """What readers see for a method, 'lr' or 'hr'; any other name as it is."""
    return METHODS[name].title if name in METHODS else _OTHER.get(name, (name,))[0]


def colour_of(name: str) -> str | None:
    """The colour of a method, 'lr' or 'hr' in every figure; None for any other name (matplotlib's next)."""
    return METHODS[name].colour if name in METHODS else _OTHER.get(name, ("", None))[1]


def questions() -> list[tuple[str, str]]:
    """(method, against): what is asked of a measure together, so corrected together."""
    return [(name, other) for name, method in METHODS.items() for other in method.against]
