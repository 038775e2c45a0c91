"""The segmentation against the truth of phantoms, on real scans, and what is measured at boundaries and lesions."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from srlib.data import phantom
from srlib.data.reading import read_image
from srlib.metrics import regions


@pytest.mark.parametrize("pathology", phantom.PATHOLOGIES)
@pytest.mark.parametrize("seed", [3, 4])
def test_surfaces_against_the_truth(seed, pathology):
    drawn = phantom.draw(seed, 496, 384, pathology)
    inner, outer = regions.surfaces(drawn.image)
    rpe = (drawn.surfaces["RPE"] + drawn.surfaces["below RPE"]) / 2
    assert np.quantile(np.abs(inner - drawn.surfaces["RNFL"]), 0.95) < 3
    assert np.quantile(np.abs(outer - rpe), 0.95) < 5


def test_fill_is_no_retina():
    image = phantom.bscan(5, 320, 320, rotation=12)
    tissue, vitreous = regions.retina(image)
    fill = ~regions.valid_region(image)
    assert fill.any() and not tissue[fill].any() and not vitreous[fill].any()
    assert 0.1 < tissue.mean() < 0.5 and vitreous.mean() > 0.1 and not (tissue & vitreous).any()


def test_truth_takes_the_place_of_the_segmentation():
    drawn = phantom.draw(5, 320, 320)
    tissue, vitreous = regions.retina(drawn.image, drawn)
    column = 100
    rows = np.flatnonzero(tissue[:, column])
    assert abs(rows[0] - drawn.surfaces["RNFL"][column]) <= 1
    assert drawn.surfaces["RPE"][column] - 1 <= rows[-1] <= drawn.surfaces["below RPE"][column] + 1
    assert not vitreous[int(drawn.surfaces["RNFL"][column]) - 9 :, column].any()


def test_real_scans_have_a_retina_of_usual_thickness(real_scans):
    files, thickness = sorted(real_scans.rglob("NORMAL-*.jpeg"))[::12], []
    for file in files:
        image = read_image(file)
        inner, outer = regions.surfaces(image)
        thickness.append(np.nanmedian(outer - inner) * phantom.AXIAL_UM)
        tissue, vitreous = regions.retina(image)
        assert image[tissue].mean() > 1.6 * image[vitreous].mean(), file.name
    assert len(files) >= 8 and 220 < np.median(thickness) < 360
    assert np.mean([180 < t < 450 for t in thickness]) >= 0.9


def test_a_boundary_that_moves_is_measured():
    drawn = phantom.draw(2, 320, 256)
    surface, smooth = drawn.surfaces["RNFL"], gaussian_filter(drawn.image.astype(float), 0.7)
    for rows in (0, 0.5, 2):
        moved = shift(smooth, (rows, 0), order=1, mode="nearest").astype(np.uint8)
        assert regions.boundary_shift(moved, smooth.astype(np.uint8), surface) == pytest.approx(rows, abs=0.3 if rows else 0)


def test_a_boundary_that_is_not_there_is_at_most_the_reach_away():
    """Grey that rises ever faster, and ever slower: the steepest place lies beyond the reach."""
    row = np.arange(60.0)[:, None] * np.ones(64)
    faster, slower = (4 * row + sign * 0.02 * row**2 - 1e-5 * row**3 for sign in (1, -1))
    assert 8 <= regions.boundary_shift(slower, faster, np.full(64, 30.0)) <= 13


def test_a_lesion_that_fades_is_measured():
    cyst = np.zeros((60, 60), bool)
    cyst[20:35, 20:40] = True
    hr, sr = (np.where(cyst, level, 100).astype(np.uint8) for level in (40, 70))
    assert regions.lesion_contrast(sr, hr, {"cyst": cyst}) == pytest.approx(0.5)
    assert regions.lesion_contrast(hr, hr, {"cyst": cyst}) == 1
    assert np.isnan(regions.lesion_contrast(sr, hr, {}))
