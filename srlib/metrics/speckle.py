"""Speckle and contrast, on the linear intensity behind a B-scan's grey levels; what a reader of OCT would measure."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import uniform_filter

from ..degrade import from_display
from .pixels import luma, per_region


def linear(image: np.ndarray) -> np.ndarray:
    """The linear intensity (`degrade.from_display`) of a B-scan, of three channels that of their mean, float64 (H, W)."""
    grey = image.astype(np.float64) if image.ndim == 2 else image.mean(2)
    return from_display(torch.from_numpy(grey / 255)).numpy()


def speckle_contrast(image: np.ndarray, region: np.ndarray | list | None = None, window: int = 9) -> float | list[float]:
    """Standard deviation over mean of the linear intensity within windows of `window` pixels, mean over those centred in the region.
    Fully developed speckle of one look has 1, an average of N looks 1 / sqrt(N). nan for an empty region. `region` may be a list."""
    intensity = linear(image)
    level = uniform_filter(intensity, window)
    spread = np.sqrt(np.maximum(uniform_filter(intensity**2, window) - level**2, 0))
    contrast = spread / np.maximum(level, 1e-12)

    def mean(region):
        inside = contrast if region is None else contrast[region]
        return float(inside.mean()) if inside.size else float("nan")

    return per_region(mean, region)


def edge_preservation(sr: np.ndarray, hr: np.ndarray, region: np.ndarray | None = None) -> float:
    """Edge preservation index, sum |d SR| / sum |d HR| over the region, d the difference between neighbouring rows (across the
    layers): 1 as HR, below blurred, above noisier. nan where HR has no edge."""
    a, b = (np.abs(np.diff(luma(image), axis=0)) for image in (sr, hr))
    where = np.ones(a.shape, bool) if region is None else region[1:] & region[:-1]
    total = b[where].sum()
    return float(a[where].sum() / total) if total else float("nan")


def cnr(image: np.ndarray, signal: np.ndarray, background: np.ndarray) -> float:
    """Contrast-to-noise ratio in dB on grey levels, 10 log10(|mean_s - mean_b| / sqrt(var_s + var_b)); `signal` and `background` are
    bool arrays. nan where one is empty, both are flat, or nothing lies between them. It rewards blur: read its distance to HR's."""
    y = luma(image)
    if not signal.any() or not background.any():
        return float("nan")
    noise, contrast = np.sqrt(y[signal].var() + y[background].var()), abs(y[signal].mean() - y[background].mean())
    return float(10 * np.log10(contrast / noise)) if min(noise, contrast) > 1e-12 else float("nan")


def enl(image: np.ndarray, background: np.ndarray) -> float:
    """Equivalent number of looks of the linear intensity in the background, mean^2 / variance. nan where it is empty or flat. It
    rewards blur: read its ratio to HR's."""
    values = linear(image)[background]
    return float(values.mean() ** 2 / values.var()) if values.size and values.min() < values.max() else float("nan")
