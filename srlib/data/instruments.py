"""Files that OCT instruments write: Heidelberg's .vol, XML export and .e2e, and DICOM. A B-scan is a page.

The libraries are an extra: `pip install ".[formats]"`. Whom a file is about goes into `identity` and nowhere else; so errors of the libraries, which
may quote a file's fields, are named by their kind alone.
"""

from __future__ import annotations

import contextlib
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..config import UserError
from .stacks import REFLECTIVITY, Facts, Page, Picture, Stack, check_size
from .tiff import MAGIC, Tiff

EMPTY = np.finfo(np.float32).max  # what Heidelberg's files hold where nothing was measured
FUNDUS = tuple(f"1.2.840.10008.5.1.4.1.1.77.1.5.{k}" for k in (1, 2, 5, 6, 7))  # DICOM's photographs of the fundus, and en-face images
NOBODY = re.compile(  # what stands for a name that was taken out, without punctuation
    r"(unknown|anon(ym\w*)?|none?|null|nan|n ?a|nil|not (available|known|given)|removed|deleted|redacted|no|hidden|empty|blank|dummy|test|x[x ]*|0[0 ]*)?"
    r"( ?(name|id|patient|subject|person))*"
)
EYES = {"R": "OD", "L": "OS"}


@contextlib.contextmanager
def _library(path: Path, name: str) -> Iterator[None]:
    """Use of a library of the extra: one that is missing is named, and so is a file that it does not understand."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            yield
    except UserError:
        raise
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("eyepy", "construct", "pydicom"):
            raise
        raise UserError(f'{path}: reading it needs {name}; pip install ".[formats]" (environment.yml has it)') from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path}: {name} cannot read it ({type(error).__name__}); it is damaged or of a kind that is not supported"
        ) from None


def grey(reflectivity: np.ndarray, how: str = REFLECTIVITY[0]) -> np.ndarray:
    """Raw reflectivity, float (H, W), 0 to 1, as uint8: 'log', (ln(R + 2.44e-4) + 8.3) / 8.285 (eyepy's, close to the instrument's viewer), or
    'fourth-root', R ** 0.25. Values that are no number, below 0 or EMPTY, where nothing was measured, become 0."""
    valid = np.isfinite(reflectivity) & (reflectivity >= 0) & (reflectivity < EMPTY)
    r = np.clip(np.where(valid, reflectivity, 0), 0, 1).astype(np.float64)
    shown = (np.log(r + 2.44e-4) + 8.3) / 8.285 if how == "log" else r**0.25
    return np.where(valid, np.round(np.clip(shown, 0, 1) * 255), 0).astype(np.uint8)


class Vol(Stack):
    """Heidelberg's .vol, by eyepy's description of it. B-scans are read one by one."""

    def __init__(self, path: Path):
        super().__init__(path)
        with _library(path, "eyepy"):
            import construct
            from eyepy.io.he import vol_reader

            fields = vol_reader.vol_format.subcons  # then the fundus image and the B-scans, whose own fields end before three of any length
            scan = construct.Struct(*vol_reader.bscan_format.subcons[:-3])
            self.scans, held = [], path.stat().st_size  # (where its values lie, its fields)
            with open(path, "rb") as file:
                self.header = h = construct.Struct(*fields[:-2]).parse(file.read(2048))
                check_size(path, h.size_x, h.size_y)
                at = 2048 + h.size_x_slo * h.size_y_slo
                for _ in range(h.n_bscans):
                    file.seek(at)
                    fields = scan.parse(file.read(256).ljust(256, b"\0"))
                    self.scans.append((at + fields.bscan_hdr_size, fields))
                    at += fields.bscan_hdr_size + 4 * h.size_x * h.size_y
                    if fields.bscan_hdr_size < 256 or at > held:
                        raise UserError(f"{path}: is cut off or damaged at B-scan {len(self.scans)} of {h.n_bscans}")
        if not self.scans:
            raise UserError(f"{path}: holds no B-scan")
        self.identity = _who(h.patient_id) or (_who(str(h.pid)) if h.pid else b"")

    def __len__(self) -> int:
        return len(self.scans)

    def page(self, k: int, reflectivity: str) -> Page:
        h = self.header
        values = np.fromfile(self.path, "<f4", h.size_x * h.size_y, offset=self.scans[k][0]).reshape(h.size_y, h.size_x)
        return Page(Image.fromarray(grey(values, reflectivity)))

    def facts(self, k: int) -> Facts:
        h, scan = self.header, self.scans[k][1]
        return Facts(_um(h.scale_x, h.scale_y), _eye(h.scan_position), _line(scan.start_x, scan.start_y, scan.end_x, scan.end_y))


class Export(Stack):
    """Heidelberg's XML export: the B-scans that it names, of every series, in its own folder."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.scans, self.fundus = [], set()  # [(file's name, facts)], names in small letters
        names = sorted(path.parent.iterdir())
        self.beside = {f.name.lower(): f for f in names} | {f.name: f for f in names}
        with _library(path, "the XML reader"):
            content = path.read_bytes()
            try:
                root = ElementTree.fromstring(content)
            except ElementTree.ParseError:  # names in another encoding than the file says
                root = ElementTree.fromstring(content.decode("utf-8", errors="replace"))
            for series in root.iter("Series"):
                eye = _eye(series.findtext("Laterality", ""))
                for image in series.iter("Image"):
                    url = image.findtext("ImageData/ExamURL", "")
                    name = PureWindowsPath(url).name
                    if name and image.findtext("ImageType/Type") == "OCT":
                        self.scans.append((name, _exported(image, eye)))
                    elif file := self._file(name) if name else None:
                        self.fundus.add(file.name.lower())
            whose = {_who(p.findtext("PatientID") or "") or _who(p.findtext("ID") or "") for p in root.iter("Patient")}
            if len(whose) > 1:
                raise UserError(f"{path}: holds {len(whose)} patients; export one at a time")
            self.identity = next(iter(whose), b"")
        if not self.scans:
            raise UserError(f"{path}: names no B-scan; export the scans as images beside it")

    def __len__(self) -> int:
        return len(self.scans)

    def files(self) -> set[Path]:
        """The images of the B-scans that are there."""
        return {file for file in map(self._file, {name for name, _ in self.scans}) if file}

    def _file(self, name: str) -> Path | None:
        """The file of a name, in other capitals too, and as it was before it became a part of an address."""
        plain = unquote(name.partition("?")[0])
        return next((self.beside[n] for n in (name, plain, name.lower(), plain.lower()) if n in self.beside), None)

    def page(self, k: int, reflectivity: str) -> Page:
        name = self.scans[k][0]
        path = self._file(name)
        if not path or not path.is_file():
            raise UserError(f"{self.path}: the image of B-scan {k + 1} is not beside it; export it again, and rename none of its images")
        with open(path, "rb") as file:
            kind = Tiff if file.read(4) in MAGIC else Picture
        try:
            with contextlib.closing(kind(path)) as stack:
                if len(stack) > 1:
                    raise UserError(f"{path}: holds {len(stack)} images, but is one B-scan of {self.path.name}; export it again")
                values, white = stack.page(0, reflectivity)
                return Page(values if white else values.copy(), white)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"{path}: cannot be read as an image ({type(error).__name__})") from None

    def facts(self, k: int) -> Facts:
        return self.scans[k][1]


class E2E(Stack):
    """Heidelberg's .e2e, through eyepy, which had to guess its structure: every series. Not tried on a real file. It does not say how wide a pixel is."""

    def __init__(self, path: Path):
        super().__init__(path)
        logging.getLogger("eyepy").setLevel(logging.CRITICAL)
        with _library(path, "eyepy"):
            from eyepy.io.he import HeE2eReader

            self.reader = HeE2eReader(path).__enter__()
            try:
                self.scans = [
                    (scan, _eye(series.laterality() or "")) for series in self.reader.series for _, scan in sorted(series.slices.items())
                ]
                patients = [patient.id for patient in self.reader.patients]
            except BaseException:
                self.close()
                raise
        if not self.scans or len(patients) > 1:
            self.close()
            raise UserError(f"{path}: holds " + (f"{len(patients)} patients; export one at a time" if self.scans else "no B-scan"))
        self.identity = b""  # its number counts the patients of one machine's files

    def __len__(self) -> int:
        return len(self.scans)

    def page(self, k: int, reflectivity: str) -> Page:
        with _library(self.path, "eyepy"):
            values = np.asarray(self.scans[k][0].get_bscan())
            check_size(self.path, *values.shape[::-1])
            return Page(Image.fromarray(grey(np.where(values > 1.99, EMPTY, values), reflectivity)))  # empty, as eyepy has it

    def facts(self, k: int) -> Facts:
        return Facts(None, self.scans[k][1])

    def close(self) -> None:
        self.reader.__exit__(None, None, None)


class Dicom(Stack):
    """DICOM with pixel data, each frame a page; ophthalmic tomography with its spacing, eye and position."""

    def __init__(self, path: Path):
        super().__init__(path)
        with _library(path, "pydicom"):
            from pydicom import dcmread

            self.data = d = dcmread(path, stop_before_pixels=True)
            if "Rows" not in d or "Columns" not in d:
                raise UserError(f"{path}: is a DICOM file without an image")
            if str(d.get("SOPClassUID", "")) in FUNDUS:
                raise UserError(f"{path}: is a fundus photograph or an en-face image, no B-scan")
            self.width, self.height, self.frames = int(d.Columns), int(d.Rows), int(d.get("NumberOfFrames") or 1)
            check_size(path, self.width, self.height)
            if int(d.get("HighBit", d.BitsStored - 1)) != d.BitsStored - 1:
                raise UserError(f"{path}: keeps its values in other bits than the lowest; convert it to 8 or 16 bit")
            self.syntax, held = d.file_meta.TransferSyntaxUID, path.stat().st_size
            samples = 2 if d.PhotometricInterpretation == "YBR_FULL_422" else int(d.get("SamplesPerPixel", 1))
            needed = self.frames * self.width * self.height * samples * int(d.BitsAllocated) / 8
            if self.frames < 1 or (needed > held and not self.syntax.is_compressed and not self.syntax.is_deflated):
                raise UserError(f"{path}: is cut off; it says that it holds {self.frames} frames of {self.width} x {self.height} pixels")
            if self.frames > held:
                raise UserError(f"{path}: says that it holds {self.frames} frames, more than it has bytes; it is damaged")
            self.name = _who(str(d.get("PatientName", "")))
            self.identity = _who(str(d.get("PatientID", ""))) or self.name

    def __len__(self) -> int:
        return self.frames

    def page(self, k: int, reflectivity: str) -> Page:
        d = self.data
        with _library(self.path, "pydicom"):
            from pydicom import dcmread
            from pydicom.pixels import apply_color_lut, get_decoder, pixel_array

            try:
                source = dcmread(self.path) if self.syntax.is_deflated else self.path
                values = pixel_array(source, index=k, correct_unused_bits=bool(d.get("PixelRepresentation")))
            except (RuntimeError, NotImplementedError):
                if not self.syntax.is_compressed:
                    raise
                with contextlib.suppress(NotImplementedError):
                    if get_decoder(self.syntax).is_available:
                        raise UserError(f"{self.path}: is cut off or damaged at frame {k + 1}") from None
                raise UserError(
                    f"{self.path}: its compression, {self.syntax.name}, cannot be undone here; save it without compression"
                ) from None
            if d.PhotometricInterpretation == "PALETTE COLOR":
                values = apply_color_lut(values, d)
                bits = 8 * values.dtype.itemsize
            else:
                bits = int(d.BitsStored)
        if values.dtype.kind not in "iu" or values.min() < 0:
            raise UserError(f"{self.path}: holds values below 0 or fractions; convert it to 8 or 16 bit")
        white = (1 << bits) - 1
        if d.PhotometricInterpretation == "MONOCHROME1":
            values = white - np.minimum(values, white)
        if values.ndim == 3 and values.shape[2] != 3:
            raise UserError(f"{self.path}: holds {values.shape[2]} values a pixel; save it as grey or RGB")
        if bits <= 8 and values.max() <= white:
            return Page(Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)))
        return Page(values, white)

    def facts(self, k: int) -> Facts:
        with _library(self.path, "pydicom"):
            shared, own = (
                self._group(name, at) for name, at in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", k))
            )

            def first(sequence: str, field: str):
                for group in (own, shared):
                    if group is not None and group.get(sequence):
                        return group[sequence][0].get(field)
                return self.data.get(field)

            spacing, eye = first("PixelMeasuresSequence", "PixelSpacing"), first("FrameAnatomySequence", "FrameLaterality")
            eye = eye or self.data.get("ImageLaterality") or self.data.get("Laterality") or ""
            line = first("OphthalmicFrameLocationSequence", "ReferenceCoordinates")
            where = ""
            if line and len(line) == 4:
                where = "row {:g} column {:g} to row {:g} column {:g} of the fundus image".format(*map(float, line))
            return Facts(_um(spacing[1], spacing[0]) if spacing and len(spacing) == 2 else None, _eye(eye), where)

    def _group(self, name: str, k: int):
        groups = self.data.get(name)
        return groups[k] if groups and len(groups) > k else None


def _who(text: str) -> bytes:
    """What a file calls its patient, without what differs from one program to the next; b'' where it names nobody."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return (
        b""
        if NOBODY.fullmatch(" ".join(re.sub(r"[\W_]+", " ", text).split()))
        else " ".join(re.sub(r"[\0^\s]+", " ", text).split()).encode()
    )


def _exported(image: ElementTree.Element, eye: str) -> Facts:
    """The facts of an XML export's image."""
    context = image.find("OphthalmicAcquisitionContext")
    if context is None:
        return Facts(None, eye)
    numbers = [context.findtext(f) for f in ("ScaleX", "ScaleY", "Start/Coord/X", "Start/Coord/Y", "End/Coord/X", "End/Coord/Y")]
    line = _line(*map(float, numbers[2:])) if all(numbers[2:]) else ""
    return Facts(_um(*map(float, numbers[:2])) if all(numbers[:2]) else None, eye, line)


def _um(x: float, y: float) -> tuple[float, float] | None:
    """Millimetres to micrometres; None for what no scan has."""
    size = 1000 * float(x), 1000 * float(y)
    return size if all(0.01 < s < 1000 for s in size) else None


def _eye(text: str) -> str:
    text = str(text).strip("\0 ").upper()
    return text if text in ("OD", "OS") else EYES.get(text, "")


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"x {x0:.3f} y {y0:.3f} to x {x1:.3f} y {y1:.3f} mm of the fundus image"
