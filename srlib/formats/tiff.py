"""TIFF through tifffile: volumes of every writer, turned and inverted pages, depths that Pillow does not know."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from ..config import UserError
from .stacks import Facts, Page, Picture, Stack, check_size, deep_colour, of_scans, upright

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say of a damaged file is in its exceptions

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NOT_COMPRESSED, DEFLATE = 1, (8, 32946)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = range(4)
MICROMETRES = {"micron": 1, "um": 1, "µm": 1, "μm": 1, "\\u00b5m": 1, "\\u03bcm": 1, "mm": 1000, "nm": 0.001}  # ImageJ's units


class Tiff(Stack):
    """The pages of a TIFF in their order: each plane of a hyperstack (ImageJ's with one directory, too) one; no thumbnails, masks or
    reduced levels of a pyramid."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.file = tifffile.TiffFile(path, is_ome=False)  # whose references lead to other files
        self.size = self.file.filehandle.size
        self.planes, self.pillow = [], None  # (series, number in it, of how many)
        for series in self.file.series:
            first = series.keyframe
            if first.is_reduced or first.is_mask:
                continue
            check_size(path, first.imagewidth, first.imagelength)
            count = series.size // max(1, first.imagewidth * first.imagelength * first.samplesperpixel)
            if count * first.imagewidth * first.imagelength > 8 * self.size * (1 if first.compression == NOT_COMPRESSED else 2000):
                raise UserError(f"{path}: is cut off; it says that it holds {count} slices")
            self.planes += [(series, k, count) for k in range(count)]
        if len({id(series) for series, _, _ in self.planes}) > 1:  # tifffile puts pages of one kind together
            self.planes = [self.planes[k] for k in sorted(range(len(self.planes)), key=lambda k: self._place(k)[-1].index)]
        if not self.planes:
            raise UserError(f"{path}: holds no image")
        if self._goes_on():
            raise UserError(f"{path}: is cut off or damaged behind slice {len(self.planes)}")
        stated = (self.file.imagej_metadata or {}).get("images", 1) if self.file.is_imagej else 1
        first = self.planes[0][0].keyframe
        behind = (self.size - first.dataoffsets[0]) / max(1, sum(first.databytecounts)) if first.dataoffsets else 0
        if stated > len(self.planes) and len(self.file.pages) == 1 and behind > 1.5:  # else its description is older than its content
            raise UserError(f"{path}: is cut off; it says that it holds {stated} slices, but {int(behind)} are there")

    def __len__(self) -> int:
        return len(self.planes)

    def _goes_on(self) -> bool:
        """Whether the last directory that can be read names another one: tifffile ends there without a word."""
        form, last, file = self.file.tiff, self.file.pages[len(self.file.pages) - 1].offset, self.file.filehandle
        file.seek(last)
        (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(last + form.tagnosize + tags * form.tagsize)
        following = file.read(form.offsetsize)
        return len(following) == form.offsetsize and struct.unpack(form.offsetformat, following)[0] > last  # (back: a circle)

    def page(self, k: int, reflectivity: str = "") -> Page:
        series, number, each, page = self._place(k)
        first = series.keyframe
        bits, samples, photometric = first.bitspersample, first.samplesperpixel, int(first.photometric)
        packed = bits not in (8, 16, 32, 64)
        if first.dtype is not None and first.dtype.kind == "f":
            raise UserError(f"{self.path}: holds floating-point values of unknown range; save it as 8 or 16 bit")
        if first.dtype is not None and first.dtype.kind not in "uib":
            raise UserError(f"{self.path}: holds {first.dtype} values; save it as 8 or 16 bit")
        whole = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE) and not (packed and (bits < 8 or samples > 1))
        if not whole or first.compression not in (NOT_COMPRESSED, *DEFLATE) or (packed and first.predictor != 1):
            return self._by_pillow(_whole(page))
        if packed:
            values = self._unpacked(page)
        elif first.compression == NOT_COMPRESSED and series.dataoffset is not None:
            values = self._plane_at(series, number)
        else:
            self._check_parts(page)
            values = page.asarray(maxworkers=1).reshape(-1, *_shape(first))[number % each]
        if samples > 1 and int(first.planarconfig) == 2:
            values = np.moveaxis(values, 0, -1)
        return self._shown(values, _whole(page), photometric, bits)

    def _place(self, k: int) -> tuple:
        """(series, number in it, planes in a page of it, the page) of plane k."""
        series, number, count = self.planes[k]
        each = count // len(series.pages)  # 0 where the file has pages for a part of the planes alone
        page = series.pages[number // each] if each and count == each * len(series.pages) else series.keyframe
        if page is None:
            raise UserError(f"{self.path}: has no slice {k + 1}")
        return series, number, each, page

    def _plane_at(self, series, k: int) -> np.ndarray:
        """Plane k of a series that lies in one piece."""
        shape = _shape(series.keyframe)
        dtype = series.keyframe.dtype.newbyteorder(self.file.byteorder)
        values = self.file.filehandle
        values.seek(series.dataoffset + k * dtype.itemsize * int(np.prod(shape)))
        content = values.read(dtype.itemsize * int(np.prod(shape)))
        if len(content) < dtype.itemsize * int(np.prod(shape)):
            raise UserError(f"{self.path}: is cut off within slice {k + 1}")
        return np.frombuffer(content, dtype).reshape(shape).astype(series.keyframe.dtype)

    def _check_parts(self, page) -> None:
        """tifffile takes a missing part for an empty one."""
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if not parts or any(not count or not offset or offset + count > self.size for offset, count in parts):
            raise UserError(f"{self.path}: is cut off; parts of the image are missing")

    def _unpacked(self, page) -> np.ndarray:
        """A page of 9 to 15 bits a value, packed, each row from a whole byte on."""
        self._check_parts(page)
        bits, width = page.bitspersample, page.imagewidth
        unpack = bytes if page.compression == NOT_COMPRESSED else zlib.decompress
        each = -(-width * bits // 8)
        content = b"".join(unpack(self._read(offset, count)) for offset, count in zip(page.dataoffsets, page.databytecounts))
        if page.is_tiled or len(content) < each * page.imagelength:
            raise UserError(f"{self.path}: holds {bits} bits a value in a way that is not supported; save it as 16 bit")
        rows = np.frombuffer(content, np.uint8)[: each * page.imagelength].reshape(page.imagelength, each)
        reversed_bits = _tag(page, 266) == 2  # the tag FillOrder
        digits = np.unpackbits(rows, axis=1, bitorder="little" if reversed_bits else "big")[:, : width * bits].reshape(
            page.imagelength, width, bits
        )
        return digits @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)

    def _read(self, offset: int, count: int) -> bytes:
        self.file.filehandle.seek(offset)
        return self.file.filehandle.read(count)

    def _shown(self, values: np.ndarray, first, photometric: int, bits: int) -> Page:
        """Values as a viewer shows them: upright, black for 0, without transparency."""
        samples = first.samplesperpixel
        alpha = any(int(e) in (1, 2) for e in first.extrasamples)
        if samples - len(first.extrasamples) not in (1, 3) or len(first.extrasamples) > 1 or (first.extrasamples and not alpha):
            raise UserError(f"{self.path}: holds {samples} values a pixel; save it as grey or RGB")
        if first.dtype.kind == "i" and values.min() < 0:
            raise UserError(f"{self.path}: holds values below 0, from {values.min()} on; save it as 8 or 16 bit")
        white = _depth(first, bits)
        if photometric == WHITE_IS_ZERO:
            grey = values if samples == 1 else values[..., :1]  # beside it alpha
            values = (
                np.concatenate([white - np.minimum(grey, white), values[..., 1:]], -1) if samples > 1 else white - np.minimum(grey, white)
            )
        if photometric == PALETTE:
            values, bits = _colours(first, values), 8
        values = upright(values, _orientation(first))
        if alpha and int(first.extrasamples[0]) == 1:  # the colours are multiplied by it already
            values = np.minimum(values[..., :-1] + (white - np.minimum(values[..., -1:], white)), white).astype(values.dtype)
            values = values[..., 0] if values.shape[2] == 1 else values
        elif bits != 8 and samples == 2:
            values = values[..., [0, 0, 0, 1]]
        if bits != 8:
            return Page(values, white)
        return Page(Image.fromarray(values.astype(np.uint8)))

    def _by_pillow(self, page) -> Page:
        """What needs a decompressor that tifffile has only with a further package, or a conversion of colours."""
        white = _depth(page, page.bitspersample)
        plain = int(page.photometric) == RGB and int(page.planarconfig) == 1 and set(map(int, page.extrasamples)) <= {2}
        if page.bitspersample == 16 and plain:
            return Page(deep_colour(self.path, page.index), white)  # (OpenCV turns a TIFF upright)
        try:
            self.pillow = self.pillow or Picture(self.path)
            shown = self.pillow.page(page.index)
        except UnidentifiedImageError:
            kind = f"{page.bitspersample} bits a value, {page.compression.name} and {page.photometric.name}"
            raise UserError(f"{self.path}: holds {kind}, which is not supported; save it as grey or RGB of 8 or 16 bit") from None
        if int(page.photometric) == PALETTE and not shown.white and shown.values.mode == "P":
            return Page(Image.fromarray(_colours(page, np.asarray(shown.values))))
        if shown.white:
            inverted = int(page.photometric) == WHITE_IS_ZERO  # Pillow inverts 8 bit alone
            return Page(white - np.minimum(shown.values, white) if inverted else shown.values, white)
        return shown

    def facts(self, k: int) -> Facts:
        page = _whole(self._place(k)[-1])
        unit, turned = None, _orientation(page) >= 5
        if self.file.is_imagej:
            unit = MICROMETRES.get(str((self.file.imagej_metadata or {}).get("unit", "")).lower())
        unit = unit or {2: 25_400, 3: 10_000}.get(int(page.tags[296].value) if 296 in page.tags else 2)
        try:
            size = tuple(unit * den / num for num, den in (page.tags[name].value for name in ("XResolution", "YResolution")))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return Facts()
        return Facts(of_scans(size, turned))

    def close(self) -> None:
        self.file.close()
        if self.pillow:
            self.pillow.close()


def _whole(page):
    """A page with its own tags; of pages that look like the first, tifffile keeps less."""
    return page if isinstance(page, tifffile.TiffPage) else page.aspage()


def _tag(page, number: int, usual: int = 1) -> int:
    tag = page.tags.get(number)
    return tag.value if tag and isinstance(tag.value, int) else usual


def _orientation(page) -> int:
    return _tag(page, 274)


def _colours(page, values: np.ndarray) -> np.ndarray:
    """RGB of 8 bit, through the page's map of 16 bit; some programs write one of 8 bit."""
    table = page.colormap if page.colormap.max() <= 255 else page.colormap >> 8
    return np.moveaxis(table.astype(np.uint8)[:, np.minimum(values, table.shape[1] - 1)], 0, -1)


def _shape(page) -> tuple[int, ...]:
    """Of one plane, as tifffile gives it."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    return (height, width) if samples == 1 else (samples, height, width) if int(page.planarconfig) == 2 else (height, width, samples)


def _depth(page, bits: int) -> int:
    """The largest value: of the depth, or of a smaller one that the tag MaxSampleValue states."""
    stated = page.tags.get(281)
    stated = stated.value if stated else 0
    known = isinstance(stated, int) and 511 <= stated < (1 << min(bits, 16)) and not stated & (stated + 1)
    return stated if known else (1 << min(bits, 16)) - 1
