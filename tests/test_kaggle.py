"""The Kaggle kernel and its data set: what is built, what is refused, and the kernel run as on Kaggle, in an emulated layout."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from running import save

from srlib.commands import kaggle
from srlib.config import UserError, load_config
from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.files import REPOSITORY
from srlib.models import Discriminator, Generator
from srlib.models.features import feature_extractor
from srlib.series.run_folder import NOTEBOOKS, Run, read_config
from srlib.training.losses import ContentLoss, adversarial_loss, discriminator_loss

METHOD = REPOSITORY / "notebooks/kaggle/srgan_on_oct.ipynb"
SMOKE = {"data": "kermany", "pretrain_steps": 10, "gan_steps": 5}


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "OUT", tmp_path / "built")
    return tmp_path / "built"


def test_the_series_is_one_kernel_and_the_whole_method_another(out):
    folder, method = kaggle.build_kernels("someone", "kaggle", "", {"gan_steps": 7})
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert all(sum(file.stat().st_size for file in place.iterdir()) < 1e6 for place in (folder, method))  # all that Kaggle takes
    assert metadata["enable_internet"] is False and metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["is_private"] is True
    assert metadata["dataset_sources"] == ["someone/srgan-for-oct-srlib", "paultimothymooney/kermany2018"]
    assert (
        json.loads((method / "kernel-metadata.json").read_text()).items()
        >= {"id": "someone/srgan-on-oct", "enable_internet": False}.items()
    )
    notebook = nbformat.read(folder / "srgan-for-oct.ipynb", as_version=4)
    assert notebook.metadata.kernelspec.name == "python3" and not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    exec(cell.source, {}, names := {})
    assert names == {"profile": "kaggle", "run_dir": "", "data": "", "overrides": {"gan_steps": 7}}
    code = "".join(c.source for c in notebook.cells[2:] if c.cell_type == "code")
    assert re.findall(r'open_run\("(\d\d)"', code) == list(NOTEBOOKS)
    text = "\n".join(c.source for c in notebook.cells)
    assert ".ipynb" not in text and "Previous:" not in text and "](data/" not in text
    assert not re.findall(r".*(?:run_all|\.\./|environment\.yml|set `data` below).*", text)  # commands and paths of the clone
    assert "attachment:result.jpg" in notebook.cells[0].source and sum("attachments" in c for c in notebook.cells) == 15


def test_the_first_cell_finds_srlib(out, tmp_path):
    """In the old place or the new, a copy in the working folder first; else it is asked for."""
    working, attached = tmp_path / "kaggle/working", kaggle.build_dataset("someone")
    working.mkdir(parents=True)
    cell = kaggle.attached("someone").replace("/kaggle/", f"{tmp_path}/kaggle/")
    there = "(WEIGHTS / 'released.json').exists(), (NOTEBOOK_FOLDER / '01_explore_data.ipynb').exists()"
    more = f"from srlib.files import HOME, NOTEBOOK_FOLDER, WEIGHTS\nprint(HOME, os.environ['PYTHONPATH'], {there})"

    def run():
        around = {"PATH": "", "SRLIB_KAGGLE": str(tmp_path / "kaggle"), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "HOME": str(tmp_path)}
        return subprocess.run([sys.executable, "-"], cwd=working, env=around, input=f"{cell}\n{more}", capture_output=True, text=True)

    assert "press Add Input, Datasets, and add someone/srgan-for-oct-srlib" in run().stderr
    for place in ("datasets/someone/srgan-for-oct-srlib", "srgan-for-oct-srlib"):
        shutil.copytree(attached, tmp_path / "kaggle/input" / place)
        done = run()
        assert f"{working} {tmp_path}/kaggle/input/{place} True True" in done.stdout, done.stderr
    shutil.copytree(attached / "srlib", working / "srlib")
    assert f"srlib from {working}\n" in run().stdout


def test_settings_that_cannot_be(out):
    with pytest.raises(UserError, match="did you mean 'gan_steps'"):
        kaggle.build_kernels("someone", "kaggle", "", {"gan_step": 1})
    for user in ("", "a/b"):
        with pytest.raises(UserError, match="--user NAME"):
            kaggle.build_kernels(user, "kaggle", "", {})


def test_the_one_notebook_has_srlibs_networks_and_losses():
    """The paper's shapes in one order; with the weights of srlib's the same images, logits and losses."""
    own = dict(scale=4, width=16, blocks=2, crop=32, extractor="vgg19:relu5_4", device=torch.device("cpu"))
    code = [cell.source for cell in nbformat.read(METHOD, as_version=4).cells if cell.cell_type == "code"]
    for start in ("import copy", "class ResidualBlock", "class Discriminator", "vgg = "):
        exec(next(cell for cell in code if cell.startswith(start)).partition("\ndevice = ")[0], own)
    torch.manual_seed(0)
    pairs = (own["G"], Generator(4, 1, 16, 2)), (own["D"], Discriminator(1, 32, 16))
    for mine, srlibs in pairs:
        values = srlibs.state_dict().values()
        assert [v.shape for v in mine.state_dict().values()] == [v.shape for v in values]
        mine.load_state_dict(dict(zip(mine.state_dict(), values, strict=True)))
    lr, hr = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        sr, logits = own["G"](lr), [own["D"](2 * image - 1) for image in (hr, hr / 2)]
        torch.testing.assert_close([sr, logits[0]], [pairs[0][1](lr), pairs[1][1](2 * hr - 1)])
        content = load_config("paper").content_weight * ContentLoss(feature_extractor("vgg19:relu5_4"))(sr, hr)
        found = own["content_loss"](sr, hr), own["discriminator_loss"](*logits), own["adversarial_loss"](logits[1])
        torch.testing.assert_close(list(found), [content, discriminator_loss(*logits), adversarial_loss(logits[1])])


def kermany(root) -> None:
    """Phantoms named like Kermany's scans, in its odd tree with the trailing space; some patients stand in train and test."""
    for eye in range(8):
        pathology = PATHOLOGIES[eye % 4]
        for number, split in ((1, "train"), (2, "train" if eye % 3 else "test")):
            name = f"OCT2017 /{split}/{pathology.upper()}/{pathology.upper()}-{1000 + eye}-{number}.jpeg"
            scan = bscan(eye, 160, 192, pathology, 0.5 * number)
            save(root / "datasets/paultimothymooney/kermany2018/oct2017" / name, scan, quality=75)


@pytest.mark.slow
def test_the_kernels_on_kermanys_tree(out, tmp_path):
    """All that a run makes, and the one notebook's table, from the attached data set, which is read-only: no clone, no network."""
    root, working = tmp_path / "kaggle", tmp_path / "kaggle/working"
    working.mkdir(parents=True)
    kermany(root / "input")
    shutil.copytree(kaggle.build_dataset("someone"), root / "input/datasets/someone/srgan-for-oct-srlib")
    kernels = kaggle.build_kernels("someone", "smoke", "", SMOKE)
    for path in sorted((root / "input").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {p: p.stat().st_mtime_ns for p in (root / "input").rglob("*")}  # root may write where it may not
    dead = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    around = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SRLIB_KAGGLE": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    around |= dead | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    small = dict(pretrain_steps=6, srgan_steps=4, width=8, blocks=1, crop=32, batch=4, test_images=2, extractor="vgg19:relu1_2")
    for kernel, parameters in zip(kernels, ({}, small), strict=True):
        file, words = root / f"{kernel.name}.ipynb", [word for pair in parameters.items() for word in ("-p", *map(str, pair))]
        file.write_text((kernel / file.name).read_text().replace("/kaggle/input/", f"{root}/input/"))
        command = [sys.executable, "-m", "papermill", str(file), str(file), "-k", "python3", "--no-progress-bar", *words]
        done = subprocess.run(command, cwd=working, env=around, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert str(REPOSITORY) not in file.read_text()
    shown = [o for cell in nbformat.read(file, as_version=4).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in shown) == 3 and "SRGAN" in shown[-1].data["text/html"]
    assert before == {p: p.stat().st_mtime_ns for p in (root / "input").rglob("*")}
    folder = working / "runs/smoke"
    table = Run(folder, read_config(folder / "config.json")).metrics
    assert {"bicubic", "linear", "srresnet", "srgan", "sampler"} <= set(table.method) and table.psnr.between(10, 60).all()
    images = json.loads((working / "runs/smoke/provenance.json").read_text())["data"]["images"]
    assert str(root / "input") in images["root"]
