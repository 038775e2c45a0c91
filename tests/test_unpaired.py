"""Patches, the fresh classifier, the kernel distance, and what a run collects of them and of draws."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from srlib.config import load_config
from srlib.evaluation import methods
from srlib.evaluation.drawn import Drawn, regions
from srlib.evaluation.patches import Patches
from srlib.metrics import unpaired


def grain(seed, count, sigma=20.0, side=24):
    """Patches of white grain; of another sigma another look."""
    values = 128 + sigma * np.random.default_rng(seed).standard_normal((count, side, side))
    return values.clip(0, 255).astype(np.uint8)


PATIENTS = np.repeat(list("abcdef"), 20)


def test_patches_lie_in_the_region():
    region = np.zeros((90, 100), bool)
    region[10:60, 20:75] = True
    corners = unpaired.places(region, 0, 30)
    assert len(set(corners)) == 12 * 0 + min(30, 3 * 8) and corners == unpaired.places(region, 0, 30) != unpaired.places(region, 1, 30)
    for y, x in corners:
        assert region[y : y + 48, x : x + 48].all()
    assert unpaired.places(region[:50], 0) == [] and unpaired.cut(np.zeros((90, 100), np.uint8), []).shape == (0, 48, 48)
    image = np.arange(90 * 100).reshape(90, 100) % 251
    assert (unpaired.cut(image, corners)[0] == image[corners[0][0] :, corners[0][1] :][:48, :48]).all()


def test_a_classifier_tells_smoother_grain_but_not_another_draw():
    """On patients that it has not seen: half the grain is told at once, another draw of the same grain never."""
    told = unpaired.told_apart(grain(0, 120, 10.0), grain(1, 120), PATIENTS, 40)
    assert sorted(told) == list("abcdef") and np.mean(list(told.values())) > 0.95
    same = unpaired.told_apart(grain(2, 120), grain(3, 120), PATIENTS, 30)
    assert np.mean(list(same.values())) == pytest.approx(0.5, abs=0.1)
    assert same == unpaired.told_apart(grain(2, 120), grain(3, 120), PATIENTS, 30)  # seeded
    assert unpaired.told_apart(grain(2, 20), grain(3, 20), PATIENTS[:20], 5) == {}  # one patient


def test_a_file_format_is_not_taken_for_texture():
    """HR was a JPEG and a draw was not: the classifier would tell the format. Through a JPEG of HR's own tables it cannot."""
    buffer, chance = io.BytesIO(), np.random.default_rng(0)
    hr, sr = (gaussian_filter(chance.standard_normal((2, 480, 96)), (0, 1, 1)) * 30 + 128).clip(0, 255).astype(np.uint8)
    Image.fromarray(hr).save(buffer, "JPEG", quality=20)
    file = Image.open(buffer)
    hr, tables = np.asarray(file), file.quantization
    region = np.ones(hr.shape, bool)
    told = {}
    for name, image in (("plain", sr), ("through", unpaired.through_jpeg(sr, tables))):
        corners = unpaired.places(region, 0, 240, 24)
        sides = [unpaired.cut(i, corners, 24) for i in (image, hr)]
        told[name] = np.mean(list(unpaired.told_apart(*sides, np.repeat(list("abcdef"), 40), 100).values()))
    assert told["plain"] > 0.8 and told["through"] == pytest.approx(0.5, abs=0.1), told


def test_kid_by_its_formula():
    chance = np.random.default_rng(0)
    hr, sr = chance.normal(size=(120, 5)), chance.normal(0.5, 1, size=(120, 5))
    mean, deviation = hr.mean(0), hr.std(0)
    x, y = ((values - mean) / deviation for values in (sr, hr))
    x, y = (values / np.maximum(1, np.linalg.norm(values, axis=1, keepdims=True) / 5**0.5) for values in (x, y))
    kernel = [(a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    off = ~np.eye(120, dtype=bool)
    value, low, high = unpaired.kid(sr, hr, PATIENTS, PATIENTS)
    assert value == pytest.approx(kernel[0][off].mean() + kernel[1][off].mean() - 2 * kernel[2].mean())
    assert 0 < low < value < high
    hr[:3] *= 40  # three bright patches do not decide
    assert unpaired.kid(sr, hr, PATIENTS, PATIENTS)[1] > 0
    again, low, high = unpaired.kid(chance.normal(size=(120, 5)), hr, PATIENTS, PATIENTS)
    assert low < 0 < high and abs(again) < value / 5


def test_a_runs_patches(tmp_path):
    """Rows for HR against HR and each method, the KID in VGG-19's features."""
    patches = Patches(["srgan", "noise"])
    for k, patient in enumerate("abcd"):
        images = {"hr": grain(k, 1, side=96)[0], "srgan": grain(9 + k, 1, side=96)[0], "noise": grain(5 + k, 1, 3.0, 96)[0]}
        patches.add(images, np.ones((96, 96), bool), patient, k)
    patches.add(images, np.zeros((96, 96), bool), "blank", 0)  # has no patch, so no part
    patches.write(tmp_path, load_config("smoke", classifier_steps=16), "cpu")
    table = pd.read_csv(tmp_path / "unpaired.csv").set_index(["measure", "method"])
    assert list(table.index) == [("kid", "hr"), ("kid", "srgan"), ("kid", "noise"), ("told_apart", "srgan"), ("told_apart", "noise")]
    assert (table.patients == 4).all() and table.value[("told_apart", "noise")] > 0.9 > table.value[("told_apart", "srgan")]
    assert table.value[("kid", "noise")] > 5 * abs(table.value[("kid", "srgan")])
    assert set(table.network) == {"vgg19:relu4_4", "fresh"}


class Exact:
    """Stands in for a `Scene`: eight draws and HR of one distribution, on a known mean."""

    def __init__(self, seed, wrong=0.0):
        chance = np.random.default_rng(seed)
        mean = np.repeat(60 + 130 * np.linspace(0, 1, 96)[:, None] ** 3, 96, 1)
        *self.images, self.hr = (
            (mean + shift + 15 * chance.standard_normal(mean.shape)).round().astype(np.uint8) for shift in [wrong] * 8 + [0]
        )
        self.made = {"srresnet": mean.astype(np.uint8), "bicubic": mean.astype(np.uint8)}
        self.lr, self.seed = mean[::4, ::4].astype(np.uint8), seed
        self.arms = methods.Arms(4, torch.nn.Identity(), None, None, None)

    def draws(self, count):
        return self.images

    def __getitem__(self, name):
        return self.made[name]


def test_a_runs_draws(tmp_path):
    """Right draws: 2.5 dB won back, equal ranks, a spread that is the error; brighter ones are found out."""
    found = {}
    for wrong in (0.0, 8.0):
        drawn = Drawn()
        for seed in (1, 2):
            scene = Exact(seed, wrong)
            drawn.add(scene, scene.hr, None, {"image": f"i{seed}", "patient": f"p{seed}", "label": "NORMAL"})
        drawn.write(tmp_path)
        found[wrong] = pd.read_csv(tmp_path / "draws.csv").mean(numeric_only=True), pd.read_csv(tmp_path / "ranks.csv")
        curve = pd.read_csv(tmp_path / "calibration.csv")
        assert list(curve.method.unique()) == ["srgan"] and len(curve) == 10
    right, ranks = found[0.0]
    assert right.regain_db == pytest.approx(2.5, abs=0.1) and right.srgan_error == pytest.approx(right.srgan_spread, rel=0.05)
    assert right.rank_tissue < 0.03 and right.rank_vitreous < 0.04 and right.rank_edges < 0.06
    assert ranks.groupby("region").share.sum().tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert found[8.0][0].rank_tissue > 0.15 and found[8.0][0].regain_db < 2.2


def test_places_of_ranks_are_chosen_without_hr():
    """Tissue, vitreous and edges of a B-scan; a photograph has no retina."""
    from srlib.data.phantom import bscan

    image, valid = bscan(3, 160, 192), np.ones((160, 192), bool)
    valid[:, :20] = False
    found = regions(image, valid)
    assert list(found) == ["tissue", "vitreous", "edges"] and not any(region[:, :20].any() for region in found.values())
    assert found["edges"].sum() == pytest.approx(0.1 * valid.sum(), rel=0.01)
    assert list(regions(np.dstack([image, image, image // 2]), valid)) == ["valid", "edges"]
    assert not regions(image, np.zeros_like(valid))["edges"].any()
