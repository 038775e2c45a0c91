"""Where is measured: the scan without its fill, the retina and the vitreous; and what is measured of anatomy there.

The retina is found as the cheapest paths from left to right, along the inner surface and the RPE: a simple segmentation, meant for choosing where to
measure, not for diagnosis. On phantoms it is tested against the truth (`phantom.draw`), which the evaluation uses in its place.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, label, map_coordinates

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


def retina(image: np.ndarray, truth=None) -> tuple[np.ndarray, np.ndarray]:
    """(retina, vitreous) of a B-scan as bool arrays (H, W): between the inner surface and the RPE's centre; and the valid pixels more
    than 10 rows above the inner surface. `truth`: a `phantom.Phantom` whose surfaces are taken instead of the segmentation."""
    valid, rows = valid_region(image), np.arange(image.shape[0])[:, None]
    if truth is None:
        inner, outer = surfaces(image if image.ndim == 2 else image.mean(2).astype(np.uint8))
    else:
        inner, outer = truth.surfaces["RNFL"], (truth.surfaces["RPE"] + truth.surfaces["below RPE"]) / 2
        inner, outer = inner[: image.shape[1]], outer[: image.shape[1]]
    return valid & (rows >= inner) & (rows <= outer), valid & (rows < inner - 10)


def boundary_shift(sr: np.ndarray, hr: np.ndarray, surface: np.ndarray, reach: int = 6, block: int = 8) -> float:
    """How far a layer boundary lies from where it lies in HR: mean absolute shift in rows, nan where nothing could be placed.

    `surface`: its true row in each column (W,). Columns are laid flat along it and averaged in blocks of `block`; in each block the
    boundary is where the grey level changes most within `reach` rows, to a part of a row by the parabola through three points. HR's
    own sign of the change is searched in both.
    """
    slopes, places = [], []
    for image in (hr, sr):
        rows = surface[None, :] + np.arange(-reach - 1, reach + 2)[:, None]
        grey = image.astype(float) if image.ndim == 2 else image.mean(2)
        flat = map_coordinates(grey, [rows, np.broadcast_to(np.arange(len(surface)), rows.shape)], order=1, mode="nearest")
        flat = flat[:, : len(surface) // block * block].reshape(len(rows), -1, block).mean(2)
        slopes.append((flat[2:] - flat[:-2]) / 2)  # rows -reach to reach
    sign = np.sign(slopes[0].mean(1)[reach - 1 : reach + 2].sum()) or 1.0
    for slope in (sign * slope for slope in slopes):
        k = slope[1:-1].argmax(0) + 1
        at = np.arange(slope.shape[1])
        below, peak, above = slope[k - 1, at], slope[k, at], slope[k + 1, at]
        bend = below - 2 * peak + above
        part = np.where(bend < 0, 0.5 * (below - above) / np.where(bend < 0, bend, 1), 0.0)
        places.append(k + part.clip(-0.5, 0.5))  # at the end of the reach three points in nearly a line have their peak anywhere
    return float(np.abs(places[1] - places[0]).mean()) if len(places[0]) else float("nan")


def lesion_contrast(sr: np.ndarray, hr: np.ndarray, masks: dict[str, np.ndarray], ring: int = 6) -> float:
    """Contrast of the lesions against the `ring` pixels around them, mean grey inside less mean grey outside: SR's over HR's, mean over the
    kinds of lesion; 1: as in HR, below: fainter. nan without lesions or where HR has no contrast of 5 grey levels."""
    ratios = []
    for mask in masks.values():
        mask = mask[: hr.shape[0], : hr.shape[1]]
        around = binary_dilation(mask, iterations=ring) & ~mask
        if not mask.any() or not around.any():
            continue
        contrasts = [float(image[mask].mean() - image[around].mean()) for image in (sr, hr)]
        if abs(contrasts[1]) >= 5:
            ratios.append(contrasts[0] / contrasts[1])
    return float(np.mean(ratios)) if ratios else float("nan")
