"""Which format a file has, by its content, and opening it. What stays open is a few files a thread, so that a volume of 500 slices is opened once
and not 500 times."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import UnidentifiedImageError

from ..config import UserError
from .dicom import Dicom
from .heidelberg import E2E, Export, Vol
from .stacks import Picture, Stack
from .tiff import MAGIC, Tiff

UNSUPPORTED = {  # known, but not read: by the first bytes, and by the extension (in a folder)
    "GIF": ([(0, b"GIF8")], (".gif",)),
    "WebP": ([(8, b"WEBP")], (".webp",)),
    "JPEG 2000": ([(4, b"jP  "), (0, b"\xff\x4f\xff\x51")], (".jp2", ".j2k", ".j2c", ".jpf", ".jpx")),
    "HEIF": ([(4, b"ftypheic"), (4, b"ftypmif1"), (4, b"ftypheix")], (".heic", ".heif")),
    "AVIF": ([(4, b"ftypavif")], (".avif",)),
    "NumPy": ([(0, b"\x93NUMPY")], (".npy", ".npz")),
    "HDF5 or MATLAB": ([(0, b"\x89HDF"), (0, b"MATLAB 5.0")], (".mat", ".h5", ".hdf5")),
    "NIfTI": ([(344, b"n+1\0"), (344, b"ni1\0")], (".nii", ".nii.gz")),
    "Analyze or MetaImage": ([(0, b"ObjectType")], (".mha", ".mhd")),
    "Topcon": ([(0, b"FOCT")], (".fda", ".fds")),
    "JPEG XL": ([(0, b"\xff\n"), (4, b"JXL ")], (".jxl",)),
    "NRRD": ([(0, b"NRRD")], (".nrrd",)),
    "TGA": ([], (".tga",)),
    "microscope": ([], (".czi", ".lif")),
    "PDF": ([(0, b"%PDF")], ()),
    "PGM or PPM": ([(0, b"P5"), (0, b"P6")], (".pgm", ".ppm", ".pbm", ".pnm")),
    "Zeiss or Bioptigen": ([], (".img", ".oct")),
    "video": ([(0, b"RIFF")], (".avi", ".mp4", ".mov")),
    "archive": ([(0, b"PK\3\4")], (".zip", ".tar", ".7z")),
}


def kind(path: Path) -> str:
    """What a file is by its first bytes: 'tiff', 'vol', 'e2e', 'dicom', 'xml' (an export of Heidelberg's), or 'picture' for Pillow to say."""
    with open(path, "rb") as file:
        head = file.read(1 << 16 if path.suffix.lower() == ".xml" else 1024)
    if head[128:132] == b"DICM":  # before TIFF: some files can be read as either
        return "dicom"
    if head[:4] in MAGIC:
        return "tiff"
    if head.startswith(b"HSF-OCT") or (head.startswith(b"ep-v") and path.suffix.lower() == ".vol"):
        return "vol"
    if head.startswith((b"CMDb", b"MDbMDir")):
        return "e2e"
    if b"<HEDX" in head.replace(b"\0", b""):  # in UTF-16, too
        return "xml"
    for name, (marks, _) in UNSUPPORTED.items():
        if any(head[at : at + len(mark)] == mark for at, mark in marks):
            raise UserError(f"{path}: is a {name} file, which is not supported; convert it to PNG or TIFF")
    return "picture"


KINDS = {
    "tiff": Tiff,
    "vol": Vol,
    "e2e": E2E,
    "dicom": Dicom,
    "xml": Export,
    "picture": Picture,
}


OF_PYTHON = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, struct.error)  # they say nothing of the file


class _Held(threading.local):
    def __init__(self):
        self.stacks: dict[tuple, Stack] = {}


_held, HELD = _Held(), 3  # an SR volume, its HR and its LR


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Stack]:
    """The stack behind a file; whatever goes wrong within, also while a page is decoded, becomes a UserError that names the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is not a file")
        state, stacks = path.stat(), _held.stacks
        key = (os.getpid(), os.path.abspath(path), state.st_mtime_ns, state.st_size)  # a forked process shares no position in a file
        if key in stacks:
            yield stacks[key]
            return
        stack = KINDS[kind(path)](path)
        if len(stack) == 1:
            with contextlib.closing(stack):
                yield stack
            return
        if len(stacks) == HELD:
            stacks.pop(next(iter(stacks))).close()
        stacks[key] = stack
        yield stack
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        dicom = path.suffix.lower() in (".dcm", ".dicom", ".dic", ".ima")
        wrong = "has no DICOM header; save it anew with one" if dicom else "is not an image, whatever its name says"
        raise UserError(f"{path}: {wrong}") from None
    except Exception as error:
        told = "" if isinstance(error, OF_PYTHON) else str(error)
        reason = (getattr(error, "strerror", None) or told or f"damaged: {type(error).__name__}").splitlines()[0]
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None
