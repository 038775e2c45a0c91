"""A file as a stack of pages, a picture as a stack of one. tiff.py, heidelberg.py and dicom.py have more kinds; kinds.py finds out which one a file is."""

from __future__ import annotations

import re
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..config import UserError

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is our limit

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow's, by content; none that starts another program
MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded
REFLECTIVITY = ("log", "fourth-root")  # how raw reflectivity becomes grey; the first is what the instrument's viewer shows, about


TURNS = {  # the tag Orientation: what shows an image upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: np.rot90,
}


class Page(NamedTuple):
    """One page: `values`, a Pillow image of 8 bit, or an integer array of more, of which `white` is the largest value that the file's depth allows
    (0: it is a Pillow image). An array is grey (H, W), RGB (H, W, 3), or RGB with a last channel of straight alpha (H, W, 4)."""

    values: Image.Image | np.ndarray
    white: int = 0


class Facts(NamedTuple):
    """What a file says about a page: `pixel_um`, width and height of a pixel, or None; `laterality`, OD (right), OS (left) or ''; `position`, where
    the B-scan lies on the fundus image, in words, or ''."""

    pixel_um: tuple[float, float] | None = None
    laterality: str = ""
    position: str = ""


class Stack:
    """A file's pages, numbered from 0."""

    identity = b""  # of the patient, from inside the file: only ever hashed (`reading.patient`)
    name = b""  # beside an identifier, the same

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return 1

    def page(self, k: int, reflectivity: str) -> Page:
        raise NotImplementedError

    def facts(self, k: int) -> Facts:
        return Facts()

    def close(self) -> None:
        pass


class Picture(Stack):
    """What Pillow reads: PNG, JPEG, BMP, and the pages of a TIFF that tifffile cannot decode."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.image = Image.open(path, formats=FORMATS)
        check_size(path, self.image.width, self.image.height)
        self.format = self.image.format
        if self.format == "PNG":  # decoding alone skips the checksums
            with Image.open(path, formats=FORMATS) as again:
                again.verify()

    def page(self, k: int, reflectivity: str = "") -> Page:
        if k or self.image.tell():
            self.image.seek(k)
            check_size(self.path, self.image.width, self.image.height)
        if self.format == "PNG" and self.image.mode in ("RGB", "RGBA", "LA") and self._deep():
            return Page(upright(deep_colour(self.path), self.image.getexif().get(0x0112, 1)), 65535)
        image = ImageOps.exif_transpose(self.image)
        if image.mode == "F":
            raise UserError(f"{self.path}: holds floating-point values of unknown range; save it as 8 or 16 bit")
        if image.mode.startswith("I"):
            stated = re.fullmatch(r"0 to (\d+)", str(self.image.info.get("Values", "")))  # by `upscale`
            values, hidden = np.asarray(image), self.image.info.get("transparency")  # one grey level that is transparent
            if isinstance(hidden, int):
                values = np.stack([values] * 3 + [np.where(values == hidden, 0, 65535)], -1)
            return Page(values, int(stated[1]) if stated and self.image.info.get("Software") == "srlib" else 65535)
        image.load()
        return Page(image)

    def _deep(self) -> bool:
        """Whether a PNG has 16 bits a value, by its header."""
        with open(self.path, "rb") as file:
            return file.read(25)[24:] == b"\x10"

    def facts(self, k: int) -> Facts:
        dpi, turned = self.image.info.get("dpi"), self.image.getexif().get(0x0112, 1) >= 5
        return Facts(of_scans(tuple(25_400 / float(d) for d in dpi), turned) if dpi and all(float(d) > 0 for d in dpi) else None)

    def close(self) -> None:
        self.image.close()


def deep_colour(path: Path, number: int = 0) -> np.ndarray:
    """RGB or RGBA of 16 bit, of which Pillow keeps 8: page `number`, (H, W, 3 or 4), by OpenCV."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it has to say of a damaged file is for nobody
    try:
        read, pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED, range=(number, number + 1))
    except cv2.error:
        read, pages = False, ()
    if not read or not pages or pages[0].dtype != np.uint16 or pages[0].ndim != 3:
        raise UserError(f"{path}: its 16-bit colours cannot be read; save it as 8-bit RGB")
    return cv2.cvtColor(pages[0], cv2.COLOR_BGR2RGB if pages[0].shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array turned as the tag Orientation says; a value that means nothing turns nothing."""
    return np.ascontiguousarray(TURNS.get(orientation, np.asarray)(values))


def plain_name(name: str) -> str:
    """A file's name in small letters, each accent in one character with its letter: macOS takes them apart, others do not."""
    return unicodedata.normalize("NFC", name).casefold()


def of_scans(size: tuple[float, float], turned: bool) -> tuple[float, float] | None:
    """(width, height) of a pixel in um, of an image that is `turned` by a quarter exchanged; None for print (50 um and more: no scan has such pixels)."""
    return None if max(size) >= 50 or min(size) <= 0 else size[::-1] if turned else size


def check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS or min(width, height) < 1:
        raise UserError(f"{path}: {width} x {height} pixels is more than the limit of {MAX_PIXELS:,}")
