"""The Gaussian texture: what it knows of HR is power by frequency and strength by place, and that it must hit."""

import numpy as np
import pytest

from srlib import metrics
from srlib.degrade import downsample, project, to_image, to_tensor, upsample
from srlib.sampler.gaussian import BLOCK, GaussianTexture, _grey, _welch
from srlib.sampler.network import ROUNDS


def texture(seed, height=192, width=224):
    """A Gaussian field of deviation 1, coarser across than in depth, so that its power differs by direction and by frequency."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = np.exp(-((fy / 0.45) ** 2) - (fx / 0.3) ** 2)
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width)))
    return np.fft.ifft2(noise * amplitude / np.sqrt((amplitude**2).mean())).real


def scan(seed, loud=1.0, channels=1, height=192, width=224, fill=0):
    """(base, lr, hr): a slope of brightness from left to right, texture whose strength grows with it, white fill in a corner; bicubic as base."""
    level = np.linspace(50, 190, width) + np.zeros((height, 1))
    hr = np.clip(np.round(level + loud * (2 + level / 12) * texture(seed, height, width)), 0, 255).astype(np.uint8)
    hr[:fill, :fill] = 255
    hr = hr if channels == 1 else np.repeat(hr[..., None], 3, 2)
    lr = downsample(to_tensor(hr))
    return to_image(upsample(lr)), to_image(lr), hr


@pytest.fixture(scope="module")
def fitted():
    return GaussianTexture().fit(scan(seed) for seed in range(4))  # a generator: it is read once


def gaps(gaussian, scans):
    """Power by band against HR, dB, the mean over scans."""
    powers = [(metrics.spectrum(gaussian.sample(base, lr, 100 + k)), metrics.spectrum(hr)) for k, (base, lr, hr) in enumerate(scans)]
    return np.mean([metrics.band_power_db(*pair) for pair in powers], 0)


def test_a_sample_has_hrs_power_in_each_band_and_direction(fitted):
    """On other scans, whose bicubic image lacks 10 dB."""
    scans = [scan(seed) for seed in range(10, 14)]
    lacking = np.mean([metrics.band_power_db(metrics.spectrum(b), metrics.spectrum(hr)) for b, _, hr in scans], 0)
    assert lacking[1:].max() < -10 and np.abs(gaps(fitted, scans)).max() < 1
    powers = [(metrics.spectrum(fitted.sample(base, lr, k)), metrics.spectrum(hr)) for k, (base, lr, hr) in enumerate(scans)]
    assert np.mean([metrics.stripe_index(*pair) for pair in powers]) < 2


def test_strength_follows_brightness(fitted):
    base, lr, hr = scan(20)
    sr = fitted.sample(base, lr, 0)
    far = [(image.astype(float) - base)[:, part].std() for image in (sr, hr) for part in (np.s_[:56], np.s_[-56:])]
    assert far[3] / far[2] > 1.8 and far[0] == pytest.approx(far[2], rel=0.1) and far[1] == pytest.approx(far[3], rel=0.1)


def test_the_roughness_of_a_scan_sets_its_texture():
    """Scans of one brightness, quiet and noisy ones: each gets its own power, not the mean of both."""
    gaussian = GaussianTexture().fit([scan(seed, loud) for seed in range(3) for loud in (0.3, 0.6, 1.0)])
    for loud in (0.3, 1.0):
        assert np.abs(gaps(gaussian, [scan(seed, loud) for seed in (10, 11)])).max() < 1.5
    assert np.ptp(gaussian.strength[gaussian.strength > 0]) > 0 and gaussian.roughness[0] < gaussian.roughness[2]


def test_samples_are_consistent_with_lr_and_follow_the_seed(fitted):
    base, lr, _ = scan(20)
    one, other = fitted.sample(base, lr, 1), fitted.sample(base, lr, 2)
    assert one.dtype == np.uint8 and one.shape == base.shape
    assert metrics.consistency(one, lr) > 55 and metrics.consistency(other, lr) > 55
    assert np.array_equal(one, fitted.sample(base, lr, 1)) and (one.astype(float) - other).std() > 3
    assert np.array_equal(one, GaussianTexture().fit(scan(seed) for seed in range(4)).sample(base, lr, 1))
    for height, width in ((40, 100), (132, 260)):
        base, lr, _ = scan(0, height=height, width=width)
        assert fitted.sample(base, lr, 0).shape == (height, width)


@pytest.mark.parametrize("kind", ["area", "gaussian:2"])
def test_samples_are_consistent_under_the_reduction_of_the_settings(kind):
    _, _, hr = scan(20)
    lr = downsample(to_tensor(hr), 4, kind)
    base, lr = to_image(upsample(lr)), to_image(lr)
    sr = GaussianTexture(4, kind).fit([(base, lr, hr)]).sample(base, lr, 0)
    assert metrics.consistency(sr, lr, 4, kind) > 55


def test_without_a_projection_lr_is_not_asked():
    """Kind '': LR may contradict base."""
    base, lr, hr = scan(0)
    gaussian = GaussianTexture(kind="").fit([(base, 255 - lr, hr)])
    sr = gaussian.sample(base, 255 - lr, 0)
    assert np.array_equal(sr, gaussian.sample(base, lr, 0)) and np.abs(sr.astype(float) - base).mean() < 20


def test_colour_has_grey_texture_of_the_same_strength(fitted):
    base, lr, hr = scan(20, channels=3)
    colour = GaussianTexture().fit(scan(seed, channels=3) for seed in range(4))
    assert np.abs(colour.strength - fitted.strength).max() < 1
    base, lr = (image - np.array([0, 6, 12], np.uint8) for image in (base, lr))  # too little to be clipped
    change = colour.sample(base, lr, 0).astype(float) - base
    assert change.shape == hr.shape and change.std() > 3 and np.ptp(change, axis=2).max() <= 1  # each channel is rounded
    assert np.abs(gaps(colour, [scan(21, channels=3)])).max() < 1.5
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(_grey(np.repeat(levels[..., None], 3, 2)), levels, atol=1e-9)


@pytest.mark.parametrize("case", ["no scan", "smaller than a block", "fill only", "base is HR"])
def test_a_fit_without_anything_to_learn_gives_no_texture(case):
    """SR is base, projected."""
    base, lr, hr = scan(0)
    cases = {
        "no scan": [],
        "smaller than a block": [scan(0, height=BLOCK - 4)],
        "fill only": [(base, lr, 0 * hr + 255)],
        "base is HR": [(hr, lr, hr)],
    }
    gaussian = GaussianTexture().fit([scan(1)]).fit(cases[case])
    base, lr, _ = scan(20)
    plain = to_image(project(to_tensor(base), to_tensor(lr), rounds=ROUNDS))
    for sr in (gaussian.sample(base, lr, 0), GaussianTexture().sample(base, lr, 0)):
        assert np.abs(sr.astype(float) - plain).max() <= 1


def test_fill_does_not_count():
    """White fill in a corner, with an edge far stronger than the texture: that of scans without it is still HR's."""
    gaussian = GaussianTexture().fit(scan(seed, fill=60) for seed in range(4))
    assert np.abs(gaps(gaussian, [scan(seed) for seed in (10, 11)])).max() < 1.5


def test_welch_by_hand():
    """White noise of deviation 2 has power 4 at each frequency; blocks that touch what is not valid are left out."""
    image = 2 * np.random.default_rng(0).standard_normal((512, 512))
    ok = np.ones(image.shape, bool)
    image[300, 300], ok[300, 300] = 1e6, False
    power = _welch(image, ok)
    assert power.shape == (BLOCK, BLOCK) and power[3:-3, 3:-3].mean() == pytest.approx(4, rel=0.02)
