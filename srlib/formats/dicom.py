"""DICOM with pixel data, through pydicom: ophthalmic tomography, a frame a page, with its spacing, eye and position."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import UserError
from .instruments import laterality, library, micrometres, who
from .stacks import Facts, Page, Stack, check_size

FUNDUS = tuple(f"1.2.840.10008.5.1.4.1.1.77.1.5.{k}" for k in (1, 2, 5, 6, 7))  # DICOM's photographs of the fundus, and en-face images


class Dicom(Stack):
    """DICOM with pixel data, each frame a page; ophthalmic tomography with its spacing, eye and position."""

    def __init__(self, path: Path):
        super().__init__(path)
        with library(path, "pydicom"):
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
            if "TransferSyntaxUID" not in d.file_meta:
                raise UserError(f"{path}: does not say how its values are written (transfer syntax); save it anew")
            self.syntax, held = d.file_meta.TransferSyntaxUID, path.stat().st_size
            samples = 2 if d.PhotometricInterpretation == "YBR_FULL_422" else int(d.get("SamplesPerPixel", 1))
            needed = self.frames * self.width * self.height * samples * int(d.BitsAllocated) / 8
            if self.frames < 1 or (needed > held and not self.syntax.is_compressed and not self.syntax.is_deflated):
                raise UserError(f"{path}: is cut off; it says that it holds {self.frames} frames of {self.width} x {self.height} pixels")
            if self.frames > held:
                raise UserError(f"{path}: says that it holds {self.frames} frames, more than it has bytes; it is damaged")
            self.name = who(str(d.get("PatientName", "")))
            self.identity = who(str(d.get("PatientID", ""))) or self.name

    def __len__(self) -> int:
        return self.frames

    def page(self, k: int, reflectivity: str) -> Page:
        d = self.data
        with library(self.path, "pydicom"):
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
        with library(self.path, "pydicom"):
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
            return Facts(micrometres(spacing[1], spacing[0]) if spacing and len(spacing) == 2 else None, laterality(eye), where)

    def _group(self, name: str, k: int):
        groups = self.data.get(name)
        return groups[k] if groups and len(groups) > k else None
