"""`kaggle`: the notebooks as one Kaggle kernel and srlib as the data set that it imports, built and checked; Kaggle's own command line sends them."""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..config import UserError, load_config
from ..files import NOTEBOOK_FOLDER, REPOSITORY, WEIGHTS, write
from ..series.run_folder import NOTEBOOKS
from . import add_settings, parser, read_settings

OUT = REPOSITORY / "build" / "kaggle"
KERNEL, DATASET = "srgan-for-oct", "srgan-for-oct-srlib"  # slugs, which Kaggle makes of the titles
TITLES = {KERNEL: "SRGAN for OCT", DATASET: "SRGAN for OCT srlib"}
KERMANY = "paultimothymooney/kermany2018"
GPU = "NvidiaTeslaT4"  # Kaggle's name for two T4
LIMIT = 1_000_000  # bytes of a notebook
METADATA = {KERNEL: "kernel-metadata.json", DATASET: "dataset-metadata.json"}
LINKS = re.compile(r"(?:\[[^\]]*\]\(\w+\.ipynb\)[\s|]*)+")  # a cell of nothing else
BESIDE = re.compile(r"^import sys\n\nsys\.path\.append\(.*\n", re.M)  # the set-up's way to srlib in a clone
TIMES = {  # what a notebook's line of time says there; estimated from counted work, not measured
    "01": "minutes; every scan is read once.", "02": "half a minute.", "03": "about an hour on two T4 (estimated).",
    "04": "15 to 40 minutes on two T4 (estimated).", "05": "about half an hour (estimated).", "06": "a minute.",
}  # fmt: skip
DEFAULT_DATA = re.compile(r"The default data are \*\*phantoms\*\*.*?or to `\"kermany\"` \((.*?)\)\.", re.S)  # notebook 01's
SIX = re.compile(r"To run with other parameters, .*? in this one only\.", re.S)
INTRO = """# SRGAN for OCT

![A synthetic scan, and a square of it at four times its size: LR, bicubic, SRResNet, SRGAN and HR](attachment:result.jpg)

*A phantom (synthetic scan), not a result on OCT. The table below is of real scans.*

{results}

**What this is.** The six notebooks of the series as one kernel, from the first scan to the evaluated network. *Copy & Edit* and *Run All* repeat it; its code is the attached data set [{data}](https://www.kaggle.com/datasets/{data}). Set `profile = "smoke"` below for a run of minutes."""
README = """# srlib, the code of SRGAN for OCT

The module that the notebooks of this series import, with the weights that they need, the released networks, the notebooks and the sweeps. MIT
licence; the weights of VGG-19 are Oxford's, CC BY 4.0 (LICENSE.txt). In a notebook that has it attached, `!cp -r PLACE/srlib .` copies it to the
working folder, where you can edit it; it is then imported from there. PLACE is printed by the notebook's first cell.
"""
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


def build_kernel(user: str, profile: str, data: str, overrides: dict, public: bool = False) -> Path:
    """Write the kernel's folder (the notebook, kernel-metadata.json) below OUT; returns it. Its settings are checked. Internet is off: what it needs
    is attached. Raises UserError for a wrong setting or user."""
    parameters = {"profile": profile, "run_dir": "", "data": data, "overrides": overrides}
    config = load_config(profile, **overrides, **({"data": data} if data else {}))
    notebook = _notebook(_checked(user), parameters, config.data)
    metadata = {
        "id": f"{user}/{KERNEL}", "title": TITLES[KERNEL], "code_file": f"{KERNEL}.ipynb", "language": "python", "kernel_type": "notebook",
        "is_private": not public, "enable_gpu": True, "enable_tpu": False, "machine_shape": GPU, "enable_internet": False,
        "dataset_sources": [f"{user}/{DATASET}"] + [KERMANY] * (config.data == "kermany"),
        "kernel_sources": [], "competition_sources": [], "model_sources": [],
    }  # fmt: skip
    folder = OUT / KERNEL
    write(folder / metadata["code_file"], nbformat.writes(notebook) + "\n")
    write(folder / METADATA[KERNEL], json.dumps(metadata, indent=1) + "\n")
    return folder


def build_dataset(user: str) -> Path:
    """Write the data set's folder, with its metadata, below OUT; returns it."""
    folder = OUT / DATASET
    if folder.exists():
        shutil.rmtree(folder)
    metadata = {
        "id": f"{_checked(user)}/{DATASET}",
        "title": TITLES[DATASET],
        "subtitle": "The code that the SRGAN for OCT notebooks import",
        "licenses": [{"name": "MIT"}],
    }
    for name, path in content().items():
        write(folder / "srlib" / name, path.read_bytes())
    write(folder / "LICENSE.txt", (REPOSITORY / "LICENSE").read_bytes())
    write(folder / "README.md", README)
    write(folder / f"version-{version()}.txt", f"SHA-256 of the files: {version()}...\n")
    write(folder / METADATA[DATASET], json.dumps(metadata, indent=1) + "\n")
    return folder


def content() -> dict[str, Path]:
    """The data set's files below srlib/, by their names there: what `pip install .` puts into the package."""
    package = REPOSITORY / "srlib"
    files = {
        path.relative_to(package).as_posix(): path for kind in ("*.py", "commands/*.md", "commands/*.html") for path in package.rglob(kind)
    }
    files |= {f"weights/{path.name}": path for kind in ("*.pt", "*.npz", "released.json") for path in WEIGHTS.glob(kind)}
    files |= {f"notebooks/{path.name}": path for path in NOTEBOOK_FOLDER.glob("*.ipynb")}
    files |= {f"notebooks/experiments/{path.name}": path for path in (NOTEBOOK_FOLDER / "experiments").glob("*.yaml")}
    return dict(sorted(files.items()))


def version() -> str:
    """The hash of the content; the data set has a file version-HASH.txt, by which it is known again."""
    total = hashlib.sha256()
    for name, path in content().items():
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def attached(user: str) -> str:
    """The cell that finds srlib, in the working folder (a copy to edit) or where the data set is attached."""
    return ATTACHED.format(name=f"{user}/{DATASET}", slug=DATASET, version=version())


def _checked(user: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise UserError(f"user {user!r} is no Kaggle user name; give it with --user NAME, as it stands in kaggle.com/NAME")
    return user


def _notebook(user: str, parameters: dict, data: str):
    """All notebooks as one: what a reader sees first, srlib, the parameters, their cells."""
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    results = without_links(page.partition("\n## Results\n")[2].partition("\n## ")[0].strip())
    picture = base64.b64encode((NOTEBOOK_FOLDER / "pictures" / "comparison.jpg").read_bytes()).decode()
    text = INTRO.format(results=results, data=f"{user}/{DATASET}")
    cells = [new_markdown_cell(text, attachments={"result.jpg": {"image/jpeg": picture}}, id="intro")]
    cells.append(new_code_cell(attached(user), id="srlib"))
    assigned = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells.append(new_code_cell(assigned, metadata={"tags": ["parameters"]}, id="parameters"))
    cells += [cell for number in NOTEBOOKS for cell in _cells(number, parameters, data)]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": spec, "language_info": {"name": "python"}})


def _cells(number: str, parameters: dict, data: str) -> list:
    """The cells of a notebook where there is no clone: no parameters, no search for srlib, no links between notebooks; commands and times of there."""
    notebook, cells = nbformat.read(NOTEBOOK_FOLDER / f"{NOTEBOOKS[number][0]}.ipynb", as_version=4), []
    same = f"--profile {parameters['profile']}" + f" --data {parameters['data']}" * bool(parameters["data"])
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []) or LINKS.fullmatch(cell.source):
            continue
        cell.id = f"{number}-{cell.id}"
        cell.source = re.sub(r"\./run_all\.sh (?=[a-z])", "!python -m srlib ", cell.source).replace("./run_all.sh", "!python -m srlib run")
        if cell.cell_type == "code":
            cell.source = BESIDE.sub("", cell.source)
        else:
            if data == "kermany":
                there = r'The data are those of \1, attached to this kernel. With `data = "phantom"` the project draws synthetic B-scans, **phantoms**; what they show is *not a result on OCT*.'
                cell.source = DEFAULT_DATA.sub(there, cell.source)
            cell.source = SIX.sub("Other parameters go into the cell at the top.", cell.source).replace(
                "set `data` below to", "set `data` at the top to"
            )
            cell.source = re.sub(r"python -m srlib run (--run-dir \S+)(?! --data)", rf"python -m srlib run {same} \1", cell.source)
            cell.source = re.sub(r"\*\*Time and hardware\*\*: .*?(?=\*\*Before this)", f"**Time**: {TIMES[number]} ", cell.source)
            cell.source = without_links(cell.source)
        cells.append(cell)
    return cells


def without_links(text: str) -> str:
    """Markdown without links that lead into the repository."""
    return re.sub(r"\[([^\]]*)\]\((?!https?:|attachment:)[^)]*\)", r"\1", text)


def check() -> list[str]:
    """What Kaggle would refuse or misread in what was built: a sentence each."""
    wrong = []
    for slug, rules in ((KERNEL, _wrong_kernel), (DATASET, _wrong_dataset)):
        folder = OUT / slug
        try:
            metadata = json.loads((folder / METADATA[slug]).read_text(encoding="utf-8"))
            found = list(rules(folder, metadata))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError) as error:
            found = [f"cannot be read ({type(error).__name__}: {error}); build it again"]
        wrong += [f"{slug}: {sentence}" for sentence in found]
    return wrong


def _wrong_kernel(folder: Path, metadata: dict):
    notebook = nbformat.read(folder / metadata["code_file"], as_version=4)
    nbformat.validate(notebook)
    yield from _wrong_names(metadata, KERNEL)
    owner = metadata["id"].partition("/")[0]
    if f"{owner}/{DATASET}" not in metadata["dataset_sources"]:
        yield f"the data set {owner}/{DATASET}, which the kernel imports, is not attached; build it again"
    needed = {
        "enable_gpu": True,
        "enable_tpu": False,
        "machine_shape": GPU,
        "language": "python",
        "kernel_type": "notebook",
        "enable_internet": False,
    }
    for key, right in needed.items():  # without the key, Kaggle takes internet as on
        if metadata.get(key) != right or type(metadata[key]) is not type(right):
            yield f"{key} must be {right!r}, not {metadata.get(key)!r}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "metadata.kernelspec.name must be 'python3'; without it Kaggle cannot run the notebook"
    if (size := (folder / metadata["code_file"]).stat().st_size) > LIMIT:
        yield f"the notebook has {size / 1e6:.2f} MB; Kaggle takes {LIMIT / 1e6:g}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs or cell.execution_count for cell in code):
        yield "outputs or execution counts are left in the notebook; clear them"
    for cell in code:
        try:
            ast.parse(TransformerManager().transform_cell(cell.source))
        except SyntaxError as error:
            yield f"the cell {cell.source.strip().splitlines()[0][:60]!r} is no Python: {error.msg}, line {error.lineno}"
    tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in code)
    if tagged != 1:
        yield f"{tagged} cells are tagged 'parameters'; one is needed"


def _wrong_dataset(folder: Path, metadata: dict):
    yield from _wrong_names(metadata, DATASET)
    if not 20 <= len(metadata["subtitle"]) <= 80:
        yield f"the subtitle {metadata['subtitle']!r} must have 20 to 80 characters"
    if [list(licence) for licence in metadata["licenses"]] != [["name"]]:
        yield f"licenses must be a list of one name, not {metadata['licenses']!r}"
    built = {path.relative_to(folder / "srlib").as_posix(): path for path in (folder / "srlib").rglob("*") if path.is_file()}
    own = content()
    other = [n for n in sorted(own.keys() | built.keys()) if n not in own or n not in built or own[n].read_bytes() != built[n].read_bytes()]
    if other:
        yield f"{len(other)} of srlib's files differ from this repository's, {other[0]} first; build it again"


def _wrong_names(metadata: dict, slug: str):
    if not re.fullmatch(rf"[A-Za-z0-9_-]+/{slug}", str(metadata["id"])):
        yield f"id {metadata['id']!r} must be OWNER/{slug}, without anything before it"
    if metadata["title"] != TITLES[slug]:
        yield f"the title {metadata['title']!r} makes another slug than {slug}; build it again"


def main(argv: list[str]) -> int:
    words = parser(
        "kaggle", "The series as a Kaggle kernel and its data set: build and check them; notebooks/KAGGLE.md says how to send them."
    )
    words.add_argument("action", choices=("build", "check"))
    words.add_argument("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name on Kaggle (default: KAGGLE_USERNAME)")
    words.add_argument(
        "--public", action=argparse.BooleanOptionalAction, default=False, help="everybody may see the kernel (default: private)"
    )
    add_settings(words, "kaggle")
    args = words.parse_args(argv)
    if args.action == "build":
        data, overrides = read_settings(args)
        for folder in (build_kernel(args.user, args.profile, data, overrides, args.public), build_dataset(args.user)):
            print(folder)
        return 0
    wrong = check()
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    if not wrong:
        print("nothing to object to")
    return 1 if wrong else 0
