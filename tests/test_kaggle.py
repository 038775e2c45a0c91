"""The Kaggle kernel and its data set: what is built, what is refused, and the kernel run as on Kaggle, in an emulated layout."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from running import save

from srlib.__main__ import main
from srlib.commands import kaggle
from srlib.config import UserError
from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.files import REPOSITORY
from srlib.series.run_folder import NOTEBOOKS, Run, read_config

SMOKE = {"data": "kermany", "pretrain_steps": 10, "gan_steps": 5}


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "OUT", tmp_path / "built")
    return tmp_path / "built"


def test_the_series_is_one_notebook(out):
    folder = kaggle.build_kernel("someone", "kaggle", "", {"gan_steps": 7})
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert metadata["enable_internet"] is False and metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["is_private"] is True
    assert metadata["dataset_sources"] == ["someone/srgan-for-oct-srlib", "paultimothymooney/kermany2018"]
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
    assert "attachment:result.jpg" in notebook.cells[0].source and sum("attachments" in c for c in notebook.cells) == 9


def test_two_builds_are_the_same_bytes(out):
    folder = kaggle.build_kernel("someone", "quick", "phantom", {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kaggle.build_kernel("someone", "quick", "phantom", {})
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"kermany2018" not in before["kernel-metadata.json"]


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
        assert f"{working} {tmp_path}/kaggle/input/{place} True True" in done.stdout and "another version" not in done.stdout, done.stderr
    shutil.copytree(attached / "srlib", working / "srlib")
    assert f"srlib from {working} (a copy" in run().stdout


def test_settings_that_cannot_be(out):
    with pytest.raises(UserError, match="did you mean 'gan_steps'"):
        kaggle.build_kernel("someone", "kaggle", "", {"gan_step": 1})
    for user in ("", "a/b"):
        with pytest.raises(UserError, match="--user NAME"):
            kaggle.build_kernel(user, "kaggle", "", {})


def test_a_notebook_too_large_for_kaggle(out, monkeypatch, capsys):
    monkeypatch.setattr(kaggle, "LIMIT", 1000)
    assert main(["kaggle", "build", "--user", "someone"]) == 1 and "MB; Kaggle takes 0.001" in capsys.readouterr().err


def kermany(root) -> None:
    """Phantoms named like Kermany's scans, in its odd tree with the trailing space; some patients stand in train and test."""
    for eye in range(8):
        pathology = PATHOLOGIES[eye % 4]
        for number, split in ((1, "train"), (2, "train" if eye % 3 else "test")):
            name = f"OCT2017 /{split}/{pathology.upper()}/{pathology.upper()}-{1000 + eye}-{number}.jpeg"
            scan = bscan(eye, 160, 192, pathology, 0.5 * number)
            save(root / "datasets/paultimothymooney/kermany2018/oct2017" / name, scan, quality=75)


@pytest.mark.slow
def test_the_kernel_on_kermanys_tree(out, tmp_path):
    """All that a run makes, from the attached data set, which is read-only: no clone, no network."""
    root, working = tmp_path / "kaggle", tmp_path / "kaggle/working"
    working.mkdir(parents=True)
    kermany(root / "input")
    shutil.copytree(kaggle.build_dataset("someone"), root / "input/datasets/someone/srgan-for-oct-srlib")
    kernel = root / "kernel.ipynb"
    built = kaggle.build_kernel("someone", "smoke", "", SMOKE) / "srgan-for-oct.ipynb"
    kernel.write_text(built.read_text().replace("/kaggle/input/", f"{root}/input/"))
    for path in sorted((root / "input").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {p: p.stat().st_mtime_ns for p in (root / "input").rglob("*")}  # root may write where it may not
    dead = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    around = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SRLIB_KAGGLE": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    around |= dead | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "papermill", str(kernel), str(root / "executed.ipynb"), "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(command, cwd=working, env=around, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (root / "input").rglob("*")}
    folder = working / "runs/smoke"
    table = Run(folder, read_config(folder / "config.json")).metrics
    assert {"bicubic", "linear", "srresnet", "srgan", "sampler"} <= set(table.method) and table.psnr.between(10, 60).all()
    images = json.loads((working / "runs/smoke/provenance.json").read_text())["data"]["images"]
    assert str(root / "input") in images["root"] and str(REPOSITORY) not in (root / "executed.ipynb").read_text()


@pytest.mark.slow
def test_attached_in_other_processes(out, scan_folder, tmp_path):
    """From the data set alone: two processes under torchrun train as from the repository."""
    attached = kaggle.build_dataset("someone")
    code = (
        "import sys\nfrom pathlib import Path\nimport torch.multiprocessing\n"
        "from srlib.config import load_config\nfrom srlib.series.run_folder import Run\n"
        "from srlib.training import parallel\nfrom srlib.training.pretraining import pretrain_generator\n"
        "if __name__ == '__main__':\n"
        f"    assert parallel.__file__.startswith({str(attached)!r}), parallel.__file__\n"
        "    torch.multiprocessing.set_start_method('spawn')\n"
        "    settings = dict(data=sys.argv[1], device='cpu', precision='fp32', pretrain_steps=5, d_width=4)\n"
        "    run = Run(Path('two').absolute(), load_config('smoke', **settings))\n"
        "    run.write_config()\n    run.make_manifest()\n"
        "    one = pretrain_generator(run.config, run.images('train', run.config.crop), run.images('val'), 'one')\n"
        "    two = parallel.launch('pretrain', 2, run.config, run.folder)\n"
        "    print(one.loss.iloc[-1], two.loss.iloc[-1])\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(attached)}
    command = [sys.executable, "script.py", str(scan_folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = map(float, done.stdout.split()[-2:])
    assert two == pytest.approx(one, rel=1e-3)
