"""DICOM, by pydicom, which is imported for such a file alone."""

from pathlib import Path

import numpy as np

from ..config import UserError
from .volume import Page, Volume, check_size, page_of_values

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # the class of ophthalmic tomography


def read_dicom(path: Path) -> Volume:
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
        return page_of_values(path, _windowed(path, values, data, k) if grey else values, bits, colours == "MONOCHROME1")

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
