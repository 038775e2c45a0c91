"""A home folder for what needs one: matplotlib, Jupyter and torch keep files there, and some fail on import where there is none."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

FOLDERS = ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def settle() -> None:
    """Where there is no home (no HOME and no entry for the user, as in a container), a temporary folder is it; where it cannot be written,
    matplotlib and Jupyter get temporary folders, and what lies in it can still be read. Both pass on to what this process starts."""
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = _temporary()
        os.environ.setdefault("USER", "nobody")  # torch asks for a name
        return
    missing = [name for name in FOLDERS if name not in os.environ]
    if missing and not _writable(home):
        folder = _temporary()
        os.environ |= {name: os.path.join(folder, name.lower()) for name in missing}


def _writable(folder: Path) -> bool:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> str:
    folder = tempfile.mkdtemp(prefix="srlib-home-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
