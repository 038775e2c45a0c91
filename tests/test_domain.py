"""Which images are unlike a training set: phantoms among phantoms, and real scans of unseen patients where they are to be had."""

import re

import numpy as np
import pytest
from skimage import data

from srlib.commands import domain
from srlib.config import load_config
from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.data.reading import find_images, read_pair
from srlib.degrade import downsample, to_image, to_tensor, upsample

PHOTOGRAPHS = ("astronaut", "camera", "coffee", "chelsea", "coins", "moon", "page", "text", "rocket", "brick", "grass", "gravel", "clock")


def lr_phantom(seed):
    return to_image(downsample(to_tensor(bscan(seed, 240, 320, PATHOLOGIES[seed % 4])), 4))


def enlarged(lr):
    return to_image(upsample(to_tensor(lr)))


def strangers(lr):
    """Images that no training set of scans holds, by name; the first ones are made from a scan."""
    rng = np.random.default_rng(0)
    yield "enlarged", enlarged(lr)
    yield "enlarged and cut", enlarged(lr)[: len(lr), : lr.shape[1]]
    yield "false colour", np.stack([lr, 255 - lr, lr // 2], 2)
    window = np.full((len(lr) + 120, lr.shape[1] + 160, 3), (236, 240, 245), np.uint8)  # a program around the scan
    window[80:-40, 40:-120] = lr[..., None]
    window[10:30, :] = (0, 90, 180)
    yield "screenshot", window
    yield "noise on it", np.clip(lr + rng.normal(0, 30, lr.shape), 0, 255).astype(np.uint8)
    yield "noise", rng.integers(0, 256, lr.shape, dtype=np.uint8)
    yield "dark noise", np.clip(rng.normal(40, 20, lr.shape), 0, 255).astype(np.uint8)
    for name in PHOTOGRAPHS:
        photograph = getattr(data, name)()
        yield name, photograph
        grey = np.round(photograph @ [0.299, 0.587, 0.114]).astype(np.uint8) if photograph.ndim == 3 else photograph
        yield f"{name}, grey, a quarter", to_image(downsample(to_tensor(grey), 4))


@pytest.fixture(scope="module")
def known():
    return domain.describe(lr_phantom(k) for k in range(32))


def test_phantoms_among_phantoms(known):
    assert known["images"] == 32 and known["height"] == [60, 60] and known["width"] == [80, 80]
    warned = [domain.warning(lr_phantom(k), known) for k in range(100, 120)]
    assert sum(map(bool, warned)) <= 1, warned


def test_strangers_among_phantoms(known):
    missed = [name for name, image in strangers(lr_phantom(100)) if not domain.warning(image, known)]
    assert not missed


def test_the_warning_says_what(known):
    lr = lr_phantom(100)
    assert re.fullmatch(
        r"320 x 240 pixels \(in training 80 x 60\); power .* \(dB\) -\d+ \(in training -?\d+ ± .*\)", domain.warning(enlarged(lr), known)
    )
    assert "colour" in domain.warning(np.stack([lr, 255 - lr, lr // 2], 2), known)
    assert "grey" in domain.warning(255 - lr, known)
    assert "layers (dB) -" in domain.warning(np.rot90(lr), known)
    assert domain.warning(np.repeat(lr[..., None], 3, 2), known) == domain.warning(lr, known) == ""


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (5, 5, 3), (24, 24), (23, 400)])
def test_any_image_is_measured(known, shape):
    for value in (0, 255):
        assert "pixels" in domain.warning(np.full(shape, value, np.uint8), known)


def test_real_scans(real_scans):
    """LR of patients apart: under 5 % are warned of; of photographs, noise, enlarged scans and screenshots, all."""
    config, parts = load_config("quick", data=str(real_scans)), {True: [], False: []}
    for path in find_images(real_scans):
        parts[int(path.stem.split("-")[1]) % 4 == 0].append(path)
    known = domain.describe(read_pair(path, config)[0] for path in parts[False][::2])
    unseen = [read_pair(path, config)[0] for path in parts[True]]
    warned = sum(bool(domain.warning(lr, known)) for lr in unseen)
    assert len(unseen) >= 60 and warned < 0.05 * len(unseen), (warned, len(unseen))
    assert all(domain.warning(enlarged(lr), known) for lr in unseen[::4])
    assert not [name for name, image in strangers(unseen[0]) if not domain.warning(image, known)]
