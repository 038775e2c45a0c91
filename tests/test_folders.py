"""What lies in a data folder is taken, or listed with the reason."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from srlib.config import Config, UserError, load_config
from srlib.data.manifest import build_manifest
from srlib.data.phantom import bscan
from srlib.data.reading import find_images, lr_partner, read_pair
from srlib.degrade import downsample, to_image, to_tensor
from srlib.series.opening import open_run
from srlib.series.run_folder import Run


def scans(folder, count=4, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(bscan(start + k, 64, 80)).save(folder / f"NORMAL-{start + k}-1.png")


def test_what_is_left_out_is_said(tmp_path, monkeypatch):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    scans(root / "a")
    scans(elsewhere, 2, 20)
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    scans(root / "run1/evaluation/sr", 3, 30)
    for name in ("config.json", "provenance.json"):
        (root / "run1" / name).write_text("{}")
    scans(root / "closed", 1, 40)
    scandir = os.scandir

    def refusing(path="."):  # who runs the tests may be root, to whom nothing is closed
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    left_out: list = []
    assert {p.parent.name for p in find_images(root, left_out)} == {"a"}
    reasons = {path.name: reason for path, reason in left_out}
    assert reasons.keys() == {"linked", "run1", "closed"}
    assert "link" in reasons["linked"] and "run folder" in reasons["run1"] and "Permission denied" in reasons["closed"]
    table = build_manifest(root)
    assert len(table) == 4 and {path for path, _ in table.attrs["skipped"]} == {"linked", "run1", "closed"}
    with pytest.raises(UserError, match="closed cannot be opened"):
        find_images(root / "closed")


def test_folders_of_pairs_in_capitals(tmp_path):
    scans(tmp_path / "HR", 4)
    shutil.copytree(tmp_path / "HR", tmp_path / "x")
    (tmp_path / "LR").mkdir()
    for path in (tmp_path / "x").iterdir():
        Image.fromarray(to_image(downsample(to_tensor(np.asarray(Image.open(path)))))).save(tmp_path / "LR" / path.name)
    shutil.rmtree(tmp_path / "x")
    config = load_config("smoke", data=str(tmp_path))
    with pytest.raises(UserError, match=r"holds LR/ and HR/; take -p degradation paired"):
        Run(tmp_path / "run", config).make_manifest()
    table = build_manifest(tmp_path, Config(degradation="paired"))
    assert len(table) == 4 and all(path.startswith("HR/") for path in table.path)
    path = tmp_path / table.path[0]
    assert lr_partner(path).parent.name == "LR"
    lr, hr = read_pair(path, load_config("smoke", data=str(tmp_path), degradation="paired"))
    assert lr.shape == (16, 20) and hr.shape == (64, 80)


@pytest.mark.parametrize("where", [".", "CNV"])
def test_a_run_does_not_write_among_the_scans(tmp_path, where):
    scans(tmp_path / "CNV", 4)
    scans(tmp_path, 1, 9)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="holds scans; choose another folder with run_dir"):
        open_run("01", "smoke", str(tmp_path / where), str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert open_run("01", "smoke", str(tmp_path / "runs/a"), str(tmp_path)).folder.name == "a"


def test_equal_pixels_in_other_files_stand_in_one_split(tmp_path):
    for k in range(8):
        image = Image.fromarray(bscan(k, 64, 80))
        image.save(tmp_path / f"a{k}.png")
        image.save(tmp_path / f"copy of a{k}.bmp")
    table = build_manifest(tmp_path)
    assert (table.groupby(table.path.str.extract(r"a(\d)\.")[0]).split.nunique() == 1).all() and "pixels" not in table


def test_the_nearest_lr_folder_is_taken(tmp_path):
    for name in ("HR/a/hr/s.png", "HR/a/lr/s.tif", "LR/a/hr/s.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(bscan(len(name), 64, 80)).save(tmp_path / name)
    assert lr_partner(tmp_path / "HR/a/hr/s.png") == tmp_path / "HR/a/lr/s.tif"
    with pytest.raises(UserError, match="there is no LR image of this name"):
        lr_partner(tmp_path / "HR/a/hr/t.png")
