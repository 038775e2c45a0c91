"""The protocol: which regions and measures an image gets."""

import importlib
from urllib.error import URLError

import numpy as np
import pytest
import torch

from srlib.config import UserError
from srlib.data import phantom
from srlib.degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from srlib.evaluation.protocol import Protocol
from srlib.evaluation.statistics import MEASURES, POWERS
from srlib.models import features
from srlib.models.features import judge


def measured(hr, scale=4, truth=None, change=lambda sr: sr):
    hr = crop_to_multiple(hr, scale)
    lr = to_image(downsample(to_tensor(hr), scale))
    sr = change(to_image(upsample(to_tensor(lr), scale)))
    rows = Protocol(lr, hr, (scale, "bicubic", 0.0), 4, judge(), torch.device("cpu"), truth).measure(sr)
    return {row["region"]: row for row in rows}


@pytest.mark.parametrize(("scale", "bands"), [(3, 3), (8, 6)])
def test_a_phantom_with_its_truth(scale, bands):
    """Every measure that the tables know, and as many bands of power as the scale has."""
    drawn = phantom.draw(1, 250, 310, "dme")
    found = measured(drawn.image, scale, drawn)
    assert list(found) == ["whole", "valid", "retina"]
    more = {f"{start}{k}_db" for start in POWERS for k in range(bands + 1, 7)}
    for row in found.values():
        assert set(row) - {"region"} == set(MEASURES) - {"gain_db", "lpips", "dists"} - more
        assert all(np.isfinite(value) for name, value in row.items() if name != "region")
    whole = found["whole"]
    assert whole["band1_db"] < -3 and whole[f"band{bands}_db"] < -6
    assert whole["texture_error_db"] > 3 and whole["epi"] < 1 and whole["enl_db"] > 0 and whole["boundary_px"] > 0.1
    assert found["retina"]["psnr"] != whole["psnr"]


def test_hr_itself_is_at_every_goal():
    drawn = phantom.draw(1, 250, 310, "dme")
    hr = crop_to_multiple(drawn.image, 4)
    found = measured(drawn.image, 4, drawn, change=lambda sr: hr)["retina"]
    for name, goal in {
        "texture_error_db": 0,
        "depth1_db": 0,
        "across4_db": 0,
        "band1_db": 0,
        "band4_db": 0,
        "stripe_db": 0,
        "judge": 0,
        "speckle": 0,
        "cnr_db": 0,
        "enl_db": 0,
        "boundary_px": 0,
    }.items():
        assert found[name] == pytest.approx(goal, abs=1e-9), name
    for name in ("ssim", "ms_ssim", "checkerboard", "epi", "lesion_contrast"):
        assert found[name] == pytest.approx(1), name


def test_colour_has_no_retina_but_a_grey_scan_in_colour_has():
    grey = phantom.bscan(2, 160, 200)
    three = np.repeat(grey[..., None], 3, 2)
    assert set(measured(three)) == {"whole", "valid", "retina"}
    assert measured(three)["retina"]["speckle"] == pytest.approx(measured(grey)["retina"]["speckle"])
    three[..., 2] //= 2
    found = measured(three)
    assert set(found) == {"whole", "valid"} and np.isnan(found["whole"]["cnr_db"])


def test_an_image_of_nothing_but_fill_has_no_numbers():
    found = measured(np.full((96, 96), 255, np.uint8))
    assert np.isnan(found["valid"]["psnr"]) and np.isnan(found["retina"]["psnr"])


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="is the scale right"):
        measured(phantom.bscan(2, 96, 96), change=lambda sr: sr[:-4])


def test_a_grey_photograph_has_no_retina():
    from skimage import data

    hr = data.camera()[:160, :160]
    lr = to_image(downsample(to_tensor(hr), 4))
    rows = Protocol(lr, hr, (4, "bicubic", 0.0), 4, judge(), torch.device("cpu"), bscan=False).measure(hr)
    assert [row["region"] for row in rows] == ["whole", "valid"]


@pytest.mark.parametrize(("name", "network"), [("lpips", "alexnet"), ("dists", "vgg16")])
def test_perceptual_distances_where_their_weights_are(monkeypatch, name, network):
    """A network with random weights stands in for the trained one, which is not here: HR is at 0, more blur is further."""
    import torchvision
    from skimage.filters import gaussian

    plain = getattr(torchvision.models, network)
    for module in (torchvision.models, importlib.import_module("torchmetrics.functional.image.dists")):  # its package hides it
        monkeypatch.setattr(module, network, lambda weights=None, **_: plain(weights=None), raising=False)
    torch.manual_seed(0)
    distance, hr = features.perceptual(name), phantom.bscan(3, 160, 192)
    lr = to_image(downsample(to_tensor(hr), 4))
    protocol = Protocol(lr, hr, (4, "bicubic", 0.0), 4, judge(), torch.device("cpu"), perceptual={name: distance})
    blurred = [np.round(gaussian(hr, sigma, preserve_range=True)).astype(np.uint8) for sigma in (1, 3)]
    found = [protocol.measure(sr)[0][name] for sr in (hr, *blurred)]
    assert found[0] == pytest.approx(0, abs=1e-4) and found[0] < found[1] < found[2]


@pytest.mark.parametrize(("name", "network", "file"), [("lpips", "alexnet", "AlexNet .*alexnet"), ("dists", "vgg16", "VGG-16 .*vgg16")])
def test_perceptual_distances_say_where_their_weights_go(monkeypatch, name, network, file):
    import torchvision

    def refused(*_, **__):
        raise URLError("no network")

    for module in (torchvision.models, importlib.import_module("torchmetrics.functional.image.dists")):  # its package hides it
        monkeypatch.setattr(module, network, refused, raising=False)
    with pytest.raises(UserError, match=rf"{file}.*checkpoints"):
        features.perceptual(name)
