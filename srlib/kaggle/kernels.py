"""Build the notebooks as Kaggle kernels, each with srlib inside it, and check them before anything is sent."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import re
import zipfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..config import Config, UserError, load_config, nearest
from ..files import REPOSITORY, write
from ..series.run_folder import NOTEBOOKS

OUT = REPOSITORY / "build" / "kaggle"
TITLE = "SRGAN for OCT"
KERMANY = "paultimothymooney/kermany2018"
GPU = "NvidiaTeslaT4"  # Kaggle's name for two T4
LIMIT = 1_000_000  # bytes of a notebook
DATE = (1980, 1, 1, 0, 0, 0)  # in the zip, so that equal content has an equal hash
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]  # two-byte numbers, as the weights are
KEYS = {  # of kernel-metadata.json: every key that the kaggle CLI reads; the type of those that are always written
    "id": str, "title": str, "code_file": str, "language": str, "kernel_type": str, "is_private": bool, "enable_gpu": bool,
    "enable_tpu": bool, "enable_internet": bool, "machine_shape": str, "dataset_sources": list, "kernel_sources": list,
    "competition_sources": list, "model_sources": list, "id_no": None, "keywords": None, "docker_image": None, "docker_image_pinning_type": None,
}  # fmt: skip
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
BESIDE = re.compile(r"^import sys\n\nsys\.path\.append\(.*\n", re.M)  # the set-up's way to srlib in a clone
TRAINING = re.compile(r"^ *with run\.stage\(\"(pretrain|srgan)\"\)", re.M)  # the cells that need a GPU and may run out of time
IMAGENET = ("vgg19", "vgg16", "resnet50", "oct-vgg")  # extractors that begin with its weights
CARRIED = """# srlib {hash}: the code of this series. It is inside this cell, so nothing is installed and nothing downloaded.
import base64, hashlib, lzma, os, sys, time
from pathlib import Path

os.environ.setdefault("SRLIB_STARTED", str(time.time()))  # max_hours counts from here
content = lzma.decompress(base64.b85decode("".join('''
{payload}
'''.split())))
assert hashlib.sha256(content).hexdigest().startswith("{hash}"), "this cell was changed; take the notebook anew"
srlib_zip = Path("srlib-{hash}.zip").absolute()
srlib_zip.write_bytes(content)
sys.path.insert(0, str(srlib_zip))
os.environ["PYTHONPATH"] = os.pathsep.join([str(srlib_zip), *filter(None, [os.environ.get("PYTHONPATH")])])  # for !python -m srlib
"""


def slug(title: str) -> str:
    """Kaggle's slug of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def titles(chain: bool) -> list[str]:
    """The kernels' titles, in order."""
    return [f"{TITLE} {name.replace('_', ' ')}" for name, _, _ in NOTEBOOKS.values()] if chain else [TITLE]


def build(
    user: str, chain: bool = False, profile: str = "kaggle", overrides: dict | None = None, vgg: str = "", public: bool = False,
    out: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Write a folder for each kernel (the notebook, kernel-metadata.json) into `out` (default: build/kaggle); returns the folders in the order of running.

    `vgg`: OWNER/SLUG of a data set with VGG-19's weights; without it, and where the settings ask for VGG, the kernel may use the
    internet. Raises UserError for a wrong setting or user.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
        raise UserError(f"user {user!r} is no Kaggle user name; give it with --user NAME, as it stands in kaggle.com/NAME")
    overrides = dict(overrides or {}) | ({"feature_weights": vgg} if vgg else {})
    config = load_config(profile, **overrides)
    for name in ("networks", "start"):
        if getattr(config, name) == "released":
            raise UserError(
                f"{name}='released' does not travel in a kernel; attach the files of data/weights as a data set and name its folder"
            )
    data = overrides.pop("data", "")
    parameters = {"profile": profile, "run_dir": "", "data": data, "overrides": overrides}
    payload = _carried(config)
    folders, before = [], []
    for title, names in zip(titles(chain), [[n] for n in NOTEBOOKS] if chain else [list(NOTEBOOKS)], strict=True):
        own = f"{user}/{slug(title)}"
        notebook = _notebook(names, parameters, payload, user, own, before, chain)
        code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
        trains = bool(TRAINING.search(code))
        needs_vgg = trains and config.content_features.partition(":")[0] in IMAGENET  # (the pretraining asks for it)
        metadata = {
            "id": own, "title": title, "code_file": f"{slug(title)}.ipynb", "language": "python", "kernel_type": "notebook",
            "is_private": not public, "enable_gpu": trains, "enable_tpu": False, "machine_shape": GPU if trains else "",
            "enable_internet": needs_vgg and not config.feature_weights,
            "dataset_sources": [KERMANY] * (config.data == "kermany") + [vgg] * bool(vgg and needs_vgg),
            "kernel_sources": list(before), "competition_sources": [], "model_sources": [],
        }  # fmt: skip
        folder = Path(out or OUT) / slug(title)
        write(folder / metadata["code_file"], nbformat.writes(notebook) + "\n")
        write(folder / "kernel-metadata.json", json.dumps(metadata, indent=1) + "\n")
        folders.append(folder)
        before = [own]
    return folders


def archive(config: Config) -> bytes:
    """srlib as a zip, with the small networks that the settings ask for; the same content gives the same bytes."""
    encoders = ["judge"] + ["oct-encoder"] * config.content_features.startswith("oct-encoder")
    files = [REPOSITORY / "LICENSE", *sorted((REPOSITORY / "srlib").rglob("*.py"))]
    files += [REPOSITORY / "data" / "weights" / f"{name}.pt" for name in encoders]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as box:
        for path in files:
            box.writestr(zipfile.ZipInfo(path.relative_to(REPOSITORY).as_posix(), DATE), path.read_bytes())
    return buffer.getvalue()


def _carried(config: Config) -> str:
    content = archive(config)
    text = base64.b85encode(lzma.compress(content, filters=LZMA)).decode()
    lines = "\n".join(text[i : i + 4000] for i in range(0, len(text), 4000))
    return CARRIED.format(hash=hashlib.sha256(content).hexdigest()[:12], payload=lines)


def _notebook(names: list[str], parameters: dict, payload: str, user: str, own: str, before: list[str], chain: bool):
    """The notebooks `names` as one: srlib, the parameters, what an earlier kernel handed over, the cells, the handing over."""
    hidden = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    set_up = [new_code_cell(payload, metadata=hidden, id="srlib")]
    text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    set_up.append(new_code_cell(text, metadata={"tags": ["parameters"]}, id="parameters"))
    if before or not chain:  # the first of the chain has nothing to take over
        call = f"take_over({[own, *before]}, profile, run_dir, needed={bool(before)})"
        set_up.append(new_code_cell(f"from srlib.kaggle.handover import take_over\n\n{call}", id="take-over"))
    cells = [c for number in names for c in _cells(number, user, chain)]
    if chain:  # under the notebook's title
        cells[1:1] = set_up
    else:
        intro = f"# {TITLE}\n\nThe six notebooks of the series as one kernel, from the first scan to the judged network: press *Copy & Edit*, then *Run All*."
        cells[:0] = [new_markdown_cell(intro, id="intro"), *set_up]
    cells.append(new_code_cell("from srlib.kaggle.handover import hand_over\n\nhand_over(run)", id="hand-over"))
    notebook = new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    while len(nbformat.writes(notebook).encode()) > LIMIT:  # the last notebook's picture first
        pictures = [c for c in notebook.cells if "attachments" in c]
        if not pictures:
            raise UserError(f"{own}: the notebook is over {LIMIT / 1e6:g} MB without any picture; shorten it")
        del pictures[-1]["attachments"]
        pictures[-1].source = re.sub(r"!\[[^\]]*\]\(attachment:[^)]*\)\n*", "", pictures[-1].source)
        print(f"{own}: a picture is left out, to stay under {LIMIT / 1e6:g} MB: {pictures[-1].source.splitlines()[0]}")
    return notebook


def _cells(number: str, user: str, chain: bool) -> list:
    """The cells of a notebook for Kaggle: no parameters, no search for a clone, links that lead there, trainings that end in time."""
    name = NOTEBOOKS[number][0]
    notebook, cells = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4), []
    names = {f"{n}.ipynb": slug(title) for (n, _, _), title in zip(NOTEBOOKS.values(), titles(True), strict=True)}
    for cell in notebook.cells:
        links = re.compile(r"\[([^\]]*)\]\((\w+\.ipynb)\)")
        if "parameters" in cell.metadata.get("tags", []) or (not chain and re.fullmatch(rf"(?:{links.pattern}[\s|]*)+", cell.source)):
            continue
        if cell.cell_type == "code":
            cell.source = BESIDE.sub("", cell.source)
            cell.outputs, cell.execution_count = [], None
            if TRAINING.search(cell.source):
                inner = "\n".join(f"    {line}" if line else "" for line in cell.source.splitlines())
                cell.source = f"from srlib.kaggle.handover import ending_in_time\n\nwith ending_in_time(run):\n{inner}"
        else:
            target = r"[\1](https://www.kaggle.com/code/{}/{})".format(user, "{}") if chain else r"\1"
            cell.source = links.sub(lambda m, t=target: m.expand(t.format(names[m[2]])), cell.source)
        cell.id = f"{number}-{cell.id}"
        cells.append(cell)
    return cells


def check(folder: Path) -> list[str]:
    """What Kaggle would refuse or misread in a built folder: a sentence each; nothing for one that can be sent."""
    folder = Path(folder)
    try:
        metadata = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
        notebook = nbformat.read(folder / metadata["code_file"], as_version=4)
    except (OSError, ValueError, KeyError, AttributeError) as error:
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
    own = metadata["id"].rpartition("/")[2]
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
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged 'parameters'; one is needed"
