"""The evaluation of a run, top to bottom: methods built, each test image measured, files written."""

import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from ..config import Config, UserError
from ..data.reading import png_names, read_image, read_pair
from ..degrade import crop_to_multiple
from ..device import pick_device
from ..files import read_table, write, write_image
from ..models.features import lpips
from ..trained import load_generator
from ..training.stage import training_pairs
from .methods import METHODS, LinearFilter, TestImage
from .protocol import Protocol

MEASURED = 2  # methods that are measured at once: most measures use one core
CROPS = 256  # training crops that the linear filter is fitted on


def evaluate_run(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Measure bicubic, linear, SRResNet and SRGAN on the test split (`max_test_images` of it), one image at a time, and write `folder`/evaluation/:
    metrics.csv, a row for each image, method and region (returned), and sr/<method>/<path>.png (`png_names`)."""
    networks = load_networks(config, folder, ("srresnet", "srgan")) | {"linear": fit_linear(config, root, manifest)}
    rows = [row for *_, rows in measured_images("05", config, root, manifest, folder, networks) for row in rows]
    return write_table(rows, folder / "evaluation" / "metrics.csv")


def measured_images(
    notebook: str, config: Config, root: Path, manifest: pd.DataFrame, folder: Path, networks: dict, given: tuple = ()
) -> Iterator[tuple]:
    """Measure a notebook's methods that have their network on each test image, and write their SR images; yields (its line of the manifest, HR,
    the `TestImage`, rows of metrics.csv). `given`: methods whose images another notebook wrote."""
    chosen = choose(manifest[manifest.split == "test"], config.max_test_images)
    methods = [name for name, method in METHODS.items() if method.notebook == notebook and method.needs in ("", *networks)]
    names, device = png_names(chosen.path), pick_device(config.device)
    distance = lpips().to(device)
    for item in tqdm(chosen.itertuples(), total=len(chosen), desc="evaluate", unit="image", mininterval=1.0, ncols=100, file=sys.stdout):
        lr, hr = read_pair(root / item.path, config)
        image, protocol = TestImage(lr, item.path, config, networks), Protocol(lr, hr, config.reduction, distance, device)
        image.made |= evaluated_images(folder, root, item.path, config, given) if given else {}
        facts, rows = {"image": item.path, "patient": item.patient, "label": item.label}, []
        images = [image[method] for method in methods]
        with ThreadPoolExecutor(MEASURED) as pool:
            for method, sr, measured in zip(methods, images, pool.map(protocol.measure, images), strict=True):
                size = {"height": len(hr), "width": hr.shape[1]}
                rows += [facts | {"method": method} | values | size for values in measured]
                write_image(folder / "evaluation" / "sr" / method / names[item.path], Image.fromarray(sr), compress_level=1)
        yield item, hr, image, rows


def write_table(rows: list[dict], file: Path) -> pd.DataFrame:
    """`rows` as a table with six decimals, written to `file`."""
    table = pd.DataFrame(rows).round(6)
    write(file, table.to_csv(index=False))
    return table


def choose(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` images (0: all): one of each patient first, the classes in turn."""
    if not limit or len(rows) <= limit:
        return rows
    turn = rows.groupby("patient").cumcount()
    nth = rows.assign(turn=turn).sort_values(["turn", "path"]).groupby("label").cumcount()
    order = rows.assign(turn=turn, nth=nth).sort_values(["nth", "label", "turn", "path"]).index
    return rows.loc[order[:limit]].sort_index()


def load_networks(config: Config, folder: Path, names: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """The run's networks of these names, on the settings' device."""
    return {name: load_generator(folder / f"{name}.pt", pick_device(config.device)) for name in names}


def fit_linear(config: Config, root: Path, manifest: pd.DataFrame) -> LinearFilter:
    """The linear filter, fitted on training crops of the settings' size, or of the smallest scan's where none is as large."""
    train = manifest[manifest.split == "train"]
    sides = train[["height", "width"]].min(axis=1)
    side = config.crop if (sides >= config.crop).any() else int(sides.min())  # a small scan among large ones is left out
    fits, paths = dataclasses.replace(config, crop=side // config.scale * config.scale), [root / path for path in train.path[sides >= side]]
    crops = training_pairs(paths, fits, torch.device("cpu"), -(-CROPS // config.batch), config.seed)
    return LinearFilter(config.scale).fit(crops(0))


# ------------------------------------------------------------------------------------------- what was written, for the notebooks
def evaluated_images(folder: Path, root: Path, path: str, config: Config, methods) -> dict[str, np.ndarray]:
    """The SR images that the evaluations wrote for one test image, and 'hr'; uint8, all of HR's size."""
    measured = read_table(folder / "evaluation" / "metrics.csv").image
    name = png_names({path, *measured})[path]
    files = {method: folder / "evaluation" / "sr" / method / name for method in methods}
    if missing := next((method for method, file in files.items() if not file.exists()), ""):
        raise UserError(f"{files[missing]} is missing; --only {METHODS[missing].notebook} measures the run again")
    images = {method: read_image(file, config.channels) for method, file in files.items()}
    return images | {"hr": crop_to_multiple(read_image(root / path, config.channels, config.bits), config.scale)}


def captions(table: pd.DataFrame, path: str) -> dict[str, str]:
    """Method to "PSNR, LPIPS" of one image, for the line under its picture."""
    rows = table[(table.image == path) & (table.region == "valid")]
    return {row.method: f"PSNR {row.psnr:.1f} dB, LPIPS {row.lpips:.2f}" for row in rows.itertuples()}
