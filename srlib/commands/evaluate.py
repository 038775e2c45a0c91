"""The evaluate command: anybody's SR images, measured under the protocol of the series."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from ..config import Config, UserError
from ..data.reading import few_values, jpeg_tables, page_of, png_name, png_names, read_image, read_scan
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor
from ..evaluation.protocol import Protocol
from ..evaluation.statistics import MEASURES, by_patient, is_power, left_out, readable_samples, readable_unpaired, titled
from ..files import write
from ..metrics.regions import valid_region
from ..models import features
from ..sampler.evaluation import Patches, against_hr
from ..sampler.statistics import rank_distance, ranks
from . import given, parser
from .upscale import find_parts


class Measured(NamedTuple):
    """`table`: a row for each image and region, as metrics.csv. `samples`: a row for each image that there are several samples of, as samples.csv,
    each a patient. `unpaired`: `Patches.measure`'s. `warned`: lines to read first; `failed`: a line for each image that could not be measured."""

    table: pd.DataFrame
    samples: pd.DataFrame
    unpaired: pd.DataFrame
    warned: list[str]
    failed: list[str]


def evaluate_folders(
    sr_dir: str | Path, hr_dir: str | Path, scale: int = 4, channels: int = 1, steps: int = 200, bits: int = 0
) -> Measured:
    """Measure each image of `sr_dir` against the HR image with the same relative path, whatever the extension; `VOLUME#k` against a volume's slice.

    Of `<stem>_sample1.png`, `<stem>_sample2.png`, ..., as `upscale --samples` writes them, the first is measured as SR, all of them as samples
    in the valid region; `<stem>_spread.png` is left out. HR, and SR of its size, is cropped to a multiple of the scale; LR, for the data
    consistency, is made from it. `bits`: as in `read_scan`; `steps`: of the fresh classifier, 0: none. Images whose names have a patient number,
    as Kermany's, are that patient's, others (volumes as a whole) a patient each. Raises UserError where nothing could be measured.
    """
    if steps < 0:
        raise UserError(f"steps cannot be {steps}; it is 0 (no classifier) or more")
    matched, warned, failed = _match(Path(sr_dir), Path(hr_dir))
    network, patches, rows, samples = features.lpips(), Patches(["sr"]), [], []
    for name, (hr_path, paths) in tqdm(matched.items(), desc="evaluate", unit="image", ncols=100):
        try:
            whole, images = read_scan(hr_path, channels, bits), [read_image(path, channels, bits) for path in paths]
            warned += [f"{hr_path}: {doubt}"] if (doubt := few_values(whole)) else []
            images = [crop_to_multiple(image, scale) if image.shape == whole.image.shape else image for image in images]
            hr = crop_to_multiple(whole.image, scale)
            lr, valid = to_image(downsample(to_tensor(hr), scale)), valid_region(hr)
            measured = Protocol(lr, hr, (scale, "bicubic"), lpips=network).measure(images[0])
            if len(images) > 1:
                row = against_hr(images, hr, valid) | {"rank_valid": rank_distance(ranks(images, hr, valid))}
                samples.append(row | {"patient": name, "samples": len(images)})
        except (ValueError, OSError, MemoryError) as error:  # UserError among them
            failed.append(f"{paths[0]}: {getattr(error, 'strerror', None) or str(error) or 'memory ran out'}")
            continue
        file = page_of(hr_path)[0].relative_to(hr_dir).as_posix()
        patient = re.search(Config.patient_pattern, file)
        patches.add({"sr": images[0], "hr": hr}, valid, patient[1] if patient else file, len(rows), jpeg_tables(hr_path))
        rows += [{"image": name, "method": Path(sr_dir).name} | m for m in measured]
    if not rows:
        raise UserError(f"nothing could be measured; the first reason: {failed[0]}" if failed else f"{sr_dir}: no images")
    unpaired = patches.measure(steps).replace({"method": {"sr": Path(sr_dir).name}})
    return Measured(pd.DataFrame(rows).round(6), pd.DataFrame(samples), unpaired, warned, failed)


def _match(sr_dir: Path, hr_dir: Path) -> tuple[dict[str, tuple[Path, list[Path]]], list[str], list[str]]:
    """({relative path without extension: (HR image or slice, its SR image or samples)}, warnings, a line for each image that has no other)."""
    (hr_parts, unread), (sr_parts, failed) = find_parts(hr_dir), find_parts(sr_dir)
    names = png_names(part.relative_to(hr_dir) for part in hr_parts)
    hr, matched = {name.with_suffix("").as_posix(): hr_dir / part for part, name in names.items()}, {}
    for path in sorted(sr_parts, key=lambda path: (len(path.name), path.name)):  # sample10 after sample9
        name, which = png_name(path.relative_to(sr_dir)).with_suffix("").as_posix(), ""
        if name not in hr and (ending := re.fullmatch(r"(.+)_(sample\d+|spread)", name, re.DOTALL)):
            name, which = ending.groups()
        others = matched.setdefault(name, {}) if name in hr else {}
        if name not in hr:
            failed.append(f"{path}: no HR image has this path in {hr_dir} (extensions may differ)")
        elif which in others or (others and "" in (which, *others)):
            failed.append(f"{path}: {min(others.values()).name} has the same HR image; leave one, or the samples alone")
        elif which != "spread":
            others[which] = path
    warned = [f"{len(hr) - len(matched)} HR image(s) have no SR image"] if len(hr) > len(matched) else []
    return {name: (hr[name], list(matched[name].values())) for name in sorted(matched) if matched[name]}, warned, failed + unread


def as_text(found: Measured) -> str:
    """What the command prints: the mean over images of each measure in each region (of a power also the mean absolute value), then of the
    samples and of the patches."""
    table = found.table.assign(patient=found.table.image)
    means = pd.DataFrame({region: by_patient(table, region).mean() for region in table.region.unique()}).map("{:.3f}".format)
    powers = [name for name in means.index if is_power(name)]
    means.loc[powers] += " (" + means.loc[[f"{name}_abs" for name in powers]].to_numpy() + ")"
    parts = [titled(means.reindex([name for name in MEASURES if name in means.index]))]
    if len(found.samples):
        parts.append(readable_samples(found.samples, found.samples.samples.max()).rename(columns={"sampler": "mean"}))
    parts += [readable_unpaired(found.unpaired)] if len(found.unpaired) else []
    lines = [*(part.to_string() for part in parts), left_out(found.table)]
    return "\n\n".join([*filter(None, lines), f"{table.image.nunique()} image(s) measured, {len(found.failed)} not"])


def main(argv: list[str]) -> int:
    words = parser("evaluate", "Measure SR images against HR images of the same path.")
    add = words.add_argument
    add("sr_dir", type=given, metavar="SR_DIR")
    add("hr_dir", type=given, metavar="HR_DIR")
    add("--scale", type=int, default=4, choices=(2, 3, 4, 8))
    add("--channels", type=int, default=1, choices=(1, 3), help="3: colour, measured on luma (default: grey)")
    add("--bits", type=int, default=0, metavar="N", help="of deep grey images, as 12 in files of 16 (default: the file's)")
    add("--steps", type=int, default=200, help="steps of a classifier that learns to tell SR from HR; 0: not asked (default: 200)")
    add("--out", type=given, metavar="FILE.csv", help="write a row for each image and region")
    args = words.parse_args(argv)
    if args.out and Path(args.out).suffix.lower() != ".csv":
        raise UserError(f"{args.out}: the table is a CSV file; call it {Path(args.out).stem}.csv")
    found = evaluate_folders(args.sr_dir, args.hr_dir, args.scale, args.channels, args.steps, args.bits)
    for line in [*(f"warning: {line}" for line in found.warned), *(f"error: {line}" for line in found.failed)]:
        print(line, file=sys.stderr)
    print(as_text(found))
    if args.out:
        write(args.out, found.table.to_csv(index=False).encode(errors="backslashreplace"))  # (a name may be no UTF-8)
    return 1 if found.failed else 0
