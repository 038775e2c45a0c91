"""Files of every format that is read, each a volume of pages: pictures by Pillow, TIFF by tifffile, Heidelberg's by eyepy, DICOM by pydicom.

What a file says of its patient goes into `Volume.patient` and nowhere else, so errors of the instruments' libraries, which may quote a
file's fields, are named by their kind alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from ..config import UserError

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is our limit
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # silence its warnings; we raise our own
logging.getLogger("eyepy").setLevel(logging.CRITICAL)

MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded
EMPTY = np.finfo(np.float32).max  # what .vol holds where nothing was measured
TOMOGRAPHY, NO_SCANS = "1.2.840.10008.5.1.4.1.1.77.1.5.4", ("1.2.840.10008.5.1.4.1.1.77.1.5.", "1.2.840.10008.5.1.4.1.1.66")
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
    """One page: `values`, a Pillow image of 8 bit, or an integer array of more, of which `white` is the largest value that the file's depth
    allows (0: it is a Pillow image). An array is grey (H, W), RGB (H, W, 3), or RGB with straight alpha (H, W, 4)."""

    values: Image.Image | np.ndarray
    white: int = 0


class Volume(NamedTuple):
    """A file's pages, read one by one, and what it calls its patient, only ever compared; '' where it names none."""

    pages: int
    page: Callable[[int], Page]
    patient: str = ""
    close: Callable[[], None] = lambda: None


def kind(path: Path) -> str:
    """What a file is by its first bytes: 'tiff', 'vol', 'e2e', 'dicom', 'xml' (an export of Heidelberg's), or 'picture' for Pillow to say."""
    with open(path, "rb") as file:
        head = file.read(1 << 16 if path.suffix.lower() == ".xml" else 1024)
    if head[128:132] == b"DICM":  # before TIFF: some files can be read as either
        return "dicom"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"HSF-OCT") or (head.startswith(b"ep-v") and path.suffix.lower() == ".vol"):
        return "vol"
    if head.startswith((b"CMDb", b"MDbMDir")):
        return "e2e"
    return "xml" if b"<HEDX" in head.replace(b"\0", b"") else "picture"


class _Held(threading.local):
    def __init__(self):
        self.volumes: dict[tuple, Volume] = {}


_held, HELD = _Held(), 3  # an SR volume, its HR and its LR


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Volume]:
    """The volume behind a file; whatever goes wrong within, also while a page is decoded, becomes a UserError that names the file. A few of
    several pages stay open in each thread, so that a volume of 500 slices is opened once and not 500 times."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is not a file")
        state, volumes = path.stat(), _held.volumes
        key = (os.getpid(), os.path.abspath(path), state.st_mtime_ns, state.st_size)  # a forked process shares no position in a file
        if key in volumes:
            yield volumes[key]
            return
        volume = READERS[kind(path)](path)
        if volume.pages == 1:
            try:
                yield volume
            finally:
                volume.close()
            return
        if len(volumes) == HELD:
            volumes.pop(next(iter(volumes))).close()
        volumes[key] = volume
        yield volume
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image of a format that is read, whatever its name says; save it as PNG or TIFF") from None
    except Exception as error:
        needed = "imagecodecs" if "imagecodecs" in str(error) else getattr(error, "name", None) if isinstance(error, ImportError) else None
        if needed:
            raise UserError(f'{path}: reading it needs {needed}; pip install ".[formats]" (environment.yml has it)') from None
        told = str(error) if isinstance(error, (OSError, SyntaxError, Image.DecompressionBombError)) else f"damaged: {type(error).__name__}"
        raise UserError(f"{path}: cannot be read as an image ({(getattr(error, 'strerror', None) or told).splitlines()[0]})") from None


def check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS or min(width, height) < 1:
        raise UserError(f"{path}: {width} x {height} pixels is more than the limit of {MAX_PIXELS:,}")


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(TURNS.get(orientation, np.asarray)(values))


def _picture(path: Path) -> Volume:
    image = Image.open(path, formats=("PNG", "JPEG", "BMP"))  # by content; none that starts another program
    check_size(path, image.width, image.height)
    if image.format == "PNG":  # decoding alone skips the checksums
        with Image.open(path, formats=("PNG",)) as again:
            again.verify()
        if getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{path}: is animated; save each of its {image.n_frames} pictures as a file")
        with open(path, "rb") as file:
            if file.read(25)[24:] == b"\x10" and image.mode in ("RGB", "RGBA", "LA"):  # Pillow keeps 8 of 16 bits
                raise UserError(f"{path}: holds 16-bit colours; save it as 8-bit RGB or 16-bit grey")

    def page(_: int) -> Page:
        shown = ImageOps.exif_transpose(image)
        if not shown.mode.startswith("I"):
            shown.load()
            return Page(shown)
        stated = re.fullmatch(r"0 to (\d+)", str(shown.info.get("Values", "")))  # by `upscale`
        values, hidden = np.asarray(shown), shown.info.get("transparency")  # one grey level that is transparent
        if isinstance(hidden, int):
            values = np.stack([values] * 3 + [np.where(values == hidden, 0, 65535)], -1)
        return Page(values, int(stated[1]) if stated and shown.info.get("Software") == "srlib" else 65535)

    return Volume(1, page, close=image.close)


def _tiff(path: Path) -> Volume:
    """The pages of a TIFF in their order: each plane of a hyperstack (ImageJ's with one directory, too) one; no thumbnails, masks or
    reduced levels of a pyramid."""
    file = tifffile.TiffFile(path, is_ome=False)  # OME's references lead to other files
    planes, size = [], file.filehandle.size  # (page, where its values lie in the file, or 0)
    for series in (s for s in file.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)):
        first = series.keyframe
        check_size(path, first.imagewidth, first.imagelength)
        count = series.size // max(1, first.size)
        if series.dataoffset and first.compression == 1 and first.bitspersample in (8, 16, 32, 64):
            offsets = [series.dataoffset + k * first.nbytes for k in range(min(count, size))]
            pages = [(first, offset) for offset in offsets if offset + first.nbytes <= size]
        else:
            pages = [(page, 0) for page in series.pages if page is not None]
        if len(pages) != count:
            raise UserError(f"{path}: is cut off; it says that it holds {count} slices, but {len(pages)} are there")
        planes += pages
    planes.sort(key=lambda plane: plane[0].index)  # tifffile puts pages of one kind together
    stated = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    if not planes or stated > len(planes) or _goes_on(file):
        raise UserError(f"{path}: is cut off or damaged behind slice {len(planes)}")

    def page(k: int) -> Page:
        page, offset = planes[k]
        page = page if isinstance(page, tifffile.TiffPage) else page.aspage()
        if offset:
            return _shown(path, page, np.array(np.memmap(path, page.dtype.newbyteorder(file.byteorder), "r", offset, page.shape)))
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if not parts or any(not count or not offset or offset + count > size for offset, count in parts):  # tifffile takes it for empty
            raise UserError(f"{path}: is cut off; parts of the image are missing")
        return _shown(path, page, page.asarray(maxworkers=1))

    return Volume(len(planes), page, close=file.close)


def _goes_on(file: tifffile.TiffFile) -> bool:
    """Whether the last directory that can be read names another one: tifffile ends there without a word."""
    form, last, handle = file.tiff, file.pages[len(file.pages) - 1].offset, file.filehandle
    handle.seek(last)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last + form.tagnosize + tags * form.tagsize)
    following = handle.read(form.offsetsize)
    return len(following) == form.offsetsize and struct.unpack(form.offsetformat, following)[0] > last  # (back: a circle)


def _shown(path: Path, page: tifffile.TiffPage, values: np.ndarray) -> Page:
    """A TIFF page's values as a viewer shows them: upright, black for 0."""
    bits, samples, extra = page.bitspersample, page.samplesperpixel, [int(e) for e in page.extrasamples]
    photometric, jpeg = page.photometric.name, page.compression in (6, 7)  # (whose YCbCr becomes RGB as it is decoded)
    if values.dtype.kind not in "uib":
        raise UserError(f"{path}: holds floating-point or complex values ({values.dtype}) of unknown range; save it as 8 or 16 bit")
    if photometric not in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE") and not (photometric == "YCBCR" and jpeg):
        raise UserError(f"{path}: holds {photometric} colours; save it as grey or RGB")
    colours = samples - len(extra)
    if colours not in (1, 3) or extra not in ([], [2]) or (photometric in ("MINISWHITE", "PALETTE") and samples > 1) or page.imagedepth > 1:
        raise UserError(f"{path}: holds {samples} values a pixel; save it as grey or RGB, without or with straight alpha")
    if values.min() < 0:
        raise UserError(f"{path}: holds values below 0, from {values.min()} on; save it as 8 or 16 bit")
    white = (1 << min(bits, 16)) - 1
    values = values.astype(f"u{values.dtype.itemsize}")
    values = np.moveaxis(values, 0, -1) if samples > 1 and int(page.planarconfig) == 2 else values
    if photometric == "MINISWHITE":
        values = white - np.minimum(values, white)
    if photometric == "PALETTE":
        table = page.colormap if page.colormap.max() <= 255 else page.colormap >> 8  # some programs write one of 8 bit
        values, bits, white = np.moveaxis(table.astype(np.uint8)[:, values], 0, -1), 8, 255
    tag = page.tags.get(274)
    values = _upright(values, tag.value if tag else 1)
    if bits <= 8:
        return Page(Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)))
    return Page(values[..., [0, 0, 0, 1]] if samples == 2 else values, white)


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
    return Volume(scans, lambda k: Page(Image.fromarray(grey(content.bscans[k].data))), patient)


def _e2e(path: Path) -> Volume:
    """Heidelberg's .e2e: every series of one patient. eyepy had to guess its structure; not tried on a real file."""
    from eyepy.io.he import HeE2eReader

    reader = HeE2eReader(path).__enter__()
    try:
        scans = [scan for series in reader.series for _, scan in sorted(series.slices.items())]
        patients = len(reader.patients)
        if not scans or patients > 1:
            raise UserError(f"{path}: holds {len(scans)} B-scans of {patients} patients; export one patient at a time")
    except BaseException:
        reader.file_object.close()
        raise

    def page(k: int) -> Page:
        values = np.asarray(scans[k].get_bscan())
        check_size(path, *values.shape[::-1])
        return Page(Image.fromarray(grey(np.where(values > 1.99, EMPTY, values))))  # empty, as eyepy has it

    return Volume(len(scans), page, close=reader.file_object.close)


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
            values, white = volume.page(0)
            return Page(values if white else values.copy(), white)

    return Volume(len(files), page, patients.pop() if patients else "")


def _dicom(path: Path) -> Volume:
    """DICOM with pixel data, each frame a page."""
    from pydicom import config, dcmread
    from pydicom.pixels import pixel_array

    config.settings.reading_validation_mode = config.IGNORE  # its warnings quote values
    data, size = dcmread(path, stop_before_pixels=True), path.stat().st_size
    sop, colours = str(data.get("SOPClassUID", "")), data.get("PhotometricInterpretation", "")
    if "Rows" not in data or "Columns" not in data or (sop.startswith(NO_SCANS) and sop != TOMOGRAPHY):
        raise UserError(f"{path}: is a DICOM file without a B-scan: a report, a fundus photograph, an en-face image or a segmentation")
    width, height, frames = int(data.Columns), int(data.Rows), int(data.get("NumberOfFrames") or 1)
    check_size(path, width, height)
    bits, compressed = int(data.BitsStored), data.file_meta.TransferSyntaxUID.is_compressed
    if not 0 < frames * (1 if compressed else width * height * int(data.BitsAllocated) // 8) <= size:
        raise UserError(f"{path}: is cut off; it says that it holds {frames} frames of {width} x {height} pixels")
    if int(data.get("HighBit", bits - 1)) != bits - 1 or not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        raise UserError(f"{path}: keeps its values in a way that is not read ({colours}); convert it to 8 or 16 bit, grey or RGB")

    def page(k: int) -> Page:
        try:
            values = pixel_array(path, index=k, correct_unused_bits=bool(data.get("PixelRepresentation")))
        except (RuntimeError, NotImplementedError):
            raise UserError(f"{path}: frame {k + 1} is damaged, or its compression cannot be undone here; save it uncompressed") from None
        if values.dtype.kind not in "iu" or values.min() < 0:
            raise UserError(f"{path}: holds values below 0 or fractions; convert it to 8 or 16 bit")
        white = (1 << bits) - 1
        if colours == "MONOCHROME1":
            values = white - np.minimum(values, white)
        if bits <= 8 and values.max() <= white:
            return Page(Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)))
        return Page(values, white)

    return Volume(frames, page, str(data.get("PatientID") or data.get("PatientName") or "").strip())


READERS = {"tiff": _tiff, "vol": _vol, "e2e": _e2e, "xml": _xml, "dicom": _dicom, "picture": _picture}
