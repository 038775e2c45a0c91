"""Does SR move the retina's surfaces? Those that srlib finds in SR against those that it finds in HR, on a run's test scans.

    python -m notebooks.experiments.layers RUN NAME=WEIGHTS [NAME=WEIGHTS ...]

in an active environment, from the repository. RUN is a run folder in which notebook 01 has run. A NAME that ends in _projected is projected onto LR. The segmentation (`metrics.regions.surfaces`) is a
simple one, the same for all: the table says whether SR changes what it finds, not whether it is right. HR says where the white fill is. Writes RUN/layers.csv.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from srlib.commands import in_one_line
from srlib.commands.report import markdown
from srlib.data.reading import read_pair
from srlib.degrade import held_by, to_image, to_tensor, upsample
from srlib.device import pick_device
from srlib.evaluation.statistics import interval
from srlib.files import write
from srlib.metrics.regions import surfaces, valid_region
from srlib.series.run_folder import Run, read_config
from srlib.trained import load_generator
from srlib.upscaling import upscale
from tqdm import tqdm

FAR = 5  # pixels of HR's depth: a surface that lies further off was found elsewhere


def moved(sr: np.ndarray, hr: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """How far SR's surfaces lie from HR's, mean over columns, in pixels of depth; and the share of columns in which either is FAR off."""
    found = surfaces(sr)
    inner, outer = (np.abs(a - b) for a, b in zip(found, hr, strict=True))
    seen = np.isfinite(inner) & np.isfinite(outer)  # columns that are no fill
    thickness = np.abs((found[1] - found[0]) - (hr[1] - hr[0]))
    row = {"inner surface": inner, "RPE": outer, "thickness": thickness}
    far = 100 * (np.maximum(inner, outer)[seen] > FAR).mean()
    return {name: values[seen].mean() for name, values in row.items()} | {"far": far}


def main() -> None:
    words = argparse.ArgumentParser(
        prog="python -m notebooks.experiments.layers", description=__doc__.splitlines()[0]
    )
    words.add_argument("run", type=Path, metavar="RUN", help="a run folder in which notebook 01 has run")
    words.add_argument("networks", nargs="*", metavar="NAME=WEIGHTS")
    args = words.parse_args()
    run = Run(args.run, read_config(args.run / "config.json"))
    config, rows = dataclasses.replace(run.config, channels=1), []  # surfaces are looked for in grey
    networks = {
        name: load_generator(file, pick_device(config.device))
        for name, file in (pair.split("=", 1) for pair in args.networks)
    }
    for item in tqdm(list(run.manifest[run.manifest.split == "test"].itertuples()), unit="scan"):
        lr, hr = read_pair(run.root / item.path, config)
        images = {"bicubic": to_image(upsample(to_tensor(lr), config.scale))}
        for name, network in networks.items():
            images[name] = upscale(
                lr, network, consistent=held_by(config) if name.endswith("_projected") else ""
            )
        valid = valid_region(hr)
        found = surfaces(np.where(valid, hr, 255))
        rows += [
            {"image": item.path, "patient": item.patient, "method": name}
            | moved(np.where(valid, sr, 255), found)
            for name, sr in images.items()
        ]
    table = pd.DataFrame(rows)
    write(args.run / "layers.csv", table.to_csv(index=False))
    means = table.drop(columns="image").groupby(["method", "patient"], sort=False).mean()
    shown = []
    for method in dict.fromkeys(table.method):
        text = {"method": method}
        for name, values in means.xs(method).items():
            low, high = interval(values.to_numpy())
            text[name] = f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"
        shown.append(text)
    units = {name: f"{name} (pixels)" for name in ("inner surface", "RPE", "thickness")} | {
        "far": f"columns over {FAR} pixels off (%)"
    }
    print(markdown(pd.DataFrame(shown).rename(columns=units)))


if __name__ == "__main__":
    sys.exit(in_one_line(main))
