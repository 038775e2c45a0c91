"""Where is measured: the scan without its fill, the retina and the vitreous.

The retina is found as the cheapest paths from left to right, along the inner surface and the RPE: a simple segmentation, meant for choosing where to
measure, not for diagnosis. It is tested on phantoms, whose truth is known.
"""

import itertools

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

STEP = 2  # columns from one point of a path to the next; it may rise or fall by as many rows, and one more
THINNEST = 22  # rows from the inner surface to the RPE at least, 85 um: less than any fovea


def valid_region(hr: np.ndarray, level: int = 250, smallest: int = 200, margin: int = 8) -> np.ndarray:
    """True where the image, uint8 (H, W) or (H, W, 3), is scan, False where it is fill; bool (H, W).

    Fill: connected pixels >= `level` (all channels) that touch the image border and exceed `smallest` pixels, widened by
    `margin` pixels. Bright tissue inside the image is never fill."""
    bright = (hr if hr.ndim == 2 else hr.min(2)) >= level
    parts, _ = label(bright, structure=np.ones((3, 3)))
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    sizes = np.bincount(parts.ravel())
    fill = np.isin(parts, [k for k in edge if k and sizes[k] > smallest])
    if not fill.any():
        return np.ones(bright.shape, bool)
    return distance_transform_edt(~fill) > margin


def whole_squares(region: np.ndarray, side: int, step: int) -> list[tuple[slice, slice]]:
    """The squares of `side` pixels, `step` apart, that lie wholly in a region, bool (H, W)."""
    corners = itertools.product(*(range(0, n - side + 1, step) for n in region.shape))
    squares = (np.s_[top : top + side, left : left + side] for top, left in corners)
    return [square for square in squares if region[square].all()]


def surfaces(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the inner surface (ILM) and of the RPE's centre in each column, float (W,), of a grey B-scan, uint8 (H, W).

    The RPE is the brightest smooth path that has a good share of the column's light above it (the retina's, which tells it from the nerve
    fibre layer); the inner surface is the strongest step from dark to bright above that. nan where a column is fill. Where fluid or the optic disc
    takes much of the scan, it can be far off."""
    valid = valid_region(image)
    grey = np.where(valid, image, np.median(image[valid]) if valid.any() else 0).astype(np.float32)
    bright = gaussian_filter(grey, (1.5, 4))
    rise = gaussian_filter(grey, (2.5, 4), order=(1, 0))
    dark = float(np.quantile(grey[valid], 0.4)) if valid.any() else 0.0
    deep = np.cumsum(np.maximum(gaussian_filter(grey, (3, 8)) - dark, 0), 0)
    deep /= np.maximum(deep[-1:], 1)
    outer = _path(bright + 150 * np.clip(deep - 0.15, 0, 0.3) / 0.3)
    rows = np.arange(len(image))[:, None]
    inner = _path(np.where((rows < outer - THINNEST) & valid, 12 * rise - 60 * deep / 0.3, -1e4))
    seen = valid[np.clip(np.round(outer).astype(int), 0, len(image) - 1), np.arange(image.shape[1])]
    return np.where(seen, inner, np.nan), np.where(seen, outer, np.nan)


def _path(worth: np.ndarray) -> np.ndarray:
    """The path from left to right with the greatest sum of `worth` (H, W) that moves by at most STEP + 1 rows in STEP columns; rows, float (W,)."""
    height, width = worth.shape
    columns = np.arange(0, width, STEP)
    total, back = worth[:, 0].astype(np.float64), np.zeros((len(columns), height), int)
    moves = np.arange(-STEP - 1, STEP + 2)
    for k, column in enumerate(columns[1:], 1):
        padded = np.pad(total, STEP + 1, constant_values=-np.inf)
        choices = np.stack([padded[STEP + 1 + m : STEP + 1 + m + height] for m in moves])
        best = choices.argmax(0)
        back[k] = best
        total = choices[best, np.arange(height)] + worth[:, column]
    row = int(total.argmax())
    rows = np.empty(len(columns))
    for k in range(len(columns) - 1, -1, -1):
        rows[k] = row
        row += moves[back[k, row]] if k else 0
    return np.interp(np.arange(width), columns, rows)


def retina(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(retina, vitreous) of a B-scan as bool arrays (H, W): between the inner surface and the RPE's centre; and the valid pixels more
    than 10 rows above the inner surface."""
    valid, rows = valid_region(image), np.arange(image.shape[0])[:, None]
    inner, outer = surfaces(image if image.ndim == 2 else image.mean(2).astype(np.uint8))
    return valid & (rows >= inner) & (rows <= outer), valid & (rows < inner - 10)
