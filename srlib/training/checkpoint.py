"""Checkpoints: written whole or not at all, the one before kept as `<name>.prev.pt`. Loading never runs pickled code."""

import io
from pathlib import Path

import torch

from ..config import UserError
from ..files import write


def save(path: Path, state: dict) -> None:
    """Write `state` (tensors and plain values) to `path`; an older file there becomes `<stem>.prev.pt`.

    Raises UserError where the disk refuses; the older files stay as they were.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue(), keep=previous(path))


def previous(path: Path) -> Path:
    return path.with_suffix(".prev.pt")


def load(path: Path) -> dict | None:
    """The state in `path`, or in the one before it where `path` is missing, torn or foreign (said on stdout, and the file is renamed
    to `<stem>.damaged.pt`, so that it never takes the place of the sound one); None without either.

    Raises UserError where files are there and none is sound.
    """
    damaged = []
    for file in (path, previous(path)):
        if not file.exists():
            continue
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            state["step"]
        except Exception:  # (of many kinds, as the bytes are)
            damaged.append(file)
            continue
        if damaged:
            print(f"{damaged[0]} is damaged; continuing from {file.name}")
            damaged[0].replace(path.with_suffix(".damaged.pt"))
        return state
    if damaged:
        raise UserError(f"{damaged[0]} is damaged or was not written by srlib; delete it to start this stage again")
    return None
