"""The methods that are compared, a line each, and how each makes its image from LR.

A new method is a function of a `Scene` and a line in METHODS; tables, figures, tests and `metrics.csv` take it from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ..degrade import to_image, to_tensor, upsample
from ..models.networks import LinearFilter
from ..upscaling import samples, upscale
from .gaussian import GaussianTexture


class Arms(NamedTuple):
    """What the methods need beside LR, the same for all images."""

    scale: int
    srresnet: torch.nn.Module
    srgan: torch.nn.Module
    linear: LinearFilter
    gaussian: GaussianTexture


class Scene:
    """One LR image (uint8) as every method sees it: `scene["srgan"]` is that method's SR image (uint8), made once. `name` seeds what is drawn."""

    def __init__(self, lr: np.ndarray, name: str, arms: Arms):
        self.lr, self.arms = lr, arms
        self.seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, method: str) -> np.ndarray:
        if method not in self._made:
            self._made[method] = METHODS[method].make(self)
        return self._made[method]

    def draws(self, count: int) -> list[np.ndarray]:
        """`count` images of SRGAN, seeds 0 on; the first is `scene["srgan"]`."""
        images = samples(self.lr, self.arms.srgan, range(count))
        self._made["srgan"] = images[0]
        return images


class Method(NamedTuple):
    """`against`: the methods that it is tested against, patient by patient; `texture`: whether its texture is worth a patch test."""

    label: str
    colour: str
    marker: str
    make: Callable[[Scene], np.ndarray]
    against: tuple[str, ...] = ()
    texture: bool = False


METHODS: dict[str, Method] = {
    "nearest": Method("LR (pixels)", "#999999", "v", lambda s: s.lr.repeat(s.arms.scale, 0).repeat(s.arms.scale, 1)),
    "bicubic": Method("bicubic", "#0072B2", "s", lambda s: to_image(upsample(to_tensor(s.lr), s.arms.scale))),
    "linear": Method("linear", "#56B4E9", "D", lambda s: to_image(s.arms.linear(to_tensor(s.lr)))),
    "srresnet": Method("SRResNet", "#009E73", "o", lambda s: upscale(s.lr, s.arms.srresnet), ("bicubic", "linear"), texture=True),
    "srgan": Method("SRGAN", "#D55E00", "^", lambda s: upscale(s.lr, s.arms.srgan), ("bicubic", "srresnet", "noise"), texture=True),
    "noise": Method("Gaussian texture", "#CC79A7", "P", lambda s: s.arms.gaussian.draw(s["srresnet"], s.lr, s.seed), texture=True),
}
_OTHER = {"lr": ("LR", "#888888"), "hr": ("HR", "#000000")}


def named(name: str) -> str:
    """What readers see for a method, 'lr' or 'hr'; any other name as it is."""
    return METHODS[name].label if name in METHODS else _OTHER.get(name, (name,))[0]


def colour_of(name: str) -> str | None:
    """The colour of a method, 'lr' or 'hr' in every figure; None for any other name (matplotlib's next)."""
    return METHODS[name].colour if name in METHODS else _OTHER.get(name, ("", None))[1]


def questions() -> list[tuple[str, str]]:
    """(method, against): what is asked of a measure together, so corrected together."""
    return [(name, other) for name, method in METHODS.items() for other in method.against]
