"""Image files to arrays: what is found in a folder, what is refused before or while it is decoded, and pairs that are given."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..config import Config, UserError
from ..degrade import crop_to_multiple, downsample, to_image, to_tensor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # by content; no format that starts another program
MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded


def find_images(root: str | Path, left_out: list[tuple[Path, str]] | None = None) -> list[Path]:
    """The image files under `root` (by extension), sorted by path, without hidden ones. A folder that cannot be opened, a link to a folder (it may
    lead back) and a run folder of this project are left out, and added to `left_out` as (path, reason).

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
        if folder.is_symlink():
            left_out.append((folder, "is a link to a folder; give that folder itself, or copy it"))
        elif all((folder / name).is_file() for name in ("config.json", "provenance.json")):
            left_out.append((folder, "is a run folder of this project"))
        else:
            return True
        return False

    for folder, subfolders, files in os.walk(root, onerror=refused):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__MACOSX")) and taken(Path(folder, s)))
        found += [Path(folder, f) for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
    if not found:
        raise UserError(f"{root} holds no image ({', '.join(EXTENSIONS)}); give another folder")
    return sorted(found)


def slices(path: str | Path) -> list[Path]:
    """What `read_image` takes for one file: itself, or for a TIFF of several pages (a volume) `FILE#1`, `FILE#2`, ..."""
    path = Path(path)
    with _opened(path) as image:
        pages = image.n_frames if image.format == "TIFF" else 1
    return [path] if pages == 1 else [path.with_name(f"{path.name}#{k}") for k in range(1, pages + 1)]


def read_image(path: str | Path, channels: int = 1, deep: bool = False) -> np.ndarray:
    """An image file, or one slice `FILE#k` of a volume, as uint8: (H, W) for `channels=1` or (H, W, 3) for 3. With `deep` a grey image
    of 16 bit stays uint16 (H, W).

    PNG, JPEG, TIFF and BMP by their content, whatever the extension. Colour becomes grey by ITU-R 601 luma, grey becomes colour by
    copying; 16-bit values are divided by 257 and rounded; transparent pixels become white (the fill of OCT exports); EXIF
    rotation is applied. Raises UserError, naming the file, for one that cannot be read whole.
    """
    path, page = page_of(Path(path))
    with _opened(path) as image:
        pages = image.n_frames if image.format == "TIFF" else 1
        if page is None and pages > 1:
            raise UserError(f"{path}: holds {pages} slices; name one, as in {path.name}#1")
        if page is not None:
            if not 1 <= page <= pages:
                raise UserError(f"{path}: has no slice {page}; it has {pages}")
            image.seek(page - 1)
            _check_size(path, image)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise UserError(f"{path}: holds floating-point values of unknown range; save it as 8 or 16 bit")
        if image.mode.startswith("I"):
            return _from_deep(np.asarray(image), path, channels, deep)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def png_name(path: str | Path) -> Path:
    """The PNG that is made from an image: STEM.png, for slice k of a volume STEM#k.png, in the same (relative) folder."""
    path = Path(path)
    slice_ = re.fullmatch(r"(.+)\.[A-Za-z]+(#\d+)", path.name, re.DOTALL)
    return path.with_name(f"{slice_[1]}{slice_[2]}.png") if slice_ else path.with_suffix(".png")


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


def read_given_pair(path: Path, channels: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr), uint8, of an HR image with a partner (`lr_partner`); HR is cut to a multiple of the scale. UserError where they do not fit."""
    hr, partner = crop_to_multiple(read_image(path, channels), scale), lr_partner(path)
    lr = read_image(partner, channels)
    height, width = (n // scale for n in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise UserError(f"{partner} is {lr.shape[1]} x {lr.shape[0]} pixels; at scale {scale} its HR image needs {width} x {height}")
    return lr, hr


def read_pair(path: Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(lr, hr) of one HR image, uint8: HR cut to a multiple of the scale, LR made from it, or read where `degradation` is paired."""
    if config.degradation == "paired":
        return read_given_pair(path, config.channels, config.scale)
    hr = crop_to_multiple(read_image(path, config.channels), config.scale)
    return to_image(downsample(to_tensor(hr), *config.reduction)), hr


def subfolder(folder: Path, name: str) -> Path | None:
    """The folder `name` in `folder`, in capitals or not; None where there is none."""
    if (folder / name).is_dir():
        return folder / name
    return next((f for f in sorted(folder.iterdir()) if f.name.lower() == name and f.is_dir()), None) if folder.is_dir() else None


def lr_partner(path: Path) -> Path:
    """The LR image of HR image `.../hr/REST`: `.../lr/REST`, with any extension, the folders in capitals or not. Raises UserError where there is none."""
    file, page = page_of(path)
    for k in (k for k, part in enumerate(path.parts[:-1]) if part.lower() == "hr"):
        beside = subfolder(Path(*path.parts[:k]), "lr")
        if beside is None:
            continue
        folder = Path(beside, *path.parts[k + 1 : -1])
        for choice in (file.name, *(file.stem + extension for extension in EXTENSIONS)):
            if (folder / choice).exists():
                return folder / (choice if page is None else f"{choice}#{page}")
        break
    raise UserError(f"{path}: there is no LR image of this name in the folder lr/ beside hr/")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image behind a file; whatever goes wrong within, also while it is decoded, becomes a UserError that names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is not a file")
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path, image)
            if image.format == "PNG":  # decoding alone skips the checksums
                with Image.open(path, formats=FORMATS) as again:
                    again.verify()
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image, whatever its name says") from None
    except Exception as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def jpeg_tables(path: str | Path) -> dict[int, list[int]]:
    """The quantisation tables of a JPEG file, as Pillow has them; {} of a file of another format."""
    with _opened(page_of(Path(path))[0]) as image:
        return dict(image.quantization) if image.format == "JPEG" else {}


def _check_size(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: {image.width} x {image.height} pixels is more than the limit of {MAX_PIXELS:,}")


def pixel_size(path: str | Path) -> tuple[float, float] | None:
    """Width and height of a pixel in um as `read_image` turns it, from the file's resolution tags; None where it has none, or one for
    print (50 um and more: no scan has such pixels)."""
    with _opened(page_of(Path(path))[0]) as image:
        dpi, turned = image.info.get("dpi"), image.getexif().get(0x0112, 1) >= 5
    if not dpi or not all(float(d) > 25_400 / 50 for d in dpi):
        return None
    size = tuple(25_400 / float(d) for d in dpi)
    return size[::-1] if turned else size


def _from_deep(values: np.ndarray, path: Path, channels: int, deep: bool) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: values from {values.min()} to {values.max()} are not 16-bit; convert it to 8 or 16 bit")
    if deep:
        return values.astype(np.uint16)
    grey = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    return grey if channels == 1 else np.repeat(grey[..., None], 3, 2)
