"""A file is known by its relative path, in folders of results and in what is made of them; commands and what they refuse."""

import os
import subprocess
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from running import one_line, reduced, save

from srlib.__main__ import COMMANDS, main
from srlib.commands import run
from srlib.commands.evaluate import as_text, evaluate_folders
from srlib.commands.upscale import upscale_files
from srlib.config import UserError, load_config
from srlib.data import reading
from srlib.data.phantom import bscan
from srlib.data.reading import read_image
from srlib.degrade import to_image, to_tensor, upsample
from srlib.evaluation.run import evaluate_run, evaluated_images
from srlib.files import REPOSITORY
from srlib.models import Generator
from srlib.sampler.network import Sampler
from srlib.trained import save_weights

pytestmark = pytest.mark.usefixtures("no_vgg")


@pytest.fixture
def sampler():
    torch.manual_seed(0)
    net = Sampler(Generator(4, 1, 8, 1, global_skip=True), 4).eval()
    torch.nn.init.normal_(net.head.tail.weight, std=0.2)
    return net


def evaluated(sampler, folder, paths, **settings):
    """A run folder with untrained networks, evaluated on the last of `paths` (the first two: train and val)."""
    for name, net in (("srresnet", sampler.trunk), ("srgan", sampler.trunk), ("sampler", sampler)):
        save_weights(folder / f"{name}.pt", net)
    rows = [(path, *read_image(folder / path).shape, "A", str(k)) for k, path in enumerate(paths)]
    manifest = pd.DataFrame(rows, columns=["path", "height", "width", "label", "patient"])
    manifest["split"] = ["train", "val", *["test"] * (len(paths) - 2)]
    config = load_config("smoke", data=str(folder), sample_images=1, classifier_steps=1, **settings)
    return config, evaluate_run(config, folder, manifest, folder)


# --------------------------------------------------------------------------------------------- evaluation/sr
def test_test_scans_of_one_stem_keep_their_own_pictures(sampler, tmp_path):
    names = ["A/train.png", "A/val.png", "A/x.jpg", "A/x.png", "A/x#1.png", "A/y.jpg", "A/x.tif#1", "A/x.tif#2"]
    for k, name in enumerate(names[:6]):
        save(tmp_path / name, bscan(k, 64, 72))
    save(tmp_path / "A/x.tif", bscan(7, 64, 72), bscan(8, 64, 72))
    config, table = evaluated(sampler, tmp_path, names)
    assert set(table.image) == set(names[2:])
    for name in names[2:]:
        images = evaluated_images(tmp_path, tmp_path, name, config, ("bicubic",))
        assert (images["bicubic"] == to_image(upsample(to_tensor(reduced(images["hr"]))))).all(), name
    made = sorted(path.name for path in (tmp_path / "evaluation/sr/srgan/A").iterdir())
    assert made == ["x#1.png.png", "x#2.png", "x.jpg.png", "x.png.png", "x.tif#1.png", "y.png"]  # others are named as in older runs
    result = evaluate_folders(tmp_path / "evaluation/sr/bicubic", tmp_path, steps=0)
    ours = table[(table.method == "bicubic") & (table.region == "whole")].set_index("image").psnr
    theirs = result.table[result.table.region == "whole"].set_index("image").psnr
    assert not result.failed and len(theirs) == 6
    assert theirs[["A/x.jpg", "A/x.png", "A/x#1.png", "A/y", "A/x.tif#1", "A/x#2"]].tolist() == ours[names[2:]].tolist()


def test_names_stay_apart_whatever_files_are_called():
    paths = ["a.jpg", "a.png", "a.jpg.png", "v.tif#1", "v#1.png", "b/a.png"]
    assert list(reading.png_names(paths)) == paths and len(set(reading.png_names(paths).values())) == 6
    assert str(reading.png_names(paths)["b/a.png"]) == "b/a.png"


def test_scans_smaller_than_the_crop_are_evaluated(sampler, tmp_path):
    names = ["train.png", "val.png", "test.png"]
    for k, name in enumerate(names):
        save(tmp_path / name, bscan(k, 66, 72 + k))
    _, table = evaluated(sampler, tmp_path, names, crop=96)
    psnr = table[table.region == "whole"].set_index("method").psnr
    assert psnr["linear"] > psnr["bicubic"] - 1


# --------------------------------------------------------------------------------------------- upscale, then evaluate
def test_upscale_keeps_the_tree(sampler, tmp_path):
    for k, name in enumerate(("P1/NORMAL/scan.png", "P2/NORMAL/scan.jpg", "scan.png")):
        save(tmp_path / "in" / name, bscan(k, 32, 40))
    save(tmp_path / "in/P1/eye.tif", bscan(3, 32, 40), bscan(4, 32, 40))
    _, _, failed, _ = upscale_files(tmp_path / "in", tmp_path / "out", sampler)
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert not failed and made == {"P1/NORMAL/scan.png", "P2/NORMAL/scan.png", "scan.png", "P1/eye#1.png", "P1/eye#2.png"}


def test_files_that_exist_are_left_unless_again(sampler, tmp_path):
    """Whatever they are; a folder within the source is no source, and a file that cannot be opened does not end it."""
    for k, name in enumerate(("a.png", "P1/b.jpg")):
        save(tmp_path / "in" / name, bscan(k, 32, 40))
    (tmp_path / "in/lost.png").symlink_to(tmp_path / "nowhere.png")
    out = tmp_path / "in/sr"
    written, _, failed, _ = upscale_files(tmp_path / "in", out, sampler)
    assert len(written) == 2 and len(failed) == 1 and "lost.png" in failed[0]
    before = save(out / "a.png", bscan(9, 32, 40)).read_bytes()
    (out / "P1/b.png").unlink()
    written, earlier, _, _ = upscale_files(tmp_path / "in", out, sampler)
    assert (written, earlier) == ([out / "P1/b.png"], [out / "a.png"]) and (out / "a.png").read_bytes() == before
    written, earlier, _, _ = upscale_files(tmp_path / "in", out, sampler, again=True)
    assert len(written) == 2 and not earlier and (out / "a.png").read_bytes() != before


@pytest.mark.parametrize("samples", [1, 2])
def test_what_upscale_makes_of_trees_and_volumes_is_measured(sampler, tmp_path, samples):
    scans = [bscan(k, 96, 112) for k in range(4)]
    files = {"P1/scan": scans[:1], "P2/scan": scans[1:2], "P2/eye": scans[2:]}
    for name, pages in files.items():
        save(tmp_path / "hr" / f"{name}.tif", *pages)
        save(tmp_path / "lr" / f"{name}.tif", *map(reduced, pages))
    upscale_files(tmp_path / "lr", tmp_path / "sr", sampler, samples=samples, spread=samples > 1)
    result = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert not result.failed and sorted(result.table.image.unique()) == ["P1/scan", "P2/eye#1", "P2/eye#2", "P2/scan"]
    assert result.table.consistency.min() > 45 and len(result.samples) == (4 if samples > 1 else 0)
    assert result.unpaired.empty or set(result.unpaired.patients) == {3}  # a volume is one patient's


def test_sr_and_hr_have_one_path(tmp_path):
    for name in ("P1/a.png", "P2/a.tif", "P2/c.png", "P2/c.jpg", "e.png", "e_sample1.png", "lonely.png"):
        save(tmp_path / "hr" / name, bscan(1, 96, 112))
    for name in ("P1/a.bmp", "P2/a.png", "a.png", "P2/c.png", "P2/c.jpg.png", "P1/d_sample1.png", "e_sample1.png", "e.png", "e.jpg"):
        save(tmp_path / "sr" / name, bscan(1, 96, 112))
    result = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert sorted(result.table.image.unique()) == ["P1/a", "P2/a", "P2/c.jpg", "e", "e_sample1"]
    without = [line for line in result.failed if "no HR image has this path" in line]
    assert [line.partition(": ")[0].rpartition("sr/")[2] for line in without] == ["a.png", "P2/c.png", "P1/d_sample1.png"]
    assert len(result.failed) == 4 and sum("e.png: e.jpg has the same HR image" in line for line in result.failed) == 1
    assert result.warned == ["2 HR image(s) have no SR image"]
    with pytest.raises(UserError, match=r"nothing could be measured; the first reason: .*no HR image has this path"):
        evaluate_folders(tmp_path / "sr/P1", tmp_path / "hr", steps=0)


def test_sr_of_another_size(tmp_path):
    """HR that is no multiple of the scale is cut, and so is SR of its size; a sample of another scan is an error."""
    for name in ("hr/a.png", "hr/b.png", "sr/b.png", "sr/a_sample1.png"):
        save(tmp_path / name, bscan(1, 67, 82))
    save(tmp_path / "sr/a_sample2.png", bscan(1, 90, 120))
    result = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert (result.table.psnr > 90).all() and set(result.table.image) == {"b"} and "a_sample1" in result.failed[0]


# --------------------------------------------------------------------------------------------- the command line
def test_a_result_that_is_no_png_is_refused(sampler, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "net.pt", sampler)
    save(tmp_path / "in/scan.png", bscan(1, 32, 40))
    (tmp_path / "folder.v2").mkdir()
    for words in (("in/scan.png", "sr.jpg"), ("in/scan.png", "sr.PDF"), ("in", "sr.png")):
        assert main(["upscale", *words, "--weights", "net.pt"]) == 1
        assert words[-1] in one_line(capsys) and not (tmp_path / words[-1]).exists()
    assert main(["upscale", "in/scan.png", "folder.v2", "--weights", "net.pt"]) == 0 and (tmp_path / "folder.v2/scan.png").exists()
    assert main(["phantom", "new/scan.PNG", "--scale", "8"]) == 0 and (tmp_path / "new/scan.PNG").exists()


def test_only_what_the_user_can_mend_is_one_line(monkeypatch, capsys):
    for error, words in (
        (UserError("no such thing"), "no such thing"),
        (PermissionError(13, "Permission denied", "runs/x"), "runs/x: Permission denied"),
        (OSError(28, "No space left on device"), "a file or the output: No space left on device"),
        (MemoryError(), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory ran out"),
    ):
        monkeypatch.setattr(run, "run_series", Mock(side_effect=error))
        assert main(["run"]) == 1 and words in one_line(capsys)
    for error in (RuntimeError("shapes do not match"), ConnectionError("refused")):
        monkeypatch.setattr(run, "run_series", Mock(side_effect=error))
        with pytest.raises(type(error)):
            main(["run"])


def test_a_blank_frame_does_not_rule_the_power(tmp_path, capsys):
    """HR all 90, SR all 91, as volumes have at their ends: no power to compare with, said and left out."""
    for name, hr, sr in (("s0", bscan(0, 96, 112), bscan(0, 96, 112)), ("blank", np.full((96, 112), 90), np.full((96, 112), 91))):
        save(tmp_path / f"hr/{name}.png", hr.astype(np.uint8))
        save(tmp_path / f"sr/{name}.png", sr.astype(np.uint8))
    result = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    blank = result.table[result.table.image == "blank"]
    assert blank[["band1_db", "band2_db", "texture_error_db", "stripe_db", "checkerboard"]].isna().all(axis=None)
    assert np.isfinite(blank.psnr[blank.region != "retina"]).all()
    said = as_text(result)
    assert "1 image(s) left out of power: blank" in said and "1 image(s) left out of PSNR: SR equals HR" in said
    (line,) = [line for line in said.splitlines() if line.startswith("texture error")]
    assert float(line.split()[-1]) == 0 and "inf" not in said


# --------------------------------------------------------------------------------------------- run_all.sh
@pytest.fixture
def run_all(tmp_path):
    """`run_all.sh` with a python that says where, and with which words after its program."""
    fake = tmp_path / "bin/python3"
    fake.parent.mkdir()
    fake.write_text('#!/usr/bin/env bash\necho "$PWD:" "${@:4}"\n')
    fake.chmod(0o755)

    def call(*words):
        return subprocess.run(
            ["bash", str(REPOSITORY / "run_all.sh"), *words], cwd=tmp_path, env=call.around, capture_output=True, text=True
        )

    call.around = os.environ | {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "PATH": f"{fake.parent}:{os.environ['PATH']}"}

    return call


def test_run_all_hands_every_word_on(run_all, tmp_path):
    for words in (*[(name, "a b", "--list") for name in COMMANDS], ("nonsense",), ("upscale", "--help")):
        assert run_all(*words).stdout == f"{tmp_path}: {REPOSITORY} srlib {' '.join(words)}\n"
    for words in ((), ("--profile", "smoke", "--from", "03"), ("--gpus", "2", "-p", "scale", "2")):
        assert run_all(*words).stdout == " ".join([f"{tmp_path}: {REPOSITORY} srlib run", *words]) + "\n"
    assert run_all("test", "-m", "slow").stdout == f"{REPOSITORY}: {REPOSITORY} pytest -m slow\n"
    assert run_all("lab", "--no-browser").stdout == f"{REPOSITORY}/notebooks: {REPOSITORY} jupyterlab --no-browser\n"


def test_help_makes_no_environment_and_half_a_one_is_made_anew(run_all, tmp_path):
    said = run_all("--help").stdout
    ours = f"{tmp_path}: {REPOSITORY} srlib"
    assert all(word in said for word in ("test", "lab", "--conda", f"{ours} --help", f"{ours} run --help"))
    copy = tmp_path / "clone"
    copy.mkdir()
    for name in ("run_all.sh", "environment.yml"):
        (copy / name).write_text((REPOSITORY / name).read_text())
    bare = {"KAGGLE_KERNEL_RUN_TYPE": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": ""}
    for words in (["-h"], ["help"], ["--conda", "--help"]):
        done = subprocess.run(["bash", str(copy / "run_all.sh"), *words], env=os.environ | bare, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "./run_all.sh test" in done.stdout and not done.stderr
    assert sorted(path.name for path in copy.iterdir()) == ["environment.yml", "run_all.sh"]
    (copy / ".venv/bin").mkdir(parents=True)  # as an interrupt or a Debian without python3-venv leaves it
    (copy / ".venv/bin/python").write_text('#!/bin/sh\n[ "$3" != pip ]')
    (copy / ".venv/bin/python").chmod(0o755)
    (tmp_path / "bin/python3").write_text('#!/bin/sh\n[ "$2" = -c ] || echo "$@"')
    done = subprocess.run(
        ["bash", str(copy / "run_all.sh"), "phantom"], env=run_all.around | bare, capture_output=True, text=True, timeout=60
    )
    assert f"--clear {copy}/.venv" in done.stdout
