"""Where a result comes from: times, versions, the device."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime

from ..config import Config
from ..files import REPOSITORY

PACKAGES = ("torch", "torchvision", "numpy", "scikit-image", "opencv-python-headless", "matplotlib", "papermill")


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_used(config: Config) -> str:
    import torch

    from ..device import pick_device

    device = pick_device(config.device)
    if device.type == "cuda":
        return f"{config.gpus or torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})" if device.type == "cpu" else f"{device.type} ({platform.machine()})"


def commit() -> str:
    """The commit of the clone that runs, '' elsewhere."""
    if not (REPOSITORY / ".git").exists() or not shutil.which("git"):
        return ""
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()


def made_by() -> dict:
    """What provenance.json says of the machine, the packages and the commit."""
    return {
        "created": timestamp(), "git": commit(), "python": platform.python_version(),
        "versions": {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(),
    }  # fmt: skip
