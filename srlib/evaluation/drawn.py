"""Draws of SRGAN against HR over the test images: evaluation/draws.csv, ranks.csv, calibration.csv (`sampler.statistics` says what is measured)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_gradient_magnitude

from .. import metrics
from ..files import write
from ..metrics.regions import retina, valid_region
from ..sampler import statistics
from .methods import Scene

DRAWS = 8
STEEPEST = 0.9  # pixels whose gradient is above this quantile are edges


def regions(image: np.ndarray, valid: np.ndarray, truth=None) -> dict[str, np.ndarray]:
    """Where HR's rank is counted, bool (H, W): of a grey image tissue and vitreous, of colour the whole valid region, and edges. `image` is
    SRResNet's, which knows LR alone: places chosen by HR's own grain would make the ranks of right draws unequal."""
    steep = gaussian_gradient_magnitude(metrics.luma(image), 2)
    found = {"edges": valid & (steep > np.quantile(steep[valid], STEEPEST))} if valid.any() else {"edges": valid}
    if image.ndim == 2 or (image == image[..., :1]).all():
        tissue, vitreous = retina(image, truth)
        return {"tissue": tissue & valid, "vitreous": vitreous & valid} | found
    return {"valid": valid} | found


class Drawn:
    """Collects DRAWS draws of one image after the other; `write` makes the three tables."""

    def __init__(self):
        self.rows, self.ranks, self.curves = [], [], []

    def add(self, scene: Scene, hr: np.ndarray, truth, facts: dict) -> None:
        """`facts`: image, patient, label."""
        images, valid = scene.draws(DRAWS), valid_region(hr)
        mean = np.mean([image.astype(np.float64) for image in images], 0)
        kinds = {"draw": images[0], "mean": mean, "srresnet": scene["srresnet"]}
        found = {f"psnr_{name}": metrics.psnr(image, hr, region=valid) for name, image in kinds.items()}
        start = metrics.psnr(scene["bicubic"], hr, region=valid)
        found |= {f"gain_{name}_db": found[f"psnr_{name}"] - start for name in kinds}
        found["regain_db"] = found["psnr_mean"] - found["psnr_draw"]
        spread, error = statistics.predicted_error(images), metrics.luma(mean) - metrics.luma(hr)
        found |= {"srgan_spread": _rms(spread[valid]), "srgan_error": _rms(error[valid])}
        self.curves.append(statistics.calibration(spread, np.abs(error), valid))
        for name, region in regions(scene["srresnet"], valid, truth).items():
            counts = statistics.ranks(images, hr, region, scene.seed % 2**32)
            found[f"rank_{name}"] = statistics.rank_distance(counts)
            self.ranks += [facts | {"region": name, "rank": k, "pixels": n} for k, n in enumerate(counts.tolist())]
        self.rows.append(facts | found)

    def write(self, folder: Path) -> None:
        """draws.csv: a row for each image: psnr and gain_db (over bicubic, valid region) of the first draw, the mean of all, and SRResNet; regain_db;
        srgan_spread, the error that the draws predict for their mean (root mean square, grey levels), and srgan_error, the real one; rank_REGION
        (`statistics.rank_distance`). ranks.csv: region, rank, share. calibration.csv: method, predicted, error. Means over images, of calibration.csv
        root mean squares."""
        write(folder / "draws.csv", pd.DataFrame(self.rows).round(6).to_csv(index=False))
        ranks = pd.DataFrame(self.ranks)
        ranks["share"] = ranks.pixels / ranks.groupby(["image", "region"]).pixels.transform("sum")
        shares = ranks.groupby(["region", "rank"], sort=False).share.mean().round(6).reset_index()
        write(folder / "ranks.csv", shares.to_csv(index=False))
        curves = [curve for curve in self.curves if len(curve)]
        table = pd.DataFrame(_rms(np.array(curves), 0) if curves else [], columns=["predicted", "error"]).round(6)
        table.insert(0, "method", "srgan")
        write(folder / "calibration.csv", table.to_csv(index=False))


def _rms(values: np.ndarray, axis=None):
    return np.sqrt(np.mean(np.square(values), axis)) if np.size(values) else float("nan")
