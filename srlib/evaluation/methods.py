"""The methods that are compared. Each is a function of a `TestImage` and a line in METHODS; tables, figures, tests and `metrics.csv` take it from there."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..config import Config
from ..degrade import held_by, to_image, to_tensor, upsample
from ..upscaling import samples, upscale


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
    def fit(self, pairs) -> Self:
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


class TestImage:
    """One LR image (uint8) as every method sees it: `image["srgan"]` is its SR (uint8), made once. `name` seeds what is random; `networks`: by name."""

    def __init__(self, lr: np.ndarray, name: str, config: Config, networks: dict):
        self.lr, self.config, self.networks = lr, config, networks
        self.seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        self.made: dict[str, np.ndarray] = {}

    def __getitem__(self, method: str) -> np.ndarray:
        if method not in self.made:
            self.made[method] = METHODS[method].make(self, self.networks.get(METHODS[method].needs))
        return self.made[method]

    def samples(self, count: int) -> list[np.ndarray]:
        """`count` images of the sampler, seeds 0 on; the first is `image["sampler"]`."""
        return [self["sampler"], *samples(self.lr, self.networks["sampler"], range(1, count))]


class Method(NamedTuple):
    """`title`, `colour`, `marker`: in every table and figure; `notebook`: which measures it; `needs`: the network that `make` takes beside a `TestImage`;
    `against`: what it is tested against, patient by patient; `aimed`: what measures (a regular expression) it was trained or chosen on, or has by
    construction; `texture`: whether its patches are compared with HR's."""

    title: str
    colour: str
    marker: str
    notebook: str
    needs: str
    make: Callable[[TestImage, object], np.ndarray]
    against: tuple[str, ...] = ()
    aimed: str = "-"
    texture: bool = False


_FIT = "psnr|gain_db"
_POWER = r"band\d_db|texture_error_db"
METHODS: dict[str, Method] = {
    "bicubic": Method("bicubic", "#0072B2", "s", "05", "", lambda x, _: to_image(upsample(to_tensor(x.lr), x.config.scale))),
    "linear": Method("linear", "#56B4E9", "D", "05", "linear", lambda x, f: to_image(f(to_tensor(x.lr))), (), _FIT),
    "srresnet": Method("SRResNet", "#009E73", "o", "05", "srresnet", lambda x, g: upscale(x.lr, g), ("bicubic", "linear"), _FIT, True),
    "srgan": Method("SRGAN", "#D55E00", "^", "05", "srgan", lambda x, g: upscale(x.lr, g), ("bicubic", "srresnet"), "kid", True),
    "srgan_projected": Method(
        "SRGAN projected", "#E69F00", "<", "07", "srgan_projected", lambda x, g: upscale(x.lr, g, consistent=held_by(x.config)),
        ("srgan",), "kid|consistency", True,
    ),
    "sampler": Method(
        "sampler", "#6A3D9A", "*", "07", "sampler", lambda x, g: upscale(x.lr, g),
        ("srgan_projected", "gaussian_texture"), f"{_POWER}|consistency|c2st.*", True,
    ),
    "gaussian_texture": Method(
        "Gaussian texture", "#CC79A7", "P", "07", "gaussian", lambda x, f: f.sample(x["srresnet"], x.lr, x.seed),
        (), f"{_POWER}|consistency", True,
    ),
}  # fmt: skip
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
