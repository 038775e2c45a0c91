"""LR synthesis: from an HR tensor to the LR tensor that the generator gets, and plain bicubic back.

Tensors are NCHW, float, in [0, 1]. The low-resolution images of the paper's experiments (Ledig et al. 2017, section 3.2)
are bicubic reductions; the kernel is widened by the scale (antialiasing), as in Pillow and MATLAB. The other kinds ask what a
network does that has seen another reduction. A new kind is one function and one line in KINDS.

`project` goes the other way: of all images that reduce to a given LR it finds the one nearest to a given SR.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

SCALES = (2, 3, 4, 8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W) or (H, W, 3) to (1, C, H, W) in [0, 1]."""
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def to_image(tensor: torch.Tensor) -> np.ndarray:
    """(1, C, H, W) or (C, H, W) to uint8 (H, W) or (H, W, 3): clamp and round."""
    array = (tensor.detach().squeeze(0) if tensor.dim() == 4 else tensor.detach()).float().cpu()
    array = (array.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def round8(image: torch.Tensor) -> torch.Tensor:
    """Clamp to [0, 1] and round to the 256 levels of an 8-bit image."""
    return (image.clamp(0, 1) * 255).round() / 255


def crop_to_multiple(image, scale: int):
    """Cut the bottom and right so that `scale` divides height and width.

    Takes a tensor (..., H, W) or an array (H, W) / (H, W, 3); raises ValueError when nothing would be left.
    """
    rows, cols = (-2, -1) if isinstance(image, torch.Tensor) else (0, 1)
    height, width = image.shape[rows] // scale * scale, image.shape[cols] // scale * scale
    if not height or not width:
        raise ValueError(f"an image of {image.shape[rows]} x {image.shape[cols]} pixels is smaller than scale {scale}")
    return image[..., :height, :width] if isinstance(image, torch.Tensor) else image[:height, :width]


def downsample(hr: torch.Tensor, scale: int = 4, kind: str = "bicubic", amount: float = 0.0) -> torch.Tensor:
    """Make the LR image: (N, C, H, W) in [0, 1] to (N, C, H // scale, W // scale) in [0, 1], on 8-bit levels.

    `kind` is one of KINDS, `amount` its one number (0: its usual value). Sizes that the scale does not divide are cropped at the
    bottom and right. Runs on the tensor's device, and is a function of the image alone, whatever stands beside it in the batch.
    Raises ValueError for another scale or kind.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, not {scale}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {tuple(KINDS)}, not {kind!r}")
    return round8(KINDS[kind](crop_to_multiple(hr, scale).float(), scale, amount))


def upsample(lr: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Bicubic interpolation of (N, C, h, w) to (N, C, h * scale, w * scale); not clamped, not rounded.

    `antialias=True` makes torch use the same cubic kernel (a = -0.5) as `downsample` and Pillow; going up, it blurs nothing.
    """
    size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
    return F.interpolate(lr.float(), size=size, mode="bicubic", antialias=True)


def project(
    sr: torch.Tensor, lr: torch.Tensor, scale: int = 4, kind: str = "bicubic", amount: float = 0.0, rounds: int = 1
) -> torch.Tensor:
    """The image nearest to `sr` (least squares) that `downsample` takes to `lr`, before it rounds to 8 bit: sr + D+ (lr - D sr).

    `sr`: (N, C, H, W) and `lr`: (N, C, H // scale, W // scale), float, in [0, 1]; the result is float32, neither clamped nor rounded. D is
    separable, so its pseudo-inverse D+ is two small matrices, kept for each size. Pixels that `downsample` cuts off stay as they are.
    Runs on the tensors' device and has a gradient. An image that is clamped afterwards no longer reduces to LR where it was cut; with
    `rounds` > 1 it is clamped and projected in turn, so many times in all, which brings both together. `bicubic-matlab` is taken without
    its rounding. Raises ValueError for sizes that do not belong together and for a kind that is not linear (speckle) and separable: it has no projection.
    """
    if lr.shape[-2:] != (sr.shape[-2] // scale, sr.shape[-1] // scale):
        raise ValueError(f"an LR image of {tuple(lr.shape[-2:])} pixels does not belong to SR of {tuple(sr.shape[-2:])} at scale {scale}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {tuple(KINDS)}, not {kind!r}")
    reduce = _UNROUNDED.get(kind, KINDS[kind])
    if not has_projection(scale, kind, amount):
        raise ValueError(f"{kind} is not linear and separable, so there is no projection")
    (down, up), (across, back) = (_reduction(reduce, sr.shape[2 + axis], scale, amount, axis, sr.device) for axis in (0, 1))
    with torch.autocast(sr.device.type, enabled=False):
        sr, lr = sr.float(), lr.float()
        for k in range(rounds):
            sr = sr.clamp(0, 1) if k else sr
            sr = sr + up @ (lr - down @ sr @ across.T) @ back.T
    return sr


def has_projection(scale: int, kind: str, amount: float = 0.0) -> bool:
    """Whether a reduction is linear and separable, so that `project` can undo it."""
    return kind in KINDS and _separable(_UNROUNDED.get(kind, KINDS[kind]), scale, amount)


def held_by(config) -> tuple[str, float]:
    """(kind, amount) of the reduction by which SR of these settings can be made to agree with LR; ('', 0.0) where there is none: given pairs, speckle,
    what is not linear."""
    return config.reduction[1:] if config.holds_lr and has_projection(*config.reduction) else ("", 0.0)


@lru_cache(maxsize=64)
def _separable(reduce: Callable, scale: int, amount: float) -> bool:
    """Whether `reduce` treats a random image as the matrices of its two axes do."""
    image = torch.rand(1, 1, 4 * scale, 5 * scale, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    down, across = (_matrix(reduce, image.shape[2 + axis], scale, amount, axis) for axis in (0, 1))
    return torch.allclose(reduce(image, scale, amount).double(), down @ image @ across.T, atol=1e-6)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else what validation has cached could not be trained through
def _reduction(
    reduce: Callable, size: int, scale: int, amount: float, axis: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, D+) of a separable reduction along one axis: float32 (size // scale, size) and (size, size // scale)."""
    matrix = _matrix(reduce, size, scale, amount, axis)
    return matrix.float().to(device), torch.linalg.solve(matrix @ matrix.T, matrix).T.float().to(device)


def _matrix(reduce: Callable, size: int, scale: int, amount: float, axis: int) -> torch.Tensor:
    """D along one axis, float64, found by reducing lines with one bright pixel each, in images that are constant along the other axis."""

    def reduced(lines):  # (k, size) to (k, size // scale)
        images = lines[:, None, :, None].expand(-1, 1, -1, 2 * scale)  # (torch's antialiasing is wrong where one side becomes 1 pixel)
        images = crop_to_multiple(images if axis == 0 else images.transpose(2, 3), scale)
        small = reduce(images.contiguous(), scale, amount)[:, 0].double()
        return small[..., 0] if axis == 0 else small[:, 0]

    return torch.cat([reduced(part) for part in torch.eye(size, dtype=torch.float64).split(512)]).T


# -------------------------------------------------------------------------------------------------------- the kinds
def _bicubic(hr, scale, amount):
    """The cubic kernel (a = -0.5) stretched by the scale, so that what lies above the LR Nyquist frequency is gone."""
    return F.interpolate(hr, size=(hr.shape[-2] // scale, hr.shape[-1] // scale), mode="bicubic", antialias=True)


def _bicubic_matlab(hr, scale, amount):
    """MATLAB's imresize of a uint8 image, to the grey level: rows first, rounded to 8 bit between the passes, mirrored edges."""

    def levels(x):  # half up, as MATLAB; round() goes to the even level
        return (x + 0.5).floor().clamp(0, 255)

    down, across = (_weights(n, scale, _cubic(scale), 2 * scale).to(hr.device) for n in hr.shape[-2:])
    half = levels(down @ (hr.double() * 255).round())
    return (levels(half @ across.T) / 255).float()


def _bicubic_mirrored(hr, scale, amount):
    """`_bicubic_matlab` without its rounding."""
    down, across = (_weights(n, scale, _cubic(scale), 2 * scale).to(hr) for n in hr.shape[-2:])
    return down @ hr @ across.T


def _gaussian(hr, scale, amount):
    """Gaussian blur of standard deviation `amount` HR pixels (0.4 a scale), then every scale-th pixel: the paper's formulation."""
    sigma = amount or 0.4 * scale
    down, across = (_weights(n, scale, _bell(sigma), 4 * sigma).to(hr) for n in hr.shape[-2:])
    return down @ hr @ across.T


def _axial(hr, scale, amount):
    """A coarser instrument: a source with a narrower spectrum, and fewer A-scans.

    The axial spectrum is multiplied by a Gaussian whose standard deviation is `amount` (0.5) of the LR Nyquist frequency, and
    decimated; across, only the middle A-scan of each group is kept (the mean of the middle two at an even scale), so lateral detail
    aliases as it does in a sparse scan. Done on display levels; an instrument does it to the field.
    """
    sigma = scale / (math.pi * (amount or 0.5))  # the Gaussian's transform is a Gaussian: blur by this many pixels
    down = _weights(hr.shape[-2], scale, _bell(sigma), 4 * sigma).to(hr)
    low = (scale - 1) // 2
    return down @ (hr[..., low::scale] + hr[..., scale // 2 :: scale]) / 2


def _speckle(hr, scale, amount):
    """Bicubic, then new speckle of `amount` looks (8): the display's logarithm is undone, the linear intensity multiplied by gamma
    noise of mean 1, the logarithm redone. The noise is seeded by the image itself."""
    looks, lr = amount or 8.0, round8(_bicubic(hr, scale, 0))
    noise = torch.stack([_gamma(image, looks) for image in lr])
    return to_display(from_display(lr) * noise)


def _area(hr, scale, amount):
    """The mean of scale x scale pixels (OpenCV's INTER_AREA)."""
    return F.avg_pool2d(hr, scale)


def _nearest(hr, scale, amount):
    """Every scale-th pixel as it is: all that lies above the LR Nyquist frequency folds back (what not to do)."""
    return hr[..., scale // 2 :: scale, scale // 2 :: scale]


KINDS: dict[str, Callable[[torch.Tensor, int, float], torch.Tensor]] = {
    "bicubic": _bicubic,
    "bicubic-matlab": _bicubic_matlab,
    "gaussian": _gaussian,
    "axial": _axial,
    "speckle": _speckle,
    "area": _area,
    "nearest": _nearest,
}
_UNROUNDED = {"bicubic-matlab": _bicubic_mirrored}  # the linear reduction behind a kind that rounds on its way


def _cubic(scale):
    """Keys' kernel, a = -0.5, stretched by the scale."""

    def kernel(x):
        t = np.abs(x / scale)
        return np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))

    return kernel


def _bell(sigma):
    return lambda x: np.exp(-((x / sigma) ** 2) / 2)


def _weights(size: int, scale: int, kernel, reach: float) -> torch.Tensor:
    """(size // scale, size): row k weighs the pixels around LR pixel k's centre, (k + 1/2) scale - 1/2; edges are mirrored."""
    centres = (np.arange(size // scale) + 0.5) * scale - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-math.ceil(reach), math.ceil(reach) + 2)
    weights = kernel(taps - centres[:, None])
    folded = np.mod(taps.astype(int), 2 * size)
    folded = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((len(centres), size))
    np.add.at(matrix, (np.arange(len(centres))[:, None], folded), weights)
    return torch.from_numpy(matrix / matrix.sum(1, keepdims=True))


def _gamma(image: torch.Tensor, looks: float) -> torch.Tensor:
    """Gamma noise of mean 1 and shape `looks`, of the image's shape and device (Wilson and Hilferty's cube of a normal)."""
    levels = (image * 255).round().to(torch.uint8).cpu().contiguous().numpy()
    chance = torch.Generator().manual_seed(zlib.crc32(levels.tobytes()))
    z = torch.randn(image.shape, generator=chance).to(image.device)
    return (1 - 1 / (9 * looks) + z / (3 * math.sqrt(looks))).clamp(min=0) ** 3


# ------------------------------------------------------------------------------------------------ the display of OCT
def to_display(intensity: torch.Tensor) -> torch.Tensor:
    """Linear intensity to grey in [0, 1] (eyepy's transform of Heidelberg's raw data)."""
    return ((torch.log(intensity.clamp(min=0) + 2.44e-4) + 8.3) / 8.285).clamp(0, 1)


def from_display(grey: torch.Tensor) -> torch.Tensor:
    """Grey in [0, 1] to linear intensity; the inverse of `to_display`."""
    return (torch.exp(8.285 * grey - 8.3) - 2.44e-4).clamp(min=0)
