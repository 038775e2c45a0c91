"""Build the notebooks as Kaggle kernels, with srlib attached as a data set, and check them before anything is sent."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..config import UserError, load_config, nearest
from ..files import NOTEBOOK_FOLDER, REPOSITORY, write
from ..series.run_folder import NOTEBOOKS
from . import short
from .dataset import OUT, SLUG, attached, slug

TITLE = "SRGAN for OCT"
KERMANY = "paultimothymooney/kermany2018"
GPU = "NvidiaTeslaT4"  # Kaggle's name for two T4
LIMIT = 1_000_000  # bytes of a notebook
KEYS = {  # of kernel-metadata.json: every key that the kaggle CLI reads; the type of those that are always written
    "id": str, "title": str, "code_file": str, "language": str, "kernel_type": str, "is_private": bool, "enable_gpu": bool,
    "enable_tpu": bool, "enable_internet": bool, "machine_shape": str, "dataset_sources": list, "kernel_sources": list,
    "competition_sources": list, "model_sources": list, "id_no": None, "keywords": None, "docker_image": None, "docker_image_pinning_type": None,
}  # fmt: skip
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
LANGUAGE = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
LINK = re.compile(r"\[([^\]]*)\]\((\w+\.ipynb)\)")
LINKS = re.compile(rf"(?:{LINK.pattern}[\s|]*)+")  # a cell of nothing else
BESIDE = re.compile(r"^import sys\n\nsys\.path\.append\(.*\n", re.M)  # the set-up's way to srlib in a clone
TRAINING = re.compile(
    r"^ *with run\.stage\(\"(pretrain|srgan)\"\)|^for k, \(lr, target\) in", re.M
)  # the cells that need a GPU and may run out of time
IMAGENET = ("vgg19", "vgg16", "resnet50", "oct-vgg")  # extractors that begin with its weights
TIMES = {  # what a notebook's line of time says there; estimated from counted work, not measured
    "01": "minutes; every scan is read once.", "02": "half a minute.", "03": "about an hour on two T4 (estimated).",
    "04": "15 to 40 minutes on two T4 (estimated).", "05": "about half an hour (estimated).", "06": "a minute.",
}  # fmt: skip
DEFAULT_DATA = re.compile(r"The default data are \*\*phantoms\*\*.*?or to `\"kermany\"` \((.*?)\)\.", re.S)  # notebook 01's
SIX = re.compile(r"To run with other parameters, .*? in this one only\.", re.S)
INTRO = """# {title}

![A synthetic scan, and a square of it at four times its size: LR, bicubic, SRResNet, SRGAN and HR](attachment:result.jpg)

*A phantom (synthetic scan), not a result on OCT. The table below is of real scans.*

{results}

**What this is.** The six notebooks of the series as one kernel, from the first scan to the judged network. *Copy & Edit* and *Run All* repeat it; its code is the attached data set [{data}](https://www.kaggle.com/datasets/{data}), where you can read it and from where you can copy it to change it. Set `profile = "smoke"` below for a run of minutes."""


def titles(kind: str = "series") -> list[str]:
    """The kernels' titles, in order: of the whole series as one, of the chain of six, or of the short one."""
    if kind == "chain":
        return [f"{TITLE} {name.replace('_', ' ')}" for name, _, _ in NOTEBOOKS.values()]
    return [short.TITLE if kind == "short" else TITLE]


def build(
    user: str, kind: str = "series", profile: str = "kaggle", overrides: dict | None = None, vgg: str = "", public: bool = False,
    out: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Write a folder for each kernel (the notebook, kernel-metadata.json) into `out` (default: build/kaggle); returns the folders in the order of running.

    `kind`: 'series', all notebooks as one kernel; 'chain', six that follow each other; 'short', the one notebook of `short.py`. `vgg`: OWNER/SLUG of
    a data set with VGG-19's weights; without it, and where the settings ask for VGG, the kernel may use the internet. Raises UserError for a wrong
    setting or user."""
    check_user(user)
    overrides = dict(overrides or {}) | ({"feature_weights": vgg} if vgg else {})
    config = load_config(profile, **overrides)
    asks_for_vgg = config.content_features.partition(":")[0] in IMAGENET
    if vgg and not asks_for_vgg:
        raise UserError(
            f"--vgg {vgg} has no use with content_features={config.content_features!r}; add -p content_features vgg19:relu5_4, or leave it"
        )
    data = overrides.pop("data", "")
    parameters = {"profile": profile, "run_dir": "", "data": data, "overrides": overrides}
    folders, before = [], []
    for title, names in zip(titles(kind), [[n] for n in NOTEBOOKS] if kind == "chain" else [list(NOTEBOOKS)], strict=True):
        own = f"{user}/{slug(title)}"
        notebook = (
            _short(user, config.data, profile, overrides)
            if kind == "short"
            else _notebook(names, parameters, user, own, before, kind == "chain")
        )
        code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
        trains = bool(TRAINING.search(code))
        needs_vgg = trains and asks_for_vgg  # (the pretraining asks for it)
        metadata = {
            "id": own, "title": title, "code_file": f"{slug(title)}.ipynb", "language": "python", "kernel_type": "notebook",
            "is_private": not public, "enable_gpu": trains, "enable_tpu": False, "machine_shape": GPU if trains else "",
            "enable_internet": needs_vgg and not config.feature_weights,
            "dataset_sources": [f"{user}/{SLUG}"] + [KERMANY] * (config.data == "kermany") + [vgg] * bool(vgg and needs_vgg),
            "kernel_sources": list(before), "competition_sources": [], "model_sources": [],
        }  # fmt: skip
        folder = Path(out or OUT) / slug(title)
        write(folder / metadata["code_file"], nbformat.writes(notebook) + "\n")
        write(folder / "kernel-metadata.json", json.dumps(metadata, indent=1) + "\n")
        folders.append(folder)
        before = [own]
    return folders


def check_user(user: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise UserError(f"user {user!r} is no Kaggle user name; give it with --user NAME, as it stands in kaggle.com/NAME")


def _notebook(names: list[str], parameters: dict, user: str, own: str, before: list[str], chain: bool):
    """The notebooks `names` as one: srlib, the parameters, what an earlier kernel handed over, the cells, the handing over."""
    set_up = [new_code_cell(attached(user), id="srlib")]
    text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    set_up.append(new_code_cell(text, metadata={"tags": ["parameters"]}, id="parameters"))
    if before or not chain:  # the first of the chain has nothing to take over
        call = f"take_over({[own, *before]}, profile, run_dir, needed={bool(before)})"
        set_up.append(new_code_cell(f"from srlib.kaggle.handover import take_over\n\n{call}", id="take-over"))
    cells = [c for number in names for c in _cells(number, user, chain, parameters)]
    if chain:  # under the notebook's title
        cells[1:1] = set_up
    else:
        cells[:0] = [_intro(user), *set_up]
    cells.append(new_code_cell("from srlib.kaggle.handover import hand_over\n\nhand_over(run)", id="hand-over"))
    return new_notebook(cells=cells, metadata=LANGUAGE)


def _short(user: str, data: str, profile: str, overrides: dict):
    if profile != "kaggle":
        raise UserError(f"the short kernel knows no profile {profile!r}; set what you need with -p, as -p gan_steps 200")
    code = f"All of it is `srlib`, the attached data set [{user}/{SLUG}](https://www.kaggle.com/datasets/{user}/{SLUG}): `!cp -r {{home}}/srlib .` copies it here to edit."
    usual = {name: overrides.pop(name, value) for name, value in short.USUAL.items()}
    time = "About half an hour on a T4 (estimated, not measured)."
    first, *rest = short.cells(f"https://www.kaggle.com/code/{user}/{slug(TITLE)}", code, time, data, usual, overrides, result_picture())
    return new_notebook(cells=[first, new_code_cell(attached(user), id="srlib"), *rest], metadata=LANGUAGE)


def result_picture() -> dict:
    """The README's picture, as an attachment."""
    content = (NOTEBOOK_FOLDER / "pictures" / "comparison.jpg").read_bytes()
    return {"result.jpg": {"image/jpeg": base64.b64encode(content).decode()}}


def results() -> str:
    """The README's results as they can stand elsewhere, without links that lead into the repository."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return without_links(text.partition("\n## Results\n")[2].partition("\n## ")[0].strip())


def without_links(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]\((?!https?:|attachment:)[^)]*\)", r"\1", text)


def _intro(user: str):
    """What a reader sees first: the picture and the table of results, from the README."""
    text = INTRO.format(title=TITLE, results=results(), data=f"{user}/{SLUG}")
    return new_markdown_cell(text, attachments=result_picture(), id="intro")


def cells_of(number: str) -> list:
    """The cells of a notebook where there is no clone: no parameters, no search for srlib, commands as `!python -m srlib ...`, no line of links."""
    notebook, cells = nbformat.read(NOTEBOOK_FOLDER / f"{NOTEBOOKS[number][0]}.ipynb", as_version=4), []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []) or LINKS.fullmatch(cell.source):
            continue
        cell.source = re.sub(r"\./run_all\.sh (?=[a-z])", "!python -m srlib ", cell.source).replace("./run_all.sh", "!python -m srlib run")
        if cell.cell_type == "code":
            cell.source = BESIDE.sub("", cell.source)
            cell.outputs, cell.execution_count = [], None
        cell.id = f"{number}-{cell.id}"
        cells.append(cell)
    return cells


def _cells(number: str, user: str, chain: bool, parameters: dict) -> list:
    """The cells of a notebook for Kaggle: links, data, commands and times of there, trainings that end in time."""
    same = f"--profile {parameters['profile']}" + f" --data {parameters['data']}" * bool(parameters["data"])
    names = {f"{n}.ipynb": slug(title) for (n, _, _), title in zip(NOTEBOOKS.values(), titles("chain"), strict=True)}
    cells = cells_of(number)
    for cell in cells:
        if cell.cell_type == "code":
            if TRAINING.search(cell.source):
                inner = "\n".join(f"    {line}" if line else "" for line in cell.source.splitlines())
                cell.source = f"from srlib.kaggle.handover import ending_in_time\n\nwith ending_in_time(run):\n{inner}"
            continue
        if (parameters["data"] or load_config(parameters["profile"]).data) == "kermany":
            attached_data = r'The data are those of \1, attached to this kernel. With `data = "phantom"` the project draws synthetic B-scans, **phantoms**; what they show is *not a result on OCT*.'
            cell.source = DEFAULT_DATA.sub(attached_data, cell.source)
        cell.source = one_cell(cell.source) if not chain else cell.source.replace("in all six notebooks", "in all six kernels")
        cell.source = re.sub(r"python -m srlib run (--run-dir \S+)(?! --data)", rf"python -m srlib run {same} \1", cell.source)
        cell.source = re.sub(r"\*\*Time and hardware\*\*: .*?(?=\*\*Before this)", f"**Time**: {TIMES[number]} ", cell.source)
        if chain:
            cell.source = LINK.sub(lambda m: f"[{m[1]}](https://www.kaggle.com/code/{user}/{names[m[2]]})", cell.source)
        else:
            cell.source = without_links(cell.source)
    if chain:  # the line of links at the end
        notebook = nbformat.read(NOTEBOOK_FOLDER / f"{NOTEBOOKS[number][0]}.ipynb", as_version=4)
        last = next(c.source for c in notebook.cells if LINKS.fullmatch(c.source))
        text = LINK.sub(lambda m: f"[{m[1]}](https://www.kaggle.com/code/{user}/{names[m[2]]})", last)
        cells.append(new_markdown_cell(text, id=f"{number}-links"))
    return cells


def one_cell(text: str) -> str:
    """A notebook's words on parameters, where the series has one cell of them, at the top."""
    return SIX.sub("Other parameters go into the cell at the top.", text).replace("set `data` below to", "set `data` at the top to")


def check(folder: Path) -> list[str]:
    """What Kaggle would refuse or misread in a built folder: a sentence each; nothing for one that can be sent."""
    folder = Path(folder)
    try:
        metadata = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
        notebook = nbformat.read(folder / metadata["code_file"], as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError) as error:
        return [f"{folder}: no kernel can be read there ({type(error).__name__}: {error}); build it again"]
    wrong = [f"there is no key {key!r}; {nearest(key, KEYS)}" for key in metadata if key not in KEYS]
    for key, kind in KEYS.items():
        if kind and type(metadata.get(key)) is not kind:
            note = "; left out, Kaggle takes internet as on" if key == "enable_internet" and key not in metadata else ""
            wrong.append(f"{key} must be a {kind.__name__}, not {metadata.get(key)!r}{note}")
    if not wrong:
        wrong += _wrong_metadata(metadata, notebook)
    wrong += _wrong_notebook(folder / metadata["code_file"], notebook)
    return [f"{folder.name}: {sentence}" for sentence in wrong]


def _wrong_metadata(metadata: dict, notebook):
    for name in (metadata["id"], *metadata["dataset_sources"], *metadata["kernel_sources"]):
        if not re.fullmatch(r"[A-Za-z0-9_-]+/[a-z0-9-]+", str(name)):
            yield f"{name!r} must be OWNER/SLUG, without anything before or behind it"
    owner, _, own = metadata["id"].partition("/")
    if f"{owner}/{SLUG}" not in metadata["dataset_sources"]:
        yield f"the data set {owner}/{SLUG}, which the kernel imports, is not attached; build it again"
    if slug(metadata["title"]) != own:
        yield f"the title {metadata['title']!r} makes the slug {slug(metadata['title'])!r}, but id says {own!r}"
    if not 5 <= len(metadata["title"]) <= 50:
        yield f"the title {metadata['title']!r} must have 5 to 50 characters"
    if (metadata["language"], metadata["kernel_type"]) != ("python", "notebook"):
        yield "language and kernel_type must be python and notebook"
    trains = any(TRAINING.search(c.source) for c in notebook.cells if c.cell_type == "code")
    right = (trains, GPU if trains else "", False)
    if (metadata["enable_gpu"], metadata["machine_shape"], metadata["enable_tpu"]) != right:
        wanted = f"enable_gpu true and machine_shape {GPU!r}" if trains else "enable_gpu false and machine_shape empty"
        yield f"wrong accelerator: a notebook that {'trains' if trains else 'does not train'} needs {wanted}, and no TPU"


def _wrong_notebook(path: Path, notebook):
    if notebook.metadata.get("kernelspec", {}).get("name") != KERNELSPEC["name"]:
        yield "metadata.kernelspec.name must be 'python3'; without it Kaggle cannot run the notebook"
    if any(c.outputs or c.execution_count for c in notebook.cells if c.cell_type == "code"):
        yield "outputs or execution counts are left in the notebook; clear them"
    if path.stat().st_size > LIMIT:
        yield f"the notebook has {path.stat().st_size / 1e6:.2f} MB; Kaggle takes {LIMIT / 1e6:g}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            try:
                ast.parse(TransformerManager().transform_cell(cell.source))
            except SyntaxError as error:
                yield f"the cell {cell.source.strip().splitlines()[0][:60]!r} is no Python: {error.msg}, line {error.lineno}"
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged 'parameters'; one is needed"
