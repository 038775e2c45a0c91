"""The measures against cases worked out by hand and against scikit-image."""

import itertools

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from srlib import metrics
from srlib.data.phantom import bscan
from srlib.degrade import downsample, to_image, to_tensor, upsample


@pytest.fixture(scope="module")
def pair():
    hr = bscan(5, 160, 192)
    return to_image(upsample(downsample(to_tensor(hr)))), hr


def white(seed, sigma=10.0, shape=(256, 256)):
    return 128 + sigma * np.random.default_rng(seed).standard_normal(shape)  # not rounded: luma takes it as it is


def noisy(image, sigma):
    return np.clip(image + np.random.default_rng(0).normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------- fidelity
def test_psnr_by_hand():
    hr = np.full((40, 40), 100, np.uint8)
    assert metrics.psnr(hr + 5, hr) == pytest.approx(10 * np.log10(255**2 / 25))  # the peak is 255, not the image's maximum
    assert metrics.psnr(hr, hr) == np.inf
    sr, left = hr.copy(), np.zeros((40, 40), bool)
    sr[:4] = 0
    assert metrics.psnr(sr, hr, border=4) == np.inf and metrics.psnr(sr, hr, border=3) < 30
    left[:, :20] = True
    sr[:, 20:] = 110
    assert metrics.psnr(sr, hr, region=left) == np.inf
    assert metrics.psnr(sr, hr, region=~left) == pytest.approx(10 * np.log10(255**2 / 100))
    assert np.isnan(metrics.psnr(sr, hr, region=np.zeros((40, 40), bool)))
    with pytest.raises(ValueError, match="same size"):
        metrics.psnr(hr, hr[:, :39])


def test_ssim_is_scikit_images(pair):
    sr, hr = (image[4:-4, 4:-4] for image in pair)
    expected = structural_similarity(sr, hr, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert metrics.ssim(*pair) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(hr, hr) == pytest.approx(1)


def test_colour_is_measured_on_luma():
    hr = np.zeros((40, 40, 3), np.uint8)
    sr = hr.copy()
    sr[..., 1] = 20  # green weighs 128.553 / 255 in Y
    assert metrics.psnr(sr, hr) == pytest.approx(10 * np.log10(255**2 / (20 * 128.553 / 255) ** 2), abs=1e-3)


def test_consistency(pair):
    sr, hr = pair
    lr = to_image(downsample(to_tensor(hr)))
    assert metrics.consistency(hr, lr) == pytest.approx(80)
    assert metrics.consistency(np.clip(sr.astype(int) + 12, 0, 255).astype(np.uint8), lr) < metrics.consistency(sr, lr)


def test_a_list_of_regions_gives_what_each_gives(pair):
    _, hr = pair
    left = np.zeros(hr.shape, bool)
    left[:, :130] = True
    regions = [None, left, np.zeros(hr.shape, bool)]
    together, alone = metrics.ssim(noisy(hr, 9), hr, region=regions), [metrics.ssim(noisy(hr, 9), hr, region=r) for r in regions]
    np.testing.assert_array_equal(together, alone)
    assert together[0] != together[1] and np.isnan(together[2])


# --------------------------------------------------------------------------------------------- power by band
def test_rounding_has_the_power_that_it_is_said_to_have():
    """A smooth ramp, rounded: what stands in its finest band is the floor that the figures mark."""
    y, x = np.mgrid[:256, :256]
    smooth = 100 + 40 * np.sin(x / 20) + 30 * np.cos(y / 17 + x / 57)
    power = metrics.spectrum(np.round(smooth).astype(np.uint8))
    f, mean = metrics.psd(power)
    assert 10 * np.log10(mean[f > 0.3].mean() / metrics.rounding_floor(smooth.shape)) == pytest.approx(0, abs=0.5)
    curves = metrics.against_hr({"bicubic": np.round(smooth).astype(np.uint8)}, (smooth + 8 * white(0)).round())
    assert curves["bicubic"][1][-30:] == pytest.approx(curves["rounding"][1][-30:], abs=1.5)


@pytest.mark.parametrize(("scale", "count"), [(2, 2), (3, 3), (4, 4), (8, 6)])
def test_bands_are_half_octaves_from_the_lr_nyquist_on(scale, count):
    bands = metrics.bands(scale)
    assert len(bands) == count and bands[0][0] == pytest.approx(0.5 / scale) and bands[-1][1] == pytest.approx(0.5)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))  # no gap, none twice
    assert [high / low for low, high in bands] == pytest.approx([scale ** (1 / count)] * count) and 1.39 < scale ** (1 / count) < 1.45


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_white_noise_twice_as_strong_has_six_db_more_in_every_band(scale):
    one, two = metrics.spectrum(white(0)), metrics.spectrum(128 + 2 * (white(0) - 128))
    count = len(metrics.bands(scale))
    assert metrics.band_power_db(two, one, scale) == pytest.approx([6.0206] * count, abs=1e-3)
    assert metrics.band_power_db(one, one, scale) == [0] * count
    assert metrics.band_power_db(metrics.spectrum(white(1)), one, scale) == pytest.approx([0] * count, abs=1)  # another sample


@pytest.mark.parametrize(
    ("fy", "fx", "band"), [(0.15, 0, 0), (0, 0.15, 0), (0.2, 0.2, 1), (0.05, 0.3, 2), (0.3, 0.1, 2), (0.45, 0.02, 3), (0.02, 0.45, 3)]
)
def test_a_sinusoid_lands_in_its_band(fy, fx, band):
    """In that of max(|fx|, |fy|), and in that one alone."""
    y, x = np.mgrid[:256, :256]
    noise = metrics.spectrum(white(0))
    power = metrics.spectrum(white(0) + 20 * np.sin(2 * np.pi * (fy * y + fx * x)))
    levels = np.array(metrics.band_power_db(power, noise))
    assert levels[band] > 6 and np.abs(np.delete(levels, band)).max() < 0.1
    f, mean = metrics.psd(power, bins=64)
    assert f[mean.argmax()] == pytest.approx(max(fx, fy), abs=0.01)


def test_power_below_the_lr_nyquist_is_in_no_band():
    """A square of the plane: a wave at 45 degrees whose parts lie below is not counted, though its frequency (radial) lies above."""
    y, x = np.mgrid[:256, :256]
    power = metrics.spectrum(white(0) + 20 * np.sin(2 * np.pi * 0.11 * (x + y)))
    assert np.abs(metrics.band_power_db(power, metrics.spectrum(white(0)))).max() < 0.1


def test_bands_and_stripes_are_nan_where_hr_has_nothing():
    """A flat HR has no power that SR's could be held against; a flat SR is very far below, not nan."""
    flat, noise = metrics.spectrum(np.full((64, 64), 128.0)), metrics.spectrum(white(0, shape=(64, 64)))
    empty = metrics.spectrum(white(0, shape=(64, 64)), np.zeros((64, 64), bool))
    for nothing in (flat, empty):
        assert not nothing.any()
        assert np.isnan(metrics.band_power_db(noise, nothing)).all() and np.isnan(metrics.stripe_index(noise, nothing))
    assert max(metrics.band_power_db(flat, noise)) < -60


def test_a_flat_image_has_no_power():
    """Whatever its level, to the last digit, and with one pixel a level off; a texture of one grey level has."""
    for level in (0, 90, 91, 254.7):
        flat = np.full((96, 112), level)
        assert not metrics.spectrum(flat).any()
        flat[40, 50] += 1
        assert not metrics.spectrum(flat).any()
        frequency, curve = metrics.against_hr({"sr": white(0, shape=(96, 112))}, flat)["sr"]
        assert np.isnan(curve).all() and np.isfinite(frequency).all()
    assert metrics.spectrum(90 + np.random.default_rng(0).integers(0, 2, (96, 112)).astype(np.uint8)).all()


# --------------------------------------------------------------------------------------------- stripes
def test_another_sample_of_the_same_texture_has_no_stripes():
    """About 1 dB, and so has a stronger one."""
    noise = metrics.spectrum(white(0))
    samples = [metrics.stripe_index(metrics.spectrum(white(seed)), noise) for seed in range(1, 6)]
    assert min(samples) > 0.3 and max(samples) < 2 and np.mean(samples) == pytest.approx(1, abs=0.4)
    assert metrics.stripe_index(metrics.spectrum(white(1, 30)), noise) == pytest.approx(samples[0], abs=1e-6)
    assert metrics.stripe_index(noise, noise) == 0


@pytest.mark.parametrize("middle", [0, 15, 45, 90, 150])
def test_stripe_index_by_hand(middle):
    """Ten times the power in 15 degrees about an axis, or about a multiple of 15: 10 dB over the median; in two bands of four, 5; in seven
    sectors of twelve none stands out."""
    fy, fx = np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None]
    turned = (np.rad2deg(np.arctan2(fy, fx)) - middle + 7.5) % 180
    flat, high = np.ones((96, 96)), np.maximum(abs(fy), abs(fx)) > 0.25
    assert metrics.stripe_index(np.where(turned < 15, 10.0, 1.0), flat) == pytest.approx(10)
    assert metrics.stripe_index(np.where((turned < 15) & high, 10.0, 1.0), flat) == pytest.approx(5)
    assert metrics.stripe_index(np.where(turned < 7 * 15, 10.0, 1.0), flat) == pytest.approx(0)
