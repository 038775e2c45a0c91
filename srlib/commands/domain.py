"""Is an image like the LR images that a network was trained on? A few statistics with names, measured of the training set when its weights are
released. SR looks as sharp where a network was never shown such an image as where it was."""

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from .. import metrics
from ..metrics.regions import valid_region

QUANTILES = (5, 25, 50, 75, 95)
BANDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # cycles a pixel
LEAST = 24  # pixels a side that a spectrum needs
# Chosen on LR of 509 real scans, trained on 346: 2 of 109 scans of unseen patients are warned of; of scikit-image's photographs, noise and
# scans that bicubic had enlarged, all (tests/test_domain.py).
LIMIT = 4.0  # standard deviations
SLACK = 1.5  # a side may be so many times smaller or larger than any in training
FLOOR = 0.5  # smallest standard deviation, grey levels or dB: a few images of one kind have next to none


def measure(image: np.ndarray) -> dict[str, float]:
    """The statistics of an LR image, uint8 (H, W) or (H, W, 3), in its valid region: `colour` (levels between the largest and the smallest
    channel, mean), `grey N %` (quantiles), `power A-B (dB)` (of the spectrum from A to B cycles a pixel, against the mean over all BANDS) and
    `layers (dB)` (power along depth against power across). Under LEAST pixels a side there is no spectrum."""
    colour = float(np.ptp(image, axis=2).mean()) if image.ndim == 3 else 0.0
    if image.ndim == 3:
        image = np.round(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    region = valid_region(image)
    region = region if region.mean() > 0.1 else np.ones_like(region)
    found = {"colour": colour} | {f"grey {q} %": float(v) for q, v in zip(QUANTILES, np.percentile(image[region], QUANTILES))}
    if min(image.shape) < LEAST:
        return found
    power = metrics.spectrum(image, region) + 1e-6
    fy, fx = np.abs(np.fft.fftfreq(image.shape[0]))[:, None], np.abs(np.fft.fftfreq(image.shape[1]))[None]
    f = np.hypot(fy, fx)
    inside = (f >= BANDS[0]) & (f < BANDS[-1])
    for low, high in itertools.pairwise(BANDS):
        found[f"power {low}-{high} (dB)"] = float(10 * np.log10(power[(f >= low) & (f < high)].mean() / power[inside].mean()))
    found["layers (dB)"] = float(10 * np.log10(power[inside & (fy > fx)].mean() / power[inside & (fy < fx)].mean()))
    return found


def describe(images: Iterable[np.ndarray]) -> dict:
    """The domain of a training set's LR images, plain values for JSON: `images` (their number), `height` and `width` (smallest, largest) and
    `statistics` (name of `measure`: mean, standard deviation)."""
    table = pd.DataFrame({"height": image.shape[0], "width": image.shape[1]} | measure(image) for image in images)
    sizes = {side: [int(table[side].min()), int(table[side].max())] for side in ("height", "width")}
    statistics = table.drop(columns=["height", "width"])
    means, deviations = statistics.mean().round(3), statistics.std(ddof=0).round(3)
    return {"images": len(table)} | sizes | {"statistics": {name: [float(means[name]), float(deviations[name])] for name in statistics}}


def warning(image: np.ndarray, domain: dict) -> str:
    """In what an image, uint8 (H, W) or (H, W, 3), is unlike the training set of `domain` (of `describe`), one clause for the size and for
    each kind of statistic that lies more than LIMIT standard deviations from the mean; '' where nothing does."""
    height, width = image.shape[:2]
    clauses: dict[str, tuple[float, str]] = {}
    if any(not low / SLACK <= n <= high * SLACK for n, (low, high) in ((height, domain["height"]), (width, domain["width"]))):
        trained = " x ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in (domain["width"], domain["height"]))
        clauses["size"] = 0, f"{width} x {height} pixels (in training {trained})"
    for name, value in measure(image).items():
        mean, spread = domain["statistics"].get(name, (value, 0))
        distance, kind = abs(value - mean) / max(spread, FLOOR), name.split()[0]
        if distance > max(LIMIT, clauses.get(kind, (0,))[0]):
            clauses[kind] = distance, f"{name} {value:.0f} (in training {mean:.0f} ± {max(spread, FLOOR):.1f})"
    return "; ".join(clause for _, clause in clauses.values())
