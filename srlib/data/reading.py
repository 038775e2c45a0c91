"""Image files to arrays: what is found in a folder, what a file or a slice of a volume shows, and pairs that are given."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..config import Config, UserError
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor
from ..formats.kinds import UNSUPPORTED, kind, opened
from ..formats.stacks import Facts, Picture, plain_name

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".tif", ".tiff", ".btf", ".tf8", ".bmp")
INSTRUMENTS = (".vol", ".e2e", ".dcm", ".dicom", ".dic", ".ima", ".xml")
NOT_SCANS = (
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)  # of systems, in small letters
SMALL = 8  # values that use less than this part of their range have probably fewer bits than the file says


class Scan(NamedTuple):
    """`image`: uint8, or uint16 of a deep grey image that was asked for as such, 0 to 65535 whatever the source's depth; `white`: the source's
    largest possible value, 255 of 8 bit; `top`: the largest that the image holds; `facts` of the page."""

    image: np.ndarray
    white: int
    top: int
    facts: Facts


def find_images(root: str | Path, left_out: list[tuple[Path, str]] | None = None) -> list[Path]:
    """The image files and volumes under `root`, sorted by path, without hidden ones: by extension, DICOM files without one by content. A folder that
    cannot be opened, one of the system (NOT_SCANS), a link to a folder (it may lead back) and a run folder of this project are left out, and so are files of a kind that is known
    but not supported and images that belong to an XML export; they are added to `left_out` as (path, reason).

    Raises UserError where `root` is no folder, cannot be opened or holds no image.
    """
    root, left_out = Path(root), [] if left_out is None else left_out
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images (PNG, JPEG, TIFF)")
    found = []

    def refused(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UserError(f"{root} cannot be opened ({error.strerror}); make it readable, or give another folder") from None
        left_out.append((Path(error.filename), f"cannot be opened ({error.strerror})"))

    def taken(folder: Path) -> bool:
        if folder.name.lower() in NOT_SCANS:
            left_out.append((folder, "is a folder of the system's, with thumbnails or what was deleted"))
        elif folder.is_symlink():
            left_out.append((folder, "is a link to a folder; give that folder itself, or copy it"))
        elif all(os.path.isfile(folder / name) for name in ("config.json", "provenance.json")):  # (False without the right to look)
            left_out.append((folder, "is a run folder of this project"))
        elif not os.access(folder, os.R_OK | os.X_OK):
            left_out.append((folder, "cannot be opened (Permission denied)"))
        else:
            return True
        return False

    before = len(left_out)
    for folder, subfolders, files in os.walk(root, onerror=refused):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".") and taken(Path(folder, s)))
        found += _files_of(Path(folder), sorted(f for f in files if not f.startswith(".")), left_out)
    if not found:
        why = f"; left out: {left_out[before][0]} {left_out[before][1]}" if left_out[before:] else ""
        raise UserError(f"{root} holds no image ({', '.join(EXTENSIONS + INSTRUMENTS)}){why}; give another folder")
    return sorted(found)


def _files_of(folder: Path, names: list[str], left_out: list[tuple[Path, str]]) -> list[Path]:
    """The images among the files of one folder."""
    found, exports, strange = [], [], Counter()
    for name in names:
        low, path = name.lower(), folder / name
        if low == "dicomdir":
            left_out.append((path, "is an index of DICOM files and holds no image"))
            continue
        if low.endswith(".xml"):
            exports += [path] if _is(path, "xml") else []
        elif low.endswith(EXTENSIONS + INSTRUMENTS):
            found.append(path)
        elif which := next((k for k, (_, ends) in UNSUPPORTED.items() if ends and low.endswith(ends)), ""):
            strange[which] += 1
        elif not re.search(r"\.[A-Za-z]\w{0,9}$", name) and _is(path, "dicom"):
            found.append(path)
    for which, n in strange.items():
        left_out.append((folder, f"holds {n} {which} file{'s' * (n > 1)}, which are not supported; convert them to PNG or TIFF"))
    named, doubt = set(), {}  # files of exports, by name in small letters; what each export leaves open
    for path in exports:
        found.append(path)
        try:
            with opened(path) as export:
                scans, fundus, whole = export.files(), export.fundus, len(export.files()) == len({name for name, _ in export.scans})
        except UserError:  # it will be listed when it is read; what lies beside it would be torn apart
            scans, fundus, whole = set(), set(), False
        left_out += [(folder / name, f"belongs to {path.name}, but is no B-scan") for name in names if name.lower() in fundus]
        named |= {file.name.lower() for file in scans} | fundus
        doubt[path] = "does not name it" if whole else "cannot be read whole"
    found = [f for f in found if f.name.lower() not in named]
    if exports:  # what they do not name may be of their patients all the same
        path = next((p for p, why in doubt.items() if "whole" in why), exports[0])
        beside = [f for f in found if f.suffix.lower() in EXTENSIONS]
        left_out += [(f, f"lies beside {path.name}, which {doubt[path]}, and may belong to it; move it, if it does not") for f in beside]
        found = [f for f in found if f not in beside]
    return found


def _is(path: Path, wanted: str) -> bool:
    try:
        return path.is_file() and kind(path) == wanted
    except (OSError, UserError):
        return False


def slices(path: str | Path) -> list[Path]:
    """What `read_image` takes for one file: itself, or for a volume of several pages `FILE#1`, `FILE#2`, ..."""
    path = Path(path)
    with opened(path) as stack:
        pages = len(stack)
    return [path] if pages == 1 else [path.with_name(f"{path.name}#{k}") for k in range(1, pages + 1)]


def files_behind(path: str | Path) -> list[Path]:
    """The files that an image or a slice is read from: itself, and of an XML export its images, too."""
    file = page_of(Path(path))[0]
    if file.suffix.lower() != ".xml":
        return [file]
    try:
        with opened(file) as export:
            return [file, *sorted(getattr(export, "files", set)())]
    except UserError:  # it says so when it is read
        return [file]


def read_image(path: str | Path, channels: int = 1, **reading) -> np.ndarray:
    """The image of `read_scan`."""
    return read_scan(path, channels, **reading).image


def read_scan(path: str | Path, channels: int = 1, bits: int = 0, reflectivity: str = "log", deep: bool = False) -> Scan:
    """An image file, or one slice `FILE#k` of a volume, as uint8: (H, W) for `channels=1` or (H, W, 3) for 3. With `deep` a grey image
    of more than 8 bit is uint16 (H, W).

    PNG, JPEG, TIFF, BMP, Heidelberg's .vol, .e2e and XML, and DICOM, by their content, whatever the extension. Colour becomes grey by ITU-R 601
    luma, grey becomes colour by copying; deep values are divided by the largest of their depth, which is the file's or 2 ** `bits` - 1, times 255, and
    rounded; transparent pixels become white (the fill of OCT exports), unless all are; a stated orientation is applied; `reflectivity`: see `heidelberg.grey`. Raises
    UserError, naming the file, for one that cannot be read whole.
    """
    path, page = page_of(Path(path))
    with opened(path) as stack:
        if page is None and len(stack) > 1:
            raise UserError(f"{path}: holds {len(stack)} slices; name one, as in {path.name}#1")
        if page is not None and not 1 <= page <= len(stack):
            raise UserError(f"{path}: has no slice {page}; it has {len(stack)}")
        k = (page or 1) - 1
        values, white = stack.page(k, reflectivity)
        facts = stack.facts(k)
        if white:
            return _from_deep(values, (1 << bits) - 1 if bits else white, path, channels, deep, facts)
        if values.has_transparency_data and not _unseen(values):
            values = Image.alpha_composite(Image.new("RGBA", values.size, "white"), values.convert("RGBA"))
        image = np.asarray(values.convert("L" if channels == 1 else "RGB"))
        return Scan(image, 255, 255, facts)


def _unseen(image: Image.Image) -> bool:
    """Whether every pixel is said to be transparent, as in BMP files whose fourth byte means nothing."""
    return "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0)


def is_upscaled(path: Path) -> bool:
    """Whether a file is an SR image that `upscale` wrote; False where it cannot be opened."""
    try:
        if path.suffix.lower() != ".png" or not path.is_file():  # (a pipe would be waited for)
            return False
        with open(path, "rb") as file:
            return b"tEXtSoftware\0srlib" in file.read(512)
    except OSError:
        return False


def few_values(scan: Scan) -> str:
    """A warning where a deep image uses so small a part of its range that its depth is probably another; else ''."""
    if scan.white <= 255 or scan.top * SMALL > scan.white:
        return ""
    likely = max(8, scan.top.bit_length())
    return f"values up to {scan.top} of {scan.white}; if they have {likely} bits, say so (-p bits {likely}, --bits {likely})"


def named_patient(path: str, pattern: str) -> str:
    """The patient that a (relative) path names, the pattern's group, in one spelling: macOS takes accents apart, others do not. '' for none."""
    match = re.search(pattern, path)
    return unicodedata.normalize("NFC", (match and match[1]) or "")


def patient(path: str | Path, salt: str) -> tuple[str, str]:
    """What a file says inside of whom it is about: by the identifier, or the name where it has none, and by the name. Hashes with `salt`; '' where it
    says nothing or cannot be read. Of pictures always ''."""
    try:
        if kind(Path(path)) in ("picture", "tiff"):
            return "", ""
        with opened(Path(path)) as stack:
            said = stack.identity, stack.name
    except (OSError, UserError):
        return "", ""
    return tuple(hashlib.sha256(salt.encode() + text).hexdigest()[:12] if text else "" for text in said)


def png_name(path: str | Path) -> Path:
    """The PNG that is made from an image: STEM.png, for slice k of a volume STEM#k.png, in the same (relative) folder. What follows a dot in
    the name of a DICOM file without extension is a part of the stem."""
    path = Path(path)
    ending = "|".join(re.escape(e) for e in EXTENSIONS + INSTRUMENTS)
    parts = re.fullmatch(rf"(.+?)(?:{ending})?(#\d+)?", path.name, re.DOTALL | re.IGNORECASE)
    return path.with_name(f"{parts[1]}{parts[2] or ''}.png")


def png_names(paths: Iterable[str]) -> dict[str, Path]:
    """`png_name` of each path; where two images would share one, they keep their extensions: `a.png.png` beside `a.jpg.png`."""
    names = {path: png_name(path) for path in paths}
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        names |= {path: Path(f"{path}.png") for path, name in names.items() if name in shared}
    return names


def page_of(path: Path) -> tuple[Path, int | None]:
    """(file, k) of a slice `FILE#k`, (path, None) of any other path."""
    match = None if path.exists() else re.fullmatch(r"(.+)#(\d+)", path.name, re.DOTALL)
    return (path.with_name(match[1]), int(match[2])) if match else (path, None)


def read_given_pair(path: Path, scale: int, **reading) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), uint8, of an HR image with a partner (`lr_partner`); HR is cut to a multiple of the scale. UserError where they do not fit."""
    hr, partner = crop_to_multiple(read_image(path, **reading), scale), lr_partner(path)
    lr = read_image(partner, **reading)
    height, width = (n // scale for n in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise UserError(f"{partner} is {lr.shape[1]} x {lr.shape[0]} pixels; at scale {scale} its HR image needs {width} x {height}")
    return lr, hr


def read_pair(path: Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr) of one HR image, uint8: HR cut to a multiple of the scale, LR made from it, or read where `degradation` is paired."""
    if config.degradation == "paired":
        return read_given_pair(path, config.scale, **config.reading)
    hr = crop_to_multiple(read_image(path, **config.reading), config.scale)
    return to_image(downsample(to_tensor(hr), *config.reduction)), hr


def subfolder(folder: Path, name: str) -> Path | None:
    """The folder `name` in `folder`, in capitals or not; None where there is none."""
    if (folder / name).is_dir():
        return folder / name
    return next((f for f in sorted(folder.iterdir()) if f.name.lower() == name and f.is_dir()), None) if folder.is_dir() else None


def lr_partner(path: Path) -> Path:
    """The LR image of HR image `.../hr/REST`: `.../lr/REST`, with any extension, in capitals or not, accents written in either way. Raises UserError where there is none."""
    file, page = page_of(path)
    for k in reversed([k for k, part in enumerate(path.parts[:-1]) if part.lower() == "hr"]):  # the one nearest to the image
        beside = subfolder(Path(*path.parts[:k]), "lr")
        if beside is None:
            continue
        folder, stem = Path(beside, *path.parts[k + 1 : -1]), png_name(file).stem
        names = (file.name, stem, *(stem + extension for extension in EXTENSIONS + INSTRUMENTS))
        plain = _by_plain_name(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}
        alike = [plain[n] for n in map(plain_name, names) if n in plain]
        alike = [f for f in alike if not (path.parent / f.name).exists()]  # that is the partner of another
        if found := next((f for f in (*(folder / n for n in names), *alike) if f.is_file()), None):
            return found if page is None else found.with_name(f"{found.name}#{page}")
        break
    raise UserError(f"{path}: there is no LR image of this name in the folder lr/ beside hr/")


@functools.lru_cache(maxsize=8)  # a folder is asked for each of its images
def _by_plain_name(folder: Path, changed: int) -> dict[str, Path]:
    return {plain_name(f.name): f for f in sorted(folder.iterdir(), reverse=True) if f.is_file()}


def jpeg_tables(path: str | Path) -> dict[int, list[int]]:
    """The quantisation tables of a JPEG file, as Pillow has them; {} of a file of another format."""
    with opened(page_of(Path(path))[0]) as stack:
        return dict(stack.image.quantization) if isinstance(stack, Picture) and stack.format == "JPEG" else {}


def _from_deep(values: np.ndarray, white: int, path: Path, channels: int, deep: bool, facts: Facts) -> Scan:
    colours = values if values.ndim == 2 else values[..., :3]
    low, top = int(colours.min()), int(colours.max())
    if low < 0 or top > white:
        wrong = f"of {white.bit_length()} bits; set bits to their depth" if white < 65535 else "16-bit; convert it to 8 or 16 bit"
        raise UserError(f"{path}: values from {low} to {top} are not {wrong}")
    if values.ndim == 3:
        image = np.round(values[..., :3].astype(np.float64) * (255 / white))
        if values.shape[2] == 4 and values[..., 3].any():
            alpha = values[..., 3:] / (white if values[..., 3].max() <= white else 65535)
            image = np.round(image * alpha + 255 * (1 - alpha))
        image = image.astype(np.uint8)
        image = np.asarray(Image.fromarray(image).convert("L")) if channels == 1 else image
    elif deep:
        image = values.astype(np.uint16) if white == 65535 else np.round(values * (65535 / white)).astype(np.uint16)
    else:
        image = np.round(values.astype(np.float64) * 255 / white).astype(np.uint8)
        image = image if channels == 1 else np.repeat(image[..., None], 3, 2)
    return Scan(image, white, top, facts)
