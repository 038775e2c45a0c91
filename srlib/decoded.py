"""Decoded images in one memory-mapped file, for training sets that do not fit into memory: decoding a JPEG costs more than a crop."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from .config import UserError


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


class Decoded:
    """What `read` gives for each of `paths` (a list of uint8 arrays), written once into `folder` and mapped from then on.

    The file's name is made from `files`, for each path the image files that it is read from, their sizes and times of change,
    and `kind` (what else `read` depends on): other data or settings get another file. The index is written last: without it, a
    build that was stopped counts for nothing and is made again, by one process at a time. Each image's checksum is compared
    when it is first read. Raises UserError for a missing file, a disk that refuses and a wrong checksum. Pixels take no
    memory of the process; workers share the mapping.
    """

    def __init__(
        self, paths: Sequence[Path], files: Sequence[list[Path]], read: Callable[[Path], list[np.ndarray]], folder, kind: str = ""
    ):
        try:
            stamps = [[[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in group] for group in files]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; run notebook 01 again to look at the folder anew") from None
        key = hashlib.sha256(json.dumps([kind, stamps]).encode()).hexdigest()[:16]
        self.file = Path(folder) / f"decoded-{key}.bin"
        listing = self.file.with_suffix(".json")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                if not listing.exists():
                    self._build(paths, read, listing)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written ({error.strerror}); free the disk or set decoded_cache to false") from None
        self.index, self.seen = json.loads(listing.read_text()), set()
        size = self.index[-1][-1][0] + math.prod(self.index[-1][-1][1])
        if not self.file.exists() or self.file.stat().st_size != size:
            raise UserError(f"{self.file} is not what its index says; delete {listing} to have it made again")
        self.data = np.memmap(self.file, np.uint8, "r")

    def _build(self, paths, read, listing: Path) -> None:
        part, index, position = self.file.with_suffix(".part"), [], 0
        try:
            with open(part, "wb") as out:
                for path in tqdm(paths, desc="decode", unit="file", mininterval=1.0, ncols=100, file=sys.stdout):
                    entry = []
                    for image in read(path):
                        payload = np.ascontiguousarray(image).tobytes()
                        entry.append([position, list(image.shape), zlib.crc32(payload)])
                        position += out.write(payload)
                    index.append(entry)
                _sync(out)
            part.replace(self.file)
            with open(part, "w") as out:
                json.dump(index, out)
                _sync(out)
            part.replace(listing)
        finally:
            part.unlink(missing_ok=True)

    def __getstate__(self):  # a worker process maps the file itself
        return vars(self) | {"data": None}

    def __setstate__(self, state):
        vars(self).update(state, data=np.memmap(state["file"], np.uint8, "r"))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, k: int) -> list[np.ndarray]:
        images = [self.data[start : start + math.prod(shape)].reshape(shape) for start, shape, _ in self.index[k]]
        if k not in self.seen:
            for image, (_, _, checksum) in zip(images, self.index[k], strict=True):
                if zlib.crc32(image) != checksum:
                    raise UserError(
                        f"{self.file} is damaged (image {k}); delete it and {self.file.with_suffix('.json').name} to have it made again"
                    )
            self.seen.add(k)
        return images
