"""Where things are: in the repository, in the zip that a Kaggle kernel carries, on Kaggle's mounts."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent  # inside a zip: the zip file
KAGGLE = Path(os.environ.get("SRLIB_KAGGLE", "/kaggle"))  # tests set another
KAGGLE_INPUT = KAGGLE / "input"
ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE" in os.environ
# what relative paths start from and where data/ and runs/ are: a zip cannot be written to, and neither can Kaggle's mounts
HOME = KAGGLE / "working" if ON_KAGGLE else REPOSITORY.parent if REPOSITORY.is_file() else REPOSITORY


def read_bytes(path: str | Path) -> bytes:
    """A file of the repository, also where the repository is a zip. Raises OSError where it is not there."""
    return __spec__.loader.get_data(str(path))


def mounts(kind: str, name: str) -> list[Path]:
    """Where Kaggle may have mounted OWNER/SLUG (`kind`: 'datasets' or 'notebooks'), of the old and the new layout; only folders that are there."""
    return [folder for folder in (KAGGLE_INPUT / name.rpartition("/")[2], KAGGLE_INPUT / kind / name) if folder.is_dir()]
