"""Checkpoints: written whole or not at all, the one before kept as `<name>.prev.pt`, each ending with the SHA-256 of what is before it, so that a torn
or foreign file is recognised. Loading never runs pickled code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch

from ..config import UserError
from ..files import write

MAGIC = b"srlib-sha256:"


def save(path: str | Path, state: dict) -> None:
    """Write `state` (tensors and plain values) to `path`; an older file there becomes `<stem>.prev.pt`.

    Raises UserError where the disk refuses; the older files stay as they were.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write(path, payload + MAGIC + hashlib.sha256(payload).digest(), keep=previous(path))


def previous(path: Path) -> Path:
    return path.with_suffix(".prev.pt")


def load(path: str | Path) -> dict | None:
    """The state in `path`, or in the one before it where `path` is missing, torn or foreign (said on stdout, and the file is renamed
    to `<stem>.damaged.pt`, so that it never takes the place of the sound one); None without either.

    Raises UserError where files are there and none is sound.
    """
    path, damaged = Path(path), []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        payload, mark, digest = candidate.read_bytes().rpartition(MAGIC)
        if mark and hashlib.sha256(payload).digest() == digest:
            if damaged:
                print(f"{damaged[0]} is damaged; continuing from {candidate.name}")
                damaged[0].replace(path.with_suffix(".damaged.pt"))
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        damaged.append(candidate)
    if damaged:
        raise UserError(f"{damaged[0]} is damaged or was not written by srlib; delete it to start this stage again")
    return None
