"""TIFF and BigTIFF, ImageJ's among them, by tifffile."""

import logging
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from ..config import UserError
from .volume import Page, Volume, check_size, page_of_values

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # silence its warnings; we raise our own
FLIPS = {2: 1, 3: (0, 1), 4: 0, 6: 1, 7: (0, 1), 8: 0}  # orientations: axes to flip, from 5 on after a transposition


def read_tiff(path: Path) -> Volume:
    """The pages of a TIFF in their order: each plane of a hyperstack (ImageJ's with one directory, too) one; no thumbnails, masks or
    reduced levels of a pyramid."""
    file = tifffile.TiffFile(path, is_ome=False)  # OME's references lead to other files
    planes, size = [], file.filehandle.size  # (page, its values where tifffile has no page for each)
    for series in (s for s in file.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)):
        first = series.keyframe
        check_size(path, first.imagewidth, first.imagelength)
        count, start = series.size // max(1, first.size), series.dataoffset  # (None where values are compressed or packed)
        if start and start + count * first.nbytes <= size:
            kept = first.dtype.newbyteorder(file.byteorder)
            planes += [(first, values) for values in np.memmap(path, kept, "r", start, (count, *first.shape))]
        elif not start and count == sum(page is not None for page in series.pages):
            planes += [(page, None) for page in series.pages]
        else:
            raise UserError(f"{path}: is cut off; it says that it holds {count} slices of {first.imagewidth} x {first.imagelength} pixels")
    planes.sort(key=lambda plane: plane[0].index)  # tifffile puts pages of one kind together
    stated = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    file.filehandle.seek(file.pages.next_page_offset)
    goes_on = any(file.filehandle.read(file.tiff.offsetsize))  # the last page names another one: there tifffile ends without a word
    if not planes or stated > len(planes) or goes_on:
        raise UserError(f"{path}: is cut off or damaged behind slice {len(planes)}")

    def page(k: int) -> Page:
        page, values = planes[k]
        page = page if isinstance(page, tifffile.TiffPage) else page.aspage()
        if page.compression not in tifffile.TIFF.DECOMPRESSORS:
            raise UserError(
                f"{path}: its compression is not read ({getattr(page.compression, 'name', page.compression)}); save it uncompressed"
            )
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if values is None and (not parts or any(not count or not offset or offset + count > size for offset, count in parts)):
            raise UserError(f"{path}: is cut off; parts of the image are missing")  # tifffile takes them for empty
        return _page(path, page, page.asarray(maxworkers=1) if values is None else values)

    return Volume(len(planes), page, close=file.close)


def _page(path: Path, page: tifffile.TiffPage, values: np.ndarray) -> Page:
    """A TIFF page's values as a viewer shows them: upright, black for 0."""
    bits, samples, extra, colours = page.bitspersample, page.samplesperpixel, list(page.extrasamples), page.photometric.name
    known = {"MINISBLACK": (1, 2), "MINISWHITE": (1,), "PALETTE": (1,), "RGB": (3, 4)}
    known |= {"YCBCR": (3,)} if page.compression in (6, 7) else {}  # JPEG's becomes RGB as it is decoded
    if samples not in known.get(colours, ()) or extra != ([2] if samples in (2, 4) else []) or page.imagedepth > 1:
        raise UserError(
            f"{path}: holds {colours} colours, {samples} values a pixel; save it as grey or RGB, without or with straight alpha"
        )
    values = np.moveaxis(values, 0, -1) if samples > 1 and int(page.planarconfig) == 2 else values
    tag = page.tags.get("Orientation")
    orientation = tag.value if tag else 1
    values = np.ascontiguousarray(np.flip(np.swapaxes(values, 0, 1) if orientation in (5, 6, 7, 8) else values, FLIPS.get(orientation, ())))
    if colours == "PALETTE":
        table = page.colormap if page.colormap.max() <= 255 else page.colormap >> 8  # some programs write one of 8 bit
        return Image.fromarray(np.moveaxis(table.astype(np.uint8)[:, values], 0, -1)), 0
    values, white = page_of_values(path, values, bits, colours == "MINISWHITE")
    return values[..., [0, 0, 0, 1]] if white and samples == 2 else values, white
