"""LR synthesis: from an HR tensor to the LR tensor that the generator gets, and plain bicubic back.

Tensors are NCHW, float, in [0, 1]. The low-resolution images of the paper's experiments (Ledig et al. 2017, section 3.2)
are bicubic reductions; the kernel is widened by the scale (antialiasing), as in Pillow and MATLAB.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

SCALES = (2, 3, 4, 8)
KINDS = ("bicubic",)


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


def downsample(hr: torch.Tensor, scale: int = 4, kind: str = "bicubic") -> torch.Tensor:
    """Make the LR image: (N, C, H, W) in [0, 1] to (N, C, H // scale, W // scale) in [0, 1], on 8-bit levels.

    `kind="bicubic"`: the cubic kernel (a = -0.5) stretched by the scale, so that what lies above the LR Nyquist frequency is
    removed before decimation. Sizes that the scale does not divide are cropped at the bottom and right.
    Runs on the tensor's device. Raises ValueError for another scale or kind.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, not {scale}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, not {kind!r}")
    hr = crop_to_multiple(hr, scale)
    size = (hr.shape[-2] // scale, hr.shape[-1] // scale)
    return round8(F.interpolate(hr.float(), size=size, mode="bicubic", antialias=True))


def upsample(lr: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Bicubic interpolation of (N, C, h, w) to (N, C, h * scale, w * scale); not clamped, not rounded.

    `antialias=True` makes torch use the same cubic kernel (a = -0.5) as `downsample` and Pillow; going up, it blurs nothing.
    """
    size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
    return F.interpolate(lr.float(), size=size, mode="bicubic", antialias=True)
