"""What the files of OCT instruments share: the libraries that read them, and how they name a patient, an eye, the size of a pixel.

The libraries are an extra: `pip install ".[formats]"`. Whom a file is about goes into `Stack.identity` and nowhere else; so errors of the libraries,
which may quote a file's fields, are named by their kind alone.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..config import UserError

NOBODY = re.compile(  # what stands for a name that was taken out, without punctuation
    r"(unknown|anon(ym[^\W\d]*)?|none?|null|nan|n ?a|nil|not (available|known|given)|removed|deleted|redacted|no|hidden|empty|blank|dummy|test|x[x ]*|0[0 ]*)?"
    r"( ?(name|id|patient|subject|person))*"
)
EYES = {"R": "OD", "L": "OS"}


@contextlib.contextmanager
def library(path: Path, name: str) -> Iterator[None]:
    """Use of a library of the extra: one that is missing is named, and so is a file that it does not understand."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            yield
    except UserError:
        raise
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("eyepy", "construct", "pydicom"):
            raise
        raise UserError(f'{path}: reading it needs {name}; pip install ".[formats]" (environment.yml has it)') from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{path}: {name} cannot read it ({type(error).__name__}); it is damaged or of a kind that is not supported"
        ) from None


def who(text: str) -> bytes:
    """What a file calls its patient, without what differs from one program to the next; b'' where it names nobody."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return (
        b""
        if NOBODY.fullmatch(" ".join(re.sub(r"[\W_]+", " ", text).split()))
        else " ".join(re.sub(r"[\0^\s]+", " ", text).split()).encode()
    )


def micrometres(x: float, y: float) -> tuple[float, float] | None:
    """Millimetres to micrometres; None for what no scan has."""
    size = 1000 * float(x), 1000 * float(y)
    return size if all(0.01 < s < 1000 for s in size) else None


def laterality(text: str) -> str:
    text = str(text).strip("\0 ").upper()
    return text if text in ("OD", "OS") else EYES.get(text, "")
