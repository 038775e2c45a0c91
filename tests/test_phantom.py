"""Phantoms: seeded, with a truth that fits the picture, and as like real scans as the table in `calibration` asks."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from srlib.config import UserError, load_config
from srlib.data import sources
from srlib.data.phantom import AXIAL_UM, PATHOLOGIES, SURFACES, bscan, draw
from srlib.data.reading import find_images, read_image
from srlib.evaluation.calibration import REAL_NORMAL, autocorrelation, background, compare, measure, one_of_each, slopes


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


def test_phantoms_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "data_home", lambda: tmp_path)
    config = load_config("smoke", phantoms=4, phantom_height=160, phantom_width=192)
    folder = sources.make_phantoms(config)
    assert len(find_images(folder)) == 8 and (read_image(folder / "NORMAL/NORMAL-900000-1.png") == bscan(0, 160, 192)).all()
    before = (folder / "complete").stat().st_mtime_ns
    assert sources.make_phantoms(config) == folder and (folder / "complete").stat().st_mtime_ns == before


def test_background_statistics_of_known_images():
    rng = np.random.default_rng(0)
    image = np.full((200, 240), 20.0) + rng.normal(0, 5, (200, 240))
    image[110:150] = 150
    grey = image.clip(0, 255).astype(np.uint8)
    dark = background(grey)
    assert dark[12:70, 12:-12].all() and not dark[100:].any()
    assert abs(autocorrelation(grey, dark, 0, 1)) < 0.04
    smoothed = (image + np.roll(image, 1, 0)) / 2
    assert autocorrelation(smoothed.clip(0, 255).astype(np.uint8), dark, 0, 1) == pytest.approx(0.5, abs=0.08)


def test_slopes_of_a_power_law():
    rng, found = np.random.default_rng(0), []
    f = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    f[0, 0] = 1
    for _ in range(4):
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((512, 512))) * f**-1.5).real
        found.append(slopes(128 + 30 * field / field.std()))
    assert np.mean(found, 0) == pytest.approx([-3, -3, -3], abs=0.15)


def test_statistics_of_a_folder(tmp_path):
    for eye in range(5):
        for number in (1, 2):
            name = f"{'NORMAL' if eye else 'CNV'}/NORMAL-{eye}-{number}.png"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(bscan(eye, 160, 192)).save(tmp_path / name)
    images = one_of_each(tmp_path)
    assert len(images) == 4 and (images[0] == bscan(1, 160, 192)).all()
    assert measure(images).notna().all()
    with pytest.raises(UserError, match="four patients"):
        measure(images[:3])
    assert all(bscan(1, *size).shape == size for size in ((64, 64), (1024, 300), (200, 1536)))


def test_phantoms_have_the_statistics_of_real_scans():
    table = compare([bscan(seed, pathology="drusen") for seed in range(4)], "mine")
    assert list(table.columns) == ["phantoms", "real NORMAL", "within", "mine"] and list(table.index) == list(REAL_NORMAL)
    assert ((table["phantoms"] - table["real NORMAL"]).abs() <= table["within"]).all()
    assert table["mine"].notna().all() and (table["mine"] != table["phantoms"]).all()


@pytest.mark.slow
def test_the_table_is_what_real_scans_measure(real_scans):
    """REAL_NORMAL against the scans that it was taken from: NORMAL, 496 x 512, the first of each patient."""
    patients = {path.name.split("-")[1]: path for path in sorted(real_scans.glob("*/NORMAL/*"), reverse=True)}
    images = [image for image in map(read_image, sorted(patients.values())) if image.shape == (496, 512)]
    found = measure(images)
    assert {name: found[name] for name in REAL_NORMAL} == pytest.approx({name: value for name, (value, _) in REAL_NORMAL.items()}, abs=0.15)
