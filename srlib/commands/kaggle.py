"""`kaggle`: the series and `srgan_on_oct` as two Kaggle kernels, and srlib as the data set that they import; Kaggle's own command line sends them."""

import base64
import json
import os
import re
import shutil
from pathlib import Path
from string import Template

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..config import UserError, load_config
from ..files import NOTEBOOK_FOLDER, REPOSITORY, WEIGHTS, read_text, write
from ..series.run_folder import NOTEBOOKS
from . import add_settings, parser, read_settings

OUT = REPOSITORY / "build" / "kaggle"
SERIES, METHOD, DATASET = "srgan-for-oct", "srgan-on-oct", "srgan-for-oct-srlib"  # slugs, which Kaggle makes of the titles
KERMANY = "paultimothymooney/kermany2018"
LINKS = re.compile(r"(?:\[[^\]]*\]\(\w+\.ipynb\)[\s|]*)+")  # a cell of nothing else
BESIDE = r"(?m)^import sys\n\nsys\.path\.append\(.*\n", ""  # the set-up's way to srlib in a clone
TO_REPOSITORY = r"\[([^\]]*)\]\((?!https?:|attachment:)[^)]*\)", r"\1"
HERE = [  # what a notebook's text says of a clone: what is so in the kernel
    (r"The default data are", "The default data of a clone are"),
    (r"set `data` below to", "set `data` at the top to"),
    (r"(?s)To run with other parameters, .*? in this one only\.", "Other parameters go into the cell at the top."),
    (r"\*\*Time and hardware\*\*: .*?(?=\*\*Before this)", ""),
    TO_REPOSITORY,
]
INTRO = Path(__file__).with_name("kaggle_kernel.md")  # a string.Template
README = Path(__file__).with_name("kaggle_dataset.md")
ATTACHED = """# The code of this series is the attached data set {name}: open it on the right, under Input.
# To change a module: run  !cp -r {{home}}/srlib .  in a new cell, edit the copy under Output, and restart. A saved version (Save & Run All)
# starts without the copy: put the cp, with the place that is printed below, and your edits as %%writefile srlib/FILE.py into cells above this one.
import os
import sys
import time
from pathlib import Path
from string import Template

os.environ.setdefault("SRLIB_STARTED", str(time.time()))  # max_hours counts from here
places = [Path.cwd(), Path("/kaggle/input/{slug}"), Path("/kaggle/input/datasets/{name}")]
home = next((str(place) for place in places if (place / "srlib/__init__.py").is_file()), None)
assert home, "srlib is missing: press Add Input, Datasets, and add {name}"
sys.path.insert(0, home)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))  # for !python -m srlib
print("srlib from", home)
"""


def build_kernels(user: str, profile: str, data: str, overrides: dict) -> list[Path]:
    """Write the folders of `user`'s two private kernels (the notebook, kernel-metadata.json) below OUT: the series with these settings, and the
    notebook that holds the whole method. Internet is off: what they need is attached. Raises UserError for a wrong setting or user."""
    config = load_config(profile, **overrides, **({"data": data} if data else {}))
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise UserError(f"user {user!r} is no Kaggle user name; give it with --user NAME, as it stands in kaggle.com/NAME")
    series = _series(user, {"profile": profile, "run_dir": "", "data": data, "overrides": overrides}, config.data)
    method = nbformat.read(NOTEBOOK_FOLDER / "kaggle" / "srgan_on_oct.ipynb", as_version=4)
    next(cell for cell in method.cells if cell.id == "srlib").source = attached(user)
    kernels = (SERIES, "SRGAN for OCT", series, config.data), (METHOD, "SRGAN on OCT", method, "kermany")
    return [_write_kernel(user, *kernel) for kernel in kernels]


def _write_kernel(user: str, slug: str, title: str, notebook, data: str) -> Path:
    metadata = {
        "id": f"{user}/{slug}", "title": title, "code_file": f"{slug}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": True, "machine_shape": "NvidiaTeslaT4",
        "enable_internet": False, "dataset_sources": [f"{user}/{DATASET}"] + [KERMANY] * (data == "kermany"),
    }  # fmt: skip
    write(OUT / slug / f"{slug}.ipynb", nbformat.writes(notebook) + "\n")
    write(OUT / slug / "kernel-metadata.json", json.dumps(metadata, indent=1) + "\n")
    return OUT / slug


def build_dataset(user: str) -> Path:
    """Write the folder of `user`'s data set, with its metadata, below OUT; returns it. It holds what `pip install .` puts into the package."""
    folder, about = OUT / DATASET, "The code that the SRGAN for OCT notebooks import"
    metadata = {"id": f"{user}/{DATASET}", "title": "SRGAN for OCT srlib", "subtitle": about, "licenses": [{"name": "MIT"}]}
    shutil.rmtree(folder, ignore_errors=True)
    parts = {
        "": (REPOSITORY / "srlib", ("**/*.py", "commands/*.md", "commands/*.html")),
        "weights": (WEIGHTS, ("*.pt", "*.npz", "released.json")),
        "notebooks": (NOTEBOOK_FOLDER, ("*.ipynb", "experiments/*.yaml")),
    }
    for name, (home, kinds) in parts.items():
        for path in (path for kind in kinds for path in home.glob(kind)):
            write(folder / "srlib" / name / path.relative_to(home), path.read_bytes())
    write(folder / "LICENSE.txt", (REPOSITORY / "LICENSE").read_bytes())
    write(folder / "README.md", README.read_bytes())
    write(folder / "dataset-metadata.json", json.dumps(metadata, indent=1) + "\n")
    return folder


def attached(user: str) -> str:
    """The cell that finds srlib, in the working folder (a copy to edit) or where the data set is attached."""
    return ATTACHED.format(name=f"{user}/{DATASET}", slug=DATASET)


def _series(user: str, parameters: dict, data: str):
    """All notebooks as one: what a reader sees first, srlib, the parameters, their cells."""
    page = read_text(REPOSITORY / "README.md")
    results = re.sub(*TO_REPOSITORY, page.partition("\n## Results\n")[2].partition("\n## ")[0].strip())
    picture = base64.b64encode((NOTEBOOK_FOLDER / "pictures" / "real.jpg").read_bytes()).decode()
    text = Template(read_text(INTRO)).substitute(results=results, dataset=f"{user}/{DATASET}", data=data).rstrip()
    cells = [new_markdown_cell(text, attachments={"result.jpg": {"image/jpeg": picture}}, id="intro")]
    cells.append(new_code_cell(attached(user), id="srlib"))
    assigned = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells.append(new_code_cell(assigned, metadata={"tags": ["parameters"]}, id="parameters"))
    cells += [cell for number in NOTEBOOKS for cell in _cells(number)]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": spec, "language_info": {"name": "python"}})


def _cells(number: str) -> list:
    """The cells of a notebook where there is no clone: no parameters, no search for srlib, no links between notebooks; commands of there."""
    cells = []
    for cell in nbformat.read(NOTEBOOK_FOLDER / f"{NOTEBOOKS[number][0]}.ipynb", as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []) or LINKS.fullmatch(cell.source):
            continue
        cell.id = f"{number}-{cell.id}"
        cell.source = re.sub(r"\./run_all\.sh (?=[a-z])", "!python -m srlib ", cell.source).replace("./run_all.sh", "!python -m srlib run")
        for pattern, replacement in HERE if cell.cell_type == "markdown" else [BESIDE]:
            cell.source = re.sub(pattern, replacement, cell.source)
        cells.append(cell)
    return cells


def main(argv: list[str]) -> None:
    words = parser("kaggle", "Build two Kaggle kernels and their data set; notebooks/KAGGLE.md says how to send them.")
    words.add_argument("action", choices=("build",))
    words.add_argument("--user", default=os.environ.get("KAGGLE_USERNAME", ""), help="your name on Kaggle (default: KAGGLE_USERNAME)")
    add_settings(words, "kaggle")
    args = words.parse_args(argv)
    data, overrides = read_settings(args)
    print(*build_kernels(args.user, args.profile, data, overrides), build_dataset(args.user), sep="\n")
