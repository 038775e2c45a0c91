"""What a file of any format is to the rest: a volume of pages, read one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..config import UserError

MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded

# A Pillow image of 8 bit and 0; or an integer array, grey (H, W), RGB (H, W, 3) or RGB with straight alpha (H, W, 4), and the largest value
# that the file's depth allows
Page = tuple[Image.Image | np.ndarray, int]


class Volume(NamedTuple):
    """A file's pages, read one by one, and what it calls its patient, only ever compared; '' where it names none."""

    pages: int
    page: Callable[[int], Page]
    patient: str = ""
    close: Callable[[], None] = lambda: None


def check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS or min(width, height) < 1:
        raise UserError(f"{path}: {width} x {height} pixels is more than the limit of {MAX_PIXELS:,}")


def page_of_values(path: Path, values: np.ndarray, bits: int, inverted: bool) -> Page:
    """A page of `values` with so many bits, of which `inverted` ones are white for 0."""
    if values.dtype.kind not in "uib" or values.min() < 0:
        raise UserError(f"{path}: holds fractions or values below 0 ({values.dtype}), whose range is unknown; save it as 8 or 16 bit")
    white = (1 << min(bits - (values.dtype.kind == "i"), 16)) - 1  # of signed ones the sign's bit says nothing
    values = values.astype(f"u{values.dtype.itemsize}")
    values = white - np.minimum(values, white) if inverted else values
    if bits <= 8 and values.max() <= white:
        return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)), 0
    return values, white
