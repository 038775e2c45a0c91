"""Run every method over the test split, one image at a time, and measure: what stands in a run's folder evaluation/."""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from .. import metrics
from ..config import Config, UserError
from ..data.reading import jpeg_tables, png_names, read_image, read_pair
from ..data.sources import phantom_tables, phantom_truth
from ..degrade import crop_to_multiple, held_by
from ..device import pick_device
from ..files import read_table, write, write_image
from ..metrics.regions import valid_region
from ..models import features
from ..models.networks import LinearFilter
from ..trained import load_generator
from ..training.stage import training_pairs
from ..upscaling import upscale
from .drawn import Drawn
from .gaussian import GaussianTexture
from .methods import METHODS, Arms, Scene
from .patches import Patches
from .protocol import BORDER, Protocol
from .statistics import summarise

MEASURED = 2  # methods that are measured at once: most measures use one core
FITTED = 12  # validation images that the Gaussian texture is fitted on


def choose(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` images (0: all): one of each patient first, the classes in turn."""
    if not limit or len(rows) <= limit:
        return rows
    turn = rows.groupby("patient").cumcount()
    in_class = rows.assign(turn=turn).sort_values(["turn", "path"]).groupby("label").cumcount()
    order = rows.assign(turn=turn, nth=in_class).sort_values(["nth", "label", "turn", "path"]).index
    return rows.loc[order[:limit]].sort_index()


def fit_linear(paths, config: Config, crops: int = 256) -> LinearFilter:
    """The least-squares filter, fitted on the first `crops` training crops."""
    return LinearFilter(config.scale).fit(training_pairs(paths, config, torch.device("cpu"), -(-crops // config.batch), config.seed)(0))


def fit_arms(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> Arms:
    """The networks of the run, the linear filter fitted on training crops (smaller ones where no scan has the settings' size), and the Gaussian
    texture fitted on FITTED validation images."""
    device = pick_device(config.device)
    networks = {n: load_generator(folder / f"{n}.pt", device) for n in ("srresnet", "srgan")}
    train = manifest[manifest.split == "train"]
    sides, fits = train[["height", "width"]].min(axis=1), config
    if not (sides >= config.crop).any():  # only where nothing was trained on them
        fits = dataclasses.replace(config, crop=int(sides.min()) // config.scale * config.scale)
        print(f"evaluate: no training scan has {config.crop} pixels a side; linear is fitted on crops of {fits.crop}")
    linear = fit_linear([root / p for p in train.path[sides >= fits.crop]], fits)

    def fitting():
        for path in choose(manifest[manifest.split == "val"], FITTED).path:
            lr, hr = read_pair(root / path, config)
            yield upscale(lr, networks["srresnet"]), lr, hr

    gaussian = GaussianTexture(config.scale, held_by(config)).fit(fitting())
    return Arms(config.scale, linear=linear, gaussian=gaussian, **networks)


def evaluate_run(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Measure every method on the test split (`max_test_images` of it), one image at a time. Writes into `folder`/evaluation metrics.csv, a row
    for each image, method and region, which it returns; draws.csv, ranks.csv, calibration.csv (`Drawn`), unpaired.csv (`Patches`),
    summary.json and sr/<method>/<path>.png (`png_names`)."""
    arms, out, device = fit_arms(config, root, manifest, folder), folder / "evaluation", pick_device(config.device)
    lpips = features.lpips().to(device) if config.lpips else None
    drawn, patches = Drawn(), Patches(name for name, method in METHODS.items() if method.texture)
    rows, chosen = [], choose(manifest[manifest.split == "test"], config.max_test_images)
    of_draws, names = set(choose(chosen, config.sample_images).path), png_names(chosen.path)
    for item in tqdm(chosen.itertuples(), total=len(chosen), desc="evaluate", unit="image", mininterval=1.0, ncols=100, file=sys.stdout):
        lr, hr = read_pair(root / item.path, config)
        if metrics.too_small(hr.shape, BORDER):
            raise UserError(f"{item.path}: {hr.shape[1]} x {hr.shape[0]} pixels are too small to be measured; leave it out")
        truth = phantom_truth(item.path, config) if config.data == "phantom" else None
        protocol = Protocol(lr, hr, config.reduction, truth, lpips, device)
        scene, facts = Scene(lr, item.path, arms), {"image": item.path, "patient": item.patient, "label": item.label}
        if item.path in of_draws:
            drawn.add(scene, hr, truth, facts)
        images, size = {method: scene[method] for method in METHODS}, {"height": len(hr), "width": hr.shape[1]}
        with ThreadPoolExecutor(MEASURED) as pool:
            for method, measures in zip(images, pool.map(protocol.measure, images.values()), strict=True):
                write_image(out / "sr" / method / names[item.path], Image.fromarray(images[method]), compress_level=1)
                rows += [facts | {"method": method} | measured | size for measured in measures]
        tables = phantom_tables() if config.data == "phantom" else jpeg_tables(root / item.path)
        patches.add(images | {"hr": hr}, valid_region(hr), item.patient, scene.seed % 2**32, tables)
    table = pd.DataFrame(rows).round(6)
    write(out / "metrics.csv", table.to_csv(index=False))
    drawn.write(out)
    patches.write(out, config, device)
    facts = {"images": len(chosen), "patients": int(chosen.patient.nunique())}
    text = json.dumps(facts | {"means_by_patient": json.loads(summarise(table).reset_index().to_json(orient="records"))}, indent=1)
    write(out / "summary.json", text + "\n")
    return table


def evaluated_images(folder: Path, root: Path, path: str, config: Config, methods=tuple(METHODS)) -> dict[str, np.ndarray]:
    """The SR images that `evaluate_run` wrote for one test image, and 'hr'; uint8, all of HR's size."""
    measured = read_table(folder / "evaluation" / "metrics.csv").image
    name = png_names({path, *measured})[path]
    files = {m: folder / "evaluation" / "sr" / m / name for m in methods}
    if missing := next((file for file in files.values() if not file.exists()), None):
        raise UserError(f"{missing} is missing; --from 05 measures the run again")
    images = {m: read_image(file, config.channels) for m, file in files.items()}
    return images | {"hr": crop_to_multiple(read_image(root / path, config.channels, config.bits), config.scale)}


def captions(table: pd.DataFrame, path: str, region: str = "valid") -> dict[str, str]:
    """Method to "PSNR, texture error" of one image, for the line under its picture."""
    rows = table[(table.image == path) & (table.region == region)]
    return {r.method: f"PSNR {r.psnr:.1f} dB, texture error {r.texture_error_db:.1f} dB" for r in rows.itertuples()}


def mean_spectra(
    folder: Path, root: Path, paths, config: Config, methods, direction: str = "all"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`metrics.against_hr` of each method and of rounding, mean over the given test images, flat ones left out: {name: (frequency, dB)}."""
    found: dict[str, list] = {}
    for path in paths:
        images = evaluated_images(folder, root, path, config, methods)
        hr = images.pop("hr")
        for name, curve in metrics.against_hr(images, hr, valid_region(hr), config.scale, direction).items():
            found.setdefault(name, []).append(curve)
    there = {name: [curve for curve in curves if np.isfinite(curve).all()] or curves[:1] for name, curves in found.items()}
    return {name: tuple(np.mean(curves, 0)) for name, curves in there.items()}
