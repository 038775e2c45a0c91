"""Several draws of one LR image against HR. Is HR one more of them?

If the draws come from the true posterior, p(hr | lr), then HR and the draws are alike: nothing tells HR's place among them, and the
spread of the draws is the error of their mean. These measures need no draw to lie near HR, and a generator without chance fails them all.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from ..metrics.pixels import luma, psnr

BINS, WINDOW = 10, 9  # groups of the calibration curve; pixels of the window by which they are ordered


def regain(images: list[np.ndarray], hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """PSNR of the mean of the images less that of the first, dB. Of n draws from the true posterior 10 log10(2 / (1 + 1/n)): 2.5 dB for
    eight, 1.76 for three; of equal images 0."""
    mean = np.mean([image.astype(np.float64) for image in images], 0)
    return psnr(mean, hr, border, region) - psnr(images[0], hr, border, region)


def ranks(images: list[np.ndarray], hr: np.ndarray, region: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """How often 0, 1, ... n of the n draws lie below HR, counts (n + 1,) over the pixels of the region; ties are broken at random.

    Equally often where the draws are right (Talagrand's rank histogram; Hamill 2001). A heap in the middle: they spread too far; at
    both ends: too little; at one end: they are too dark or too bright. The region must not be chosen by looking at HR's grain."""
    where = np.ones(hr.shape[:2], bool) if region is None else region
    truth, values = luma(hr)[where], np.stack([luma(image)[where] for image in images])
    below, same = (values < truth).sum(0), (values == truth).sum(0)
    rank = below + np.random.default_rng(seed).integers(0, same + 1)
    return np.bincount(rank, minlength=len(images) + 1)


def rank_distance(counts: np.ndarray) -> float:
    """How far rank counts (n + 1,) are from equal: half the sum of |share - 1 / (n + 1)|, from 0 (equal) to n / (n + 1); nan for none."""
    total = np.sum(counts)
    return float(np.abs(np.asarray(counts) / total - 1 / len(counts)).sum() / 2) if total else float("nan")


def predicted_error(images: list[np.ndarray]) -> np.ndarray:
    """The error that the mean of the n draws should have at each pixel, in grey levels, (H, W): their standard deviation times
    sqrt(1 + 1/n), HR being one more draw."""
    n = len(images)
    return np.std([luma(image) for image in images], 0, ddof=1) * np.sqrt(1 + 1 / n)


def calibration(predicted: np.ndarray, error: np.ndarray, region: np.ndarray | None = None, bins: int = BINS) -> np.ndarray:
    """Is the error as large as was predicted? Pixels in `bins` groups of equal number, from where a small error is predicted to where a large
    one is: (bins, 2), the root mean square of the predicted and of the real error in each. Near the diagonal where the prediction is right.
    (0, 2) for an empty region.

    They are ordered by the mean of the squared prediction within WINDOW pixels: the spread of a few draws at one pixel is largely chance, and
    ordered by that alone right draws would seem to predict too little in the first group and too much in the last, by a third for eight."""
    where = np.ones(error.shape, bool) if region is None else region
    inside = uniform_filter(where.astype(float), WINDOW)
    level = uniform_filter(np.where(where, predicted, 0.0) ** 2, WINDOW) / np.maximum(inside, 1e-12)
    predicted, error, level = predicted[where], error[where], level[where]
    if len(error) < bins:
        return np.empty((0, 2))
    groups = np.array_split(np.argsort(level, kind="stable"), bins)
    return np.array([[np.sqrt(np.mean(values[group] ** 2)) for values in (predicted, error)] for group in groups])
