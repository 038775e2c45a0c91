"""Several samples of one LR image against HR: the rank histogram, the predicted error.

If the samples come from the true posterior, p(hr | lr), HR is one more of them: nothing tells its place among them, and their spread is the
error of their mean. These measures need no sample to lie near HR, and a generator without noise fails them all.
"""

import numpy as np

from ..metrics import luma


def ranks(images: list[np.ndarray], hr: np.ndarray, region: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """How often 0, 1, ... n of the n samples lie below HR, counts (n + 1,) over the pixels of the region; ties are broken at random.

    Equally often where the samples are right (Talagrand's rank histogram; Hamill 2001). A heap in the middle: they spread too far; at
    both ends: too little; at one end: they are too dark or too bright. The region must not be chosen by looking at HR's texture."""
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
    """The error that the mean of the n samples should have at each pixel, in grey levels, (H, W): their standard deviation times
    sqrt(1 + 1/n), HR being one more sample."""
    n = len(images)
    return np.std([luma(image) for image in images], 0, ddof=1) * np.sqrt(1 + 1 / n)
