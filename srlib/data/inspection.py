"""What each image file holds: its size, its hash, and why it cannot be used. Of large folders it is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..config import UserError
from ..files import write
from ..formats.kinds import kind
from .reading import EXTENSIONS, few_values, files_behind, is_upscaled, read_scan, slices
from .sources import data_home

MIN_SIDE = 32
REMEMBER_FROM = 1000  # files
ENDING_OF = {"dicom": ".dcm", "vol": ".vol", "e2e": ".e2e", "xml": ".xml"}


def inspect_files(root: Path, relatives: list[str], reading: dict | None = None) -> Iterator[list[list]]:
    """For each file, in order: a list of [path, sha256, height, width, reason, doubt, facts, pixels], one for each slice; `reason` is '' for a usable
    one, `doubt` `few_values`, facts as `manifest.FACTS`, `pixels` a hash of what is shown, whatever the file's format.

    Files are decoded whole, in threads, one at a time each, so memory does not grow with their number. For folders of
    REMEMBER_FROM files and more, what was found is kept in data/cache/ by path, size and time of change, and asked first; a run that
    is stopped keeps what it had.
    """
    many = len(relatives) >= REMEMBER_FROM
    which = b"pixels" + os.fsencode(root.resolve()) + repr(sorted((reading or {}).items())).encode()
    memory = data_home() / "cache" / f"files-{hashlib.sha256(which).hexdigest()[:12]}.json"
    known, fresh = {}, 0
    with contextlib.suppress(OSError, ValueError):  # none yet, or torn
        known = json.loads(memory.read_text(encoding="utf-8")) if many else {}

    def inspect(relative: str):
        try:
            stamp = [n for file in files_behind(root / relative) for s in [file.stat()] for n in (s.st_size, s.st_mtime_ns)]
        except OSError as error:
            return None, [_unusable(relative, f"cannot be opened ({error.strerror})")]
        found = known.get(relative)
        usable = found and found[0] == stamp and not any(row[4] for row in found[1])  # what failed once may not fail again
        return (stamp, found[1]) if usable else (stamp, _inspect(root, relative, reading or {}))

    def keep():
        with contextlib.suppress(UserError):  # a read-only place: then the next run looks again
            write(memory, json.dumps(known))

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        found = tqdm(
            pool.map(inspect, relatives), total=len(relatives), desc="files", unit="file", disable=not many, ncols=100, file=sys.stdout
        )
        for relative, (stamp, facts) in zip(relatives, found, strict=True):
            if stamp and known.get(relative) != [stamp, facts]:
                known[relative] = [stamp, facts]
                fresh += 1
            yield facts
    finally:
        pool.shutdown(cancel_futures=True)
        if many and fresh:
            keep()


def shown(name: str) -> str:
    """A name that can stand in a table: bytes that are no UTF-8, and carriage returns, which would end its line, as escapes."""
    return name.encode(errors="backslashreplace").decode().replace("\r", r"\r")


def _unusable(path: str, reason: str) -> list:
    return [path, "", 0, 0, reason, "", [None, None, "", ""], ""]


def _inspect(root: Path, relative: str, reading: dict) -> list[list]:
    path, rows = root / relative, []
    if shown(relative) != relative:
        return [_unusable(shown(relative), "its name is not valid Unicode or holds a carriage return; rename it")]
    if is_upscaled(path):
        return [_unusable(relative, "is an SR image that upscale wrote")]
    try:
        names = slices(path)
        if path.suffix.lower() in EXTENSIONS and kind(path) not in ("picture", "tiff"):  # whom it is about was not looked for
            return [_unusable(relative, f"is no picture, whatever its name says; call it {path.stem}{ENDING_OF[kind(path)]}")]
    except (UserError, MemoryError) as error:
        return [_unusable(relative, _why(error, path))]
    for name in names:
        at = Path(relative).with_name(name.name).as_posix()
        try:
            scan = read_scan(name, **reading | {"channels": 1})
            content = path.read_bytes() if [name] == names and path.suffix.lower() in EXTENSIONS else scan.image.tobytes()
        except (UserError, OSError, MemoryError) as error:
            rows.append(_unusable(at, _why(error, path)))
            continue
        (height, width), facts = scan.image.shape, scan.facts
        reason = f"{width} x {height} pixels is too small" if min(height, width) < MIN_SIDE else ""
        if scan.image.min() == scan.image.max():
            reason = reason or "every pixel has the same value"
        pixels = hashlib.sha256(repr(scan.image.shape).encode() + scan.image.tobytes()).hexdigest()
        size = [round(s, 4) for s in facts.pixel_um or ()] or [None, None]
        rows.append(
            [
                at,
                hashlib.sha256(content).hexdigest(),
                height,
                width,
                reason,
                few_values(scan),
                [*size, facts.laterality, facts.position],
                pixels,
            ]
        )
    return rows


def _why(error: Exception, path: Path) -> str:
    return "memory ran out while it was read" if isinstance(error, MemoryError) else str(error).removeprefix(f"{path}: ")
