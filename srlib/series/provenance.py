"""Where a result comes from: times, versions, the device."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime

from ..config import Config
from ..files import REPOSITORY

PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "opencv-python-headless", "matplotlib", "papermill")


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_used(config: Config) -> str:
    torch = sys.modules.get("torch")  # loaded where something is computed
    if torch and config.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"{config.gpus or torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if torch and config.device in ("auto", "mps") and torch.backends.mps.is_available():
        return f"mps ({platform.machine()})"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def made_by() -> dict:
    """What provenance.json says of the machine, the packages and the commit."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    git = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
        ).stdout.strip()
        if (REPOSITORY / ".git").exists() and shutil.which("git")
        else ""
    )
    return {
        "created": timestamp(), "git": git, "python": platform.python_version(), "versions": versions,
        "system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(),
    }  # fmt: skip
