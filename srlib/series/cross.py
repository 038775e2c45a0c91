"""Networks of several runs, each tested on every run's LR."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import metrics
from ..config import Config
from ..data.reading import read_pair
from ..degrade import to_image, to_tensor, upsample
from ..device import pick_device
from ..evaluation.run import choose
from ..inference.upscaling import upscale
from ..metrics.regions import valid_region
from ..models import features
from ..models.weights import load_generator
from .run_folder import Run


def evaluate_cross(trained: dict[Path, Config], tests: list[Config]) -> pd.DataFrame:
    """Networks of several runs (folder to settings), each tested on LR made in every way of `tests`, on the test images of the first run.

    A row for each run, test and image: method, trained and tested (the degradations, with their amount), seed, image, patient, psnr (valid region),
    gain_db over bicubic of the same LR, judge."""
    first = Run(*next(iter(trained.items())))
    device, rows = pick_device(first.config.device), []
    network = features.judge().to(device)
    networks = {(folder, m): load_generator(folder / f"{m}.pt", device) for folder in trained for m in ("srresnet", "srgan")}
    chosen = choose(first.manifest[first.manifest.split == "test"], first.config.max_test_images)
    bar = tqdm(total=len(tests) * len(chosen), desc="cross", unit="image", mininterval=1.0, ncols=100, file=sys.stdout)
    for config in tests:
        for item in chosen.itertuples():
            lr, hr = read_pair(first.root / item.path, config)
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(to_tensor(lr), config.scale)), hr, config.border, region)
            with torch.inference_mode():
                hr_maps = network(to_tensor(hr).to(device))
            for (folder, method), generator in networks.items():
                sr, own = upscale(lr, generator), trained[folder]
                with torch.inference_mode():
                    distance = metrics.feature_distance(network(to_tensor(sr).to(device)), hr_maps, region)
                psnr = metrics.psnr(sr, hr, config.border, region)
                facts = {"method": method, "trained": _kind(own), "tested": _kind(config), "seed": own.seed}
                rows.append(facts | {"image": item.path, "patient": item.patient, "psnr": psnr, "gain_db": psnr - start, "judge": distance})
            bar.update()
    return pd.DataFrame(rows).round(6)


def _kind(config: Config) -> str:
    return config.degradation


def cross_table(table: pd.DataFrame, measure: str = "gain_db") -> pd.DataFrame:
    """`evaluate_cross`'s table as means over patients, then seeds: a row for (method, trained on), a column for each tested degradation."""
    table = table.assign(**{measure: table[measure].where(np.isfinite)})  # a blank image has no PSNR
    by_seed = table.groupby(["method", "trained", "tested", "seed", "patient"], sort=False)[measure].mean()
    return by_seed.groupby(["method", "trained", "tested"], sort=False).mean().unstack("tested")
