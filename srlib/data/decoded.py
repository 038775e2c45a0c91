"""Decoded images in mapped files, for training sets that do not fit into memory: decoding a JPEG costs more than a crop."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..config import UserError


def decoded(folder: Path, kind: str, files: list[Path], count: int, read: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """What `read` gives, `count` arrays made from `files`, mapped from `folder`; they are written there when they are first asked for.

    The names there come from the files' paths, sizes and times of change and from `kind`, what else `read` depends on: a changed
    image is read anew. A file appears whole or not at all, so several processes may read and write; one that is torn all the same (the
    power went) is made again. Raises UserError for an image that is gone and a disk that refuses.
    """
    try:
        stamps = [(str(f.absolute()), s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()]]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; run notebook 01 again to look at the folder anew") from None
    key = hashlib.sha256(repr((kind, stamps)).encode(errors="surrogateescape")).hexdigest()[:24]
    names = [folder / f"{key}-{k}.npy" for k in range(count)]
    try:
        return [np.load(name, mmap_mode="r") for name in names]
    except (OSError, ValueError, EOFError):  # not there yet, or torn
        images = read()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, images, strict=True):
            part = name.with_suffix(f".{uuid.uuid4().hex}.part")
            try:
                with open(part, "wb") as out:
                    np.save(out, image)
                    out.flush()
                    os.fsync(out.fileno())
                with contextlib.suppress(PermissionError):  # Windows: another process wrote it at the same time, and has it mapped
                    part.replace(name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk or set decoded_cache to false") from None
    return images
