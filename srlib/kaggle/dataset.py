"""srlib as a Kaggle data set: readable files, as an installed package has them, which the kernels import where Kaggle attaches them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from ..files import NOTEBOOK_FOLDER, REPOSITORY, WEIGHTS, write

OUT = REPOSITORY / "build" / "kaggle"
TITLE = "SRGAN for OCT srlib"
METADATA = "dataset-metadata.json"
README = """# srlib, the code of SRGAN for OCT

The module that the notebooks of this series import, with its small networks, the released weights, the notebooks and the sweeps. MIT licence.
In a notebook that has it attached: `!cp -r PLACE/srlib .` copies it to the working folder, where you can edit it; it is then imported from there.
PLACE is /kaggle/input/datasets/{name}, in older notebooks /kaggle/input/{slug}; the notebooks' first cell prints it.
"""


def slug(title: str) -> str:
    """Kaggle's slug of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


SLUG = slug(TITLE)


def content() -> dict[str, Path]:
    """The data set's files below srlib/, by their names there: what `pip install .` puts into the package."""
    package = REPOSITORY / "srlib"
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    files |= {f"weights/{path.name}": path for path in [*WEIGHTS.glob("*.pt"), *WEIGHTS.glob("released.json")]}
    files |= {f"notebooks/{path.name}": path for path in NOTEBOOK_FOLDER.glob("*.ipynb")}
    files |= {f"notebooks/experiments/{path.name}": path for path in (NOTEBOOK_FOLDER / "experiments").glob("*.yaml")}
    return dict(sorted(files.items()))


def version() -> str:
    """The hash of the content; the data set has a file version-HASH.txt, by which it is known again."""
    total = hashlib.sha256()
    for name, path in content().items():
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def build_dataset(user: str, out: Path | None = None) -> Path:
    """Write the data set's folder, with its metadata, into `out` (default: build/kaggle); returns it."""
    folder = Path(out or OUT) / SLUG
    if folder.exists():
        shutil.rmtree(folder)
    for name, path in content().items():
        write(folder / "srlib" / name, path.read_bytes())
    write(folder / "LICENSE.txt", (REPOSITORY / "LICENSE").read_bytes())
    write(folder / "README.md", README.format(name=f"{user}/{SLUG}", slug=SLUG))
    write(folder / f"version-{version()}.txt", f"SHA-256 of the files: {version()}...\n")
    metadata = {
        "id": f"{user}/{SLUG}",
        "title": TITLE,
        "subtitle": "The code that the SRGAN for OCT notebooks import",
        "licenses": [{"name": "MIT"}],
    }
    write(folder / METADATA, json.dumps(metadata, indent=1) + "\n")
    return folder


def check_dataset(folder: Path) -> list[str]:
    """What Kaggle would refuse or misread in a built data set: a sentence each."""
    folder = Path(folder)
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        name, title, subtitle, licences = (metadata[key] for key in ("id", "title", "subtitle", "licenses"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder}: no data set can be read there ({type(error).__name__}: {error}); build it again"]
    wrong = []
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[a-z0-9-]+", str(name)):
        wrong.append(f"{name!r} must be OWNER/SLUG, without anything before or behind it")
    elif slug(str(title)) != name.partition("/")[2]:
        wrong.append(f"the title {title!r} makes the slug {slug(str(title))!r}, but id says {name.partition('/')[2]!r}")
    if not 6 <= len(str(title)) <= 50:
        wrong.append(f"the title {title!r} must have 6 to 50 characters")
    if not 20 <= len(str(subtitle)) <= 80:
        wrong.append(f"the subtitle {subtitle!r} must have 20 to 80 characters")
    if not (isinstance(licences, list) and len(licences) == 1 and isinstance(licences[0], dict) and licences[0].get("name")):
        wrong.append(f"licenses must be a list of one name, not {licences!r}")
    names, there = (
        content(),
        {path.relative_to(folder / "srlib").as_posix(): path for path in (folder / "srlib").rglob("*") if path.is_file()},
    )
    other = [name for name in sorted(names.keys() | there.keys()) if not _same(names.get(name), there.get(name))]
    if other:
        wrong.append(f"{len(other)} of srlib's files differ from this repository's, {other[0]} first; build it again")
    if [path.name for path in folder.glob("version-*.txt")] != [f"version-{version()}.txt"]:
        wrong.append(f"version-{version()}.txt must be the only file of its kind; build it again")
    return [f"{folder.name}: {sentence}" for sentence in wrong]


def _same(one: Path | None, other: Path | None) -> bool:
    return bool(one and other) and one.read_bytes() == other.read_bytes()


def attached(user: str) -> str:
    """The cell that finds srlib, in the working folder (a copy to edit) or where the data set is attached."""
    return ATTACHED.format(name=f"{user}/{SLUG}", slug=SLUG, version=version())


ATTACHED = """# The code of this series is the attached data set {name}: open it on the right, under Input.
# To change a module: run  !cp -r {{home}}/srlib .  in a new cell, edit the copy under Output, and restart. A saved version (Save & Run All)
# starts without the copy: put the cp, with the place that is printed below, and your edits as %%writefile srlib/FILE.py into cells above this one.
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("SRLIB_STARTED", str(time.time()))  # max_hours counts from here
places = [Path.cwd(), Path("/kaggle/input/{slug}"), Path("/kaggle/input/datasets/{name}")]
home = next((str(place) for place in places if (place / "srlib/__init__.py").is_file()), None)
assert home, "srlib is missing: press Add Input, Datasets, and add {name}"
sys.path.insert(0, home)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))  # for !python -m srlib
print("srlib from", home, "" if Path(home, "version-{version}.txt").exists() else "(a copy, or another version than this notebook was made with)")
"""
