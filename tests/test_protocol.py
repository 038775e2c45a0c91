"""The protocol: which regions and measures an image gets."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from srlib.data import phantom
from srlib.degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from srlib.evaluation.protocol import Protocol
from srlib.evaluation.statistics import MEASURES
from srlib.models import features


def measured(hr, scale=4, change=lambda sr: sr):
    hr = crop_to_multiple(hr, scale)
    lr = to_image(downsample(to_tensor(hr), scale))
    sr = change(to_image(upsample(to_tensor(lr), scale)))
    rows = Protocol(lr, hr, (scale, "bicubic")).measure(sr)
    return {row["region"]: row for row in rows}


@pytest.mark.parametrize(("scale", "bands"), [(3, 3), (8, 6)])
def test_a_phantom(scale, bands):
    """Every measure that the tables know, and as many bands of power as the scale has."""
    rows = measured(phantom.bscan(1, 250, 310, "dme"), scale)
    assert list(rows) == ["whole", "valid", "retina"]
    more = {f"band{k}_db" for k in range(bands + 1, 7)}
    for row in rows.values():
        assert set(row) - {"region"} == set(MEASURES) - {"gain_db", "lpips"} - more
        assert all(np.isfinite(value) for name, value in row.items() if name != "region")
    whole = rows["whole"]
    assert whole["band1_db"] < -3 and whole[f"band{bands}_db"] < -6
    assert whole["texture_error_db"] > 3
    assert rows["retina"]["psnr"] != whole["psnr"]


def test_hr_itself_is_at_every_goal():
    hr = crop_to_multiple(phantom.bscan(1, 250, 310, "dme"), 4)
    rows = measured(hr, change=lambda sr: hr)["retina"]
    one = ("ssim", "checkerboard")
    zero = rows.keys() - {"region", "psnr", "consistency", *one}
    assert [rows[name] for name in one] == pytest.approx([1] * 2) and [rows[name] for name in zero] == pytest.approx(
        [0] * len(zero), abs=1e-9
    )
    assert len(zero) == 6 and rows["psnr"] == np.inf and rows["consistency"] == 80


def test_colour_has_no_retina_but_a_grey_scan_in_colour_has():
    grey = phantom.bscan(2, 160, 200)
    three = np.repeat(grey[..., None], 3, 2)
    assert set(measured(three)) == {"whole", "valid", "retina"}
    assert measured(three)["retina"]["band1_db"] == pytest.approx(measured(grey)["retina"]["band1_db"])
    three[..., 2] //= 2
    assert set(measured(three)) == {"whole", "valid"}


def test_an_image_of_nothing_but_fill_has_no_numbers():
    rows = measured(np.full((96, 96), 255, np.uint8))
    assert np.isnan(rows["valid"]["psnr"]) and np.isnan(rows["retina"]["psnr"])


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="is the scale right"):
        measured(phantom.bscan(2, 96, 96), change=lambda sr: sr[:-4])


def test_lpips_on_the_repositorys_convolutions():
    """HR is at 0, more blur is further; as torchmetrics measures it with these convolutions; nan where AlexNet has nothing left."""
    from skimage.filters import gaussian

    network, hr = features.lpips(), phantom.bscan(3, 160, 192)
    protocol = Protocol(to_image(downsample(to_tensor(hr), 4)), hr, (4, "bicubic"), lpips=network)
    blurred = [np.round(gaussian(hr, sigma, preserve_range=True)).astype(np.uint8) for sigma in (1, 3)]
    rows = [protocol.measure(sr)[0]["lpips"] for sr in (hr, *blurred)]
    assert rows[0] == pytest.approx(0, abs=1e-4) and 0.1 < rows[1] < rows[2] < 1
    small = phantom.bscan(3, 64, 64)
    assert np.isnan(Protocol(small[::4, ::4], small, (4, "bicubic"), lpips=network).measure(small)[0]["lpips"])


def test_lpips_is_shared_by_threads_and_downloads_nothing(tmp_path, monkeypatch):
    """Methods are measured two at once, on one network: it keeps nothing of one image for the next."""
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    network, rng = features.lpips(), torch.Generator().manual_seed(0)
    pairs = [torch.rand(2, 1, 3, 64, 64 + 16 * (k % 3), generator=rng) for k in range(12)]

    def distance(pair):
        with torch.inference_mode():
            return network(*pair).item()

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(distance, pairs)] == [*map(distance, pairs)]
    assert not list(tmp_path.iterdir())
