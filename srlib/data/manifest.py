"""The manifest: which images there are, what each holds, and a split in which no patient and no content stands twice."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..config import Config, UserError
from ..files import write
from .inspection import inspect_files, shown
from .reading import EXTENSIONS, find_images, named_patient, patient, read_given_pair, read_image, slices, subfolder
from .split import deal, linked

ONE_IMAGE = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp")
FACTS = ("pixel_width_um", "pixel_height_um", "laterality", "position")  # columns where some file says it


def build_manifest(
    root: str | Path,
    channels: int = 1,
    patient_pattern: str = Config.patient_pattern,
    val_share: float = 0.1,
    test_share: float = 0.2,
    max_images: int = 0,
    seed: int = 0,
    paired: int = 0,
    reading: dict | None = None,
    salt: Path | None = None,
) -> pd.DataFrame:
    """One row an image: path (relative to `root`), sha256, height, width, label, patient, split (train, val, test); where files say it, size of
    a pixel, laterality and position (FACTS).

    The label is the folder's name. Images belong together where they share a patient (of an instrument's file that names one inside a hash
    of it with the text in the file `salt`, which is made where it is missing; else the pattern's group in the relative path, across classes
    and folders; else the file alone) or a SHA-256, of the file or of its pixels; such a group stands in one split, which does not depend
    on the salt. `max_images` takes whole patients at random, three or more, before anything is decoded. `.attrs["skipped"]` lists files that cannot be used, with the reason;
    `.attrs["unnamed"]` counts those without a patient, `.attrs["doubtful"]` lists images that may have fewer bits than their files say. With
    `paired`, a scale, the images are those of `root`/hr that fit one in `root`/lr; without, images in a folder LR beside one HR are left
    out. `reading`: what `read_image` takes. Raises UserError where
    fewer than three groups are left.
    """
    root, reading = Path(root), (reading or {}) | {"channels": channels}
    patients, by_path, by_name, hashed, named, left_out, secret = {}, {}, {}, set(), 0, [], ""
    images = find_images((subfolder(root, "hr") or root) if paired else root, left_out)
    reduced = set() if paired else _lr_beside_hr(images, root)
    left_out += [
        (path, "is LR beside HR; for such pairs give the folder that holds both, with -p degradation paired") for path in sorted(reduced)
    ]
    for path in (path for path in images if path not in reduced):
        relative = path.relative_to(root).as_posix()
        name = named_patient(relative, patient_pattern)
        inside, called = patient(path, secret := secret or _salt(salt)) if path.suffix.lower() not in EXTENSIONS else ("", "")
        if inside:
            hashed.add(inside)
            by_path[relative], by_name[relative] = name or inside, called
            name = inside
        named += bool(name)
        patients[relative] = name or relative
    total = len(patients)
    first_path: dict[str, str] = {}  # by which hashed patients are put in order
    for relative, name in patients.items():
        first_path.setdefault(name, relative if name in hashed else name)
    if max_images:
        kept = _sample(root, patients, max_images, np.random.default_rng(seed).permutation(sorted(first_path, key=first_path.get)))
        patients = {relative: patient for relative, patient in patients.items() if patient in kept}
    rows, skipped, doubtful = [], [(shown(path.relative_to(root).as_posix()), reason) for path, reason in left_out], []
    for relative, found in zip(patients, inspect_files(root, list(patients), reading), strict=True):
        for slice_path, sha256, height, width, reason, doubt, facts, pixels in found:
            if paired and not reason:
                try:
                    read_given_pair(root / slice_path, paired, **reading)
                except UserError as error:
                    reason = str(error)
            if reason:
                skipped.append((slice_path, reason))
                continue
            label = Path(relative).parent.name or "image"
            rows.append([slice_path, sha256, height, width, label, patients[relative], *facts, pixels])
            doubtful += [(slice_path, doubt)] if doubt else []
    if not rows:
        raise UserError(f"{root}: none of the {len(skipped)} image files can be used; the first: {' '.join(skipped[0])}")
    table = pd.DataFrame(rows, columns=["path", "sha256", "height", "width", "label", "patient", *FACTS, "pixels"])
    known = table[list(FACTS)].replace("", None).notna().any()
    table = table.drop(columns=known.index[~known])
    of_file = table.path.str.replace(r"#\d+$", "", regex=True)
    called = of_file.map(by_name).fillna("")  # links those that have no identifier: only then is the name of another their patient
    table_by = table.assign(
        by_path=of_file.map(by_path).fillna(table.patient), by_name=called.where(called.isin(table.patient), table.patient)
    )
    group = linked(table_by)
    if group.nunique() < 3:
        inside = f" ({len(hashed)} by what is said inside the files)" if hashed else ""
        also = f"; {len(skipped)} file(s) were left out, the first: {' '.join(skipped[0])}" if skipped else ""
        raise UserError(
            f"{root}: {group.nunique()} patient(s){inside} cannot be split into train, val and test; at least 3 are needed{also}"
        )
    table = table.drop(columns="pixels")
    order = table.patient.map(first_path).groupby(group).min().to_dict()
    dealt = deal(table, group, val_share, test_share, seed, order)
    table.insert(6, "split", group.map(dealt))
    table.attrs.update(skipped=skipped, unnamed=total - named, doubtful=doubtful, order={name: first_path[name] for name in hashed})
    return table


def _lr_beside_hr(images: list[Path], root: Path) -> set[Path]:
    """The images in a folder that lies beside one of the same name with HR in the place of LR, as `train/LR` and `DIV2K_train_LR_bicubic`: each
    would be a scan of its own, and might train while its HR is tested on."""
    beside: dict[Path, set[str]] = {}  # a folder: the names of those in it that hold images, at any depth
    for folder in {path.parent for path in images}:
        while folder != root and folder.name not in beside.setdefault(folder.parent, set()):
            beside[folder.parent].add(folder.name)
            folder = folder.parent

    def is_lr(name: str, names: set[str]) -> bool:
        found = re.fullmatch(r"(|.*[_. -])lr([_. -].*)?", name, re.IGNORECASE)
        return bool(found) and any(re.fullmatch(re.escape(found[1]) + r"hr([_. -].*)?", other, re.IGNORECASE) for other in names)

    lr = {parent / name for parent, names in beside.items() for name in names if is_lr(name, names)}
    return {path for path in images if lr.intersection(path.parents)} if lr else set()


def _sample(root: Path, patients: dict[str, str], most: int, order) -> set[str]:
    """The first patients in `order`, three or more, whose images, slices of volumes each, are at most `most` together."""
    files, kept, count = {}, set(), 0
    for relative, name in patients.items():
        files.setdefault(name, []).append(root / relative)
    for name in order:
        count += sum(map(_pages, files[name]))
        if count > most and len(kept) >= 3:
            break
        kept.add(name)
    return kept


def _pages(path: Path) -> int:
    if path.suffix.lower() in ONE_IMAGE:
        return 1
    try:
        return len(slices(path))
    except UserError:  # it will be listed
        return 1


def _salt(keep: Path | None) -> str:
    """What the file holds, after one is made where there is none; without a file, something new."""
    if keep and keep.exists():
        try:
            salt = keep.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            salt = ""
        if len(salt) < 16:
            raise UserError(f"{keep} holds no salt; put back what was there, or delete it and begin with another run folder")
        return salt
    salt = secrets.token_hex(16)
    if keep:
        write(keep, salt + "\n")
    return salt


def near_duplicates(root: str | Path, table: pd.DataFrame, least: float = 0.95, side: int = 48) -> pd.DataFrame:
    """Pairs of images that look alike though their content differs: neighbouring slices, one eye on two days, a file saved anew.

    Each image is reduced to `side` x `side` pixels, smooth brightness taken out (Gaussian, a sixth of the side), and pairs
    whose correlation is at least `least` are listed, highest first: columns a, b (paths), correlation, patients (one, two), splits (one, two).
    Takes time and memory with the square of the number of images; give a sample of some thousand at most.
    """
    views = []
    for path in table.path:
        small = Image.fromarray(read_image(Path(root) / path)).resize((side, side), Image.Resampling.BOX)
        view = np.asarray(small, np.float32)
        view = view - gaussian_filter(view, side / 6)
        views.append((view - view.mean()).ravel() / (view.std() * side + 1e-9))
    alike = np.triu(np.stack(views) @ np.stack(views).T, 1)
    first, second = np.nonzero(alike >= least)
    a, b = table.iloc[first].reset_index(), table.iloc[second].reset_index()
    found = pd.DataFrame({"a": a.path, "b": b.path, "correlation": alike[first, second].round(3)})
    for column, name in (("patient", "patients"), ("split", "splits")):
        found[name] = np.where(a[column] == b[column], "one", "two")
    different = (a.sha256 != b.sha256).to_numpy()
    return found[different].sort_values("correlation", ascending=False, ignore_index=True)


def check_split(manifest: pd.DataFrame) -> None:
    """Raise UserError where a patient or a hash stands in two splits."""
    for column in ("patient", "sha256"):
        counts = manifest.groupby(column)["split"].nunique()
        if (counts > 1).any():
            raise UserError(f"{column} {counts.idxmax()} stands in more than one split; make the manifest again (notebook 01)")
