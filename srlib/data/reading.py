"""Image files to arrays: what is found in a folder, what a file or a slice of a volume shows, and pairs that are given."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..config import Config, UserError
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor
from .formats import kind, opened

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".tif", ".tiff", ".btf", ".tf8", ".bmp")
INSTRUMENTS = (".vol", ".e2e", ".dcm", ".dicom", ".dic", ".ima", ".xml")
SMALL = 8  # values that use less than this part of their range have probably fewer bits than the file says


class Scan(NamedTuple):
    """`image`: uint8, or uint16 of a deep grey image that was asked for as such, 0 to 65535 whatever the source's depth; `white`: the source's
    largest possible value, 255 of 8 bit; `top`: the largest that the image holds."""

    image: np.ndarray
    white: int
    top: int


def find_images(root: str | Path, left_out: list[tuple[Path, str]] | None = None) -> list[Path]:
    """The image files and volumes under `root`, sorted by path, without hidden ones: by extension, DICOM files without one by content. What is
    left out is added to `left_out` as (path, reason). Raises UserError where `root` is no folder or holds no image."""
    root, left_out, images = Path(root), [] if left_out is None else left_out, []
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images (PNG, JPEG, TIFF)")

    def refused(error: OSError) -> None:
        left_out.append((Path(error.filename), f"cannot be opened ({error.strerror})"))

    for place, subfolders, names in os.walk(root, onerror=refused):
        folder = Path(place)
        if folder != root and {"config.json", "provenance.json"} <= set(names):
            left_out.append((folder, "is a run folder of this project"))
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links = [folder / name for name in subfolders if (folder / name).is_symlink()]  # (which os.walk does not follow)
        left_out += [(link, "is a link to a folder; give that folder itself, or copy it") for link in links]
        files = [folder / name for name in sorted(names) if not name.startswith(".")]
        exports = [file for file in files if file.suffix.lower() == ".xml" and kind(file) == "xml"]
        pictures = [file for file in files if file.suffix.lower() in EXTENSIONS]
        if exports and pictures:
            left_out.append((folder, f"holds {exports[0].name}: of the pictures beside it those that it names as B-scans are read"))
            pictures = []
        images += exports + pictures + [file for file in files if file.suffix.lower() in INSTRUMENTS[:-1]]
        images += [f for f in files if not re.search(r"\.[A-Za-z]\w{0,9}$", f.name) and f.name != "DICOMDIR" and kind(f) == "dicom"]
    if not images:
        why = f"; left out: {left_out[0][0]} {left_out[0][1]}" if left_out else ""
        raise UserError(f"{root} holds no image ({', '.join(EXTENSIONS + INSTRUMENTS)}){why}; give another folder")
    return sorted(images)


def slices(path: str | Path) -> list[Path]:
    """What `read_image` takes for one file: itself, or for a volume of several pages `FILE#1`, `FILE#2`, ..."""
    path = Path(path)
    with opened(path) as volume:
        pages = volume.pages
    return [path] if pages == 1 else [path.with_name(f"{path.name}#{k}") for k in range(1, pages + 1)]


def read_image(path: str | Path, channels: int = 1, bits: int = 0) -> np.ndarray:
    """The image of `read_scan`, uint8."""
    return read_scan(path, channels, bits).image


def read_scan(path: str | Path, channels: int = 1, bits: int = 0, deep: bool = False) -> Scan:
    """An image file, or one slice `FILE#k` of a volume, as uint8: (H, W) for `channels=1` or (H, W, 3) for 3. With `deep` a grey image
    of more than 8 bit is uint16 (H, W).

    Colour becomes grey by ITU-R 601 luma, grey becomes colour by copying; deep values are divided by the largest of their depth, which is the
    file's or 2 ** `bits` - 1, times 255, and rounded; transparent pixels become white (the fill of OCT exports), unless all are. Raises UserError,
    naming the file, for one that cannot be read whole.
    """
    path, page = page_of(Path(path))
    with opened(path) as volume:
        if page is None and volume.pages > 1:
            raise UserError(f"{path}: holds {volume.pages} slices; name one, as in {path.name}#1")
        if page is not None and not 1 <= page <= volume.pages:
            raise UserError(f"{path}: has no slice {page}; it has {volume.pages}")
        values, white = volume.page((page or 1) - 1)
        if not white:
            return Scan(_flat(values, channels), 255, 255)
        white = (1 << bits) - 1 if bits else white
        colours = values if values.ndim == 2 else values[..., :3]
        low, top = int(colours.min()), int(colours.max())
        if low < 0 or top > white:
            wrong = f"of {white.bit_length()} bits; set bits to their depth" if white < 65535 else "16-bit; convert it to 8 or 16 bit"
            raise UserError(f"{path}: values from {low} to {top} are not {wrong}")
        if deep and values.ndim == 2:
            return Scan(values.astype(np.uint16) if white == 65535 else np.round(values * (65535 / white)).astype(np.uint16), white, top)
        eight = np.round(np.minimum(values, white).astype(np.float64) * 255 / white).astype(np.uint8)  # (alpha may be of more bits)
        return Scan(_flat(Image.fromarray(eight), channels), white, top)


def _flat(image: Image.Image, channels: int) -> np.ndarray:
    """8 bit, on white where it is transparent; an alpha that hides everything, as in BMP files whose fourth byte means nothing, hides nothing."""
    unseen = "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0)
    if image.has_transparency_data and not unseen:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def few_values(scan: Scan) -> str:
    """A warning where a deep image uses so small a part of its range that its depth is probably another; else ''."""
    if scan.white <= 255 or scan.top * SMALL > scan.white:
        return ""
    likely = max(8, scan.top.bit_length())
    return f"values up to {scan.top} of {scan.white}; if they have {likely} bits, say so (-p bits {likely}, --bits {likely})"


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


def read_given_pair(path: Path, scale: int, channels: int = 1, bits: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), uint8, of an HR image with a partner (`lr_partner`); HR is cut to a multiple of the scale. UserError where they do not fit."""
    hr, partner = crop_to_multiple(read_image(path, channels, bits), scale), lr_partner(path)
    lr = read_image(partner, channels, bits)
    height, width = (n // scale for n in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise UserError(f"{partner} is {lr.shape[1]} x {lr.shape[0]} pixels; at scale {scale} its HR image needs {width} x {height}")
    return lr, hr


def read_pair(path: Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr) of one HR image, uint8: HR cut to a multiple of the scale, LR made from it, or read where `degradation` is paired."""
    if config.degradation == "paired":
        return read_given_pair(path, config.scale, config.channels, config.bits)
    hr = crop_to_multiple(read_image(path, config.channels, config.bits), config.scale)
    return to_image(downsample(to_tensor(hr), *config.reduction)), hr


def subfolder(folder: Path, name: str) -> Path | None:
    """The folder `name` in `folder`, in capitals or not; None where there is none."""
    return next((f for f in sorted(folder.glob("*")) if f.name.lower() == name and f.is_dir()), None)


def lr_partner(path: Path) -> Path:
    """The LR image of HR image `.../hr/REST`: `.../lr/REST`, with any extension. Raises UserError where there is none."""
    file, page = page_of(path)
    folders = [k for k, part in enumerate(path.parts[:-1]) if part.lower() == "hr"]
    if folders and (beside := subfolder(Path(*path.parts[: folders[-1]]), "lr")):  # of the one nearest to the image
        folder, stem = Path(beside, *path.parts[folders[-1] + 1 : -1]), png_name(file).stem
        for name in (file.name, stem, *(stem + extension for extension in EXTENSIONS + INSTRUMENTS)):
            if (folder / name).is_file():
                return folder / (name if page is None else f"{name}#{page}")
    raise UserError(f"{path}: there is no LR image of this name in the folder lr/ beside hr/")


def jpeg_tables(path: str | Path) -> dict[int, list[int]]:
    """The quantisation tables of a JPEG file, as Pillow has them; {} of a file of another format."""
    try:
        with Image.open(page_of(Path(path))[0], formats=("JPEG",)) as image:
            return dict(image.quantization)
    except UnidentifiedImageError:
        return {}
