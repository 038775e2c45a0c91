"""Every measure of the series, defined once. Images are uint8 arrays (H, W) or (H, W, 3); colour is measured on luma.

Protocol: `border` pixels are cut from each side (4, as in the paper); then the mean is taken over a region (a bool array, True
where it counts). The peak is 255, whatever the image holds.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from .degrade import downsample, to_tensor

SSIM_PAD = 5  # the Gaussian window of 11 pixels (sigma 1.5) reaches this far


def luma(image: np.ndarray) -> np.ndarray:
    """float64 (H, W), for levels 0 to 255: grey as it is; colour as Y of ITU-R 601 (16 to 235), which the Set5 protocol measures.

    (So a grey scan in a colour run has a PSNR 1.32 dB higher than in a grey run: compare gains, not levels.)
    """
    return image.astype(np.float64) if image.ndim == 2 else image @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def _pair(sr, hr, border, region):
    if sr.shape != hr.shape:
        raise ValueError(f"SR is {sr.shape} and HR {hr.shape}; they must have the same size")
    height, width = hr.shape[:2]
    if min(height, width) < 2 * border + 2 * SSIM_PAD + 1:
        raise ValueError(f"an image of {width} x {height} pixels is too small to measure with a border of {border}")
    inner = np.s_[border : height - border, border : width - border]
    region = np.ones(hr.shape[:2], bool) if region is None else region
    return luma(sr)[inner], luma(hr)[inner], region[inner]


def psnr(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """10 log10(255^2 / MSE) in dB; inf for equal images, nan for an empty region. Raises ValueError for sizes that differ."""
    a, b, where = _pair(sr, hr, border, region)
    if not where.any():
        return float("nan")
    mse = np.mean((a - b)[where] ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, K = .01 and .03, by scikit-image.

    Without a region it equals `structural_similarity` of the cut images; with one, the mean of its map there.
    """
    a, b, where = _pair(sr, hr, border, region)
    _, full = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    inner = np.s_[SSIM_PAD:-SSIM_PAD, SSIM_PAD:-SSIM_PAD]
    return float(full[inner][where[inner]].mean()) if where[inner].any() else float("nan")


def spectrum(image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """|FFT|^2 of the luma less its mean, under a Hann window that falls to 0 within 16 pixels of what is outside the region."""
    y = luma(image)
    window = np.outer(np.hanning(y.shape[0]), np.hanning(y.shape[1]))
    if region is not None and not region.all():
        from scipy.ndimage import distance_transform_edt

        window = window * np.sin(np.pi / 2 * np.clip(distance_transform_edt(region) / 16, 0, 1)) ** 2
    total = window.sum()
    mean = (y * window).sum() / total if total else 0
    return np.abs(np.fft.fft2((y - mean) * window)) ** 2


def _frequencies(shape) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]


def high_power(power: np.ndarray, scale: int = 4) -> float:
    """The part of a `spectrum` above the LR Nyquist frequency, 1 / (2 scale) cycles a pixel: what LR cannot tell."""
    fy, fx = _frequencies(power.shape)
    return float(power[np.hypot(fy, fx) > 0.5 / scale].sum())


def high_power_db(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """Power above the LR Nyquist frequency, SR against HR, in dB: 0 as much, below blurred, above invented."""
    hr = high_power(hr_power, scale)
    return float(10 * np.log10(max(high_power(sr_power, scale), 1e-12) / hr)) if hr else float("nan")


def checkerboard(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """How much of the power above the LR Nyquist sits at the grid frequencies, relative to the same share of HR (1: as HR).

    Grid frequencies: within 1.5 bins of fx, fy in multiples of 1/scale (x4: 0, 1/4, 1/2) cycles a pixel, not both 0: the marks of
    sub-pixel convolution. Above 5 they are visible.
    """
    fy, fx = _frequencies(sr_power.shape)
    high = np.hypot(fy, fx) > 0.5 / scale

    def near(f):
        bins = np.min([np.abs(np.abs(f) - g) for g in np.arange(scale // 2 + 1) / scale], 0) * f.size
        return bins <= 1.5

    grid = high & near(fy) & near(fx)

    def share(power):
        return power[grid].sum() / max(power[high].sum(), 1e-12)

    reference = share(hr_power)
    return float(share(sr_power) / reference) if reference else float("nan")


def consistency(sr: np.ndarray, lr: np.ndarray, scale: int = 4, kind: str = "bicubic", amount: float = 0.0) -> float:
    """PSNR in dB between LR and SR brought down again (`degrade.downsample`): does SR still say what LR said?

    80 where they are equal or nearly so. With kind "speckle" SR is brought down without new speckle, which no method could
    foresee: then LR's own noise bounds it.
    """
    again = downsample(to_tensor(sr), scale, "bicubic" if kind == "speckle" else kind, amount)
    mse = torch.mean((again - to_tensor(lr)) ** 2).item()
    return float(-10 * np.log10(max(mse, 1e-8)))


def feature_distance(sr_maps, hr_maps, region: np.ndarray | None = None, window: int = 16) -> float:
    """Distance between two lists of feature maps (1, C, h, w) in the look of their texture; 0 for equal images, lower is nearer.

    Each position's channels are scaled to length 1, as in LPIPS (Zhang et al. 2018). Then what is compared is, for each channel, the
    mean and the standard deviation within windows of `window` HR pixels (half overlapping), as in DISTS (Ding et al. 2020):
    squared differences are summed over channels and both statistics, averaged over the windows that lie in the region (weighted by
    their share of it), and added over the maps. Position by position, another draw of the same speckle would be as far from HR as a
    blurred image is; by its statistics it is near, which is what an observer says. The first map must have HR's size.
    """
    total, height = 0.0, hr_maps[0].shape[-2]
    for sr, hr in zip(sr_maps, hr_maps, strict=True):
        side = max(2, window * hr.shape[-2] // height)
        gap = sum((a - b) ** 2 for a, b in zip(_local_statistics(sr, side), _local_statistics(hr, side), strict=True)).sum(1)
        weight = torch.ones_like(gap)
        if region is not None:
            weight = F.adaptive_avg_pool2d(torch.from_numpy(region[None].astype(np.float32)).to(gap.device), hr.shape[-2:])
            weight = F.avg_pool2d(weight, side, side // 2)
        total += ((gap * weight).sum() / weight.sum()).item()  # nan for an empty region
    return total


def _local_statistics(maps: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    unit = maps / (maps.norm(dim=1, keepdim=True) + 1e-8)
    mean = F.avg_pool2d(unit, side, side // 2)
    return mean, (F.avg_pool2d(unit**2, side, side // 2) - mean**2).clamp(min=0).sqrt()
