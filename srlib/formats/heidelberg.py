"""Heidelberg's .vol, XML export and .e2e. A B-scan is a page."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..config import UserError
from .instruments import laterality, library, micrometres, who
from .stacks import REFLECTIVITY, Facts, Page, Picture, Stack, check_size, plain_name
from .tiff import MAGIC, Tiff

EMPTY = np.finfo(np.float32).max  # what these files hold where nothing was measured


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
        with library(path, "eyepy"):
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
        self.identity = who(h.patient_id) or (who(str(h.pid)) if h.pid else b"")

    def __len__(self) -> int:
        return len(self.scans)

    def page(self, k: int, reflectivity: str) -> Page:
        h = self.header
        values = np.fromfile(self.path, "<f4", h.size_x * h.size_y, offset=self.scans[k][0]).reshape(h.size_y, h.size_x)
        return Page(Image.fromarray(grey(values, reflectivity)))

    def facts(self, k: int) -> Facts:
        h, scan = self.header, self.scans[k][1]
        return Facts(
            micrometres(h.scale_x, h.scale_y), laterality(h.scan_position), _line(scan.start_x, scan.start_y, scan.end_x, scan.end_y)
        )


class Export(Stack):
    """Heidelberg's XML export: the B-scans that it names, of every series, in its own folder."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.scans, self.fundus = [], set()  # [(file's name, facts)], names in small letters
        names = sorted(path.parent.iterdir())
        self.beside = {f(file.name): file for f in (plain_name, str) for file in names}
        with library(path, "the XML reader"):
            content = path.read_bytes()
            try:
                root = ElementTree.fromstring(content)
            except ElementTree.ParseError:  # names in another encoding than the file says
                root = ElementTree.fromstring(content.decode("utf-8", errors="replace"))
            for series in root.iter("Series"):
                eye = laterality(series.findtext("Laterality", ""))
                for image in series.iter("Image"):
                    url = image.findtext("ImageData/ExamURL", "")
                    name = PureWindowsPath(url).name
                    if name and image.findtext("ImageType/Type") == "OCT":
                        self.scans.append((name, _exported(image, eye)))
                    elif file := self._file(name) if name else None:
                        self.fundus.add(file.name.lower())
            whose = {who(p.findtext("PatientID") or "") or who(p.findtext("ID") or "") for p in root.iter("Patient")}
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
        """The file of a name, in other capitals or with its accents taken apart too, and as it was before it became a part of an address."""
        plain = unquote(name.partition("?")[0])
        return next((self.beside[n] for n in (name, plain, plain_name(name), plain_name(plain)) if n in self.beside), None)

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
        with library(path, "eyepy"):
            from eyepy.io.he import HeE2eReader

            self.reader = HeE2eReader(path).__enter__()
            try:
                self.scans = [
                    (scan, laterality(series.laterality() or ""))
                    for series in self.reader.series
                    for _, scan in sorted(series.slices.items())
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
        with library(self.path, "eyepy"):
            values = np.asarray(self.scans[k][0].get_bscan())
            check_size(self.path, *values.shape[::-1])
            return Page(Image.fromarray(grey(np.where(values > 1.99, EMPTY, values), reflectivity)))  # empty, as eyepy has it

    def facts(self, k: int) -> Facts:
        return Facts(None, self.scans[k][1])

    def close(self) -> None:
        self.reader.__exit__(None, None, None)


def _exported(image: ElementTree.Element, eye: str) -> Facts:
    """The facts of an XML export's image."""
    context = image.find("OphthalmicAcquisitionContext")
    if context is None:
        return Facts(None, eye)
    numbers = [context.findtext(f) for f in ("ScaleX", "ScaleY", "Start/Coord/X", "Start/Coord/Y", "End/Coord/X", "End/Coord/Y")]
    line = _line(*map(float, numbers[2:])) if all(numbers[2:]) else ""
    return Facts(micrometres(*map(float, numbers[:2])) if all(numbers[:2]) else None, eye, line)


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"x {x0:.3f} y {y0:.3f} to x {x1:.3f} y {y1:.3f} mm of the fundus image"
