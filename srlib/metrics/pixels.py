"""Fidelity: how near SR is to HR pixel by pixel, and to LR once reduced again.

Protocol: `border` pixels are cut from each side (4, as in the paper); then the mean is taken over a region (a bool array, True
where it counts). The peak is 255, whatever the image holds. Where `region` may be a list (None: everywhere), the answer is a list too, and
what is the same for all regions is computed once.
"""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from ..degrade import downsample, to_tensor

SSIM_PAD = 5  # the Gaussian window of 11 pixels (sigma 1.5) reaches this far


def luma(image: np.ndarray) -> np.ndarray:
    """float64 (H, W), for levels 0 to 255: grey as it is; colour as Y of ITU-R 601 (16 to 235), which the Set5 protocol measures. So a grey scan in
    a colour run has a PSNR 1.32 dB higher than in a grey run: compare gains, not levels."""
    return image.astype(np.float64) if image.ndim == 2 else image @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def _inner(image: np.ndarray, border: int) -> np.ndarray:
    """An image or region (H, W) less its border."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def _pair(sr, hr, border):
    """The luma of both images less the border."""
    (height, width), (h, w) = hr.shape[:2], sr.shape[:2]
    if sr.shape != hr.shape:
        raise ValueError(f"SR is {w} x {h} pixels and HR {width} x {height}; they must have the same size: is the scale right?")
    if min(height, width) < 2 * border + 2 * SSIM_PAD + 1:  # no room for one window of SSIM
        raise ValueError(f"an image of {width} x {height} pixels is too small to measure with a border of {border}")
    return _inner(luma(sr), border), _inner(luma(hr), border)


def psnr(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """10 log10(255^2 / MSE) in dB; inf for equal images, nan for an empty region. Raises ValueError for sizes that differ."""
    a, b = _pair(sr, hr, border)
    error = (a - b)[... if region is None else _inner(region, border)]
    if not error.size:
        return float("nan")
    mse = np.mean(error**2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | list | None = None) -> float | list[float]:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, K = .01 and .03, the mean of scikit-image's map in the
    region, which may be a list."""
    a, b = _pair(sr, hr, border)
    _, full = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    full = np.ascontiguousarray(_inner(full, SSIM_PAD))  # so that a mean has one order of adding, with a region and without

    def mean(region):
        inside = full[... if region is None else _inner(region, border + SSIM_PAD)]
        return float(inside.mean()) if inside.size else float("nan")

    return [mean(r) for r in region] if isinstance(region, list) else mean(region)


def consistency(sr: np.ndarray, lr: np.ndarray, scale: int = 4, kind: str = "bicubic") -> float:
    """Data consistency: PSNR in dB between LR and SR brought down again (`degrade.downsample`), at most 80. With kind "frame" SR is brought down
    without its noise, which no method could foresee: then LR's own noise bounds it."""
    again = downsample(to_tensor(sr), scale, "bicubic" if kind.startswith("frame") else kind)
    mse = torch.mean((again - to_tensor(lr)) ** 2).item()
    return float(-10 * np.log10(max(mse, 1e-8)))
