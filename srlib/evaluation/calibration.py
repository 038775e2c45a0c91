"""How like real scans are the phantoms? The same statistics of both, and what they are on real NORMAL scans.

`measure` takes images of either kind; nothing in it needs to know where the layers are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from .. import metrics
from ..config import Config, UserError
from ..data.phantom import bscan
from ..data.reading import find_images, is_upscaled, named_patient, read_image, slices
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from ..metrics.regions import valid_region
from ..models.networks import LinearFilter

BANDS = ((0.02, 0.1), (0.1, 0.25), (0.25, 0.5))  # cycles a pixel
QUANTILES = (5, 25, 50, 75, 95)

# `measure` of 94 real NORMAL scans of 496 x 512 pixels (one size, as the phantoms have it), each of another patient
# (Kermany et al. 2018), and how near phantoms must be
REAL_NORMAL = {
    "bicubic x2 PSNR (dB)": (33.43, 0.5),
    "bicubic x4 PSNR (dB)": (28.76, 0.5),
    "bicubic x4 SSIM": (0.656, 0.04),
    "bicubic x8 PSNR (dB)": (26.41, 0.5),
    "background 5 % (grey)": (2.6, 3.0),
    "background 25 % (grey)": (17.8, 3.0),
    "background 50 % (grey)": (28.0, 3.0),
    "background 75 % (grey)": (36.3, 3.0),
    "background 95 % (grey)": (46.2, 3.0),
    "background autocorrelation, axial 1": (0.669, 0.08),
    "background autocorrelation, axial 2": (0.233, 0.08),
    "background autocorrelation, lateral 1": (0.478, 0.08),
    "background autocorrelation, lateral 2": (0.089, 0.08),
    "spectral slope 0.02 to 0.1": (-2.69, 0.4),
    "spectral slope 0.1 to 0.25": (-3.14, 0.4),
    "spectral slope 0.25 to 0.5": (-4.29, 0.4),
    "linear filter x4 gain (dB)": (0.37, 0.25),
}


def background(image: np.ndarray, level: float = 50.0, margin: int = 24) -> np.ndarray:
    """Bool (H, W), True in the vitreous: what lies at least `margin` rows above the first row of its column that exceeds `level`
    once smoothed (Gaussian, 5 pixels), 16 pixels from fill and 8 from the border."""
    smooth = gaussian_filter(np.where(valid_region(image), image, 0).astype(float), 5)
    above = np.cumsum(smooth > level, 0) == 0
    above = np.roll(above, -margin, 0)
    above[-margin:] = False
    region = valid_region(image, margin=16) & above
    region[:8] = region[:, :8] = region[:, -8:] = False
    return region


def autocorrelation(image: np.ndarray, region: np.ndarray, axis: int, lag: int) -> float:
    """Correlation of pixels of `region` with those `lag` further along `axis` (0: axial), slow changes taken out."""
    x = image.astype(float)
    weight = gaussian_filter(region.astype(float), 8) + 1e-9
    x = np.where(region, x - gaussian_filter(np.where(region, x, 0), 8) / weight, 0)
    a, b = (np.moveaxis(v, axis, 0) for v in (x, region))
    both = b[lag:] & b[:-lag]
    variance = x[region].var()
    return float((a[lag:] * a[:-lag])[both].mean() / variance) if variance else float("nan")


def slopes(image: np.ndarray, region: np.ndarray | None = None) -> list[float]:
    """The exponent of the radial power spectrum in each of BANDS (power ~ frequency to this); nan of a flat image."""
    power = metrics.spectrum(image, region)
    if not power.any():
        return [float("nan")] * len(BANDS)
    f = np.hypot(np.fft.fftfreq(power.shape[0])[:, None], np.fft.fftfreq(power.shape[1])[None])
    found = []
    for low, high in BANDS:
        edges = np.geomspace(low, high, 9)
        mean = [power[(f >= a) & (f < b)].mean() for a, b in itertools.pairwise(edges)]
        found.append(float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(mean), 1)[0]))
    return found


def measure_one(image: np.ndarray) -> dict[str, float]:
    """The statistics of one grey scan, uint8 (H, W): see `measure`."""
    found = {}
    for scale in (2, 4, 8):
        hr = crop_to_multiple(image, scale)
        up, region = to_image(upsample(downsample(to_tensor(hr), scale), scale)), valid_region(hr)
        found[f"bicubic x{scale} PSNR (dB)"] = metrics.psnr(up, hr, region=region)
        if scale == 4:
            found["bicubic x4 SSIM"] = metrics.ssim(up, hr, region=region)
    dark = background(image)
    if dark.sum() > 2000:
        for q, value in zip(QUANTILES, np.percentile(image[dark], QUANTILES), strict=True):
            found[f"background {q} % (grey)"] = float(value)
        for axis, name in ((0, "axial"), (1, "lateral")):
            for lag in (1, 2):
                found[f"background autocorrelation, {name} {lag}"] = autocorrelation(image, dark, axis, lag)
    for (low, high), slope in zip(BANDS, slopes(image, valid_region(image)), strict=True):
        found[f"spectral slope {low} to {high}"] = slope
    return found


def measure(images: Iterable[np.ndarray]) -> pd.Series:
    """Means over scans: bicubic PSNR and SSIM (valid region), grey quantiles and autocorrelation of the background, slopes of
    the radial spectrum, and the gain of a linear filter (`LinearFilter`) over bicubic at x4, fitted on every other scan and
    measured on those between. Give one scan of each patient. Raises UserError for fewer than four of 96 x 96 pixels or more."""
    images = [image for image in images if min(image.shape) >= 96]
    blank = sum(not np.ptp(image) for image in images)
    if blank:
        print(f"{blank} image(s) left out: blank")
        images = [image for image in images if np.ptp(image)]
    if len(images) < 4:
        raise UserError(f"the statistics need four scans of four patients, of 96 x 96 pixels or more; there are {len(images)}")
    means = pd.DataFrame([measure_one(image) for image in images]).replace(np.inf, np.nan).mean()
    pairs = [(downsample(to_tensor(hr)), to_tensor(hr)) for hr in (crop_to_multiple(image, 4) for image in images)]
    linear, gains = LinearFilter(4).fit(pairs[::2]), []
    for lr, hr in pairs[1::2]:
        target = to_image(hr)
        region = valid_region(target)
        gains.append(
            metrics.psnr(to_image(linear(lr)), target, region=region) - metrics.psnr(to_image(upsample(lr)), target, region=region)
        )
    means["linear filter x4 gain (dB)"] = np.nanmean(gains)
    return means


def one_of_each(folder: str | Path, count: int = 100) -> list[np.ndarray]:
    """The first readable scan, in grey, of each patient under `folder` (by the usual file names), at most `count`; NORMAL ones where
    a folder is called so. Of a volume the middle slice. Files that cannot be read are printed with the reason."""
    paths = find_images(folder)
    paths = [path for path in paths if path.parent.name == "NORMAL"] or paths
    images: dict[str, np.ndarray] = {}
    for path in (path for path in paths if not is_upscaled(path)):
        name = path.relative_to(folder).as_posix()
        patient = named_patient(name, Config.patient_pattern) or name
        if patient not in images and len(images) < count:
            try:
                pages = slices(path)
                images[patient] = read_image(pages[len(pages) // 2])
            except UserError as error:
                print(f"left out: {error}")
    return list(images.values())


def compare(images: Iterable[np.ndarray] = (), name: str = "images") -> pd.DataFrame:
    """`measure` of 24 normal phantoms beside REAL_NORMAL and its tolerances and, where `images` are given, theirs."""
    table = pd.DataFrame(REAL_NORMAL, index=["real NORMAL", "within"]).T
    table.insert(0, "phantoms", measure(bscan(seed) for seed in range(24)))
    images = list(images)
    if images:
        table[name] = measure(images)
    return table
