"""The series and the short notebook for Google Colab: each installs srlib from the repository where it is missing, and carries a badge that opens it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..config import UserError, load_config
from ..files import NOTEBOOK_FOLDER, write
from ..series.run_folder import NOTEBOOKS
from . import kernels, short
from .dataset import slug

ADDRESS = ""  # of the published repository, https://github.com/OWNER/NAME: until then there are no notebooks for Colab and no badges
OUT = "notebooks/colab"  # in the repository, where Colab reads them
INSTALL = """# The code of this series, where it is missing: from the repository (a minute or two).
import importlib.util

if importlib.util.find_spec("srlib") is None:
    %pip install -q "srgan-oct @ git+{address}"
"""
INTRO = """# {title}

{badge}

![A synthetic scan, and a square of it at four times its size: LR, bicubic, SRResNet, SRGAN and HR](attachment:result.jpg)

*A phantom (synthetic scan), not a result on OCT. The table below is of real scans.*

{results}

**What this is.** The six notebooks of the series in one, from the first scan to the judged network. *Runtime, Run all* repeats it; a GPU is used where the runtime has one. Its code and more are in [the repository]({address})."""


def build(address: str = ADDRESS, out: Path | None = None) -> list[Path]:
    """Write both notebooks into `out` (default: notebooks/colab); returns them. `address`: the published repository's, on GitHub, as Colab opens
    only from there. Raises UserError where it is not set or another one."""
    address = address.strip().rstrip("/").removesuffix(".git")
    named = re.fullmatch(r"https://github\.com/([A-Za-z0-9-]+)/([\w.-]*\w)", address)
    if not named or named.groups() == ("OWNER", "NAME"):
        what = f"{address!r} is no address on GitHub" if address else "the repository's address is not set"
        raise UserError(f"{what}; set ADDRESS in srlib/kaggle/colab.py to https://github.com/OWNER/NAME when it is published")
    folder, written = Path(out or NOTEBOOK_FOLDER / "colab"), []
    for title, cells in ((kernels.TITLE, _series), (short.TITLE, _short)):
        file = folder / f"{slug(title)}.ipynb"
        notebook = new_notebook(cells=cells(address, badge(address, file.name)), metadata=kernels.LANGUAGE)
        write(file, nbformat.writes(notebook) + "\n")
        written.append(file)
    return written


def badge(address: str, name: str) -> str:
    """The Markdown that opens a notebook of the repository in Colab."""
    link = f"https://colab.research.google.com/github/{address.removeprefix('https://github.com/')}/blob/main/{OUT}/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def _series(address: str, own: str) -> list:
    text = INTRO.format(title=kernels.TITLE, badge=own, results=kernels.results(), address=address)
    parameters = 'profile = "quick"  # smoke: minutes\nrun_dir = ""\ndata = ""  # a folder of scans, as of your Drive; "" are phantoms\noverrides = {}'
    cells = [cell for number in NOTEBOOKS for cell in kernels.cells_of(number)]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = kernels.one_cell(kernels.without_links(cell.source))
    return [
        new_markdown_cell(text, attachments=kernels.result_picture(), id="intro"),
        new_code_cell(INSTALL.format(address=address), id="srlib"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters"),
        *cells,
    ]


def _short(address: str, own: str) -> list:
    code = f"All of it is `srlib`, of [the repository]({address}): clone it to edit more than what stands here."
    config = load_config("quick")
    usual = {name: getattr(config, name) for name in short.USUAL}
    time = "A quarter of an hour on two CPU cores, minutes on a GPU (estimated)."
    first, *rest = short.cells(address, code, time, "phantom", usual, {"phantoms": config.phantoms}, kernels.result_picture())
    first.source = first.source.replace("\n\n", f"\n\n{own}\n\n", 1)
    return [first, new_code_cell(INSTALL.format(address=address), id="srlib"), *rest]
