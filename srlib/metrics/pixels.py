"""Fidelity: how near SR is to HR pixel by pixel, and to LR once reduced again.

Protocol: `border` pixels are cut from each side (4, as in the paper); then the mean is taken over a region (a bool array, True
where it counts). The peak is 255, whatever the image holds. Where `region` may be a list (None: everywhere), the answer is a list too, and
what is the same for all regions is computed once.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from ..degrade import downsample, to_tensor

SSIM_PAD = 5  # the Gaussian window of 11 pixels (sigma 1.5) reaches this far
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from fine to coarse


def luma(image: np.ndarray) -> np.ndarray:
    """float64 (H, W), for levels 0 to 255: grey as it is; colour as Y of ITU-R 601 (16 to 235), which the Set5 protocol measures.

    (So a grey scan in a colour run has a PSNR 1.32 dB higher than in a grey run: compare gains, not levels.)
    """
    return image.astype(np.float64) if image.ndim == 2 else image @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def too_small(shape: tuple, border: int) -> bool:
    """Whether an image (H, W) or (H, W, 3) less its border has no room for one window of SSIM."""
    return min(shape[:2]) < 2 * border + 2 * SSIM_PAD + 1


def _pair(sr, hr, border, region):
    if sr.shape != hr.shape:
        raise ValueError(f"SR is {sr.shape} and HR {hr.shape}; they must have the same size")
    height, width = hr.shape[:2]
    if too_small(hr.shape, border):
        raise ValueError(f"an image of {width} x {height} pixels is too small to measure with a border of {border}")
    return *(luma(image)[border : height - border, border : width - border] for image in (sr, hr)), _within(region, hr, border)


def _within(region, hr, border):
    height, width = hr.shape[:2]
    region = np.ones((height, width), bool) if region is None else region
    return region[border : height - border, border : width - border]


def each(measure, region):
    return [measure(r) for r in region] if isinstance(region, list) else measure(region)


def psnr(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """10 log10(255^2 / MSE) in dB; inf for equal images, nan for an empty region. Raises ValueError for sizes that differ."""
    a, b, where = _pair(sr, hr, border, region)
    if not where.any():
        return float("nan")
    mse = np.mean((a - b)[where] ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | list | None = None) -> float | list[float]:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, K = .01 and .03, by scikit-image.

    Without a region it equals `structural_similarity` of the cut images; with one, the mean of its map there. `region` may be a list.
    """
    a, b, _ = _pair(sr, hr, border, None)
    _, full = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    inner = np.s_[SSIM_PAD:-SSIM_PAD, SSIM_PAD:-SSIM_PAD]

    def mean(region):
        where = _within(region, hr, border)[inner]
        return float(full[inner][where].mean()) if where.any() else float("nan")

    return each(mean, region)


def ms_ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | list | None = None) -> float | list[float]:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003): SSIM's contrast and structure at five scales, each half the
    size of the one before (mean of 2 x 2), its luminance at the last; the product of the means, raised to MS_WEIGHTS.

    nan where a side is below 176 pixels within the border (the window of 11 would not fit the last scale), or the region is empty there.
    `region` may be a list.
    """
    a, b, _ = _pair(sr, hr, border, None)
    terms = []
    if min(a.shape) >= (2 * SSIM_PAD + 1) * 2 ** (len(MS_WEIGHTS) - 1):
        for _ in MS_WEIGHTS:
            terms.append(_ssim_terms(a, b))
            a, b = _halved(a), _halved(b)

    def mean(region):
        if not terms:
            return float("nan")
        result, where = 1.0, _within(region, hr, border).astype(float)
        for k, ((luminance, structure), weight) in enumerate(zip(terms, MS_WEIGHTS, strict=True)):
            inside = where == 1
            inside[:SSIM_PAD], inside[-SSIM_PAD:], inside[:, :SSIM_PAD], inside[:, -SSIM_PAD:] = False, False, False, False
            if not inside.any():
                return float("nan")
            last = k == len(MS_WEIGHTS) - 1
            result *= max((luminance * structure if last else structure)[inside].mean(), 0) ** weight
            where = _halved(where)
        return float(result)

    return each(mean, region)


def _halved(x):
    x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _ssim_terms(a, b) -> tuple[np.ndarray, np.ndarray]:
    """SSIM's luminance, and its contrast times structure, at each pixel."""

    def smooth(x):
        return gaussian_filter(x, 1.5, truncate=3.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, both = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * both + c2) / (var_a + var_b + c2)


def consistency(sr: np.ndarray, lr: np.ndarray, scale: int = 4, kind: str = "bicubic", amount: float = 0.0) -> float:
    """PSNR in dB between LR and SR brought down again (`degrade.downsample`): does SR still say what LR said?

    80 where they are equal or nearly so. With kind "speckle" SR is brought down without new speckle, which no method could
    foresee: then LR's own noise bounds it.
    """
    again = downsample(to_tensor(sr), scale, "bicubic" if kind == "speckle" else kind, amount)
    mse = torch.mean((again - to_tensor(lr)) ** 2).item()
    return float(-10 * np.log10(max(mse, 1e-8)))
