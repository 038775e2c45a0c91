"""Files of every format that is read, each a volume of pages: pictures by Pillow, TIFF by tifffile, Heidelberg's by eyepy, DICOM by pydicom.

What a file says of its patient goes into `Volume.patient` and nowhere else, so errors of the instruments' libraries, which may quote a
file's fields, are named by their kind alone.
"""

import contextlib
import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import ExifTags, Image, UnidentifiedImageError

from ..config import UserError

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is our limit
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # silence its warnings; we raise our own
logging.getLogger("eyepy").setLevel(logging.CRITICAL)

MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded
EMPTY = np.finfo(np.float32).max  # what .vol holds where nothing was measured
TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # DICOM's class of ophthalmic tomography
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientations: Pillow's transpositions
FLIPS = {2: 1, 3: (0, 1), 4: 0, 6: 1, 7: (0, 1), 8: 0}  # TIFF's orientations: axes to flip, from 5 on after a transposition


# A Pillow image of 8 bit and 0; or an integer array, grey (H, W), RGB (H, W, 3) or RGB with straight alpha (H, W, 4), and the largest value
# that the file's depth allows
Page = tuple[Image.Image | np.ndarray, int]


class Volume(NamedTuple):
    """A file's pages, read one by one, and what it calls its patient, only ever compared; '' where it names none."""

    pages: int
    page: Callable[[int], Page]
    patient: str = ""
    close: Callable[[], None] = lambda: None


def kind(path: Path) -> str:
    """What a file is by its first bytes: 'tiff', 'vol', 'dicom', 'xml' (an export of Heidelberg's), or 'picture' for Pillow to say."""
    with open(path, "rb") as file:
        head = file.read(1 << 16 if path.suffix.lower() == ".xml" else 1024)
    if head[128:132] == b"DICM":  # before TIFF: some files can be read as either
        return "dicom"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"HSF-OCT") or (head.startswith(b"ep-v") and path.suffix.lower() == ".vol"):
        return "vol"
    return "xml" if b"<HEDX" in head.replace(b"\0", b"") else "picture"


_open, MOST_OPEN = threading.local(), 3  # an SR volume, its HR and its LR


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Volume]:
    """The volume behind a file; whatever goes wrong within, also while a page is decoded, becomes a UserError that names the file. A few of
    several pages stay open in each thread, so that a volume of 500 slices is opened once and not 500 times."""
    try:
        state, volumes = path.stat(), vars(_open).setdefault("volumes", {})
        key = (os.getpid(), os.path.abspath(path), state.st_mtime_ns, state.st_size)  # a forked process shares no position in a file
        volume = volumes[key] if key in volumes else READERS[kind(path)](path)
        if volume.pages == 1:
            with contextlib.closing(volume):
                yield volume
            return
        if len(volumes) == MOST_OPEN and key not in volumes:
            volumes.pop(next(iter(volumes))).close()
        volumes[key] = volume
        yield volume
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: is not an image of a format that is read, whatever its name says; save it as PNG or TIFF (.e2e: as .vol or XML)"
        ) from None
    except Exception as error:
        needed = "imagecodecs" if "imagecodecs" in str(error) else getattr(error, "name", None) if isinstance(error, ImportError) else None
        if needed:
            raise UserError(f'{path}: reading it needs {needed}; pip install ".[formats]" (environment.yml has it)') from None
        told = str(error) if isinstance(error, (OSError, SyntaxError, Image.DecompressionBombError)) else f"damaged: {type(error).__name__}"
        raise UserError(f"{path}: cannot be read as an image ({(getattr(error, 'strerror', None) or told).splitlines()[0]})") from None


def check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS or min(width, height) < 1:
        raise UserError(f"{path}: {width} x {height} pixels is more than the limit of {MAX_PIXELS:,}")


def _page(path: Path, values: np.ndarray, bits: int, inverted: bool) -> Page:
    """A page of `values` with so many bits, of which `inverted` ones are white for 0."""
    if values.dtype.kind not in "uib" or values.min() < 0:
        raise UserError(f"{path}: holds fractions or values below 0 ({values.dtype}), whose range is unknown; save it as 8 or 16 bit")
    white = (1 << min(bits - (values.dtype.kind == "i"), 16)) - 1  # of signed ones the sign's bit says nothing
    values = values.astype(f"u{values.dtype.itemsize}")
    values = white - np.minimum(values, white) if inverted else values
    if bits <= 8 and values.max() <= white:
        return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)), 0
    return values, white


def _opened_picture(source: Callable) -> Image.Image:
    image = Image.open(source(), formats=("PNG", "JPEG", "BMP"))  # by content; none that starts another program
    if image.format == "PNG":  # decoding alone skips the checksums
        with Image.open(source(), formats=("PNG",)) as again:
            again.verify()
    return image


def _without_metadata(png: bytes) -> bytes:
    """The chunks of a PNG that make its picture, and its EXIF where that is whole."""
    kept, at = [png[:8]], 8
    while at < len(png):
        size, name = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        chunk = png[at : at + 12 + size]
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and whole):
            kept.append(chunk)
        at += 12 + size
    return b"".join(kept)


def _picture(path: Path) -> Volume:
    try:
        image = _opened_picture(lambda: path)
    except Exception:  # of the picture, or of what is said of it
        if not (content := path.read_bytes()).startswith(b"\x89PNG"):
            raise
        image = _opened_picture(lambda: io.BytesIO(_without_metadata(content)))
    check_size(path, image.width, image.height)
    if getattr(image, "n_frames", 1) > 1:  # an animated PNG, a JPEG of a camera that takes several
        raise UserError(f"{path}: holds {image.n_frames} pictures; save each as a file, or all as a TIFF")
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in str(image.tile):  # Pillow keeps 8 of 16 bits
        raise UserError(f"{path}: holds 16-bit colours; save it as 8-bit RGB or 16-bit grey")

    def page(_: int) -> Page:
        image.load()
        turn = None
        with contextlib.suppress(Exception):  # what cannot be read of its metadata says nothing
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        shown = image if turn is None else image.transpose(turn)
        if not shown.mode.startswith("I"):
            return shown, 0
        stated = re.fullmatch(r"0 to (\d+)", str(shown.info.get("Values", "")))  # by `upscale`
        values, hidden = np.asarray(shown), shown.info.get("transparency")  # one grey level that is transparent
        if isinstance(hidden, int):
            values = np.stack([values] * 3 + [np.where(values == hidden, 0, 65535)], -1)
        return values, int(stated[1]) if stated and shown.info.get("Software") == "srlib" else 65535

    return Volume(1, page, close=image.close)


def _tiff(path: Path) -> Volume:
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
        return _tiff_page(path, page, page.asarray(maxworkers=1) if values is None else values)

    return Volume(len(planes), page, close=file.close)


def _tiff_page(path: Path, page: tifffile.TiffPage, values: np.ndarray) -> Page:
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
    values, white = _page(path, values, bits, colours == "MINISWHITE")
    return values[..., [0, 0, 0, 1]] if white and samples == 2 else values, white


def grey(reflectivity: np.ndarray) -> np.ndarray:
    """Raw reflectivity, float (H, W), 0 to 1, as uint8: (ln(R + 2.44e-4) + 8.3) / 8.285, eyepy's, close to the instrument's viewer. Values that
    are no number, below 0 or EMPTY become 0."""
    valid = np.isfinite(reflectivity) & (reflectivity >= 0) & (reflectivity < EMPTY)
    r = np.clip(np.where(valid, reflectivity, 0), 0, 1).astype(np.float64)
    return np.where(valid, np.round(np.clip((np.log(r + 2.44e-4) + 8.3) / 8.285, 0, 1) * 255), 0).astype(np.uint8)


def _vol(path: Path) -> Volume:
    from eyepy.io.he import HeVolReader

    with open(path, "rb") as file:
        width, scans, height = struct.unpack("<12x3I", file.read(24))
    check_size(path, width, height)
    if not 0 < 4 * width * height * scans < path.stat().st_size:
        raise UserError(f"{path}: is cut off or damaged; it says that it holds {scans} B-scans of {width} x {height} pixels")
    content = HeVolReader(path).parsed_file
    patient = content.patient_id.strip("\0 ") or str(content.pid or "")
    return Volume(scans, lambda k: (Image.fromarray(grey(content.bscans[k].data)), 0), patient)


def _xml(path: Path) -> Volume:
    """Heidelberg's XML export: the B-scans that it names, of every series, images in its own folder."""
    root = ElementTree.fromstring(path.read_bytes())
    beside = {file.name.lower(): file for file in path.parent.iterdir()}
    names = [image.findtext("ImageData/ExamURL", "") for image in root.iter("Image") if image.findtext("ImageType/Type") == "OCT"]
    files = [beside.get(PureWindowsPath(name).name.lower()) for name in names]
    if not files or None in files:
        raise UserError(f"{path}: names {len(files)} B-scans, of which {files.count(None)} are not beside it; export it again")
    patients = {p.findtext("PatientID") or p.findtext("ID") or "" for p in root.iter("Patient")}
    if len(patients) > 1:
        raise UserError(f"{path}: holds {len(patients)} patients; export one at a time")

    def page(k: int) -> Page:
        with opened(files[k]) as volume:
            if volume.pages > 1:
                raise UserError(f"{files[k]}: holds {volume.pages} images, but is one B-scan of {path.name}; export it again")
            return volume.page(0)

    return Volume(len(files), page, patients.pop() if patients else "")


def _dicom(path: Path) -> Volume:
    """DICOM with pixel data, each frame a page."""
    from pydicom import config, dcmread
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import UID

    config.settings.reading_validation_mode = config.IGNORE  # its warnings quote values
    data = dcmread(path, stop_before_pixels=True)
    sop, colours = UID(str(data.get("SOPClassUID", ""))), data.get("PhotometricInterpretation", "")
    if sop and sop != TOMOGRAPHY:
        raise UserError(f"{path}: is no OCT scan; its kind in DICOM is {sop.name}")
    if "Rows" not in data:
        raise UserError(f"{path}: is a DICOM file without an image")
    width, height, frames = int(data.Columns), int(data.Rows), int(data.get("NumberOfFrames") or 1)
    check_size(path, width, height)
    bits, syntax = int(data.BitsStored), data.file_meta.TransferSyntaxUID
    plain = syntax.is_transfer_syntax and not (syntax.is_compressed or syntax.is_deflated)
    if not 0 < frames * (width * height * int(data.BitsAllocated) // 8 if plain else 1) <= path.stat().st_size:
        raise UserError(f"{path}: is cut off; it says that it holds {frames} frames of {width} x {height} pixels")
    if bits > 16 or int(data.get("HighBit", bits - 1)) != bits - 1 or not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        raise UserError(
            f"{path}: keeps its values in a way that is not read ({bits} bits, {colours}); convert it to 8 or 16 bit, grey or RGB"
        )
    try:
        decoded = plain or get_decoder(syntax).is_available
    except NotImplementedError:  # a syntax that pydicom does not know
        decoded = False
    if not decoded:
        raise UserError(f"{path}: its compression is not read ({syntax.name}); save it uncompressed")

    def page(k: int) -> Page:
        try:
            values = pixel_array(path, index=k, correct_unused_bits=bool(data.get("PixelRepresentation")))
        except RuntimeError:
            what = f"frame {k + 1} cannot be read ({syntax.name}, {bits} bits): it is cut off, or of a kind that no decoder here knows"
            raise UserError(f"{path}: {what}; save it uncompressed") from None
        grey = colours.startswith("MONOCHROME")
        return _page(path, _windowed(path, values, data, k) if grey else values, bits, colours == "MONOCHROME1")

    return Volume(frames, page, str(data.get("PatientID") or data.get("PatientName") or "").strip())


def _windowed(path: Path, values: np.ndarray, data, k: int) -> np.ndarray:
    """A grey DICOM frame's values, where the file names a window those that it shows, unsigned, of all the stored bits (by pydicom)."""
    from pydicom import Dataset
    from pydicom.pixels import apply_rescale, apply_windowing

    bits, signed, named = int(data.BitsStored), int(data.PixelRepresentation), Dataset()
    named.BitsStored, named.PixelRepresentation, named.PhotometricInterpretation = bits, signed, data.PhotometricInterpretation
    groups = [*data.get("SharedFunctionalGroupsSequence", []), *data.get("PerFrameFunctionalGroupsSequence", [])[k : k + 1]]
    for part in (data, *(inner.value[0] for group in groups for inner in group if inner.VR == "SQ" and inner.value)):
        if "ModalityLUTSequence" in part or "VOILUTSequence" in part:
            raise UserError(f"{path}: its grey levels stand in a table of its own, which is not read; save it as 8 or 16 bit")
        for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"):
            if part.get(name) not in (None, ""):
                setattr(named, name, part[name].value)
    window = "WindowCenter" in named and "WindowWidth" in named
    if not window and named.get("RescaleSlope", 1) > 0:  # the range of the values decides
        return values
    if not window:
        raise UserError(f"{path}: its values fall where it is brighter (RescaleSlope) and it names no window; save it as 8 or 16 bit")
    rescaled = apply_rescale if "RescaleSlope" in named else lambda array, _: array
    low, high = rescaled(np.array([-signed << (bits - 1), (1 << (bits - signed)) - 1]), named)
    try:
        shown = apply_windowing(rescaled(values, named), named)
    except (ValueError, TypeError, NotImplementedError):
        raise UserError(
            f"{path}: its window (WindowCenter, WindowWidth, VOILUTFunction) cannot be applied; save it as 8 or 16 bit"
        ) from None
    return np.round((shown - low) * (((1 << bits) - 1) / (high - low))).astype(np.uint16 if bits > 8 else np.uint8)


READERS = {"tiff": _tiff, "vol": _vol, "xml": _xml, "dicom": _dicom, "picture": _picture}
