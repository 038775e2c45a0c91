"""Files: where things are (the repository, the zip that a Kaggle kernel carries, Kaggle's mounts), written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import pandas as pd

from .config import UserError

REPOSITORY = Path(__file__).resolve().parent.parent  # inside a zip: the zip file
KAGGLE = Path(os.environ.get("SRLIB_KAGGLE", "/kaggle"))  # tests set another
KAGGLE_INPUT = KAGGLE / "input"
ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE" in os.environ
INSTALLED = REPOSITORY.is_dir() and not (REPOSITORY / "environment.yml").exists()  # by pip, which puts both folders into srlib
WEIGHTS, NOTEBOOK_FOLDER = (
    REPOSITORY / name for name in (("srlib/weights", "srlib/notebooks") if INSTALLED else ("data/weights", "notebooks"))
)
# what relative paths start from and where data/ and runs/ are: a zip cannot be written to, and neither can Kaggle's mounts
HOME = KAGGLE / "working" if ON_KAGGLE else REPOSITORY.parent if REPOSITORY.is_file() else Path.cwd() if INSTALLED else REPOSITORY


def read_bytes(path: str | Path) -> bytes:
    """A file of the repository, also where the repository is a zip. Raises OSError where it is not there."""
    return __spec__.loader.get_data(str(path))


def mounts(kind: str, name: str) -> list[Path]:
    """Where Kaggle may have mounted OWNER/SLUG (`kind`: 'datasets' or 'notebooks'), of the old and the new layout; only folders that are there."""
    return [folder for folder in (KAGGLE_INPUT / name.rpartition("/")[2], KAGGLE_INPUT / kind / name) if folder.is_dir()]


def write(path: str | Path, content: bytes | str, keep: Path | None = None) -> None:
    """`content` (text as UTF-8) into `path`, whole or not at all, with the folders above; an older file there is renamed to `keep` where that is
    given. Raises UserError where the disk refuses."""
    path = Path(path)
    part = path.with_name(f"{path.name[:40]}.{uuid.uuid4().hex}.part")  # its own: the same command may run twice at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free the disk, or choose another folder (--run-dir)") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


NAMES = frozenset(  # columns of a run's tables that hold names
    (
        "path",
        "sha256",
        "label",
        "patient",
        "split",
        "image",
        "method",
        "region",
        "measure",
        "network",
        "trained",
        "tested",
        "reason",
        "laterality",
        "position",
        "group",
    )
)


def read_table(path: str | Path) -> pd.DataFrame:
    """A table that this project wrote (CSV, UTF-8): names stay text whatever they look like (a patient 'NA', a class 'None' or '0'), the other columns
    are numbers. Raises OSError where it is not there."""
    columns = pd.read_csv(path, nrows=0, encoding="utf-8").columns
    numbers = {name: ["", "nan"] for name in columns if name not in NAMES}
    return pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=numbers, encoding="utf-8")


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
