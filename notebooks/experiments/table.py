"""Any number of networks in one table, on a run's test scans: the table of real scans in RESULTS, and a network of yours beside others.

    python -m notebooks.experiments.table RUN NAME=WEIGHTS [NAME=WEIGHTS ...]

in an active environment, from the repository. RUN is a run folder in which notebook 01 has run; its scans, patients and settings are taken. NAME is a method of the series, as srgan, or any other
name. A NAME that ends in _projected is projected onto LR; gaussian_texture is fitted on the images of its WEIGHTS, which stand as srresnet, too.
Writes RUN/table-SPLIT/: evaluation/ (as notebook 05's), unpaired.csv (as 07's), table.md, and pictures of the scan with SRGAN's (else the first network's) median LPIPS.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import pandas as pd
from srlib.commands import in_one_line
from srlib.commands.report import markdown
from srlib.config import UserError
from srlib.data.reading import jpeg_tables, read_pair
from srlib.device import pick_device
from srlib.evaluation.methods import METHODS, Method, named
from srlib.evaluation.run import (
    captions,
    choose,
    evaluated_images,
    fit_linear,
    measured_images,
    write_table,
)
from srlib.evaluation.statistics import (
    AIMED,
    MEASURES,
    caution,
    readable_unpaired,
    summarise,
    verdict,
    with_intervals,
)
from srlib.figures import panels
from srlib.metrics.regions import valid_region
from srlib.sampler.evaluation import Patches, fit_texture
from srlib.series.run_folder import Run, read_config
from srlib.trained import load_generator

SRGAN = METHODS["srgan"]
OTHERS = {  # what RESULTS has beside the methods of the series
    "srresnet_paper": METHODS["srresnet"]._replace(title="SRResNet (paper's)"),
    "srgan_vgg22": SRGAN._replace(title="SRGAN-VGG22"),
    "srgan_mse": SRGAN._replace(title="SRGAN-MSE", aimed="-"),
}
SHOWN = (
    "psnr",
    "gain_db",
    "ssim",
    "lpips",
    "texture_error_db",
    "stripe_db",
    "checkerboard",
    "consistency",
)


def main() -> None:
    words = argparse.ArgumentParser(
        prog="python -m notebooks.experiments.table",
        description="Any number of networks in one table, on a run's test scans.",
    )
    words.add_argument("run", type=Path, metavar="RUN", help="a run folder in which notebook 01 has run")
    words.add_argument("networks", nargs="+", metavar="NAME=WEIGHTS")
    words.add_argument("--split", default="test", choices=("test", "val"))
    words.add_argument(
        "--images", type=int, default=0, help="at most so many scans, patients first (default: all)"
    )
    words.add_argument(
        "--steps", type=int, default=200, help="steps of each classifier, 0: none (default: 200)"
    )
    words.add_argument(
        "--pictures", default="", metavar="NAME,NAME", help="methods in the pictures (default: all)"
    )
    args = words.parse_args()
    run = Run(args.run, read_config(args.run / "config.json"))
    config, root, device, out = (
        run.config,
        run.root,
        pick_device(run.config.device),
        args.run / f"table-{args.split}",
    )
    files = dict(pair.split("=", 1) for pair in args.networks)
    networks = {name: load_generator(file, device) for name, file in files.items()} | {
        "linear": fit_linear(config, root, run.manifest)
    }
    if "gaussian_texture" in networks:
        networks["gaussian_texture"] = fit_texture(
            config, root, run.manifest, networks["gaussian_texture"]
        )
    rows = {name: row_of(name) for name in ("bicubic", "linear", *files)}
    shown = args.pictures.split(",") if args.pictures else list(rows)
    if unknown := [name for name in shown if name not in rows]:
        raise UserError(
            f"--pictures names {unknown[0]!r}, which is not in the table; name some of {', '.join(rows)}"
        )
    METHODS.clear()  # the tables have this one's rows, in this order
    METHODS.update(rows)

    manifest = run.manifest[run.manifest.split == args.split].assign(split="test")
    manifest, everything = choose(manifest, args.images), dataclasses.replace(config, max_test_images=0)
    patches, measured = Patches(rows), []
    for item, hr, image, values in measured_images("05", everything, root, manifest, out, networks):
        measured += values
        images = {name: image[name] for name in rows} | {"hr": hr}
        patches.add(
            images, valid_region(hr), item.patient, image.seed % 2**32, jpeg_tables(root / item.path)
        )
    table = write_table(measured, out / "evaluation" / "metrics.csv")
    unpaired = write_table(patches.measure(args.steps, config.seed, device), out / "unpaired.csv")
    text = "\n\n".join(
        [verdict(table, unpaired), caution(table), markdown(readable(table, unpaired)), AIMED]
    )
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    scan = median(table, "srgan" if "srgan" in files else next(iter(files)))
    low, images = read_pair(root / scan, config)[0], evaluated_images(out, root, scan, config, shown)
    squares = {"lr": low.repeat(config.scale, 0).repeat(config.scale, 1)} | images
    panels.comparison(squares, captions(table, scan), side=48).save(out / "comparison.png")
    panels.closeups(images).save(out / "closeups.png")
    print(text)


def row_of(name: str) -> Method:
    """The method of a name; of one that is not known, SR of its network."""
    like = METHODS["srgan_projected" if name.endswith("_projected") else "srgan"]
    method = (METHODS | OTHERS).get(name) or like._replace(title=name.replace("_", " "), colour=None)
    return method._replace(notebook="05", needs="" if name == "bicubic" else name)


def median(table: pd.DataFrame, method: str) -> str:
    """The image with the method's median LPIPS."""
    rows = table[(table.method == method) & (table.region == "valid")].sort_values("lpips")
    return rows.image.iloc[len(rows) // 2]


def readable(table: pd.DataFrame, unpaired: pd.DataFrame) -> pd.DataFrame:
    """A row for each method: what SHOWN names, the power by band, the least data consistency, patches against HR's."""
    numbers, valid = with_intervals(summarise(table)).T, table[table.region == "valid"]
    powers = numbers[[c for c in numbers if c.startswith("band")]].replace(r" \[.*\]", "", regex=True)
    text = numbers[list(SHOWN)].rename(columns={name: MEASURES[name][0] for name in SHOWN})
    text.insert(5, "power by band (mean absolute)", powers.agg("; ".join, axis=1))
    text["least data consistency (dB)"] = valid.groupby("method").consistency.min().map("{:.0f}".format)
    return (
        text.rename(index=named)
        .join(readable_unpaired(unpaired).T)
        .fillna("")
        .reset_index(names="method")
    )


if __name__ == "__main__":
    sys.exit(in_one_line(main))
