"""The segmentation against the truth of phantoms, and on real scans."""

import numpy as np
import pytest

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
