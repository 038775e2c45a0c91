"""Files: where things are (the repository, an installed package, Kaggle's mounts), written whole or not at all, and their hashes."""

import contextlib
import errno
import hashlib
import io
import json
import os
import uuid
from pathlib import Path

import pandas as pd
from PIL import Image

from .config import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
KAGGLE = Path(os.environ.get("SRLIB_KAGGLE", "/kaggle"))  # tests set another
KAGGLE_INPUT = KAGGLE / "input"
ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE" in os.environ
INSTALLED = not (REPOSITORY / "environment.yml").exists()  # by pip or as Kaggle's data set, which have both folders in srlib
WEIGHTS = REPOSITORY / ("srlib/weights" if INSTALLED else "data/weights")
NOTEBOOK_FOLDER = REPOSITORY / ("srlib/notebooks" if INSTALLED else "notebooks")
# what relative paths start from and where data/ and runs/ are: Kaggle's mounts cannot be written to
HOME = KAGGLE / "working" if ON_KAGGLE else Path.cwd() if INSTALLED else REPOSITORY


@contextlib.contextmanager
def writing(path: str | Path):
    """What the disk refuses while `path` is written becomes a UserError that names it: the error of a full disk does not."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free the disk, or choose another folder" if full else "choose another place"
        raise UserError(f"{path} cannot be written ({error.strerror or error}); {advice}") from None


def write(path: str | Path, content: bytes | str, keep: Path | None = None) -> None:
    """`content` (text as UTF-8) into `path`, whole or not at all, with the folders above; an older file there is renamed to `keep` where that is
    given. Raises UserError where the disk refuses."""
    path = Path(path)
    part = path.with_name(f"{path.name[:40]}.{uuid.uuid4().hex}.part")  # its own: the same command may run twice at once
    with writing(path), contextlib.ExitStack() as last:
        path.parent.mkdir(parents=True, exist_ok=True)
        last.callback(part.unlink, missing_ok=True)
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        part.replace(path)


def write_image(path: str | Path, image: Image.Image, **options) -> None:
    """`write` of an image, in the format that the name ends in; `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[Path(path).suffix.lower()], **options)
    write(path, buffer.getvalue())


def read_text(path: str | Path) -> str:
    """A text file in UTF-8. Raises UserError where it is something else, OSError where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; save it as such") from None


def read_json(path: str | Path) -> dict:
    """A JSON object that this project wrote. Raises UserError where it is damaged, OSError where it is not there."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, why) -> UserError:
    return UserError(f"{path} is damaged ({why}); restore it from a copy, or choose another run folder (--run-dir)")


NAMES = {  # columns of a run's tables that hold names
    "path", "sha256", "label", "patient", "split", "image", "method", "region", "measure", "network", "trained", "tested", "reason", "group",
}  # fmt: skip


def read_table(path: str | Path) -> pd.DataFrame:
    """A table that this project wrote (CSV, UTF-8): names stay text whatever they look like (a patient 'NA', a class 'None' or '0'), the other columns
    are numbers. Raises UserError where it is damaged, OSError where it is not there."""
    text = read_text(path)
    numbers = {name: ["", "nan"] for name in text.partition("\n")[0].split(",") if name not in NAMES}
    try:
        return pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=numbers)
    except ValueError as error:  # pandas' are among them
        raise damaged(path, " ".join(str(error).split())) from None


def released(path: Path, sha256: str) -> Path:
    """The path of a file that the project released. Raises UserError where it is missing or another one."""
    if not path.exists():
        raise UserError(f"{path}: no such file; get it from the repository")
    if file_hash(path) != sha256:
        raise UserError(f"{path} is not the released file (SHA-256 differs); get it from the repository again")
    return path


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
