"""The measures against cases worked out by hand and against scikit-image."""

import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from srlib import metrics
from srlib.data.phantom import bscan
from srlib.degrade import downsample, to_image, to_tensor, upsample


@pytest.fixture(scope="module")
def pair():
    hr = bscan(5, 160, 192)
    return to_image(upsample(downsample(to_tensor(hr)))), hr


def test_psnr_by_hand():
    hr = np.full((40, 40), 100, np.uint8)
    assert metrics.psnr(hr + 5, hr) == pytest.approx(10 * np.log10(255**2 / 25))  # the peak is 255, not the image's maximum
    assert metrics.psnr(hr, hr) == np.inf


def test_border_is_cut():
    hr = np.full((40, 40), 100, np.uint8)
    sr = hr.copy()
    sr[:4] = 0
    assert metrics.psnr(sr, hr, border=4) == np.inf and metrics.psnr(sr, hr, border=3) < 30


def test_region_is_what_counts():
    hr = np.full((40, 40), 100, np.uint8)
    sr, region = hr.copy(), np.ones((40, 40), bool)
    sr[:, 20:] += 10
    region[:, 20:] = False
    assert metrics.psnr(sr, hr, region=region) == np.inf
    assert metrics.psnr(sr, hr, region=~region) == pytest.approx(10 * np.log10(255**2 / 100))
    assert np.isnan(metrics.psnr(sr, hr, region=np.zeros((40, 40), bool)))


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="same size"):
        metrics.psnr(np.zeros((40, 40), np.uint8), np.zeros((40, 41), np.uint8))


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


def test_power_tells_blur_from_noise(pair):
    sr, hr = pair
    power = metrics.spectrum(hr)
    assert metrics.band_power_db(power, power) == [0, 0, 0, 0]
    assert max(metrics.band_power_db(metrics.spectrum(sr), power)) < -6
    noisy = np.clip(hr + np.random.default_rng(0).normal(0, 20, hr.shape), 0, 255).astype(np.uint8)
    assert min(metrics.band_power_db(metrics.spectrum(noisy), power)) > 1


def test_rounding_has_the_power_that_it_is_said_to_have():
    """A smooth ramp, rounded: what stands in its finest band is the floor that the figures mark."""
    y, x = np.mgrid[:256, :256]
    smooth = 100 + 40 * np.sin(x / 20) + 30 * np.cos(y / 17 + x / 57)
    power = metrics.spectrum(np.round(smooth).astype(np.uint8))
    f, mean = metrics.psd(power)
    assert 10 * np.log10(mean[f > 0.3].mean() / metrics.rounding_floor(smooth.shape)) == pytest.approx(0, abs=0.5)
    curves = metrics.against_hr({"bicubic": np.round(smooth).astype(np.uint8)}, (smooth + 8 * white(0)[:256, :256]).round())
    assert curves["bicubic"][1][-30:] == pytest.approx(curves["rounding"][1][-30:], abs=1.5)


def test_checkerboard_is_found(pair):
    hr = pair[1]
    grid = (8 * ((np.arange(hr.shape[0])[:, None] % 4 < 2) ^ (np.arange(hr.shape[1])[None] % 4 < 2))).astype(np.uint8)
    power = metrics.spectrum(hr)
    assert metrics.checkerboard(power, power) == pytest.approx(1)
    assert metrics.checkerboard(metrics.spectrum(np.clip(hr.astype(int) + grid, 0, 255).astype(np.uint8)), power) > 20


def test_consistency(pair):
    sr, hr = pair
    lr = to_image(downsample(to_tensor(hr)))
    assert metrics.consistency(hr, lr) == pytest.approx(80)
    assert metrics.consistency(np.clip(sr.astype(int) + 12, 0, 255).astype(np.uint8), lr) < metrics.consistency(sr, lr)


def test_power_in_a_direction():
    """A wave along depth has axial power only, one across lateral only; its line stands at its frequency."""
    rows = np.arange(128)[:, None]
    wave = np.round(128 + 50 * np.sin(2 * np.pi * 0.3 * rows) + 0 * rows.T).astype(np.uint8)
    flat = np.round(128 + 5 * np.random.default_rng(0).standard_normal((128, 128))).astype(np.uint8)
    up, across = metrics.spectrum(wave), metrics.spectrum(wave.T)
    reference = metrics.spectrum(flat)
    for power, along, other in ((up, "depth", "across"), (across, "across", "depth")):
        band = np.array(metrics.band_power_db(power, reference, 4, along))
        assert band.argmax() == 2 and band[2] > 15 and max(metrics.band_power_db(power, reference, 4, other)) < -5
        f, mean = metrics.psd(power, direction=along, bins=64)
        assert f[mean.argmax()] == pytest.approx(0.3, abs=0.01)


def test_speckle_contrast_of_known_looks():
    """The display of gamma speckle of N looks has contrast 1 / sqrt(N), and its ENL is N."""
    from srlib.degrade import to_display

    for looks in (4, 16):
        intensity = 0.01 * np.random.default_rng(0).gamma(looks, 1 / looks, (200, 200))
        image = np.round(255 * to_display(torch.from_numpy(intensity)).numpy()).astype(np.uint8)
        assert metrics.speckle_contrast(image, window=31) == pytest.approx(looks**-0.5, rel=0.05)
        assert metrics.enl(image, np.ones(image.shape, bool)) == pytest.approx(looks, rel=0.06)
    for level, side in ((0, 10), (7, 100), (50, 9)):
        assert np.isnan(metrics.enl(np.full((side, side), level, np.uint8), np.ones((side, side), bool)))
    colour = np.repeat(image[..., None], 3, 2)
    assert metrics.speckle_contrast(colour) == pytest.approx(metrics.speckle_contrast(image))


def test_epi_and_cnr_by_hand():
    hr = np.zeros((40, 40), np.uint8)
    hr[20:] = 100
    half = hr // 2
    assert metrics.edge_preservation(half, hr) == pytest.approx(0.5)
    assert metrics.edge_preservation(hr, hr, np.arange(40)[:, None] + np.zeros((40, 40)) >= 10) == 1
    assert np.isnan(metrics.edge_preservation(hr, np.full_like(hr, 9)))
    image = np.zeros((40, 40), np.uint8)
    image[::2, :20], image[1::2, :20] = 90, 110  # mean 100, deviation 10
    image[::2, 20:], image[1::2, 20:] = 18, 22  # mean 20, deviation 2
    left = np.zeros(image.shape, bool)
    left[:, :20] = True
    assert metrics.cnr(image, left, ~left) == pytest.approx(10 * np.log10(80 / np.sqrt(104)))
    assert np.isnan(metrics.cnr(image, left, np.zeros_like(left)))


def test_a_list_of_regions_gives_what_each_gives():
    hr = bscan(3, 200, 208)
    sr = np.clip(hr + np.random.default_rng(0).normal(0, 9, hr.shape), 0, 255).astype(np.uint8)
    left = np.zeros(hr.shape, bool)
    left[:, :130] = True
    regions = [None, left, np.zeros(hr.shape, bool)]
    for measure, given in (
        (metrics.ssim, (sr, hr)),
        (metrics.speckle_contrast, (sr,)),
    ):
        together, alone = measure(*given, region=regions), [measure(*given, region=r) for r in regions]
        np.testing.assert_array_equal(together, alone)
        assert together[0] != together[1] and np.isnan(together[2])


# --------------------------------------------------------------------------------------------- power by band
def white(seed, sigma=10.0, shape=(256, 256)):
    return 128 + sigma * np.random.default_rng(seed).standard_normal(shape)  # not rounded: luma takes it as it is


def test_bands_are_half_octaves_from_the_lr_nyquist_on():
    edges = [0.125, 0.125 * 2**0.5, 0.25, 0.25 * 2**0.5, 0.5]
    np.testing.assert_allclose(metrics.bands(4), list(itertools.pairwise(edges)))
    np.testing.assert_allclose(metrics.bands(2), [(0.25, 0.25 * 2**0.5), (0.25 * 2**0.5, 0.5)])
    for scale, count in ((2, 2), (3, 3), (4, 4), (8, 6)):
        bands = metrics.bands(scale)
        assert len(bands) == count and bands[0][0] == pytest.approx(0.5 / scale) and bands[-1][1] == pytest.approx(0.5)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))  # no gap, none twice
        ratios = {round(high / low, 6) for low, high in bands}
        assert len(ratios) == 1 and 1.39 < ratios.pop() < 1.45


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_white_noise_twice_as_strong_has_six_db_more_in_every_band(scale):
    one, two = metrics.spectrum(white(0)), metrics.spectrum(128 + 2 * (white(0) - 128))
    for direction in ("all", "depth", "across"):
        found = metrics.band_power_db(two, one, scale, direction)
        assert len(found) == len(metrics.bands(scale)) and found == pytest.approx([6.0206] * len(found), abs=1e-3)
        assert metrics.band_power_db(one, one, scale, direction) == [0] * len(found)
    assert metrics.band_power_db(metrics.spectrum(white(1)), one, scale) == pytest.approx([0] * len(found), abs=1)  # another draw: chance


@pytest.mark.parametrize(
    ("fy", "fx", "band"), [(0.15, 0, 0), (0, 0.15, 0), (0.2, 0.2, 1), (0.05, 0.3, 2), (0.3, 0.1, 2), (0.45, 0.02, 3), (0.02, 0.45, 3)]
)
def test_a_sinusoid_lands_in_its_band_and_direction(fy, fx, band):
    """In that of max(|fx|, |fy|), and in that one alone; along depth where it hardly changes across, and the other way round."""
    y, x = np.mgrid[:256, :256]
    noise = metrics.spectrum(white(0))
    power = metrics.spectrum(white(0) + 20 * np.sin(2 * np.pi * (fy * y + fx * x)))
    narrow = 0.25 / 4
    expected = {"all": True, "depth": fx <= narrow, "across": fy <= narrow}
    for direction, there in expected.items():
        found = np.array(metrics.band_power_db(power, noise, 4, direction))
        others = np.delete(found, band)
        assert (found[band] > 6) == there and np.abs(others).max() < 0.1, direction


def test_power_below_the_lr_nyquist_is_in_no_band():
    """A square of the plane: a wave at 45 degrees whose parts lie below is not counted, though its frequency (radial) lies above."""
    y, x = np.mgrid[:256, :256]
    noise = metrics.spectrum(white(0))
    power = metrics.spectrum(white(0) + 20 * np.sin(2 * np.pi * 0.11 * (x + y)))
    assert np.abs(metrics.band_power_db(power, noise)).max() < 0.1


def test_stripes_of_any_direction_are_found():
    """Another draw of the same texture has about 1, and so has a stronger one; stripes raise it by many dB, whatever their angle."""
    noise = metrics.spectrum(white(0))
    draws = [metrics.stripe_index(metrics.spectrum(white(seed)), noise) for seed in range(1, 6)]
    assert min(draws) > 0.3 and max(draws) < 2 and np.mean(draws) == pytest.approx(1, abs=0.4)
    assert metrics.stripe_index(metrics.spectrum(white(1, 30)), noise) == pytest.approx(draws[0], abs=1e-6)
    assert metrics.stripe_index(noise, noise) == 0
    y, x = np.mgrid[:256, :256]
    for angle in (0, 20, 45, 70, 90, 135, 160):
        towards = np.deg2rad(angle)
        stripes = sum(  # a wave in each band, so that the mean over bands counts it whole
            5 * np.sin(2 * np.pi * f * (np.cos(towards) * x + np.sin(towards) * y) / max(abs(np.cos(towards)), abs(np.sin(towards))))
            for f in (0.15, 0.21, 0.3, 0.42)
        )
        assert metrics.stripe_index(metrics.spectrum(white(1) + stripes), noise) > 5, angle


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


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_stripes_at_other_scales(scale):
    noise, other = (metrics.spectrum(white(seed)) for seed in (0, 1))
    y, x = np.mgrid[:256, :256]
    stripes = sum(5 * np.sin(2 * np.pi * (low + high) / 2 * (x + y)) for low, high in metrics.bands(scale))
    plain, striped = metrics.stripe_index(other, noise, scale), metrics.stripe_index(metrics.spectrum(white(1) + stripes), noise, scale)
    assert plain < 2.5 and striped > plain + 4


def test_bands_and_stripes_are_nan_where_hr_has_nothing():
    """A flat HR has no power that SR's could be held against; a flat SR is very far below, not nan."""
    flat, noise = metrics.spectrum(np.full((64, 64), 128.0)), metrics.spectrum(white(0, shape=(64, 64)))
    assert not flat.any()
    assert np.isnan(metrics.band_power_db(noise, flat)).all() and np.isnan(metrics.stripe_index(noise, flat))
    assert max(metrics.band_power_db(flat, noise)) < -60
    empty = metrics.spectrum(white(0, shape=(64, 64)), np.zeros((64, 64), bool))
    assert np.isnan(metrics.band_power_db(noise, empty)).all() and np.isnan(metrics.stripe_index(noise, empty))


def test_bands_tell_blur_from_texture(pair):
    """Of a phantom: the bicubic image loses more in each finer band."""
    sr, hr = (metrics.spectrum(image) for image in pair)
    found = metrics.band_power_db(sr, hr)
    assert found[0] < -3 and all(b < a for a, b in itertools.pairwise(found[:3])) and max(found[1:]) < -9


def test_a_flat_image_has_no_power():
    """Whatever its level, to the last digit, and with one pixel a level off; a texture of one grey level has."""
    for level in (0, 90, 91, 254.7):
        flat = np.full((96, 112), level)
        assert not metrics.spectrum(flat).any()
        flat[40, 50] += 1
        assert not metrics.spectrum(flat).any()
        frequency, curve = metrics.against_hr({"sr": white(0, shape=(96, 112))}, flat)["sr"]
        assert np.isnan(curve).all() and np.isfinite(frequency).all()
    faint = 90 + np.random.default_rng(0).integers(0, 2, (96, 112)).astype(np.uint8)
    assert metrics.spectrum(faint).all()


def test_contrast_without_noise_is_nan():
    """Two flat regions have no noise, two equal ones no contrast: neither is 120 dB."""
    image, left = np.full((20, 20), 50, np.uint8), np.zeros((20, 20), bool)
    left[:, :10] = True
    assert np.isnan(metrics.cnr(image, left, ~left))
    image[:, 10:] = 80
    assert np.isnan(metrics.cnr(image, left, ~left))
