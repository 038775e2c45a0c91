"""The networks against the paper's figure 4, and the departures against their names."""

import numpy as np
import pytest
import torch
from torch import nn

from srlib.degrade import upsample
from srlib.evaluation.methods import LinearFilter
from srlib.metrics import checkerboard, spectrum
from srlib.models import Discriminator, Generator
from srlib.models.networks import RowConv2d


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_generator_is_the_papers():
    net = Generator(channels=3)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert count(net) == pytest.approx(1.55e6, rel=0.01)
    assert [c.kernel_size[0] for c in convolutions] == [9] + [3] * 32 + [3] + [3, 3] + [9]
    assert [c.out_channels for c in convolutions] == [64] * 34 + [256, 256, 3]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 33
    assert sum(isinstance(m, nn.PReLU) for m in net.modules()) == 1 + 16 + 2
    assert all(m.eps == 1e-5 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(isinstance(m, nn.Tanh | nn.Sigmoid) for m in net.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in Generator(batch_norm=False).modules())


def test_generator_output_is_linear():
    net = Generator(width=8, blocks=1).eval()
    nn.init.constant_(net.tail.bias, 5.0)
    assert net(torch.rand(1, 1, 8, 8)).mean() > 2  # (5 + ...) / 2 + 1/2: neither tanh nor clamp


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_global_skip_starts_as_bicubic(scale, channels):
    lr = torch.rand(2, channels, 12, 10)
    torch.testing.assert_close(Generator(scale, channels, 8, 2, global_skip=True)(lr), upsample(lr, scale))
    assert not torch.equal(Generator(scale, channels, 8, 2)(lr), upsample(lr, scale))


def test_smooth_removes_the_grid():
    """A sub-pixel convolution with unequal sub-filters leaves a grid on a constant image; `smooth` does not."""
    shares = {}
    for smooth in (False, True):
        torch.manual_seed(0)
        net = Generator(4, 1, 8, 1, smooth=smooth).eval()
        with torch.no_grad():
            out = net(0.5 + 0.02 * torch.randn(1, 1, 32, 32))[0, 0]
        image = (out - out.min()) / (out.max() - out.min()) * 255
        noise = np.random.default_rng(0).normal(128, 20, image.shape)
        shares[smooth] = checkerboard(spectrum(image.numpy()), spectrum(noise))
    assert shares[False] > 5 > shares[True]


def test_discriminator_is_the_papers():
    net = Discriminator(channels=3, crop=96)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert count(net) == pytest.approx(23.6e6, rel=0.01)
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2] * 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 7
    assert [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)] == [0.2] * 9
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [1024, 1]
    logits = net(torch.rand(2, 3, 96, 96))
    assert logits.shape == (2, 1) and not any(isinstance(m, nn.Sigmoid) for m in net.modules())


def test_discriminator_refuses_odd_crops():
    with pytest.raises(ValueError, match="multiple of 16"):
        Discriminator(crop=90)


@pytest.mark.parametrize("channels", [1, 3])
def test_last_convolution_is_an_ordinary_one(channels):
    """Value and gradients as nn.Conv2d with the same weights."""
    torch.manual_seed(0)
    rows, plain = RowConv2d(5, channels, 9, padding=4), torch.nn.Conv2d(5, channels, 9, padding=4)
    plain.load_state_dict(rows.state_dict())
    x = torch.randn(2, 5, 13, 17, requires_grad=True)
    results = []
    for layer in (rows, plain):
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_linear_filter_recovers_a_linear_world():
    """HR that is a fixed linear function of LR is fitted exactly."""
    torch.manual_seed(0)
    truth = LinearFilter(2, 5)
    truth.weight.normal_(0, 0.05)
    lr = torch.rand(6, 1, 24, 24)
    fitted = LinearFilter(2, 5).fit([(lr[:4], truth(lr[:4]))])
    torch.testing.assert_close(fitted(lr[4:]), truth(lr[4:]), atol=2e-3, rtol=0)
