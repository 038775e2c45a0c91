"""Patches, the classifier two-sample test, the kernel distance, and what a run collects of them and of samples."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from srlib.data.phantom import bscan
from srlib.metrics import unpaired
from srlib.sampler.evaluation import Patches, measure_samples, rank_regions

PATIENTS = np.repeat(list("abcdef"), 20)


def texture(seed, count, sigma=20.0, side=24):
    """Patches of white noise; of another sigma another look."""
    values = 128 + sigma * np.random.default_rng(seed).standard_normal((count, side, side))
    return values.clip(0, 255).astype(np.uint8)


@pytest.fixture
def one_classifier(monkeypatch):
    """In the place of three, to be fast."""
    monkeypatch.setattr(unpaired, "REPEATS", 1)


def test_patches_lie_in_the_region():
    region = np.zeros((90, 100), bool)
    region[10:60, 20:75] = True
    corners = unpaired.places(region, 0, 30)
    assert len(set(corners)) == 3 * 8 and corners == unpaired.places(region, 0, 30) != unpaired.places(region, 1, 30)
    assert all(region[y : y + 48, x : x + 48].all() for y, x in corners)
    assert unpaired.places(region[:50], 0) == [] and unpaired.cut(np.zeros((90, 100), np.uint8), []).shape == (0, 48, 48)
    image = np.arange(90 * 100).reshape(90, 100) % 251
    assert (unpaired.cut(image, corners)[0] == image[corners[0][0] :, corners[0][1] :][:48, :48]).all()


def test_a_classifier_finds_a_weaker_texture_but_not_another_sample(one_classifier):
    """On patients that it has not seen: half the strength is noticed at once, another sample of the same texture never."""
    weaker = unpaired.c2st(texture(0, 120, 10.0), texture(1, 120), PATIENTS, 40)
    assert list(weaker) == list("abcdef") and np.mean(list(weaker.values())) > 0.95
    same = unpaired.c2st(texture(2, 120), texture(3, 120), PATIENTS, 30)
    assert np.mean(list(same.values())) == pytest.approx(0.5, abs=0.1)
    few = [unpaired.c2st(texture(2, 40), texture(3, 40), PATIENTS[:40], 3, seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert unpaired.c2st(texture(2, 20), texture(3, 20), PATIENTS[:20], 5) == {}  # one patient


def test_the_raw_view_sees_what_the_detail_leaves_out(one_classifier):
    """The same texture, ten grey levels brighter."""
    sides = texture(0, 120, 10.0) + 10, texture(1, 120, 10.0)
    detail, raw = (np.mean(list(unpaired.c2st(*sides, PATIENTS, 60, detail=detail).values())) for detail in (True, False))
    assert detail == pytest.approx(0.5, abs=0.1) and raw > 0.95


def test_a_file_format_is_not_taken_for_texture(one_classifier):
    """HR was a JPEG and a sample was not: the classifier would find the format. Through a JPEG of HR's own tables it cannot."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    hr, sr = (gaussian_filter(rng.standard_normal((2, 480, 96)), (0, 1, 1)) * 30 + 128).clip(0, 255).astype(np.uint8)
    Image.fromarray(hr).save(buffer, "JPEG", quality=20)
    file = Image.open(buffer)
    hr, tables = np.asarray(file), file.quantization
    corners = unpaired.places(np.ones(hr.shape, bool), 0, 240, 24)
    accuracy = []
    for image in (sr, unpaired.through_jpeg(sr, tables)):
        sides = [unpaired.cut(i, corners, 24) for i in (image, hr)]
        accuracy.append(np.mean(list(unpaired.c2st(*sides, np.repeat(list("abcdef"), 40), 50).values())))
    assert accuracy[0] > 0.8 and accuracy[1] == pytest.approx(0.5, abs=0.1), accuracy


def test_kid_by_its_formula():
    rng = np.random.default_rng(0)
    hr, sr = rng.normal(size=(120, 5)), rng.normal(0.5, 1, size=(120, 5))
    mean, deviation = hr.mean(0), hr.std(0)
    x, y = ((values - mean) / deviation for values in (sr, hr))
    x, y = (values / np.maximum(1, np.linalg.norm(values, axis=1, keepdims=True) / 5**0.5) for values in (x, y))
    kernel = [(a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    off = ~np.eye(120, dtype=bool)
    value, low, high = unpaired.kid(sr, hr, PATIENTS, PATIENTS)
    assert value == pytest.approx(sum(factor * each[off].mean() for factor, each in zip((1, 1, -2), kernel, strict=True)))
    assert 0 < low < value < high
    hr[:3] *= 40  # three bright patches do not decide
    assert unpaired.kid(sr, hr, PATIENTS, PATIENTS)[1] > 0
    again, low, high = unpaired.kid(rng.normal(size=(120, 5)), hr, PATIENTS, PATIENTS)
    assert low < 0 < high and abs(again) < value / 5


def test_what_two_sides_share_of_a_place_does_not_bring_them_nearer():
    """Two sides that share 0.9 of a place's variance: the mean KID is 0 within its noise, the interval holds 0. Under other
    names of the patients the pairs of one place stay in the cross sum, and it is below."""
    rng, patients, values = np.random.default_rng(0), np.repeat(list("abcdefgh"), 40), []
    for _ in range(40):
        shared = rng.normal(size=(320, 5)) * 0.9**0.5
        sr, hr = (shared + rng.normal(size=shared.shape) * 0.1**0.5 for _ in range(2))
        values.append(
            (*unpaired.kid(sr, hr, patients, patients, 50), unpaired.kid(sr, hr, patients, np.repeat(list("ABCDEFGH"), 40), 2)[0])
        )
    value, low, high, biased = np.array(values).T
    error = 4 * value.std() / len(value) ** 0.5
    assert abs(value.mean()) < error < 0.01 and biased.mean() < -2 * error
    assert ((low < 0) & (high > 0)).mean() > 0.8


def test_a_runs_patches(monkeypatch, one_classifier):
    """Rows for HR against HR and each method, the KID in VGG-19's features."""
    monkeypatch.setattr(unpaired, "places", partial(unpaired.places, count=10))
    monkeypatch.setattr("srlib.sampler.evaluation.BLIND", 10)
    patches = Patches(["srgan", "noise"])
    for k, patient in enumerate("abcd"):
        images = {"hr": texture(k, 1, side=96)[0], "srgan": texture(9 + k, 1, side=96)[0], "noise": texture(5 + k, 1, 3.0, 96)[0]}
        patches.add(images, np.ones((96, 96), bool), patient, k)
    patches.add(images, np.zeros((96, 96), bool), "blank", 0)  # has no patch, so no part
    table = patches.measure(10).set_index(["measure", "method"])
    expected = "kid hr, kid srgan, kid noise, c2st srgan, c2st_raw srgan, c2st noise, c2st_raw noise"
    assert ", ".join(map(" ".join, table.index)) == expected
    assert (table.patients == 4).all() and table.value["c2st", "noise"] > 0.9 > table.value["c2st", "srgan"]
    assert table.value["kid", "noise"] > 5 * abs(table.value["kid", "srgan"])
    assert set(table.network) == {"vgg19:relu4_4", "fresh"}


class Exact(dict):
    """Stands in for a `TestImage`: eight samples and HR of one distribution, on a known mean."""

    def __init__(self, seed, wrong=0.0):
        rng, self.seed = np.random.default_rng(seed), seed
        mean = np.repeat(60 + 130 * np.linspace(0, 1, 96)[:, None] ** 3, 96, 1)
        shifts = [wrong] * 8 + [0]
        *self.images, self.hr = ((mean + shift + 15 * rng.standard_normal(mean.shape)).round().astype(np.uint8) for shift in shifts)
        super().__init__(srresnet=mean.astype(np.uint8), bicubic=mean.astype(np.uint8))

    def samples(self, count):
        return self.images[:count]


def test_samples_against_hr():
    """Right samples: 2.5 dB won back, equal ranks, a spread that is the error; brighter ones are noticed."""
    right, shares = measure_samples(image := Exact(1), image.hr)
    assert right["regain_db"] == pytest.approx(2.5, abs=0.1) and right["error"] == pytest.approx(right["spread"], rel=0.05)
    assert right["rank_tissue"] < 0.04 and right["rank_vitreous"] < 0.05 and right["rank_edges"] < 0.08
    assert list(shares) == ["tissue", "vitreous", "edges"] and all(each.sum() == pytest.approx(1) for each in shares.values())
    brighter, _ = measure_samples(image := Exact(1, 8.0), image.hr)
    assert brighter["rank_tissue"] > 0.15 and brighter["regain_db"] < 2.2


def test_places_of_ranks_are_chosen_without_hr():
    """Tissue, vitreous and edges of a B-scan; a photograph has no retina."""
    image, valid = bscan(3, 160, 192), np.ones((160, 192), bool)
    valid[:, :20] = False
    regions = rank_regions(image, valid)
    assert list(regions) == ["tissue", "vitreous", "edges"] and not any(region[:, :20].any() for region in regions.values())
    assert regions["edges"].sum() == pytest.approx(0.1 * valid.sum(), rel=0.01)
    assert list(rank_regions(np.dstack([image, image, image // 2]), valid)) == ["valid", "edges"]
    assert not rank_regions(image, np.zeros_like(valid))["edges"].any()
