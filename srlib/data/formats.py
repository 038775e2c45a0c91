"""Files of every format that is read, each a volume of pages: TIFF and DICOM by the files beside this one, pictures by Pillow, Heidelberg's by eyepy.

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
from xml.etree import ElementTree

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..config import UserError
from .dicom import read_dicom
from .tiff import read_tiff
from .volume import Page, Volume, check_size

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `volume.MAX_PIXELS` is our limit
logging.getLogger("eyepy").setLevel(logging.CRITICAL)

EMPTY = np.finfo(np.float32).max  # what .vol holds where nothing was measured
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientations: Pillow's transpositions


def kind(path: Path) -> str:
    """What a file is by its first bytes: 'tiff', 'vol', 'dicom', 'xml' (an export of Heidelberg's), or 'picture' for Pillow to say."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16 if path.suffix.lower() == ".xml" else 1024)
    except OSError:  # Pillow will say why
        return "picture"
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


READERS = {"tiff": read_tiff, "vol": _vol, "xml": _xml, "dicom": read_dicom, "picture": _picture}
