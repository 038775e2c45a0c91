"""The manifest: which images there are, what each holds, and a split in which no patient and no content stands twice."""

import contextlib
import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from ..config import Config, UserError
from .formats import kind, opened
from .reading import EXTENSIONS, few_values, find_images, read_image, read_pair, read_scan, slices, subfolder

MIN_SIDE = 32
SHARED = 3  # patients in whom one picture is no scan of theirs: a legend, a logo, a copy that went about
MASK = 16  # grey levels or fewer in every image of a folder are a mask's or a label map's
SHARE = 0.98  # of an image's pixels: the rest may have any level, as a mask's that was a JPEG
SPLITS = ("train", "val", "test")


def build_manifest(root: str | Path, config: Config | None = None) -> pd.DataFrame:
    """One row an image: path (relative to `root`), sha256, height, width, label, patient, split (train, val, test).

    The label is the folder's name; the patient and what belongs together: `find_patients`, `group`. `max_images` takes whole patients
    at random, three or more, before anything is decoded. `.attrs["skipped"]` lists files that cannot be used, with the reason;
    `.attrs["unnamed"]` counts those without a patient, `.attrs["doubtful"]` lists images that may have fewer bits than their files say.
    Of given pairs the images are those of `root`/hr that fit one in `root`/lr. Raises UserError where fewer than three groups are left.
    """
    config, root, left_out = config or Config(), Path(root), []
    images = find_images((subfolder(root, "hr") or root) if config.degradation == "paired" else root, left_out)
    files = find_patients(root, images, config.patient_pattern)
    unnamed = int((files.patient == files.file).sum())
    if config.max_images:
        files = files[files.patient.isin(_sample(root, files, config.max_images))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked = pool.map(lambda file: inspect(root, file, config), files.file)
        progress = tqdm(looked, total=len(files), desc="files", unit="file", disable=len(files) < 1000, ncols=100, file=sys.stdout)
        rows = pd.DataFrame([row for slices_of_file in progress for row in slices_of_file])
    rows = name_strangers(rows.merge(files, on="file"))
    skipped = [(_printable(path.relative_to(root).as_posix()), reason) for path, reason in left_out]
    skipped += list(rows.loc[rows.reason != "", ["path", "reason"]].itertuples(index=False, name=None))
    first = f"; {len(skipped)} were left out, the first: {' '.join(skipped[0])}" if skipped else ""
    table = rows[rows.reason == ""].reset_index(drop=True)
    groups = group(table) if len(table) else table.file
    if groups.nunique() < 3:
        what = f"{groups.nunique()} patient(s) cannot be split into train, val and test; at least 3 are needed"
        raise UserError(f"{root}: {what if len(table) else f'none of the {len(files)} image files can be used'}{first}")
    table["label"] = [Path(file).parent.name or "image" for file in table.file]
    sizes = table.patient.groupby(groups).nunique()
    table["split"] = groups.map(deal(table.label.groupby(groups).first(), config.val_share, config.test_share, sizes))
    doubtful = list(table.loc[table.doubt != "", ["path", "doubt"]].itertuples(index=False, name=None))
    table = table[["path", "sha256", "height", "width", "label", "patient", "split"]].astype({"height": int, "width": int})
    table.attrs.update(skipped=skipped, unnamed=unnamed, doubtful=doubtful)
    return table


def find_patients(root: Path, images: list[Path], pattern: str) -> pd.DataFrame:
    """For each image file: file (relative to `root`), patient and by_path, the pattern's group in the path or ''. The patient is whom an
    instrument's file names inside, numbered p001, p002, in the order of paths; else `by_path`; else the file alone."""
    rows, numbers = [], {}
    for path in images:
        file, named = path.relative_to(root).as_posix(), ""
        match = re.search(pattern, file)
        by_path = (match and match[1]) or ""
        if path.suffix.lower() not in EXTENSIONS:
            with contextlib.suppress(UserError), opened(path) as volume:  # (one that cannot be read will be listed)
                named = " ".join(volume.patient.casefold().replace("^", " ").split())
        inside = numbers.setdefault(named, f"p{len(numbers) + 1:03d}") if named else ""
        rows.append((file, inside or by_path or file, by_path))
    return pd.DataFrame(rows, columns=["file", "patient", "by_path"])


def _sample(root: Path, files: pd.DataFrame, most: int) -> set[str]:
    """The first patients in a random order, three or more, whose images, slices of volumes each, are at most `most` together."""
    kept, count = set(), 0
    for name in np.random.default_rng(0).permutation(sorted(set(files.patient))):
        for file in files.file[files.patient == name]:
            with contextlib.suppress(UserError):
                count += len(slices(root / file))
        if count > most and len(kept) >= 3:
            break
        kept.add(name)
    return kept


def inspect(root: Path, file: str, config: Config) -> list[dict]:
    """For each slice of a file: file, path, reason (why it cannot be used, or ''), sha256 of the file or of a volume's slice, height, width,
    pixels (a hash of what is shown, whatever the file's format) and doubt (`few_values`). It is decoded whole."""
    path = root / file
    try:
        if _printable(file) != file:
            raise UserError("its name is not valid Unicode; rename it")
        names, content = slices(path), path.read_bytes() if path.suffix.lower() in EXTENSIONS else b""
        if b"tEXtSoftware\0srlib" in content[:512]:
            raise UserError("is an SR image that upscale wrote")
        if content and (which := kind(path)) not in ("picture", "tiff"):  # whom it is about was not looked for
            raise UserError(f"is no picture, whatever its name says; give it the ending of its kind ({which})")
    except (UserError, MemoryError) as error:
        return [{"file": file, "path": _printable(file), "reason": _why(error, path)}]
    rows = []
    for name in names:
        row = {"file": file, "path": Path(file).with_name(name.name).as_posix(), "reason": ""}
        rows.append(row)
        try:
            scan = read_scan(name, bits=config.bits)
            if config.degradation == "paired":
                read_pair(name, config)
        except (UserError, MemoryError) as error:
            row["reason"] = _why(error, path)
            continue
        image, stored = scan.image, content if [name] == names and content else scan.image.tobytes()
        row["height"], row["width"] = image.shape
        row["sha256"] = hashlib.sha256(stored).hexdigest()
        row["pixels"] = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        row["levels"] = 1 + int((np.sort(np.bincount(image.ravel()))[::-1].cumsum() < SHARE * image.size).sum())
        row["doubt"] = few_values(scan)
        if image.min() == image.max():
            row["reason"] = "every pixel has the same value"
        if min(image.shape) < MIN_SIDE:
            row["reason"] = f"{row['width']} x {row['height']} pixels is too small"
    return rows


def _why(error: Exception, path: Path) -> str:
    return "memory ran out while it was read" if isinstance(error, MemoryError) else str(error).removeprefix(f"{path}: ")


def _printable(name: str) -> str:
    """A name that can stand in a table: bytes that are no UTF-8 as escapes."""
    return name.encode(errors="backslashreplace").decode()


def name_strangers(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `inspect`, with patients, where images that are no scan of one patient have a reason, too: a picture that SHARED patients have
    (it would join them, and what they are joined to, in one split), and all of a folder whose images have at most MASK grey levels."""
    rows = rows.reindex(columns=[*rows, *{"pixels", "levels"} - {*rows}])
    usable = rows[rows.reason == ""]
    place = rows.file.where(rows.path != rows.file, rows.file.map(os.path.dirname))  # a volume, or a folder
    most = usable.groupby(place).levels.transform("max").reindex(rows.index)
    rows.loc[most <= MASK, "reason"] = f"is a mask: none of the images beside it has more than {MASK} grey levels"
    owners = usable[usable.patient != usable.file].groupby("pixels").patient.transform("nunique").reindex(rows.index)
    shared = owners >= SHARED
    rows.loc[shared, "reason"] = owners[shared].map("is the same picture in {:.0f} patients, and would join them in one split".format)
    return rows


def group(table: pd.DataFrame) -> pd.Series:
    """For each row the smallest patient that it is linked to through shared patients, inside or by path, and equal pixels: such a group stands in
    one split."""
    nodes, count = [], len(table)  # of a graph: the rows, and each value that links them
    for column in (table.pixels, table.patient, table.by_path.where(table.by_path != "", table.patient)):
        codes, values = pd.factorize(column)
        nodes.append(count + codes)
        count += len(values)
    ends = np.tile(np.arange(len(table)), len(nodes)), np.concatenate(nodes)
    graph = coo_array((np.ones(len(ends[0])), ends), (count, count))
    parts = connected_components(graph, directed=False)[1][: len(table)]
    return table.patient.astype(str).groupby(parts).transform("min")


def deal(label_of: pd.Series, val_share: float, test_share: float, sizes: pd.Series) -> dict[str, str]:
    """Group to split, of a class and a number of patients for each group. Groups are dealt out class by class, in a random order that is always the
    same, each to the split that lacks most of its share of the patients. Of three groups or more every split has one: one without takes the
    smallest of the largest split."""
    rng, result, owed = np.random.default_rng([0, 1]), {}, np.zeros(3)
    for label in sorted(label_of.unique()):
        for name in rng.permutation(sorted(label_of.index[label_of == label])):
            owed += sizes[name] * np.array([1 - val_share - test_share, val_share, test_share])
            pick = int(np.argmax(owed))
            owed[pick] -= sizes[name]
            result[name] = SPLITS[pick]
    for split in ("val", "test", "train"):
        groups = {each: [name for name in result if result[name] == each] for each in SPLITS}
        if not groups[split]:
            able = [names for names in groups.values() if len(names) > 1]
            result[min(max(able, key=lambda names: sizes[names].sum()), key=lambda name: (sizes[name], name))] = split
    return result


def near_duplicates(root: str | Path, table: pd.DataFrame, least: float = 0.95, side: int = 48) -> pd.DataFrame:
    """Pairs of images that look alike though their content differs (neighbouring slices, a file saved anew): those whose correlation, at `side` x
    `side` pixels less smooth brightness (Gaussian, a sixth of the side), is at least `least`, highest first. Columns a, b (paths), correlation,
    patients (one, two), splits (one, two). Time and memory grow with the square of the number of images: some thousand at most."""
    views = []
    for path in table.path:
        small = Image.fromarray(read_image(Path(root) / path)).resize((side, side), Image.Resampling.BOX)
        view = np.asarray(small, np.float32)
        views.append((view - gaussian_filter(view, side / 6)).ravel())
    alike = np.triu(np.corrcoef(views), 1)
    first, second = np.nonzero(alike >= least)
    a, b = table.iloc[first].reset_index(), table.iloc[second].reset_index()
    found = pd.DataFrame({"a": a.path, "b": b.path, "correlation": alike[first, second].round(3)})
    for column, name in (("patient", "patients"), ("split", "splits")):
        found[name] = np.where(a[column] == b[column], "one", "two")
    different = (a.sha256 != b.sha256).to_numpy()
    return found[different].sort_values("correlation", ascending=False, ignore_index=True)
