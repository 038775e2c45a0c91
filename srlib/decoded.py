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
from tqdm import tqdm

from .config import UserError


class Decoded:
    """What `read` gives for each of `paths` (a list of uint8 arrays), written once into `folder` and mapped from then on.

    The file's name is made from the paths, their sizes and times of change, and `kind` (what `read` depends on), so that other
    data or settings get another file. The index is written last: without it, a build that was stopped counts for nothing and
    is made again. Each image's checksum is compared when it is first read. Raises UserError where the disk refuses or a
    checksum is wrong. Memory does not grow with the number of images; worker processes share the mapping.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], list[np.ndarray]], folder: str | Path, kind: str = ""):
        stamps = []
        for path in paths:
            file = path if path.exists() else path.with_name(path.name.rpartition("#")[0])  # a slice of a volume
            stamps.append([str(path.absolute()), file.stat().st_size, file.stat().st_mtime_ns])
        key = hashlib.sha256(json.dumps([kind, stamps]).encode(errors="surrogatepass")).hexdigest()[:16]
        self.file = Path(folder) / f"decoded-{key}.bin"
        listing = self.file.with_suffix(".json")
        if not listing.exists():
            self._build(paths, read, listing)
        self.index, self.seen = json.loads(listing.read_text()), set()
        size = self.index[-1][-1][0] + math.prod(self.index[-1][-1][1])
        if not self.file.exists() or self.file.stat().st_size != size:
            raise UserError(f"{self.file} is not what its index says; delete {listing} to have it made again")
        self.data = np.memmap(self.file, np.uint8, "r")

    def __getstate__(self):  # a worker process maps the file itself
        return vars(self) | {"data": None}

    def __setstate__(self, state):
        vars(self).update(state, data=np.memmap(state["file"], np.uint8, "r"))

    def _build(self, paths, read, listing: Path) -> None:
        part, index, position = self.file.with_suffix(f".{os.getpid()}.part"), [], 0
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as out:
                for path in tqdm(paths, desc="decode", unit="file", mininterval=1.0, ncols=100, file=sys.stdout):
                    entry = []
                    for image in read(path):
                        payload = np.ascontiguousarray(image).tobytes()
                        entry.append([position, list(image.shape), zlib.crc32(payload)])
                        position += out.write(payload)
                    index.append(entry)
                out.flush()
                os.fsync(out.fileno())
            part.replace(self.file)
            part.write_text(json.dumps(index))
            part.replace(listing)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written ({error.strerror}); free the disk or set decoded_cache to false") from None
        finally:
            part.unlink(missing_ok=True)

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
