"""Texture by its power spectrum: how much there is of each fineness, and whether one direction stands out.

What LR can hold is a square in the plane of frequencies, max(|fx|, |fy|) <= f0, with f0 = 1 / (2 scale) cycles a pixel, its Nyquist
frequency. Above it stand the bands. No sum over all of them is given: the finest have the least power, and a sum would not show that they
are missing.
"""

import itertools
from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt

from .pixels import luma

FLAT = 0.01 / 12  # variance in squared grey levels, a hundredth of what rounding to whole ones leaves


def _window(shape, region: np.ndarray | None) -> np.ndarray:
    """A Hann window that falls to 0 within 16 pixels of what is outside the region."""
    window = np.outer(np.hanning(shape[0]), np.hanning(shape[1]))
    if region is not None and not region.all():
        window = window * np.sin(np.pi / 2 * np.clip(distance_transform_edt(region) / 16, 0, 1)) ** 2
    return window


def spectrum(image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """|FFT|^2 of the luma less its mean under `_window`; (H, W). Zeros where the image is flat there (FLAT): what is left is the rounding of
    numbers, and a ratio to it says nothing."""
    y, window = luma(image), _window(image.shape[:2], region)
    total = window.sum()
    mean = (y * window).sum() / total if total else 0
    detail = (y - mean) * window
    if (detail**2).sum() <= FLAT * (window**2).sum():
        return np.zeros(window.shape)
    return np.abs(np.fft.fft2(detail)) ** 2


def rounding_floor(shape: tuple, region: np.ndarray | None = None) -> float:
    """What rounding to whole grey levels adds to `spectrum` at every frequency: 1/12 times the sum of the squared window."""
    return float((_window(shape[:2], region) ** 2).sum() / 12)


@lru_cache(8)
def _frequencies(shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fy, fx and max(|fy|, |fx|), cycles a pixel."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    return fy, fx, np.maximum(np.abs(fy), np.abs(fx))


def psd(power: np.ndarray, bins: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """(frequency max(|fx|, |fy|) in cycles a pixel, mean power): a `spectrum` averaged over square rings, at most `bins`, none empty."""
    bins = min(bins, min(power.shape) // 2)
    edges = np.linspace(0, 0.5, bins + 1)
    which = np.digitize(_frequencies(power.shape)[2], edges, right=True) - 1
    inside = (which >= 0) & (which < bins)  # without the mean
    count = np.bincount(which[inside], minlength=bins)
    return (edges[1:] + edges[:-1]) / 2, np.bincount(which[inside], power[inside], bins) / np.maximum(count, 1)


def against_hr(images: dict[str, np.ndarray], hr: np.ndarray, region: np.ndarray | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (frequency, dB)}: the `psd` of each image over HR's, on a grid of 90 frequencies to 1/2; 'rounding': what rounding to whole grey
    levels alone has, over HR's. nan where HR is flat."""
    f, reference = psd(spectrum(hr, region))
    powers = {name: psd(spectrum(image, region))[1] for name, image in images.items()}
    powers["rounding"] = np.full_like(reference, rounding_floor(hr.shape, region))
    reference = reference + 1e-9 if reference.any() else np.full_like(reference, np.nan)
    grid = np.linspace(0, 0.5, 91)[1:]
    return {name: (grid, np.interp(grid, f, 10 * np.log10((power + 1e-9) / reference))) for name, power in powers.items()}


def bands(scale: int = 4) -> list[tuple[float, float]]:
    """The bands above the LR Nyquist frequency f0 = 1 / (2 scale): (low, high] in cycles a pixel, from f0 to 1/2, each about half an octave;
    x4 has four, x2 two, x8 six, x3 three."""
    count = round(2 * np.log2(scale))
    edges = [0.5 * scale ** (k / count - 1) for k in range(count + 1)]
    return list(itertools.pairwise(edges))


@lru_cache(64)
def _in_bands(shape, scale: int) -> list[np.ndarray]:
    """For each of the `bands`, where its frequencies stand in a spectrum (np.nonzero)."""
    f = _frequencies(shape)[2]
    return [np.nonzero((f > low) & (f <= high)) for low, high in bands(scale)]


@lru_cache(8)
def _sectors(shape) -> np.ndarray:
    """Which of twelve sectors of 15 degrees each frequency lies in, 0 to 11; the axes in the middle of one."""
    fy, fx, _ = _frequencies(shape)
    return np.floor(np.rad2deg(np.arctan2(fy, fx)) / 15 + 0.5).astype(int) % 12


def _db(sr: float, hr: float) -> float:
    return float(10 * np.log10(max(sr, 1e-12) / hr)) if hr else float("nan")


def band_power_db(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> list[float]:
    """Power of SR against HR, both `spectrum`s, in each of the `bands` of max(|fx|, |fy|), dB: 0 as much, below blurred, above too rough; nan where HR
    has none."""
    return [_db(sr_power[w].sum(), hr_power[w].sum()) for w in _in_bands(hr_power.shape, scale)]


def stripe_index(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """How much one direction stands out of SR's texture, dB: in each of the `bands` SR over HR in twelve sectors of 15 degrees, the
    largest less the median; mean over the bands. Stripes of any direction raise it; another sample of the same
    texture has about 1 (small images more: 2 at 96 x 128 pixels), as chance decides. nan where HR has no power in a sector."""
    sector, excess = _sectors(hr_power.shape), []
    for inside in _in_bands(hr_power.shape, scale):
        sr, hr = (np.bincount(sector[inside], power[inside], 12) for power in (sr_power, hr_power))
        ratios = [_db(a, b) for a, b in zip(sr, hr, strict=True)]
        excess.append(np.max(ratios) - np.median(ratios))
    return float(np.mean(excess))


def checkerboard(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """How much of the power above the LR Nyquist sits at the grid frequencies, relative to the same share of HR (1: as HR; above 5 it is visible):
    within 1.5 bins of fx, fy in multiples of 1/scale cycles a pixel, not both 0, the marks of sub-pixel convolution."""
    fy, fx, f = _frequencies(sr_power.shape)
    high = f > 0.5 / scale

    def near(f):
        bins = np.min([np.abs(np.abs(f) - g) for g in np.arange(scale // 2 + 1) / scale], 0) * f.size
        return bins <= 1.5

    grid = high & near(fy) & near(fx)

    def share(power):
        return power[grid].sum() / max(power[high].sum(), 1e-12)

    reference = share(hr_power)
    return float(share(sr_power) / reference) if reference else float("nan")
