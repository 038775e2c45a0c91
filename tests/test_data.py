"""Reading, the manifest and its split, the valid region, crops: what leaks and what breaks."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from running import save

from srlib.config import Config, UserError, load_config
from srlib.data import sources
from srlib.data.crops import Crops, batches
from srlib.data.manifest import build_manifest, near_duplicates
from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.data.reading import find_images, lr_partner, read_image, read_pair
from srlib.data.sources import locate
from srlib.degrade import to_image, to_tensor, upsample
from srlib.evaluation.run import evaluate_run
from srlib.metrics.regions import valid_region
from srlib.sampler.evaluation import evaluate_sampler
from srlib.sampler.training import train_sampler
from srlib.series.opening import open_run
from srlib.training.adversarial import train_srgan
from srlib.training.pretraining import pretrain_generator

pytestmark = pytest.mark.usefixtures("no_vgg")


def test_phantoms_are_seeded_and_differ():
    one = bscan(1, 96, 96)
    assert one.dtype == np.uint8 and one.shape == (96, 96)
    assert (one == bscan(1, 96, 96)).all()
    assert (one != bscan(2, 96, 96)).any() and (one != bscan(1, 96, 96, position_mm=0.5)).any()
    assert len({bscan(1, 96, 96, p).tobytes() for p in PATHOLOGIES}) == 4
    with pytest.raises(ValueError, match="pathology"):
        bscan(1, pathology="glaucoma")


def test_rotated_phantom_has_fill():
    region = valid_region(bscan(3, rotation=7))
    assert 0.05 < 1 - region.mean() < 0.3 and valid_region(bscan(3)).all()


def test_no_patient_and_no_copy_in_two_splits(scan_folder):
    """A patient under two classes and folders, and a renamed copy of another patient's scan."""
    shutil.copy(scan_folder / "NORMAL" / "NORMAL-100-1.png", scan_folder / "CNV" / "CNV-777-9.png")
    shutil.copy(scan_folder / "DME" / "DME-102-1.png", scan_folder / "NORMAL" / "NORMAL-103-5.png")
    table = build_manifest(scan_folder)
    assert (table.groupby("patient").split.nunique() == 1).all() and (table.groupby("sha256").split.nunique() == 1).all()
    assert set(table.split) == {"train", "val", "test"} and table.equals(build_manifest(scan_folder))
    assert table[table.patient.isin(["100", "777"])].split.nunique() == 1
    assert table[table.patient.isin(["102", "103"])].split.nunique() == 1


def test_near_duplicates(tmp_path):
    """A scan saved anew as JPEG, and shifted by a pixel, is found; other eyes are not; a byte-identical copy is no news."""
    for k in range(4):
        save(tmp_path / f"NORMAL-{k}-1.png", bscan(k, 160, 192))
    save(tmp_path / "NORMAL-7-1.jpeg", bscan(2, 160, 192), quality=60)
    save(tmp_path / "NORMAL-3-2.png", np.roll(bscan(3, 160, 192), 1, 1))
    shutil.copy(tmp_path / "NORMAL-0-1.png", tmp_path / "NORMAL-8-1.png")
    rows = near_duplicates(tmp_path, build_manifest(tmp_path), 0.9)
    pairs = {(r.a, r.b): r.patients for r in rows.itertuples()}
    assert pairs == {("NORMAL-2-1.png", "NORMAL-7-1.jpeg"): "two", ("NORMAL-3-1.png", "NORMAL-3-2.png"): "one"}


def test_max_images_keeps_whole_patients(scan_folder):
    table = build_manifest(scan_folder, Config(max_images=7))
    assert len(table) == 6 and (table.groupby("patient").size() == 2).all()


def test_bad_files_are_listed_and_good_ones_used(scan_folder):
    """By their paths in the folder. (Every kind of bad file: test_reading.py.)"""
    good = len(find_images(scan_folder))
    (scan_folder / "text.png").write_text("no image")
    (scan_folder / "notes.txt").write_text("not looked at")
    save(scan_folder / "tiny.png", np.zeros((20, 20), np.uint8))
    table = build_manifest(scan_folder)
    skipped = dict(table.attrs["skipped"])
    assert len(table) == good and skipped.keys() == {"text.png", "tiny.png"} and "too small" in skipped["tiny.png"]
    assert not any(str(scan_folder) in reason for reason in skipped.values())


def test_folders_without_images(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(UserError, match="none of the 1"):
        build_manifest(tmp_path)


@pytest.mark.parametrize(
    "tree",
    [
        "kermany2018/oct2017/OCT2017 ",
        "datasets/paultimothymooney/kermany2018/oct2017/OCT2017 ",
        "kermany2018/versions/2/oct2017/OCT2017 ",
        "OCT2017",
    ],
)
def test_kermany_is_found_on_kaggles_mounts(tmp_path, monkeypatch, tree):
    monkeypatch.setattr(sources, "KAGGLE_INPUT", tmp_path)
    monkeypatch.setattr(sources, "KAGGLEHUB", tmp_path / "hub")
    monkeypatch.setattr(sources, "DATA", tmp_path / "repository/data")
    (tmp_path / tree / "train" / "CNV").mkdir(parents=True)
    assert locate("kermany") == tmp_path / tree


def test_kermany_that_is_missing_says_where_to_get_it(tmp_path, monkeypatch):
    for name in ("KAGGLE_INPUT", "KAGGLEHUB", "DATA"):
        monkeypatch.setattr(sources, name, tmp_path)
    with pytest.raises(UserError, match=r"not found.*mendeley.*--data"):
        locate("kermany")


def test_valid_region_by_definition():
    hr = np.full((100, 120), 60, np.uint8)
    hr[:20, :20] = 255  # fill: touches the border, 400 px
    hr[60:80, 60:80] = 255  # bright tissue: inside
    hr[90:, :5] = 255  # touches the border, but 50 px
    region = valid_region(hr)
    assert not region[:28, :20].any() and region[28:60, :].all()
    assert not region[10, 27] and region[10, 28]  # widened by 8 px
    assert region[60:80, 60:80].all() and region[90:, :5].all()
    assert valid_region(np.full((50, 50), 60, np.uint8)).all()


def test_crops_depend_on_seed_and_number_alone(scan_folder):
    paths = find_images(scan_folder)
    a, b = Crops(paths, 32, 40, seed=5), Crops(paths, 32, 40, seed=5)
    for k in (7, 3, 39, 0):
        assert torch.equal(a[k], b[k])
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], Crops(paths, 32, 40, seed=6)[0])
    assert a[0].dtype == torch.uint8 and a[0].shape == (1, 32, 32)
    first, later = list(batches(a, 8)), list(batches(b, 8, first=3))
    assert len(first) == 5 and torch.equal(first[3], later[0]) and first[0].max() <= 1
    assert len({c.numpy().tobytes() for c in first[0]}) == 8  # not one position for the whole batch


@pytest.mark.parametrize("room", [1, 60_000, 1 << 30])
def test_crops_held_on_the_device_are_the_same(scan_folder, paired_folder, room):
    """What a GPU trains on, tried on the CPU: none, some and all scans held; grey, colour and paired."""
    paths = find_images(scan_folder)
    pairs = [path for path in find_images(paired_folder / "hr") if "-" in path.stem]
    for files, options in ((paths, {}), (paths, {"channels": 3}), (pairs, {"paired": 2})):
        ways = (Crops(files, 32, 24, seed=3, **options, **more) for more in ({}, {"cache_bytes": room, "device_bytes": room}))
        for a, b in zip(*(batches(crops, 4, 2) for crops in ways), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_crops_avoid_fill(tmp_path):
    image = np.where(np.arange(96)[:, None] < 48, 255, np.full((96, 96), 60)).astype(np.uint8)
    crops = Crops([save(tmp_path / "a.png", image)], 32, 60)
    assert np.mean([(crops[k].numpy() >= 250).mean() > 0.5 for k in range(60)]) < 0.05


def test_the_split_of_the_real_scans_stays(real_scans, tmp_path):
    """Whatever the seed: released weights must not meet their training patients in a test."""
    table = open_run("01", "paper", str(tmp_path), str(real_scans), {"channels": 1, "seed": 7}).make_manifest()
    lines = "\n".join(sorted(f"{path} {split}" for path, split in zip(table.path, table.split)))
    assert table.split.value_counts().to_dict() == {"train": 346, "val": 54, "test": 109} and not table.attrs["skipped"]
    assert hashlib.sha256(lines.encode()).hexdigest() == "a305c720c083eccf08787d0ddd7d54c982d25610832e1b8b9f3197a425776363"
    published = table.assign(folder=table.path.str.split("/").str[0])
    assert (published.groupby("patient").folder.nunique() > 1).sum() == 22
    assert table.groupby("label").split.nunique().eq(3).all()


@pytest.fixture
def paired_folder(tmp_path):
    """Ten eyes, HR 96 x 128 under hr/, LR of half the size under lr/ with other extensions; four files that have no use."""
    for eye in range(10):
        name, hr = ("NORMAL", "CNV")[eye % 2] + f"/{eye}-{eye}-1", bscan(eye, 96, 128)
        save(tmp_path / "hr" / f"{name}.png", hr)
        save(tmp_path / "lr" / f"{name}.tif", hr[::2, ::2])  # not what `downsample` would make
    for name in ("alone.png", "size.png", "cut.png"):
        save(tmp_path / "hr" / name, hr)
    save(tmp_path / "lr/size.png", hr[:40, :40])
    (tmp_path / "lr/cut.png").write_bytes(b"nothing")
    save(tmp_path / "lr/over.png", hr)
    return tmp_path


def test_paired_folders(paired_folder):
    """LR comes from lr/, in step with the crop of HR; what has no fitting partner is listed."""
    table = build_manifest(paired_folder, Config(scale=2, degradation="paired"))
    skipped = dict(table.attrs["skipped"])
    assert len(table) == 10 and table.path.str.startswith("hr/").all() and set(table.label) == {"NORMAL", "CNV"}
    assert "no LR image" in skipped["hr/alone.png"]
    assert "40 x 40 pixels; at scale 2 its HR image needs 64 x 48" in skipped["hr/size.png"]
    assert "is not an image" in skipped["hr/cut.png"]
    paths = [paired_folder / p for p in table.path]
    config = load_config("smoke", degradation="paired", scale=2)
    lr, hr = read_pair(paths[0], config)
    assert (lr == hr[::2, ::2]).all() and lr_partner(paths[0]).suffix == ".tif"
    crops = Crops(paths, 32, 12, seed=1, paired=2)
    for k in range(12):
        lr, hr = crops[k]
        shown = hr[:, ::2, ::2] if torch.equal(hr[:, ::2, ::2], lr) else hr[:, ::2, 1::2]  # flipped, the other column is kept
        assert lr.shape == (1, 16, 16) and torch.equal(shown, lr)
    lr, hr = next(batches(crops, 4))
    assert lr.shape == (4, 1, 16, 16) and hr.shape == (4, 1, 32, 32) and hr.max() <= 1


def test_pairs_train_and_are_evaluated(paired_folder, tmp_path):
    """Through the run folder's door, where the setting and the folders must agree; then both stages and the evaluation use the given LR."""
    overrides = {"degradation": "paired", "scale": 2, "pretrain_steps": 2, "gan_steps": 1, "classifier_steps": 1, "sample_images": 1}
    with pytest.raises(UserError, match=r"needs the folders lr/ and hr/"):
        open_run("01", "smoke", str(tmp_path / "b"), str(paired_folder / "hr"), overrides).make_manifest()
    run = open_run("01", "smoke", str(tmp_path / "c"), str(paired_folder), overrides)
    manifest = run.make_manifest()
    files = [run.images(split) for split in ("train", "val")]
    pretrain_generator(run.config, *files, run.folder)
    for train in (train_srgan, train_sampler):
        train(run.config, *files, run.folder)
    for evaluate in (evaluate_run, evaluate_sampler):
        table = evaluate(run.config, run.root, manifest, run.folder)
    assert list(table.method.unique()) == ["sampler", "gaussian_texture"]  # LR is no reduced HR, so nothing can be projected
    first = manifest[manifest.split == "test"].path.iloc[0]
    bicubic = to_image(upsample(to_tensor(read_image(lr_partner(run.root / first))), 2))
    assert (read_image(run.folder / "evaluation" / "sr" / "bicubic" / first) == bicubic).all()
