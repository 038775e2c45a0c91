"""LR synthesis: from an HR tensor to the LR tensor that the generator gets, and plain bicubic back.

Tensors are NCHW, float, in [0, 1]. The low-resolution images of the paper's experiments (Ledig et al. 2017, section 3.2)
are bicubic reductions; the kernel is widened by the scale (antialiasing), as in Pillow and MATLAB. The other kinds ask what a
network does that has seen another reduction. All but frame are two matrices, `down @ hr @ across.T`; a kind of
your own, 'MODULE:NAME', is a function of hr and scale.
"""

import importlib
import math
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

SCALES = (2, 3, 4, 8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 or uint16, (H, W) or (H, W, 3), to (1, C, H, W) in [0, 1]."""
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / int(np.iinfo(image.dtype).max)


def to_image(tensor: torch.Tensor, levels: torch.dtype = torch.uint8) -> np.ndarray:
    """(1, C, H, W) or (C, H, W) to uint8 (or the `levels` of uint16), (H, W) or (H, W, 3): clamp and round."""
    array = (tensor.detach().squeeze(0) if tensor.dim() == 4 else tensor.detach()).float().cpu()
    array = (array.clamp(0, 1) * torch.iinfo(levels).max).round().to(levels).permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def crop_to_multiple(image, scale: int):
    """Cut the bottom and right of a tensor (..., H, W) or an array (H, W) / (H, W, 3) so that `scale` divides height and width. Raises ValueError
    when nothing would be left."""
    rows, cols = (-2, -1) if isinstance(image, torch.Tensor) else (0, 1)
    height, width = image.shape[rows] // scale * scale, image.shape[cols] // scale * scale
    if not height or not width:
        raise ValueError(f"an image of {image.shape[rows]} x {image.shape[cols]} pixels is smaller than scale {scale}")
    return image[..., :height, :width] if isinstance(image, torch.Tensor) else image[:height, :width]


def downsample(hr: torch.Tensor, scale: int = 4, kind: str = "bicubic") -> torch.Tensor:
    """Make the LR image: (N, C, H, W) in [0, 1] to (N, C, H // scale, W // scale) in [0, 1], on 8-bit levels.

    `kind`: one of KINDS, behind a colon its number where that is not the usual one: 'gaussian:1.6'. Sizes that the scale does not divide
    are cropped at the bottom and right. Runs on the tensor's device, and is a function of the image alone, whatever stands beside it in the
    batch. Raises ValueError for another scale or kind.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, not {scale}")
    reduce, amount = _named(kind)
    lr = reduce(crop_to_multiple(hr, scale).float(), scale, amount)
    return (lr.clamp(0, 1) * 255).round() / 255


def upsample(lr: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Bicubic interpolation of (N, C, h, w) to (N, C, h * scale, w * scale); not clamped, not rounded."""
    size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
    # `antialias` makes torch use the cubic kernel of `downsample` and Pillow (a = -0.5); going up, it blurs nothing
    return F.interpolate(lr.float(), size=size, mode="bicubic", antialias=True)


def project(sr: torch.Tensor, lr: torch.Tensor, scale: int = 4, kind: str = "bicubic", rounds: int = 1) -> torch.Tensor:
    """The image nearest to `sr` (least squares) that `downsample` takes to `lr`, before it rounds to 8 bit: sr + D+ (lr - D sr).

    `sr`: (N, C, H, W) and `lr`: (N, C, H // scale, W // scale), float, in [0, 1]; the result is float32, neither clamped nor rounded, and has a
    gradient. Pixels that `downsample` cuts off stay as they are. An image that is clamped afterwards no longer reduces to LR where it was cut; with
    `rounds` > 1 it is clamped and projected in turn, so many times in all, which brings both together. `bicubic-matlab` is taken without its
    rounding. Raises ValueError for sizes that do not belong together and for a kind that has no matrices (frame).
    """
    if lr.shape[-2:] != (sr.shape[-2] // scale, sr.shape[-1] // scale):
        raise ValueError(f"an LR image of {tuple(lr.shape[-2:])} pixels does not belong to SR of {tuple(sr.shape[-2:])} at scale {scale}")
    reduce, amount = _named(kind)
    if not has_projection(kind):
        raise ValueError(f"{kind} is not two matrices, so there is no projection")
    (down, up), (across, back) = _with_inverses(reduce, *sr.shape[-2:], scale, amount, sr.device)
    with torch.autocast(sr.device.type, enabled=False):
        sr, lr = sr.float(), lr.float()
        for k in range(rounds):
            sr = sr.clamp(0, 1) if k else sr
            sr = sr + up @ (lr - down @ sr @ across.T) @ back.T
    return sr


def has_projection(kind: str) -> bool:
    """Whether a reduction is two matrices, so that `project` can undo it."""
    return isinstance(KINDS.get(kind.partition(":")[0]), Separable)


def held_by(config) -> str:
    """The kind of reduction with which SR of these settings can be made consistent; '' for none: given pairs, and kinds without matrices."""
    return config.reduction[1] if config.holds_lr and has_projection(config.degradation) else ""


def _named(kind: str) -> tuple[Callable, float]:
    """(reduction, its number) of 'gaussian:1.6'; without a number 0, which means the usual one; of 'my_parts:peak' one's own."""
    name, _, amount = kind.partition(":")
    if name in KINDS:
        return KINDS[name], float(amount or 0)
    try:
        own = getattr(importlib.import_module(name), amount)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"kind must be one of {tuple(KINDS)}, or MODULE:NAME of your own, not {kind!r}") from None
    return lambda hr, scale, _: own(hr, scale), 0.0


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else what validation has cached could not be trained through
def _with_inverses(reduce: "Separable", height: int, width: int, scale: int, amount: float, device: torch.device) -> list[tuple]:
    """(D, D+) of both axes, float32 (size // scale, size) and (size, size // scale)."""
    matrices = reduce.matrices(height, width, scale, amount)
    return [(m.float().to(device), torch.linalg.solve(m @ m.T, m).T.float().to(device)) for m in matrices]


# -------------------------------------------------------------------------------------------------------- the kinds
class Separable(NamedTuple):
    """A reduction by two matrices. `down` gives that of an axis, float64 (size // scale, size), for a size that the scale divides, the scale and
    the kind's number. `reduce`: another way to the same image, but for its rounding."""

    down: Callable[[int, int, float], torch.Tensor]
    reduce: Callable[[torch.Tensor, int, float], torch.Tensor] | None = None

    def matrices(self, height: int, width: int, scale: int, amount: float) -> list[torch.Tensor]:
        """That of depth and that across, of any size: pixels that are cut off have no weight."""
        return [F.pad(self.down(n // scale * scale, scale, amount), (0, n % scale)) for n in (height, width)]

    def __call__(self, hr: torch.Tensor, scale: int, amount: float) -> torch.Tensor:
        if self.reduce:
            return self.reduce(hr, scale, amount)
        down, across = self.matrices(*hr.shape[-2:], scale, amount)
        return down.to(hr) @ hr @ across.to(hr).T


def _kernel(size: int, scale: int, kernel: Callable, width: float, mirrored: bool = True) -> torch.Tensor:
    """Row k weighs the pixels around LR pixel k's centre, (k + 1/2) scale - 1/2, by kernel(distance / width). Beyond the edge the image is
    mirrored, or not looked at."""
    centres = (np.arange(size // scale) + 0.5) * scale - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-math.ceil(4 * width), math.ceil(4 * width) + 2)
    weights = kernel(np.abs(taps - centres[:, None]) / width) * (mirrored | ((taps >= 0) & (taps < size)))
    folded = np.mod(taps.astype(int), 2 * size)
    folded = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((len(centres), size))
    np.add.at(matrix, (np.arange(len(centres))[:, None], folded), weights)
    return torch.from_numpy(matrix / matrix.sum(1, keepdims=True))


def _keys(t):
    """Keys' cubic kernel, a = -0.5."""
    return np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))


def _bicubic(hr, scale, amount):
    return F.interpolate(hr, size=(hr.shape[-2] // scale, hr.shape[-1] // scale), mode="bicubic", antialias=True)


def _imresize(hr, scale, amount):
    """MATLAB's for a uint8 image, to the grey level: rounded to 8 bit between the passes, half up."""
    down, across = KINDS["bicubic-matlab"].matrices(*hr.shape[-2:], scale, amount)
    half = (down.to(hr.device) @ (hr.double() * 255).round() + 0.5).floor().clamp(0, 255)
    return ((half @ across.to(hr.device).T + 0.5).floor().clamp(0, 255) / 255).float()


def _frame(hr, scale, sigma):
    """Bicubic of HR as one frame of a fast scan would show it: with noise of `sigma` grey levels (0: each image has its own, 0 to 40), whose neighbours
    correlate by 0.15 in depth and 0.07 across. So measured on six eyes, one frame against the registered mean of many (32 levels, whatever the grey).
    The noise is seeded by the image itself."""
    noises = []
    for image in hr:
        dice = torch.Generator().manual_seed(zlib.crc32((image * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes()))
        level = (sigma or 40 * torch.rand(1, generator=dice).item()) / 255
        z = F.pad(torch.randn(1, *image.shape[1:], generator=dice), (1, 1, 1, 1), mode="circular")
        z = z[:, 1:-1] + 0.077 * (z[:, :-2] + z[:, 2:])  # a moving average: 2 a / (1 + 2 a^2) = 0.15
        z = z[..., 1:-1] + 0.035 * (z[..., :-2] + z[..., 2:])
        noises.append(level * z / z.std())
    return _bicubic((hr + torch.stack(noises).to(hr.device)).clamp(0, 1), scale, 0)


# Each is called with HR whose sides the scale divides, the scale and the kind's number (0: the usual one).
KINDS: dict[str, Callable[[torch.Tensor, int, float], torch.Tensor]] = {
    # the cubic kernel stretched by the scale, so that what lies above the LR Nyquist frequency is gone
    "bicubic": Separable(lambda n, scale, _: _kernel(n, scale, _keys, scale, mirrored=False), reduce=_bicubic),
    "bicubic-matlab": Separable(lambda n, scale, _: _kernel(n, scale, _keys, scale), reduce=_imresize),
    # blur by a Gaussian of sigma HR pixels (0.4 a scale), then every scale-th pixel: the paper's formulation
    "gaussian": Separable(lambda n, scale, sigma: _kernel(n, scale, lambda t: np.exp(-(t**2) / 2), sigma or 0.4 * scale)),
    "frame": _frame,
    # means of scale x scale pixels, as OpenCV's INTER_AREA
    "area": Separable(
        lambda n, scale, _: torch.eye(n // scale, dtype=torch.float64).repeat_interleave(scale, 1) / scale,
        reduce=lambda hr, scale, _: F.avg_pool2d(hr, scale),
    ),
    # what not to do: all that lies above the LR Nyquist frequency folds back
    "nearest": Separable(lambda n, scale, _: torch.eye(n, dtype=torch.float64)[scale // 2 :: scale]),
}


# ------------------------------------------------------------------------------------------------ the display of OCT
def to_display(intensity: torch.Tensor) -> torch.Tensor:
    """Linear intensity to grey in [0, 1] (eyepy's transform of Heidelberg's raw data)."""
    return ((torch.log(intensity.clamp(min=0) + 2.44e-4) + 8.3) / 8.285).clamp(0, 1)


def from_display(grey: torch.Tensor) -> torch.Tensor:
    """Grey in [0, 1] to linear intensity; the inverse of `to_display`."""
    return (torch.exp(8.285 * grey - 8.3) - 2.44e-4).clamp(min=0)
