"""The series when something is wrong: a sentence, the right exit status, nothing lost. (How it is stopped and continued: test_series.py.)"""

import json

import pytest
from running import said, srlib

from srlib.__main__ import main
from srlib.config import UserError
from srlib.data import sources
from srlib.series.opening import open_run
from srlib.series.run_folder import locked
from srlib.training import checkpoint


def test_later_notebooks_name_the_missing_stage(tmp_path):
    with pytest.raises(UserError, match="run 01_explore_data first"):
        open_run("05", "smoke", str(tmp_path / "new"))
    run = open_run("01", "smoke", str(tmp_path / "new"))
    with run.stage("data"):
        run.make_manifest()
    with pytest.raises(UserError, match=r"srresnet\.pt is missing; run 03_pretrain_generator first"):
        open_run("05", "smoke", str(tmp_path / "new"))
    with pytest.raises(UserError, match="profile='smoke', not 'quick'"):
        open_run("03", "quick", str(tmp_path / "new"))
    changed = open_run("03", "smoke", str(tmp_path / "new"), overrides={"pretrain_steps": 5, "pretrain_lr": "2.5E-3"})
    assert changed.config.pretrain_steps == 5 and changed.config.pretrain_lr == 2.5e-3  # YAML takes it for text
    assert json.loads((tmp_path / "new/config.json").read_text())["pretrain_steps"] == 5


def test_images_that_were_moved_are_found_by_data(scan_folder, tmp_path, monkeypatch):
    """Scans where the manifest's hashes fit, and nothing else changes; phantoms by themselves."""
    run = open_run("01", "smoke", str(tmp_path / "run"), str(scan_folder))
    run.make_manifest()
    checkpoint.save(run.folder / "pretrain/checkpoint.pt", {})
    run.record("stages", "pretrain", made_from=run.made_from("pretrain"), finished="yes")
    moved, call = scan_folder.rename(tmp_path / "moved"), ("smoke", str(run.folder))
    with pytest.raises(UserError, match=r"is gone; name the folder where they are now with data \(--data\)"):
        open_run("03", *call).images("val")
    for notebook in ("03", "01"):
        again = open_run(notebook, *call, str(moved))
        assert again.config == run.config and not again.changed("pretrain") and all(file.exists() for file in again.images("val"))
        again.make_manifest()
    next(moved.rglob("*.png")).rename(tmp_path / "other.png")
    moved = moved.rename(tmp_path / "fewer")
    with pytest.raises(UserError, match=f"{moved} does not hold its .*png; choose another folder"):
        open_run("03", *call, str(moved))
    run = open_run("01", "smoke", str(tmp_path / "phantoms"))
    run.make_manifest()
    checkpoint.save(run.folder / "pretrain/checkpoint.pt", {})
    with pytest.raises(UserError, match="was made with data='phantom', not"):
        open_run("01", "smoke", str(tmp_path / "phantoms"), str(moved))
    monkeypatch.setattr(sources, "DATA", tmp_path / "another clone/data")
    run.record("data", "images", root=str(tmp_path / "gone" / run.root.name))
    assert run.root.parent == tmp_path / "another clone/data/phantoms" and run.images("val")[0].exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "is not a folder"),
        (lambda d: d.mkdir(), "holds no image"),
        (lambda d: (d.mkdir(), (d / "a.txt").write_text("x")), "holds no image"),
        (lambda d: (d.mkdir(), (d / "a.png").write_text("x")), "is not an image"),
    ],
)
def test_bad_data_is_one_sentence(tmp_path, make, words):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=f"{tmp_path / 'in'}.*{words}"):
        open_run("01", "smoke", str(tmp_path / "run"), str(tmp_path / "in")).make_manifest()


def test_what_a_notebook_says_is_one_sentence_of_the_command(tmp_path):
    failed = srlib("run", "--profile", "smoke", "--data", tmp_path / "in", "--run-dir", tmp_path / "run")
    assert failed.returncode == 1 and len(said(failed)) == 1, failed.stderr
    assert failed.stderr.startswith("error: 01_explore_data, cell [") and f"{tmp_path / 'in'} is not a folder" in failed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--run-dir", "{tmp}/file/run"),
            "{tmp}/file/run cannot be written (Not a directory); choose another folder with run_dir (--run-dir)",
        ),
        (
            ("--run-dir", "{tmp}/used"),
            "{tmp}/used is in use by another process; wait for it, or choose another folder with run_dir (--run-dir)",
        ),
        (("--run-dir", "{tmp}/new", "--profile", "quik"), "there is no profile 'quik'; did you mean 'quick'?"),
        (("--run-dir", "{tmp}/new", "--only", "08"), "there is no notebook '08' up to 07; there are 01, 02, 03, 04, 05, 06, 07"),
    ],
)
def test_a_run_that_cannot_begin_is_one_sentence(tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("in the way")
    with locked(tmp_path / "used"):
        assert main(["run", "--profile", "smoke", *(word.replace("{tmp}", str(tmp_path)) for word in words)]) == 1
    assert capsys.readouterr().err == f"error: {message.replace('{tmp}', str(tmp_path))}\n"
