"""The measures in a world whose posterior is known: what is right passes them all, and what is wrong in one way fails those made for it.

HR is a Gaussian field whose covariance is a product of one along depth and one across; LR is its bicubic reduction by 4, a product too. Then
p(hr | lr) is Gaussian, its mean is linear in LR, and Matheron's rule samples it exactly: a sample of the prior, moved to where it agrees with LR.
"""

import numpy as np
import pytest
import torch

from srlib import metrics
from srlib.degrade import KINDS, downsample, to_image, to_tensor
from srlib.metrics import unpaired
from srlib.sampler import statistics
from srlib.sampler.evaluation import against_hr

SCALE, SAMPLES, SHAPE, GREY = 4, 8, (96, 128), 128
PATIENTS = tuple("aabbccddeeff")  # of twelve images
SIDE, COUNT, STEPS = 12, 40, 24  # patches and steps of the fresh classifier: small, to be fast

RIGHT = {  # what a measure is of right samples: from, to
    "bands": (0, 3),
    "stripes": (0, 3),
    "grid": (0, 5),
    "regain": (2.2, 2.8),
    "ranks": (0, 0.03),
    "predicted error": (0.9, 1.1),
    "c2st": (0, 0.6),
    "kid": (-np.inf, 0.2),
    "consistency": (50, np.inf),
}
CANDIDATES = (  # name, measures that it must fail, measures that must not mind
    ("blur", "bands, stripes, regain, ranks, predicted error, c2st, kid", "consistency"),
    ("white noise", "bands, stripes, c2st, kid, consistency", "grid"),
    ("stripes", "stripes, c2st, kid", "bands, grid, ranks, predicted error, consistency"),
    ("grid", "grid", "bands, consistency"),
    ("copied texture", "regain, ranks, predicted error", "bands, stripes, grid, c2st, kid, consistency"),
    ("too bright", "ranks, predicted error, consistency", "bands, stripes, grid, kid"),
    ("half the spread", "bands, regain, ranks, predicted error, c2st, kid", "stripes, grid, consistency"),
)


class World:
    """`hr`, `lr` and the posterior's `mean` of each image, in grey levels about 0, neither rounded nor clipped."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        strength = 25 * (1 + 0.4 * np.cos(np.arange(SHAPE[0]) / 12))  # more texture at some depths than at others
        axes = (self.axis(SHAPE[0], 0.6, strength), self.axis(SHAPE[1], 0.8, np.ones(SHAPE[1])))
        self.root, self.down, self.gain = zip(*axes, strict=True)
        self.hr = [self.prior() for _ in PATIENTS]
        self.lr = [along(self.down, hr) for hr in self.hr]
        self.mean = [along(self.gain, lr) for lr in self.lr]

    @staticmethod
    def axis(size, correlation, strength):
        """Root R of the covariance C = R R', reduction D, and gain C D' (D C D')^-1 of one axis."""
        place = np.arange(size)
        covariance = correlation ** np.abs(place[:, None] - place) * np.outer(strength, strength)
        lines = torch.eye(size, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, 2 * SCALE)
        down = KINDS["bicubic"](lines, SCALE, 0)[:, 0, :, 0].T.numpy()
        return np.linalg.cholesky(covariance), down, np.linalg.solve(down @ covariance @ down.T, down @ covariance).T

    def prior(self):
        return along(self.root, self.rng.standard_normal(SHAPE))

    def hidden(self, image):
        """The image less what LR tells of it."""
        return image - along(self.gain, along(self.down, image))

    def sample(self, i):
        """Of the posterior of image i."""
        return self.mean[i] + self.hidden(self.prior())


def along(matrices, image):
    return matrices[0] @ image @ matrices[1].T


def frequencies():
    fy, fx = np.fft.fftfreq(SHAPE[0])[:, None], np.fft.fftfreq(SHAPE[1])[None]
    return fy, fx, np.maximum(np.abs(fy), np.abs(fx))


def above(image):
    """Power above the LR Nyquist frequency."""
    return metrics.spectrum(image)[frequencies()[2] > 0.5 / SCALE].sum()


def striped(image):
    """As much power in each band, nearly all of it in stripes within 7.5 degrees of one diagonal."""
    fy, fx, f = frequencies()
    before = np.fft.fft2(image)
    after = before * np.where(np.abs(np.rad2deg(np.arctan2(fy, fx)) % 180 - 45) < 7.5, 1, 0.1)
    for low, high in metrics.bands(SCALE):
        band = (f > low) & (f <= high)
        after[band] *= np.linalg.norm(before[band]) / np.linalg.norm(after[band])
    return np.fft.ifft2(after).real


def candidates(world):
    """Name to eight samples of each image."""
    images, mean = range(len(PATIENTS)), world.mean
    exact = [[world.sample(i) for _ in range(SAMPLES)] for i in images]
    rest = [world.hr[i] - mean[i] for i in images]
    noise = [[world.rng.standard_normal(SHAPE) for _ in range(SAMPLES)] for _ in images]
    noise_level = np.sqrt(sum(above(r) for r in rest) / sum(above(n[0]) for n in noise))
    grid = world.hidden(np.tile(world.rng.standard_normal((SCALE, SCALE)), (SHAPE[0] // SCALE, SHAPE[1] // SCALE)))
    grid *= 8 / grid.std()
    return {
        "exact": exact,
        "blur": [[mean[i]] * SAMPLES for i in images],  # what a network has learnt that minimises the squared error
        "white noise": [[mean[i] + noise_level * n for n in noise[i]] for i in images],
        "stripes": [[mean[i] + world.hidden(striped(sr - mean[i])) for sr in exact[i]] for i in images],
        "grid": [[sr + grid for sr in exact[i]] for i in images],
        "copied texture": [[mean[i] + rest[i - 2]] * SAMPLES for i in images],  # another patient's
        "too bright": [[sr + 10 for sr in exact[i]] for i in images],
        "half the spread": [[(sr + mean[i]) / 2 for sr in exact[i]] for i in images],
    }


def levels(image):
    return np.clip(np.round(GREY + image), 0, 255).astype(np.uint8)


def features(patches):
    """Of patches' differences between two pixels one or two steps apart in four directions: their means and deviations."""
    images = torch.from_numpy(patches)[:, None] / 255.0
    steps = [(k * dy, k * dx) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)) for k in (1, 2)]
    maps = torch.cat([(images - images.roll(step, (2, 3)))[:, :, 2:-2, 2:-2] for step in steps], 1)
    return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1).double().numpy()


def measure(samples, hr):
    """Measure to value: its mean over images, or what all images give together. Images are uint8; of `samples` eight for each of `hr`."""
    first = [images[0] for images in samples]
    powers = [(metrics.spectrum(sr), metrics.spectrum(image)) for sr, image in zip(first, hr, strict=True)]
    values = {"bands": np.abs(np.mean([metrics.band_power_db(*pair, SCALE) for pair in powers], 0)).max()}
    values["stripes"] = np.mean([metrics.stripe_index(*pair, SCALE) for pair in powers])
    values["grid"] = np.mean([metrics.checkerboard(*pair, SCALE) for pair in powers])
    pairs = list(zip(samples, hr, strict=True))
    regain, spread, error = np.array([[*against_hr(*pair, np.ones(SHAPE, bool)).values()] for pair in pairs]).T
    values["ranks"] = statistics.rank_distance(sum(statistics.ranks(*pair, seed=k) for k, pair in enumerate(pairs)))
    values |= {"regain": regain.mean(), "predicted error": np.sqrt((spread**2).mean() / (error**2).mean())}
    corners = [unpaired.places(np.ones(SHAPE, bool), k, COUNT, SIDE) for k in range(len(hr))]
    sr_patches, hr_patches = (
        np.concatenate([unpaired.cut(image, c, SIDE) for image, c in zip(images, corners, strict=True)]) for images in (first, hr)
    )
    patients = np.repeat(PATIENTS, COUNT)
    values["c2st"] = np.mean(list(unpaired.c2st(sr_patches, hr_patches, patients, STEPS).values()))
    values["kid"] = unpaired.kid(features(sr_patches), features(hr_patches), patients, patients, 10)[0]
    lr = [to_image(downsample(to_tensor(image), SCALE)) for image in hr]
    values["consistency"] = np.mean([metrics.consistency(*pair, SCALE) for pair in zip(first, lr, strict=True)])
    return values


@pytest.fixture(scope="module")
def table():
    """Candidate to measure to value. One classifier in the place of three, to be fast."""
    world = World(0)
    hr = [levels(image) for image in world.hr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpaired, "REPEATS", 1)
        return {name: measure([[levels(sr) for sr in images] for images in samples], hr) for name, samples in candidates(world).items()}


def failed(values):
    return {name for name, (low, high) in RIGHT.items() if not low <= values[name] <= high}


def test_an_exact_sample_passes_every_measure(table):
    assert failed(table["exact"]) == set(), table["exact"]


@pytest.mark.parametrize(("name", "fails", "passes"), CANDIDATES, ids=[name for name, *_ in CANDIDATES])
def test_what_is_wrong_fails_the_measures_made_for_it(table, name, fails, passes):
    assert set(fails.split(", ")) <= failed(table[name]), table[name]
    assert failed(table[name]).isdisjoint(passes.split(", ")), table[name]


def test_every_measure_has_a_wrong_candidate_that_it_must_fail(table):
    assert table.keys() - {"exact"} == {name for name, *_ in CANDIDATES}
    assert {measure for _, fails, _ in CANDIDATES for measure in fails.split(", ")} == set(RIGHT)
