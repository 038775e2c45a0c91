"""Kernels as files: what is built, what is in it, and what the check refuses."""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from srlib import __main__ as command
from srlib.config import UserError, load_config
from srlib.files import write
from srlib.kaggle import handover, kernels
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
    assert metadata["dataset_sources"] == ["paultimothymooney/kermany2018", "friend/vgg-weights"] and not metadata["kernel_sources"]
    wanted = {"profile": "kaggle", "run_dir": "", "data": "", "overrides": content | {"feature_weights": "friend/vgg-weights"}}
    assert parameters(notebook) == wanted
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    assert re.findall(r'open_run\("(\d\d)"', "".join(code[1:])) == list(NOTEBOOKS)
    assert sum("b85decode" in c for c in code) == 1 and not any("find srlib" in c for c in code)
    text = "".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert ".ipynb" not in text and "Previous:" not in text and text.count("## Exercises") >= 5
    carried = notebook.cells[1].metadata
    assert carried["jupyter"]["source_hidden"] and carried["_kg_hide-input"]
    assert sum("attachments" in c for c in notebook.cells) == 6  # the pictures travel


def test_chain_of_six(tmp_path):
    folders = kernels.build("someone", chain=True, overrides={"content_features": "vgg19:relu5_4"}, out=tmp_path)
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


def test_carried_cell_imports_from_its_zip(tmp_path):
    """The first cell alone, away from the repository, gives srlib with its networks; a changed one says so."""
    cell = kernels._carried(load_config("smoke", content_features="oct-encoder"))
    code = (
        cell
        + "\nfrom srlib.models import features\nfrom srlib.data import sources\nprint(features.judge().body, features.feature_extractor('oct-encoder').body, sep='\\n')\n"
    )
    code += "assert '.zip' in features.__file__ and os.environ['PYTHONPATH'].endswith('.zip'), sources.HOME\nprint(sources.HOME)\n"

    def run(text):
        return subprocess.run([sys.executable, "-"], cwd=tmp_path, env={"PATH": ""}, input=text, capture_output=True, text=True)

    done = run(code)
    assert done.returncode == 0 and "Judge" in done.stdout and done.stdout.endswith(f"{tmp_path}\n"), done.stderr
    line = cell.splitlines()[8]
    harmed = run(cell.replace(line, line[:-2] + ("00" if line[-2:] != "00" else "11")))
    assert harmed.returncode


def change(folder, **facts):
    file = folder / "kernel-metadata.json"
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
        (lambda f: (f / "kernel-metadata.json").unlink(), "no kernel can be read there"),
        (lambda f: (f / "srgan-for-oct.ipynb").write_text("{"), "no kernel can be read there"),
    ],
)  # fmt: skip
def test_check_refuses(tmp_path, monkeypatch, capsys, harm, words):
    monkeypatch.setattr(kernels, "OUT", tmp_path)
    monkeypatch.setattr(kernels, "_carried", lambda config: "# srlib")
    assert command.main(["kaggle", "build", "--user", "someone"]) == command.main(["kaggle", "check"]) == 0
    harm(tmp_path / "srgan-for-oct")
    assert command.main(["kaggle", "check"]) == 1
    said = capsys.readouterr().err
    assert words in said and all(line.startswith("error: ") for line in said.splitlines())


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="did you mean 'gan_steps'"):
        kernels.build("someone", overrides={"gan_step": 1}, out=tmp_path)
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
