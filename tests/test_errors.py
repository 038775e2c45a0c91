"""What the disk, the memory, a closed pipe or a damaged file does to a command: one sentence that names the file, and the rest of the work is done."""

import errno
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
from running import one_line, save

from srlib import files, upscaling
from srlib.__main__ import main
from srlib.commands import report, sweep
from srlib.commands.evaluate import evaluate_folders
from srlib.config import UserError, load_config
from srlib.data.phantom import bscan
from srlib.files import REPOSITORY
from srlib.models import features
from srlib.series.opening import open_run
from srlib.series.run_folder import Run, read_config

pytestmark = pytest.mark.usefixtures("no_vgg")


@pytest.fixture
def scans(tmp_path):
    for k in range(2):
        for part in ("sr", "hr"):
            save(tmp_path / part / f"s{k}.png", bscan(k, 96, 112))
    return tmp_path


@pytest.mark.parametrize(
    "number, todo", [(errno.ENOSPC, "free the disk, or choose another folder"), (errno.EACCES, "choose another place")]
)
def test_a_disk_that_refuses_is_a_sentence_with_the_file(tmp_path, monkeypatch, capsys, number, todo):
    """The earlier file stays, and nothing else is left."""
    refusal = OSError(number, os.strerror(number))  # it names no file; the system refuses root nothing
    monkeypatch.setattr(os, "fsync", Mock(side_effect=refusal))
    assert main(["phantom", str(tmp_path / "x.png")]) == 1
    assert one_line(capsys) == f"error: {tmp_path / 'x.png'} cannot be written ({os.strerror(number)}); {todo}"
    (tmp_path / "earlier").write_text("earlier")
    with pytest.raises(UserError, match="earlier cannot be written"):
        files.write(tmp_path / "earlier", "later")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["earlier"]


def test_phantom(tmp_path, capsys):
    (tmp_path / "d.png").mkdir()
    for words, said in (
        (("scan",), "error: scan: a phantom is a PNG file; call it scan.png"),
        (("--seed", "-1", "q.png"), "error: seed cannot be -1; it is 0 or more"),
        ((str(tmp_path / "d.png"),), "d.png cannot be written (Is a directory); choose another place"),
        ((str(tmp_path / ("a" * 300 + ".png")),), "(File name too long); choose another place"),
    ):
        assert main(["phantom", *words]) == 1
        assert said in one_line(capsys)
    assert main(["phantom", str(tmp_path / "new/folder/x.png")]) == 0 and (tmp_path / "new/folder/x.png").exists()


def test_one_bad_target_does_not_end_a_batch(scans, monkeypatch, capsys):
    """A name that is too long once it is a slice's, and a subfolder that is a file: both are said, the rest is written."""
    save(scans / "sr" / ("a" * 250 + ".tif"), bscan(0, 64, 64), bscan(1, 64, 64))
    (scans / "sr/sub").mkdir()
    shutil.copy(scans / "sr/s0.png", scans / "sr/sub/s0.png")
    (scans / "out").mkdir()
    (scans / "out/sub").write_text("in the way")
    assert main(["upscale", str(scans / "sr"), str(scans / "out")]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3 and all("File name too long" in line for line in lines[:2]) and str(scans / "out/sub/s0.png") in lines[2]
    assert "2 image(s) written, 3 failed" in said.out and (scans / "out/s1.png").exists()
    assert not list((scans / "out").rglob("*.part"))


def test_an_image_without_memory_does_not_end_a_batch(scans, monkeypatch, capsys):
    short = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    monkeypatch.setattr(upscaling, "samples", Mock(side_effect=[short, [bscan(1, 384, 448)]]))
    assert main(["upscale", str(scans / "sr"), str(scans / "out")]) == 1
    said = capsys.readouterr()
    assert f"error: {scans / 'sr/s0.png'}: memory ran out; cut it into parts" in said.err and "1 image(s) written, 1 failed" in said.out
    monkeypatch.setattr(upscaling, "samples", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is no sentence
        main(["upscale", str(scans / "sr"), str(scans / "other")])


@pytest.mark.parametrize("folder", ["new", "sr/s0.png"])
def test_a_table_gets_its_folder_and_is_printed_where_it_cannot_be_saved(scans, capsys, folder):
    out = scans / folder / "m.csv"
    assert main(["evaluate", str(scans / "sr"), str(scans / "hr"), "--steps", "0", "--out", str(out)]) == (folder != "new")
    said = capsys.readouterr()
    assert "2 image(s) measured, 0 not" in said.out and out.exists() == (folder == "new")
    assert (f"error: {out} cannot be written (" in said.err) == (folder != "new")


def test_a_reader_that_has_enough_and_a_full_output():
    """`| head` ends a command in silence; an output that takes no more is a sentence. No second complaint at Python's end."""
    code = "import sys; from srlib import __main__ as m; from srlib.commands import kaggle; kaggle.main = lambda args: print('x' * 10); sys.exit(m.main(['kaggle', 'build']))"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        no_space = "error: a file or the output: No space left on device; choose another place or free it\n"
        for output, said in ((writer, ""), (full, no_space)):
            done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=output, stderr=subprocess.PIPE, text=True)
            assert (done.returncode, done.stderr) == (1, said)
    os.close(writer)
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # closed: nobody wants to hear it


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("provenance.json", b"{", "is damaged"),
        ("provenance.json", b"\xff", "is damaged"),
        ("config.json", b"{", "is damaged"),
        (
            "config.json",
            b'{"profile": "smoke", "gan_step": 3}',
            "cannot be used (there is no setting 'gan_step'; did you mean 'gan_steps'?)",
        ),
        ("manifest.csv", b"", "is damaged"),
        ("manifest.csv", b"path,label\na,b\nc,d,e,f\n", "is damaged"),
        ("manifest.csv", b"path,label\n\xff,x\n", "is no text in UTF-8; save it as such"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, content, said):
    run = Run(tmp_path, load_config("smoke"))
    run.write_config()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} ") as error:
        read_config(tmp_path / "config.json"), run.provenance, run.manifest
    message = str(error.value)
    assert said in message and len(message.splitlines()) == 1 and str(tmp_path / name) in message


def test_a_point_whose_pretraining_cannot_be_copied_is_no_half_point(tmp_path, monkeypatch):
    content = {"points": [{}, {"gan_steps": 3}], "profile": "smoke", "seeds": [0]}
    first, second = sweep.make_points(content, tmp_path)
    run = Run(first.folder, first.config)
    run.write_config()
    for name in ("manifest.csv", "srresnet.pt", "pretrain/checkpoint.pt"):
        (first.folder / name).parent.mkdir(exist_ok=True)
        (first.folder / name).write_text("x")
    run.record("stages", "pretrain", finished="yes", made_from=run.made_from("pretrain"))
    first.note(settings=first.settings, finished=None, error=None)

    monkeypatch.setattr(sweep.shutil, "copy2", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(UserError, match="gan_steps-3-seed0 cannot be written"):
        sweep._share_pretraining(second, [first, second])
    assert not second.folder.exists()


def test_weights_of_the_content_loss_are_asked_for_before_the_pretraining(tmp_path, monkeypatch):
    """Not after hours of it. Where it has ended, or where the weights are there, nothing is said."""
    run = Run(tmp_path, load_config("smoke", content_features="vgg19:relu5_4", feature_weights=str(tmp_path / "nowhere")))
    run.write_config()
    (tmp_path / "manifest.csv").touch()
    with pytest.raises(UserError, match=r"nowhere. is no file; .*change it in 01_explore_data"):
        open_run("03", "smoke", str(tmp_path))
    asked = []
    monkeypatch.setattr(features, "feature_extractor", lambda name, weights: asked.append(name))
    open_run("03", "smoke", str(tmp_path))
    assert asked == ["vgg19:relu5_4"]
    run.record("stages", "pretrain", finished="yes")
    open_run("03", "smoke", str(tmp_path))
    assert len(asked) == 1


def test_a_damaged_notebook_and_wrong_counts_are_sentences(tmp_path):
    notebook = tmp_path / "05_evaluate.ipynb"
    for content in (b"", b"{", b"{}", b"\xe3"):
        notebook.write_bytes(content)
        with pytest.raises(UserError, match=r"05_evaluate\.ipynb is damaged .*--only 05 makes it anew"):
            report.notebook_html(notebook)
    with pytest.raises(UserError, match="steps cannot be -1"):
        evaluate_folders(tmp_path, tmp_path, steps=-1)
