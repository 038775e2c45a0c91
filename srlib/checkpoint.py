"""Atomic checkpoints with a checksum, and the small files that carry a finished generator.

Every file is written under a temporary name, synced and renamed; of a checkpoint the one before is kept as `<name>.prev.pt`. It
ends with the SHA-256 of what is before it, so that a torn or foreign file is recognised. Loading never runs pickled code.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch

from .config import UserError

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


def write(path: Path, content: bytes, keep: Path | None = None) -> None:
    """`content` into `path`, whole or not at all; an older file there is renamed to `keep` where that is given. Raises UserError."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk or choose another run_dir") from None


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


def save_weights(path: str | Path, model: torch.nn.Module, **facts) -> None:
    """Write a network's weights with its `settings`, so that the file alone rebuilds it. Plain `torch.load` reads it."""
    buffer = io.BytesIO()
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    torch.save(dict(settings=model.settings, weights=state, **facts), buffer)
    write(Path(path), buffer.getvalue())


def load_weights(path: str | Path) -> dict:
    """What `save_weights` wrote: a dict with `settings` and `weights`. Raises UserError for a file that is missing or not one."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; train first (./run_all.sh), or name the weights of a run")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {"settings": dict(stored["settings"]), "weights": dict(stored["weights"])}
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: holds no weights of this project ({reason})") from None
