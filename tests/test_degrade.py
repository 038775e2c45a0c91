"""LR synthesis against Pillow, a float reference and cases that can be worked out."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from srlib.config import FIELDS
from srlib.data.phantom import bscan
from srlib.degrade import (
    KINDS,
    SCALES,
    Separable,
    crop_to_multiple,
    downsample,
    from_display,
    has_projection,
    project,
    to_display,
    to_image,
    to_tensor,
    upsample,
)

LINEAR = [kind for kind in KINDS if kind != "frame"]


@pytest.mark.parametrize("scale", SCALES)
def test_agrees_with_pillow_and_opencv(scale):
    """Pillow rounds to 8 bit between its two passes, of which a small kernel leaves more."""
    hr = crop_to_multiple(bscan(3, 240, 264), scale)
    size = hr.shape[1] // scale, hr.shape[0] // scale
    pillow, opencv = Image.fromarray(hr).resize(size, Image.Resampling.BICUBIC), cv2.resize(hr, size, interpolation=cv2.INTER_AREA)
    for kind, theirs, most, share in (("bicubic", pillow, 3, 0.16 if scale < 4 else 0.12), ("area", opencv, 1, 0.13)):
        gap = np.abs(to_image(downsample(to_tensor(hr), scale, kind)) - np.asarray(theirs, int))
        assert gap.max() <= most and (gap > 0).mean() <= share, kind


def cubic_rows(size, scale, mirrored=False):
    """The antialiased cubic kernel (Keys, a = -0.5) as a matrix, from its definition; `mirrored`: of a padded line, as MATLAB's."""
    pad, kept = 2 * scale * mirrored, size // scale * scale  # what is cut off has weight 0
    padded = np.pad(np.eye(kept, size), ((pad, pad), (0, 0)), "symmetric")
    x = (np.arange(-pad, kept + pad) + 0.5)[None] - (np.arange(size // scale) + 0.5)[:, None] * scale
    t = np.abs(x / scale)
    w = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    return (w / w.sum(1, keepdims=True)) @ padded


@pytest.mark.parametrize("scale", SCALES)
def test_agrees_with_the_kernels_definition(scale):
    hr = np.random.default_rng(0).random((48, 72))
    reference = cubic_rows(48, scale) @ hr @ cubic_rows(72, scale).T
    ours = downsample(torch.from_numpy(hr)[None, None], scale)[0, 0].numpy()
    assert np.abs(ours - reference.clip(0, 1)).max() <= 0.5 / 255 + 1e-5  # no more than the rounding to 8 bit


def test_the_settings_know_the_kinds():
    assert FIELDS["degradation"].metadata["choices"] == (*KINDS, "paired")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_kind_gives_eight_bit_levels_of_the_image_alone(kind, scale):
    """The right size, 8-bit levels, the input untouched, and no difference whether an image stands alone or in a batch."""
    hr = (torch.rand(3, 2, 50, 61) * 255).round() / 255
    before = hr.clone()
    lr = downsample(hr, scale, kind)
    assert lr.shape == (3, 2, 50 // scale, 61 // scale) and lr.dtype is torch.float32 and torch.equal(hr, before)
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(lr[1:2], downsample(hr[1:2], scale, kind), atol=1.01 / 255, rtol=0)
    assert ((lr[1:2] - downsample(hr[1:2], scale, kind)).abs() > 0.5 / 255).float().mean() < 0.01  # rounding at most
    torch.testing.assert_close(lr, downsample(hr, scale, kind), atol=0, rtol=0)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("scale", SCALES)
def test_constant_stays_constant(kind, scale):
    hr = torch.full((1, 1, 48, 72), 100 / 255)
    lr = downsample(hr, scale, kind)
    torch.testing.assert_close(lr, torch.full((1, 1, 48 // scale, 72 // scale), 100 / 255))
    torch.testing.assert_close(upsample(lr, scale), hr)


def wave(f: float, axis: int, n: int = 192) -> torch.Tensor:
    """A cosine of f cycles a pixel along one axis, amplitude 0.4 about grey 0.5, (1, 1, n, n)."""
    line = 0.5 + 0.4 * torch.cos(2 * torch.pi * f * torch.arange(n))
    return (line[:, None] if axis == 0 else line[None]).expand(1, 1, n, n)


def amplitude(lr: torch.Tensor) -> float:
    """Of the wave that is left, the edges aside."""
    inner = lr[..., 6:-6, 6:-6]
    return (inner - inner.mean()).square().mean().sqrt().item() * math.sqrt(2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("f", [1 / 48, 1 / 16, 3 / 16])
def test_transfer_functions(f, axis):
    """Each kind damps a wave as its formula says, in each direction."""
    gauss = math.exp(-2 * (math.pi * f * 1.6) ** 2)
    box = abs(math.sin(math.pi * f * 4) / (4 * math.sin(math.pi * f)))
    expected = {"gaussian": gauss, "area": box, "nearest": 1.0}  # what lies above the Nyquist frequency folds back
    for kind, gain in expected.items():
        assert amplitude(downsample(wave(f, axis), 4, kind)) == pytest.approx(0.4 * gain, abs=0.012), kind


@pytest.mark.parametrize("scale", SCALES)
def test_matlab_to_the_grey_level(scale):
    """imresize of uint8: rows first, rounded half up to 8 bit after each pass, mirrored edges."""
    hr = np.random.default_rng(1).integers(0, 256, (48, 72), dtype=np.uint8)
    half = np.floor(cubic_rows(48, scale, mirrored=True) @ hr + 0.5 + 1e-9).clip(0, 255)
    reference = np.floor(half @ cubic_rows(72, scale, mirrored=True).T + 0.5 + 1e-9).clip(0, 255)
    ours = to_image(downsample(to_tensor(hr), scale, "bicubic-matlab")).astype(int)
    assert (ours != reference).mean() < 0.003 and np.abs(ours - reference).max() <= 1  # exact ties aside


def test_gaussian_agrees_with_scipy_where_the_pixels_fall_together():
    hr = np.random.default_rng(2).random((60, 75))
    reference = gaussian_filter(hr, 1.7, mode="reflect", truncate=4.2)[1::3, 1::3]
    ours = downsample(torch.from_numpy(hr)[None, None], 3, "gaussian:1.7")[0, 0].numpy()
    assert np.abs(ours - reference).max() < 0.5 / 255 + 2e-4


def test_frame_has_the_stated_noise():
    """Of grey 0.5: so many levels, after the reduction what its correlation leaves; without a number other levels for another image, 40 at most."""
    hr = torch.full((1, 1, 1600, 1600), 0.5)
    white = downsample(hr + 32 / 255 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0)), 4).std()
    lr = downsample(hr, 4, "frame:32")
    assert lr.mean().item() == pytest.approx(0.5, abs=1e-3) and 1.1 < (lr.std() / white).item() < 1.25
    drawn = torch.stack([downsample(hr[..., : 400 + 4 * k, :], 4, "frame").std() for k in range(12)]) / lr.std()
    assert drawn.max() < 1.3 and drawn.max() - drawn.min() > 0.5
    assert torch.equal(downsample(hr, 4, "frame"), downsample(hr, 4, "frame"))


def test_display_and_back():
    grey = torch.linspace(0.02, 1, 50)
    torch.testing.assert_close(to_display(from_display(grey)), grey, atol=1e-5, rtol=0)
    assert to_display(torch.tensor([0.0, 1e9])).tolist() == pytest.approx([0, 1], abs=2e-3)


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="scale"):
        downsample(torch.rand(1, 1, 32, 32), 5)
    with pytest.raises(ValueError, match="kind"):
        downsample(torch.rand(1, 1, 32, 32), 4, kind="lanczos")
    with pytest.raises(ValueError, match="smaller than scale"):
        downsample(torch.rand(1, 1, 3, 32), 4)


# --------------------------------------------------------------------------------------------- projection
def dense(kind, height, width, scale):
    """The reduction of whole images as one matrix (float64), from images with one bright pixel each."""
    if kind == "bicubic-matlab":  # without its rounding
        return torch.from_numpy(np.kron(cubic_rows(height, scale, mirrored=True), cubic_rows(width, scale, mirrored=True)))
    pixels = torch.eye(height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    name, _, amount = kind.partition(":")
    return KINDS[name](crop_to_multiple(pixels, scale), scale, float(amount or 0)).flatten(1).T


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", [*LINEAR, "gaussian:1.1"])
def test_projection_is_the_nearest_image_that_reduces_to_lr(kind, scale):
    """Against the dense least-squares solution: odd sizes that no scale divides, two images of three channels, any LR; and its gradient
    is that of the dense projector, I - D+ D."""
    height, width = 19, 29
    D = dense(kind, height, width, scale)
    back = torch.linalg.pinv(D)
    rng = torch.Generator().manual_seed(scale)
    sr = torch.rand(2, 3, height, width, generator=rng, dtype=torch.float64)
    lr = torch.rand(2, 3, height // scale, width // scale, generator=rng, dtype=torch.float64)
    expected = sr.flatten(2) + (lr.flatten(2) - sr.flatten(2) @ D.T) @ back.T
    given = sr.float().requires_grad_()
    projected = project(given, lr.float(), scale, kind)
    assert projected.dtype is torch.float32
    torch.testing.assert_close(projected.double(), expected.reshape(sr.shape), atol=1e-5, rtol=0)
    rows, columns = height // scale * scale, width // scale * scale
    assert torch.equal(projected[..., rows:, :], given[..., rows:, :]) and torch.equal(projected[..., columns:], given[..., columns:])
    weight = torch.rand(sr.shape, generator=rng, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((projected * weight.float()).sum(), given)
    by_hand = weight.flatten(2) - weight.flatten(2) @ (back @ D)
    torch.testing.assert_close(gradient.double(), by_hand.reshape(sr.shape), atol=1e-5, rtol=0)


def test_autocast_does_not_lower_the_projections_precision():
    sr, lr = torch.rand(1, 1, 32, 40), torch.rand(1, 1, 8, 10)
    with torch.autocast("cpu", torch.bfloat16):
        inside = project(sr.bfloat16(), lr)
    assert torch.equal(inside, project(sr.bfloat16().float(), lr)) and inside.dtype is torch.float32
    assert (KINDS["bicubic"](inside, 4, 0) - lr).abs().max() < 1e-5


def test_what_cannot_be_projected(monkeypatch):
    """Speckle, unknown kinds, sizes that do not belong together, and a function of a reader's own, unless it comes as matrices."""
    sr, lr = torch.rand(1, 1, 32, 40), torch.rand(1, 1, 8, 10)
    monkeypatch.setitem(KINDS, "peak", lambda hr, scale, amount: F.max_pool2d(hr, scale))
    monkeypatch.setitem(KINDS, "corner", Separable(lambda n, scale, amount: torch.eye(n, dtype=torch.float64)[::scale]))
    for kind, words in (("frame", "no projection"), ("peak", "no projection"), ("lanczos", "kind must be one of")):
        with pytest.raises(ValueError, match=words):
            project(sr, lr, 4, kind)
    for wrong in (lr[..., 1:, :], lr[..., 1:], torch.rand(1, 1, 16, 20)):
        with pytest.raises(ValueError, match="does not belong"):
            project(sr, wrong, 4)
    assert torch.equal(project(sr, lr, 4, "corner")[..., ::4, ::4], lr)
    assert [kind for kind in KINDS if has_projection(kind)] == [*LINEAR, "corner"]
