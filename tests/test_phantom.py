"""Phantoms: seeded, with a truth that fits the picture."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from srlib.config import load_config
from srlib.data import sources
from srlib.data.phantom import AXIAL_UM, PATHOLOGIES, SURFACES, bscan, draw
from srlib.data.reading import find_images, read_image
from srlib.metrics.regions import valid_region


@pytest.fixture(scope="module")
def normal():
    return [draw(seed) for seed in range(24)]


def test_layer_grey_levels(normal):
    """Means between the true surfaces, a pixel inside them, over 24 eyes, away from the fovea."""
    ranges = {"GCL": (90, 110), "IPL": (90, 104), "INL": (70, 85), "OPL": (78, 92), "ONL": (50, 66), "EZ": (115, 160), "RPE": (170, 215)}
    for name, (low, high) in ranges.items():
        below, values = SURFACES[SURFACES.index(name) + 1], []
        for phantom in normal:
            for x in (*range(20, 120, 7), *range(400, 490, 7)):
                top, bottom = phantom.surfaces[name][x] + 1, phantom.surfaces[below][x] - 1
                values.append(phantom.image[round(top) : max(round(bottom), round(top) + 1), x].mean())
        assert low <= np.mean(values) <= high, (name, np.mean(values))


def test_surfaces_are_in_order_and_smooth(normal):
    for phantom in normal:
        rows = np.stack(list(phantom.surfaces.values()))
        assert (np.diff(rows, axis=0) > -1e-6).all() and np.abs(np.diff(rows, axis=1)).max() < 3
        thickness = (phantom.surfaces["below RPE"] - phantom.surfaces["RNFL"]) * AXIAL_UM
        assert 180 < thickness.min() < 330 and 270 < thickness.max() < 420


@pytest.mark.parametrize(("pathology", "kinds"), [("drusen", {"drusen"}), ("dme", {"cyst"}), ("cnv", {"cnv", "subretinal fluid"})])
def test_lesions_are_where_the_truth_says(pathology, kinds):
    for seed in range(4):
        phantom = draw(seed, pathology=pathology)
        image, surfaces, rows = phantom.image.astype(float), phantom.surfaces, np.arange(496)[:, None]
        assert kinds <= set(phantom.lesions)
        for kind, mask in phantom.lesions.items():
            beside = binary_dilation(mask, iterations=8) & ~binary_dilation(mask, iterations=3)
            if kind in ("cyst", "subretinal fluid"):  # dark, as fluid is
                assert image[mask].mean() < 50 and image[mask].mean() < image[beside].mean() - 10
            elif kind == "foci":
                assert image[mask].mean() > image[beside].mean() + 30
            else:  # under the RPE, on Bruch's membrane
                assert ((rows >= surfaces["below RPE"]) & (rows < surfaces["CC"]))[mask].all()
                assert 60 < image[mask].mean() < 130
    assert not draw(1).lesions


def test_noise_does_not_tell_the_classes_apart():
    """Over the eyes of a default set (class c has the seeds c, c + 4, ...), each class spans the spread of the background."""
    for k, pathology in enumerate(PATHOLOGIES):
        levels = [bscan(seed, 496, 64, pathology)[:60].mean() for seed in range(k, 40, 4)]
        assert np.ptp(levels) > 6 and 22 < np.mean(levels) < 33, (pathology, levels)


def test_phantoms_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA", tmp_path)
    size = dict(phantoms=4, phantom_height=160, phantom_width=192)
    made = sources.make_phantoms(load_config("smoke", **size))
    assert len(find_images(made)) == 8 and all(valid_region(read_image(path)).all() for path in find_images(made))
    before = (made / "complete").stat().st_mtime_ns
    assert sources.make_phantoms(load_config("smoke", **size)) == made and (made / "complete").stat().st_mtime_ns == before


def test_every_size():
    assert all(bscan(1, *size).shape == size for size in ((64, 64), (1024, 300), (200, 1536)))
