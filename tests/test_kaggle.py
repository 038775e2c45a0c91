"""Kernels as files: what is built, what is in it, and what the check refuses."""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from srlib import __main__ as command
from srlib.config import UserError
from srlib.files import write
from srlib.kaggle import dataset, handover, kernels
from srlib.models import features
from srlib.series.opening import open_run
from srlib.series.run_folder import NOTEBOOKS


def built(folder):
    return json.loads((folder / "kernel-metadata.json").read_text()), nbformat.read(folder / f"{folder.name}.ipynb", as_version=4)


def parameters(notebook) -> dict:
    names: dict = {}
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    exec(cell.source, {}, names)
    return names


def test_all_is_one_notebook(tmp_path):
    content = {"content_features": "vgg19:relu5_4"}
    (folder,) = kernels.build("someone", overrides=content, vgg="friend/vgg-weights", out=tmp_path)
    metadata, notebook = built(folder)
    nbformat.validate(notebook)  # each cell has an id of its own
    assert kernels.check(folder) == []
    assert metadata["enable_internet"] is False and metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["is_private"] is True
    code = "someone/srgan-for-oct-srlib"
    assert metadata["dataset_sources"] == [code, "paultimothymooney/kermany2018", "friend/vgg-weights"] and not metadata["kernel_sources"]
    wanted = {"profile": "kaggle", "run_dir": "", "data": "", "overrides": content | {"feature_weights": "friend/vgg-weights"}}
    assert parameters(notebook) == wanted
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    assert re.findall(r'open_run\("(\d\d)"', "".join(code[1:])) == list(NOTEBOOKS)
    assert not any("find srlib" in c or len(c) > 5000 for c in code)  # readable, every cell
    text = "".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert ".ipynb" not in text and "Previous:" not in text and text.count("## Exercises") >= 5
    first = notebook.cells[0]
    assert "attachment:result.jpg" in first.source and "| SRResNet |" in first.source and "](data/" not in first.source
    assert sum("attachments" in c for c in notebook.cells) == 7  # the pictures travel


@pytest.mark.parametrize("kind", ["series", "chain", "short"])
def test_the_text_is_kaggles(tmp_path, kind):
    """No commands, times or paths of the clone."""
    for folder in kernels.build("someone", kind, out=tmp_path):
        text = "\n".join(c.source for c in built(folder)[1].cells)
        assert not re.findall(
            r".*(?:run_all|CPU cores|\.\./|environment\.yml|README|all six notebooks|default data|set `data` below).*", text
        )
        commands = re.findall(r"(\S+) -m srlib run (.*)--run-dir (.*)", text)
        assert all(python.endswith("!python") and more.startswith("--profile kaggle") for python, more, _ in commands)
        assert kind != "series" or (len(commands) == 7 and "those of [Kermany et al. 2018](https" in text)
    with pytest.raises(UserError, match="knows no profile 'smoke'"):
        kernels.build("someone", "short", profile="smoke", out=tmp_path)
    with pytest.raises(UserError, match="--vgg friend/vgg has no use with content_features='local-grain'"):
        kernels.build("someone", vgg="friend/vgg", out=tmp_path)


def test_the_short_kernel_is_short(tmp_path):
    (folder,) = kernels.build("someone", "short", out=tmp_path)
    metadata, notebook = built(folder)
    nbformat.validate(notebook)
    assert kernels.check(folder) == [] and metadata["enable_gpu"] and not metadata["enable_internet"]
    assert metadata["id"] == "someone/srgan-on-oct-in-one-notebook" and parameters(notebook)["pretrain_steps"] == 20_000
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 200
    (folder,) = kernels.build("someone", "short", overrides={"gan_steps": 7, "seed": 3}, out=tmp_path)
    found = parameters(built(folder)[1])
    assert found["gan_steps"] == 7 and found["overrides"] == {"seed": 3}
    assert "class ResidualBlock(nn.Module)" in code and "torch.autograd.grad" in code  # the model and the step are there to edit


def test_chain_of_six(tmp_path):
    folders = kernels.build("someone", "chain", overrides={"content_features": "vgg19:relu5_4"}, out=tmp_path)
    assert [f.name for f in folders][:3] == ["srgan-for-oct-01-explore-data", "srgan-for-oct-02-synthesize-lr", "srgan-for-oct-03-pretrain-generator"]  # fmt: skip
    before = []
    for folder, number in zip(folders, NOTEBOOKS, strict=True):
        metadata, notebook = built(folder)
        assert kernels.check(folder) == [] and metadata["kernel_sources"] == before
        assert metadata["enable_gpu"] is (number in ("03", "04")) and metadata["enable_internet"] is (number in ("03", "04"))
        assert parameters(notebook)["profile"] == "kaggle"
        links = re.findall(r"\]\((\S*srgan-for-oct\S*)\)", "".join(c.source for c in notebook.cells if c.cell_type == "markdown"))
        assert links and {f"https://www.kaggle.com/code/someone/{f.name}" for f in folders} >= set(links)
        text = "".join(c.source for c in notebook.cells[1:])
        assert (
            (f"take_over(['{metadata['id']}', '{before[0]}'], profile, run_dir, needed=True)" in text)
            if before
            else "take_over" not in text
        )
        assert ("with ending_in_time(run):" in text) is (number in ("03", "04")) and "hand_over(run)" in notebook.cells[-1].source
        before = [metadata["id"]]


def test_two_builds_are_the_same_bytes(tmp_path):
    a, b = (kernels.build("someone", out=tmp_path / name)[0] for name in "ab")
    for name in ("srgan-for-oct.ipynb", "kernel-metadata.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("place", ["srgan-for-oct-srlib", "datasets/someone/srgan-for-oct-srlib"])
def test_the_first_cell_finds_srlib(tmp_path, place):
    """Attached in the old way or the new, with its networks and notebooks; a copy in the working folder comes first; without it it is asked for."""
    shutil.copytree(dataset.build_dataset("someone", tmp_path / "built"), tmp_path / "kaggle/input" / place)
    working = tmp_path / "kaggle/working"
    working.mkdir()
    cell = dataset.attached("someone").replace("/kaggle/", f"{tmp_path}/kaggle/")
    more = "from srlib import files\nfrom srlib.models import features\nfrom srlib.series.opening import open_run\nprint(features.judge().body)\n"
    more += "print(features.feature_extractor('oct-encoder').body, sorted(p.name for p in files.NOTEBOOK_FOLDER.iterdir())[0])\n"
    more += "print(open_run('01', 'smoke', '', 'phantom', {'networks': 'released'}).folder, os.environ['PYTHONPATH'])"

    def run():
        around = {"PATH": "", "SRLIB_KAGGLE": str(tmp_path / "kaggle"), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "HOME": str(tmp_path)}
        return subprocess.run([sys.executable, "-"], cwd=working, env=around, input=f"{cell}\n{more}", capture_output=True, text=True)

    done = run()
    assert done.returncode == 0 and "01_explore_data.ipynb" in done.stdout, done.stderr
    assert f"{working}/runs/smoke {tmp_path}/kaggle/input/{place}" in done.stdout and "another version" not in done.stdout
    shutil.copytree(tmp_path / "kaggle/input" / place / "srlib", working / "srlib")
    done = run()
    assert done.returncode == 0 and f"srlib from {working} (a copy" in done.stdout, done.stderr
    shutil.rmtree(tmp_path / "kaggle/input")
    shutil.rmtree(working / "srlib")
    assert "press Add Input, Datasets, and add someone/srgan-for-oct-srlib" in run().stderr


def test_the_data_set_is_the_package(tmp_path):
    """What the wheel puts into srlib (`test_colab` compares them), known again by its version; equal content, equal bytes."""
    folder = dataset.build_dataset("someone", tmp_path)
    assert dataset.check_dataset(folder) == []
    for name in ("srlib/__init__.py", "srlib/models/networks.py", "srlib/weights/judge.pt", "srlib/weights/released.json", "srlib/notebooks/experiments/losses.yaml"):  # fmt: skip
        assert (folder / name).is_file(), name
    assert [p.name for p in folder.glob("version-*")] == [f"version-{dataset.version()}.txt"]
    (folder / "version-0.txt").write_text("")
    assert any("must be the only file of its kind" in sentence for sentence in dataset.check_dataset(folder))
    assert not list(folder.rglob("__pycache__")) and sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 30e6


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"title": "Another one"}, "makes the slug 'another-one', but id says 'srgan-for-oct-srlib'"),
        ({"id": "datasets/someone/x"}, "must be OWNER/SLUG"),
        ({"subtitle": "short"}, "must have 20 to 80 characters"),
        ({"licenses": []}, "must be a list of one name"),
        ({"licenses": ...}, "no data set can be read there"),
    ],
)
def test_check_refuses_a_data_set(tmp_path, facts, words):
    folder = dataset.build_dataset("someone", tmp_path)
    change(folder, "dataset-metadata.json", **facts)
    assert any(words in sentence for sentence in dataset.check_dataset(folder))
    (folder / "srlib/__init__.py").unlink()
    assert facts == {"licenses": ...} or any(
        "1 of srlib's files differ from this repository's, __init__.py first" in sentence for sentence in dataset.check_dataset(folder)
    )


def change(folder, file="kernel-metadata.json", **facts):
    file = folder / file
    metadata = json.loads(file.read_text()) | facts
    file.write_text(json.dumps({k: v for k, v in metadata.items() if v is not ...}))


def alter(folder, work):
    file = folder / f"{folder.name}.ipynb"
    notebook = json.loads(file.read_text())
    work(notebook)
    file.write_text(json.dumps(notebook))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: change(f, enable_interent=True), "no key 'enable_interent'; did you mean 'enable_internet'"),
        (lambda f: change(f, enable_internet=...), "enable_internet must be a bool, not None; left out, Kaggle takes internet as on"),
        (lambda f: change(f, enable_gpu="true"), "enable_gpu must be a bool, not 'true'"),
        (lambda f: change(f, title="Another title"), "makes the slug 'another-title', but id says 'srgan-for-oct'"),
        (lambda f: change(f, id="code/someone/srgan-for-oct"), "'code/someone/srgan-for-oct' must be OWNER/SLUG"),
        (lambda f: change(f, dataset_sources=["datasets/a/b"]), "'datasets/a/b' must be OWNER/SLUG"),
        (lambda f: change(f, machine_shape="NvidiaTeslaP100"), "wrong accelerator: a notebook that trains needs enable_gpu true"),
        (lambda f: change(f, enable_gpu=False), "wrong accelerator"),
        (lambda f: change(f, enable_tpu=True), "wrong accelerator"),
        (lambda f: change(f, language="r"), "must be python and notebook"),
        (lambda f: alter(f, lambda n: n["metadata"].pop("kernelspec")), "kernelspec.name must be 'python3'"),
        (lambda f: alter(f, lambda n: n["cells"][1].update(execution_count=3)), "outputs or execution counts"),
        (lambda f: alter(f, lambda n: n["cells"][0].update(source="x" * 1_000_000)), "MB; Kaggle takes 1"),
        (lambda f: alter(f, lambda n: n["cells"][2]["metadata"].clear()), "0 cells are tagged 'parameters'"),
        (lambda f: change(f, dataset_sources=["someone/else"]), "the data set someone/srgan-for-oct-srlib, which the kernel imports, is not attached"),
        (lambda f: alter(f, lambda n: n["cells"][3].update(source="for x in")), "the cell 'for x in' is no Python"),
        (lambda f: (f / "kernel-metadata.json").write_text("[]"), "no kernel can be read there"),
        (lambda f: (f / "srgan-for-oct.ipynb").write_text("{}"), "no kernel can be read there"),
        (lambda f: (f / "kernel-metadata.json").unlink(), "no kernel can be read there"),
        (lambda f: (f / "srgan-for-oct.ipynb").write_text("{"), "no kernel can be read there"),
    ],
)  # fmt: skip
def test_check_refuses(tmp_path, monkeypatch, capsys, harm, words):
    monkeypatch.setattr(kernels, "OUT", tmp_path)
    monkeypatch.setattr(dataset, "OUT", tmp_path)
    assert command.main(["kaggle", "build", "--user", "someone"]) == command.main(["kaggle", "check"]) == 0
    harm(tmp_path / "srgan-for-oct")
    assert command.main(["kaggle", "check"]) == 1
    said = capsys.readouterr().err
    assert words in said and all(line.startswith("error: ") for line in said.splitlines())


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="did you mean 'gan_steps'"):
        kernels.build("someone", overrides={"gan_step": 1}, out=tmp_path)
    with pytest.raises(UserError, match="profile is no setting; choose 'quick' with --profile"):
        kernels.build("someone", overrides={"profile": "quick"}, out=tmp_path)
    for user in ("", "a/b"):
        with pytest.raises(UserError, match="--user NAME"):
            kernels.build(user, out=tmp_path)


@pytest.mark.parametrize("place", ["vgg-weights", "datasets/friend/vgg-weights"])
def test_vgg_weights_are_found_on_both_mounts(tmp_path, monkeypatch, place):
    monkeypatch.setattr("srlib.files.KAGGLE_INPUT", tmp_path)
    file = tmp_path / place / "vgg19.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert features.find_weights("friend/vgg-weights", "vgg19") == file
    with pytest.raises(UserError, match="no vgg16 weights there"):
        features.find_weights("friend/vgg-weights", "vgg16")


def test_a_training_that_is_out_of_time_ends_the_notebook_well(tmp_path, capsys):
    """Out of time: what there is is handed over, and SystemExit(0); other mistakes stay mistakes."""
    from srlib.config import OutOfTime

    run = open_run("01", "smoke", str(tmp_path / "run"))
    write(run.folder / "pretrain" / "checkpoint.pt", b"half")
    with pytest.raises(SystemExit) as end, handover.ending_in_time(run):
        raise OutOfTime("max_hours=9 are over")
    assert end.value.code == 0 and "max_hours=9 are over" in capsys.readouterr().out
    facts = json.loads((run.folder / "handover.json").read_text())
    assert facts["finished"] is False and set(facts["files"]) == {"config.json", "pretrain/checkpoint.pt"}
    with pytest.raises(UserError, match="no scans"), handover.ending_in_time(run):
        raise UserError("no scans")
