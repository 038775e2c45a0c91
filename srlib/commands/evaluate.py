"""Anybody's SR images, measured under the protocol of the series: the evaluate command."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import metrics
from ..config import UserError, load_config
from ..data.reading import few_values, find_images, jpeg_tables, page_of, png_name, png_names, read_image, read_pair, read_scan, slices
from ..evaluation.protocol import Protocol
from ..evaluation.run import Patches
from ..evaluation.statistics import MEASURES, UNPAIRED, by_patient, is_power, left_out
from ..files import write
from ..metrics.regions import valid_region
from ..models import features
from ..sampler import statistics
from . import given, parser


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
    channels: int = 1,
    lpips: bool = False,
    steps: int = 200,
    bits: int = 0,
) -> Measured:
    """Measure each image of `sr_dir` against the HR image with the same relative path, whatever the extension; `VOLUME#k` against a volume's
    slice. `bits`: as in `read_scan`. Regions: whole, valid and, of grey images, retina.

    Files `<stem>_draw1.png`, `<stem>_draw2.png`, ..., as `upscale --draws` writes them, are draws of one image: the first is measured as SR, all
    of them as draws in the valid region; `<stem>_spread.png` is left out. HR, and SR of its size, is cropped to a multiple of the scale; LR, for
    the consistency, is made from it. `lpips`: measure it, too; `steps`: of the fresh classifier. Images whose names have a patient number, as
    Kermany's, are that patient's, others (volumes as a whole) a patient each. Raises UserError where nothing could be measured.
    """
    if steps < 0:
        raise UserError(f"steps cannot be {steps}; it is 0 (no classifier) or more")
    config, rows, drawn = load_config("quick", scale=scale, channels=channels, bits=bits), [], []
    matched, warned, failed = _match(Path(sr_dir), Path(hr_dir))
    network = features.lpips() if lpips else None
    method, patches = Path(sr_dir).name, Patches(["sr"])
    for name, (hr_path, paths) in tqdm(matched.items(), desc="evaluate", unit="image", ncols=100):
        try:
            (lr, hr), whole = read_pair(hr_path, config), read_scan(hr_path, channels, bits=bits)
            warned += [f"{hr_path}: {doubt}"] if (doubt := few_values(whole)) else []
            images, valid = [read_image(path, channels, bits=bits) for path in paths], valid_region(hr)
            # HR is cut to a multiple of the scale, and so is SR of its size
            images = [image[: hr.shape[0], : hr.shape[1]] if image.shape == whole.image.shape else image for image in images]
            measured = Protocol(lr, hr, config.reduction, lpips=network).measure(images[0])
            if len(images) > 1:
                drawn.append({"image": name, "draws": len(images)} | _of_draws(images, hr, valid))
        except (ValueError, OSError, MemoryError) as error:  # UserError among them
            failed.append(f"{paths[0]}: {getattr(error, 'strerror', None) or str(error) or 'memory ran out'}")
            continue
        file = page_of(hr_path)[0].relative_to(hr_dir).as_posix()
        patient = re.search(config.patient_pattern, file)
        patches.add({"sr": images[0], "hr": hr}, valid, patient[1] if patient else file, len(rows), jpeg_tables(hr_path))
        rows += [{"image": name, "method": method} | m for m in measured]
    if not rows:
        raise UserError(f"nothing could be measured; the first reason: {failed[0]}" if failed else f"{sr_dir}: no images")
    unpaired = patches.measure(steps).replace({"method": {"sr": method}})
    return Measured(pd.DataFrame(rows).round(6), pd.DataFrame(drawn), unpaired, warned, failed)


def _match(sr_dir: Path, hr_dir: Path) -> tuple[dict[str, tuple[Path, list[Path]]], list[str], list[str]]:
    """({name: (HR image or slice, its SR image or draws)}, what to say of it, a line for each SR image without an HR image). A name is the
    relative path as `png_names` has it, without .png and the number of the draw."""
    left_out: list = []
    hr_parts, sr_parts = ([part for path in find_images(folder, left_out) for part in _parts(path)] for folder in (hr_dir, sr_dir))
    hr = {png.with_suffix("").as_posix(): hr_dir / part for part, png in png_names(part.relative_to(hr_dir) for part in hr_parts).items()}
    named: dict[str, list[Path]] = {}
    for path in sorted(sr_parts, key=lambda path: (len(path.name), path.name)):  # draw10 after draw9
        name = png_name(path.relative_to(sr_dir)).with_suffix("").as_posix()
        ending = re.fullmatch(r"(.+)_(draw\d+|spread)", name, re.DOTALL)
        if ending and name not in hr and ending[1] in hr:
            if ending[2] == "spread":
                continue
            name = ending[1]
        named.setdefault(name, []).append(path)
    matched, failed = {}, []
    for name, paths in sorted(named.items()):
        draws = all(re.search(r"_draw\d+$", png_name(path).stem) for path in paths) and len({path.suffix for path in paths}) == 1
        if name not in hr:
            wrong = f"no HR image has this path in {hr_dir} (extensions may differ; HR images that differ only there keep them: x.tif.png)"
        elif len(paths) > 1 and not draws:
            wrong = f"{' and '.join(path.name for path in paths[:3])} have one HR image; leave one, or the draws alone"
        else:
            matched[name] = hr[name], paths
            continue
        failed += [f"{path}: {wrong}" for path in paths]
    warned = [f"{path}: {reason}" for path, reason in left_out]
    if without := [str(path) for name, path in hr.items() if name not in named]:
        warned.append(f"{len(without)} HR image(s) have no SR image; the first: {without[0]}")
    return matched, warned, failed


def _parts(path: Path) -> list[Path]:
    """The slices of a file; the file itself where it cannot be read, which is said when it is measured."""
    try:
        return slices(path)
    except UserError:
        return [path]


def _of_draws(images: list[np.ndarray], hr: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    error = metrics.luma(np.mean(images, 0)) - metrics.luma(hr)
    return {
        "regain_db": statistics.regain(images, hr, region=valid),
        "rank": statistics.rank_distance(statistics.ranks(images, hr, valid)),
        "spread": float(np.sqrt(np.mean(statistics.predicted_error(images)[valid] ** 2))),
        "error": float(np.sqrt(np.mean(error[valid] ** 2))),
    }


def as_text(found: Measured) -> str:
    """What the command prints: a line for each measure with its mean over the images of each region, then draws and patches."""
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
    for row in found.unpaired.itertuples():
        what = (
            UNPAIRED[row.measure]
            + (f" in features of {row.network}" if row.measure == "kid" else "")
            + ", HR against HR" * (row.method == "hr")
        )
        lines.append(f"{what:72}{row.value:18.3f}   [{row.low:.3f}, {row.high:.3f}]")
    if left := left_out(table):
        lines.append(left)
    return "\n".join([*lines, f"{table.image.nunique()} image(s) measured, {len(found.failed)} not"])


def main(argv: list[str]) -> int:
    words = parser("evaluate", "Measure SR images against HR images of the same path.")
    words.add_argument("sr_dir", type=given, metavar="SR_DIR")
    words.add_argument("hr_dir", type=given, metavar="HR_DIR")
    words.add_argument("--scale", type=int, default=4, choices=(2, 3, 4, 8))
    words.add_argument("--channels", type=int, default=1, choices=(1, 3), help="3: colour, measured on luma (default: grey)")
    words.add_argument("--bits", type=int, default=0, metavar="N", help="of deep grey images, as 12 in files of 16 (default: the file's)")
    words.add_argument("--lpips", action="store_true", help="measure LPIPS too")
    words.add_argument(
        "--steps", type=int, default=200, help="steps of a classifier that learns to tell SR from HR; 0: not asked (default: 200)"
    )
    words.add_argument("--out", type=given, metavar="FILE.csv", help="write a row for each image and region")
    args = words.parse_args(argv)
    if args.out and not _is_table(Path(args.out)):
        raise UserError(f"{args.out}: is no table that evaluate wrote; give a new name that ends in .csv")
    found = evaluate_folders(args.sr_dir, args.hr_dir, args.scale, args.channels, args.lpips, args.steps, args.bits)
    for line in found.warned:
        print(f"warning: {line}", file=sys.stderr)
    print(as_text(found))
    wrong = list(found.failed)
    if args.out:
        try:
            write(args.out, found.table.to_csv(index=False).encode(errors="backslashreplace"))  # (a name may be no UTF-8)
        except UserError as error:  # the work is not lost: it was printed
            wrong.append(str(error))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _is_table(file: Path) -> bool:
    """Whether nothing is lost where evaluate writes its table: no file is there, an empty one, or an earlier table."""
    if not file.is_file():
        return True
    with open(file, "rb") as content:
        return content.read(25) in (b"", b"image,method,region,psnr,")
