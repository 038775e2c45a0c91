"""The released weights: which there are, in data/weights/released.json, and their files, checked by SHA-256 before they are read.

`python -m srlib release RUN` writes them. The list has an entry for each scale: the two networks' files, their SHA-256, the LR kind they
expect, what they were trained on, and the domain of that (`domain.describe`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from . import features
from .config import UserError

NAMES = ("srresnet", "srgan")
LIST = "released.json"


def listed(folder: Path) -> dict[str, dict]:
    """The entries of a folder's list, by scale ('4'); {} where there is none. Raises UserError for a list that cannot be read."""
    try:
        return json.loads((folder / LIST).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LIST} cannot be read ({type(error).__name__}); get it from the repository again") from None


def find(scale: int = 0, folder: Path | None = None) -> tuple[dict, Path]:
    """(entry, folder) of the released pair of `scale` (0: 4, or the only one there is) in `folder` (None: data/weights). UserError without it."""
    folder = folder or features.WEIGHTS
    entries = listed(folder)
    if not entries:
        raise UserError(
            f"no weights are released in {folder} yet; name those of a run, --weights runs/quick/srgan.pt (./run_all.sh makes it)"
        )
    if not scale and len(entries) > 1 and "4" not in entries:
        raise UserError(f"{folder} holds weights for x{', x'.join(entries)}; choose with --scale")
    key = str(scale) if scale else "4" if "4" in entries else next(iter(entries))
    if key not in entries:
        raise UserError(f"--scale {key}: {folder} holds weights for x{', x'.join(entries)} only; choose one of these, or --weights FILE")
    return entries[key], folder


def pair(folder: Path | None = None, scale: int = 0) -> tuple[dict[str, Path], dict | None]:
    """({'srresnet': file, 'srgan': file}, entry) in a folder that `release` wrote (None: data/weights), checked; of a run's folder entry is None."""
    if folder is None or (folder / LIST).exists():
        entry, folder = find(scale, folder)
        return {name: checked(entry, name, folder) for name in NAMES}, entry
    return {name: folder / f"{name}.pt" for name in NAMES}, None


def checked(entry: dict, name: str, folder: Path) -> Path:
    """The file of 'srresnet' or 'srgan' of an entry. Raises UserError where it is missing or not the released one."""
    path = folder / entry[name]["file"]
    if not path.exists():
        raise UserError(f"{path}: no such file; get it from the repository")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry[name]["sha256"]:
        raise UserError(f"{path} is not the released file (SHA-256 differs); get it from the repository again")
    return path
