"""LR synthesis against Pillow, a float reference and cases that can be worked out."""

import numpy as np
import pytest
import torch
from PIL import Image

from srlib.degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from srlib.phantom import bscan


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_agrees_with_pillow(scale):
    """Pillow rounds to 8 bit between its two passes; the smaller the kernel, the more of that rounding is left."""
    hr = crop_to_multiple(bscan(3, 240, 264), scale)
    ours = to_image(downsample(to_tensor(hr), scale)).astype(int)
    pillow = np.asarray(Image.fromarray(hr).resize(ours.shape[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert (ours != pillow).mean() <= (0.16 if scale < 4 else 0.12)
    assert np.abs(ours - pillow).max() <= 3


def cubic_rows(size, scale):
    """The antialiased cubic kernel (Keys, a = -0.5) as a matrix, from its definition."""
    x = (np.arange(size) + 0.5)[None] - (np.arange(size // scale) + 0.5)[:, None] * scale
    t = np.abs(x / scale)
    w = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    return w / w.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_agrees_with_the_kernels_definition(scale):
    hr = np.random.default_rng(0).random((48, 72))
    reference = cubic_rows(48, scale) @ hr @ cubic_rows(72, scale).T
    ours = downsample(torch.from_numpy(hr)[None, None], scale)[0, 0].numpy()
    assert np.abs(ours - reference.clip(0, 1)).max() <= 0.5 / 255 + 1e-5  # no more than the rounding to 8 bit


def test_result_is_on_eight_bit_levels():
    levels = downsample(torch.rand(2, 3, 32, 32)) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_constant_stays_constant():
    hr = torch.full((1, 1, 40, 40), 100 / 255)
    torch.testing.assert_close(downsample(hr), torch.full((1, 1, 10, 10), 100 / 255))
    torch.testing.assert_close(upsample(downsample(hr)), hr)


def test_what_lies_above_nyquist_is_gone():
    x = torch.arange(128)
    below, above = (0.5 + 0.4 * torch.sin(2 * torch.pi * f * x).expand(1, 1, 128, 128) for f in (0.02, 0.4))
    assert downsample(below).std() == pytest.approx(below.std().item(), rel=0.06)
    assert downsample(above)[..., 4:-4].std() < 0.01


def test_sizes_that_do_not_divide_are_cropped():
    assert downsample(torch.rand(1, 1, 43, 50), 4).shape == (1, 1, 10, 12)
    assert crop_to_multiple(np.zeros((43, 50, 3)), 4).shape == (40, 48, 3)


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="scale"):
        downsample(torch.rand(1, 1, 32, 32), 5)
    with pytest.raises(ValueError, match="kind"):
        downsample(torch.rand(1, 1, 32, 32), 4, kind="lanczos")
    with pytest.raises(ValueError, match="smaller than scale"):
        downsample(torch.rand(1, 1, 3, 32), 4)
