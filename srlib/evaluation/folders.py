"""Anybody's SR images, measured under the protocol of the series: the evaluate command."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import metrics
from ..config import UserError, load_config
from ..data.reading import (
    few_values,
    find_images,
    jpeg_tables,
    named_inside,
    named_patient,
    page_of,
    png_name,
    read_image,
    read_pair,
    read_scan,
    slices,
)
from ..metrics.regions import valid_region
from ..models import features
from .patches import Patches, measuring_network
from .protocol import Protocol


class Measured(NamedTuple):
    """`table`: a row for each image and region, as metrics.csv. `draws`: a row for each image that there are several draws of. `unpaired`:
    `Patches.measure`'s. `warned`: lines to read first; `failed`: a line for each image that could not be measured."""

    table: pd.DataFrame
    draws: pd.DataFrame
    unpaired: pd.DataFrame
    warned: list[str]
    failed: list[str]


def evaluate_folders(
    sr_dir: str | Path,
    hr_dir: str | Path,
    scale: int = 4,
    border: int = 4,
    channels: int = 1,
    bscan: bool = True,
    wanted: tuple[str, ...] = (),
    steps: int = 200,
    bits: int = 0,
) -> Measured:
    """Measure each image of `sr_dir` against the HR image with the same relative path (whatever the extension) or, where none has it, the same
    name, if that is the only one; `VOLUME#k` against a volume's slice. One ending that another program added to all SR names, as `_out`, is
    taken off. `bits`: as in `read_scan`. Regions: whole, valid and, of grey images where `bscan`, retina.

    Files `<stem>_draw1.png`, `<stem>_draw2.png`, ..., as `upscale --draws` writes them, are draws of one image: the first is measured as SR, all
    of them as draws in the valid region; `<stem>_spread.png` is left out. HR, and SR of its size, is cropped to a multiple of the scale; LR, for the consistency, is
    made from it. `wanted`: of `features.PERCEPTUAL`; `steps`: of the fresh classifier. Images whose names have a patient number, as Kermany's,
    are that patient's, others (volumes as a whole) a patient each. Raises UserError where nothing could be measured.
    """
    if steps < 0:
        raise UserError(f"steps cannot be {steps}; it is 0 (no classifier) or more")
    config, rows, drawn = load_config("quick", scale=scale, channels=channels, bits=bits), [], []
    matched, said, failed = _match(Path(sr_dir), Path(hr_dir))
    network, perceptual = features.judge(), {name: features.perceptual(name) for name in wanted}
    method, patches = Path(sr_dir).name, Patches(["sr"])
    for name, (hr_path, paths) in tqdm(matched.items(), desc="evaluate", unit="image", ncols=100):
        try:
            (lr, hr), whole = read_pair(hr_path, config), read_scan(hr_path, config.channels, config.bits)
            said += [f"{hr_path}: {doubt}"] if (doubt := few_values(whole)) else []
            images, valid = [read_image(path, config.channels, config.bits) for path in paths], valid_region(hr)
            # HR is cut to a multiple of the scale, and so is SR of its size
            images = [image[: hr.shape[0], : hr.shape[1]] if image.shape == whole.image.shape else image for image in images]
            measured = Protocol(lr, hr, config.reduction, border, network, "cpu", None, bscan, perceptual).measure(images[0])
            if len(images) > 1:
                drawn.append({"image": name, "draws": len(images)} | _of_draws(images, hr, valid, border))
        except (ValueError, OSError, MemoryError) as error:  # UserError among them
            failed.append(f"{paths[0]}: {getattr(error, 'strerror', None) or str(error) or 'memory ran out'}")
            continue
        file = page_of(hr_path)[0]
        of = file.relative_to(hr_dir).as_posix()
        whose = named_inside(file) or named_patient(of, config.patient_pattern) or of
        patches.add({"sr": images[0], "hr": hr}, valid, whose, len(rows), jpeg_tables(hr_path))
        rows += [{"image": name, "method": method} | m for m in measured]
    if not rows:
        raise UserError(f"nothing could be measured; the first reason: {failed[0]}" if failed else f"{sr_dir}: no images")
    name, network = measuring_network(config)
    unpaired = patches.measure(network, name, steps).replace({"method": {"sr": method}})
    return Measured(pd.DataFrame(rows).round(6), pd.DataFrame(drawn), unpaired, said, failed)


def _match(sr_dir: Path, hr_dir: Path) -> tuple[dict[str, tuple[Path, list[Path]]], list[str], list[str]]:
    """({name: (HR image or slice, its SR image or draws)}, what to say of it, a line for each SR image that has no one HR image). A name is SR's
    relative path without the extension, the number of the draw and what another program added to all names."""
    not_hr: list = []
    not_sr: list = []
    hr = _Names(hr_dir, not_hr)
    sr = [part for path in find_images(sr_dir, not_sr) for part in _parts(path)]
    failed = [f"{path}: {reason}" for path, reason in not_sr]
    files: dict[str, list[Path]] = {}
    for path in sorted(sr, key=lambda p: (len(p.name), p.name)):  # draw10 after draw9
        name = png_name(path.relative_to(sr_dir)).with_suffix("").as_posix()
        of = re.sub(r"_(draw\d+|spread)$", "", name)
        if hr.find(name) or not hr.find(of):
            files.setdefault(name, []).append(path)
        elif not name.endswith("_spread"):
            files.setdefault(of, []).append(path)
    files, said = _without_addition(files, hr)
    said += [f"{path}: {reason}" for path, reason in not_hr]
    meant: dict[Path, list[str]] = {}
    for name in files:
        for path in hr.find(name):
            meant.setdefault(path, []).append(name)
    matched, strays = {}, []
    for name, paths in sorted(files.items()):
        found = hr.find(name)
        if len(found) != 1:
            wrong = f"{len(found) or 'no'} HR image{'s' * bool(found)} named {name} in {hr_dir}; one is needed{hr.hint(name)}"
        elif len(meant[found[0]]) > 1 and not hr.at(name):
            others = " and ".join(meant[found[0]][:3])
            wrong = f"{others} all have the name of {found[0]}; give the folder of one method at a time, or put SR into the folders of HR"
        elif len(paths) > 1 and not all(re.search(r"_draw\d+$", png_name(path).stem) for path in paths):
            wrong = f"{' and '.join(sorted(p.name for p in paths)[:3])} have one HR image; leave the draws or the other"
        elif len({path.suffix for path in paths}) > 1:
            wrong = f"{len(paths)} SR images are named {name}; leave one"
        elif not hr.at(name) and _elsewhere(name, found[0].relative_to(hr_dir)):
            if any(map(hr.at, files)):
                wrong = f"{found[0]} has its name but lies in another folder; put SR into the folders of HR"
            else:
                matched[name] = found[0], paths
                strays.append(f"{paths[0]} with {found[0]}")
                continue
        else:
            matched[name] = found[0], paths
            continue
        failed += [f"{path}: {wrong}" for path in paths]
    if strays:
        said.append(f"{len(strays)} SR image(s) were matched by name alone, as their folders differ from HR's; the first: {strays[0]}")
    return matched, said, failed


def _elsewhere(name: str, hr: Path) -> bool:
    """Whether the folders of two relative paths differ, beyond some above the others."""
    one, other = Path(name).parts[-2::-1], hr.parts[-2::-1]
    return one[: len(other)] != other[: len(one)]


def _parts(path: Path) -> list[Path]:
    """The slices of a file; the file itself where it cannot be read, which is said when it is measured."""
    try:
        return slices(path)
    except UserError:
        return [path]


class _Names:
    """HR images (slices of volumes each) by relative path and by name, with and without the extension."""

    def __init__(self, folder: Path, left_out: list):
        self.by_path, self.by_name = {}, {}
        for part in (part for path in find_images(folder, left_out) for part in _parts(path)):
            relative = part.relative_to(folder)
            for name in {
                png_name(relative).with_suffix(""),
                relative,
            }:  # with it, as `upscale` and evaluation/sr have it where two share a name
                self.by_path.setdefault(_same(name.as_posix()), []).append(part)
                self.by_name.setdefault(_same(name.name), []).append(part)

    def at(self, name: str) -> list[Path]:
        return self.by_path.get(_same(name), [])

    def find(self, name: str) -> list[Path]:
        return self.at(name) or self.by_name.get(_same(Path(name).name), [])

    def hint(self, name: str) -> str:
        """Where an HR image has the beginning of a name that none has: what the rest may be."""
        own = Path(name).name
        start = next((own[:k] for k in range(len(own) - 1, 0, -1) if own[:k] in self.by_name and not own[k].isalnum()), "")
        return (
            f"; {start} is there: if {own[len(start) :]} names a method, give the images of one method, in a folder, at a time"
            if start
            else ""
        )


def _same(name: str) -> str:
    """Accents are written in two ways: macOS takes a name apart, others do not."""
    return unicodedata.normalize("NFC", name)


def _without_addition(files: dict[str, list[Path]], hr: _Names) -> tuple[dict[str, list[Path]], list[str]]:
    """Where no SR image has the name of an HR image, but all would without one ending, as `_out`: without it, and a sentence that says so."""
    if not files or any(hr.find(name) for name in files):
        return files, []
    first = min(files)
    name = first.rpartition("/")[2]
    endings = [name[at:] for at in range(len(name) - 1, 0, -1) if not name[at].isalnum()]  # the shortest first
    for ending in (e for e in endings if re.search("[A-Za-z]", e)):
        if all(name.endswith(ending) and hr.find(name.removesuffix(ending)) for name in files):
            return {name.removesuffix(ending): paths for name, paths in files.items()}, [
                f"{ending} was taken off the names of the SR images"
            ]
    return files, []


def _of_draws(images: list[np.ndarray], hr: np.ndarray, valid: np.ndarray, border: int) -> dict[str, float]:
    error = metrics.luma(np.mean(images, 0)) - metrics.luma(hr)
    return {
        "regain_db": metrics.regain(images, hr, border, valid),
        "rank": metrics.rank_distance(metrics.ranks(images, hr, valid)),
        "spread": float(np.sqrt(np.mean(metrics.predicted_error(images)[valid] ** 2))),
        "error": float(np.sqrt(np.mean(error[valid] ** 2))),
    }


def as_text(found: Measured) -> str:
    """What the command prints: a line for each measure with its mean over the images of each region, then draws and patches."""
    from .statistics import MEASURES, by_patient, is_power, left_out

    table, lines = found.table, []
    means = {region: by_patient(table.assign(patient=table.image), region).mean() for region in dict.fromkeys(table.region)}
    lines.append(f"{'mean over images (of powers also the mean absolute value)':72}" + "".join(f"{region:>18}" for region in means))
    for name, (what, _) in MEASURES.items():
        if name in table:
            values = [f"{mean[name]:.3f}" + (f" ({mean[f'{name}_abs']:.3f})" if is_power(name) else "") for mean in means.values()]
            lines.append(f"{what:72}" + "".join(f"{value:>18}" for value in values))
    if len(found.draws):
        n, mean = int(found.draws.draws.max()), found.draws.select_dtypes("number").where(np.isfinite).mean()
        for what, value, right in (
            (f"regain, the mean of {n} draws over one (dB)", mean.regain_db, f"{10 * np.log10(2 / (1 + 1 / n)):.2f}"),
            ("HR's rank among the draws, distance from equal", mean["rank"], "0"),
            ("error that the draws predict for their mean; real error", mean.spread, f"{mean.error:.3f}"),
        ):
            lines.append(f"{what:72}{value:18.3f}   (correct draws: {right})")
    titles = {"kid": "KID", "told_apart": "told from HR by a fresh classifier (0.5: cannot)"}
    for row in found.unpaired.itertuples():
        what = (
            titles[row.measure]
            + (f" in features of {row.network}" if row.measure == "kid" else "")
            + ", HR against HR" * (row.method == "hr")
        )
        lines.append(f"{what:72}{row.value:18.3f}   [{row.low:.3f}, {row.high:.3f}]")
    if left := left_out(table):
        lines.append(left)
    return "\n".join([*lines, f"{table.image.nunique()} image(s) measured, {len(found.failed)} not"])
