"""The sampler, which makes texture from noise, and the discriminator that judges it."""

import math

import pytest
import torch
from running import Plain
from torch import nn

from srlib.degrade import KINDS, downsample, project
from srlib.models import Generator
from srlib.sampler.network import (
    NOISES,
    Sampler,
    SamplerDiscriminator,
    local_noise,
    normal_noise,
    saturated,
    scan_statistics,
    sinh_arcsinh,
)


def trunk(scale=4, channels=1, **more):
    """A small SRResNet whose weights are random, the last ones too, so that it is no bicubic interpolation."""
    torch.manual_seed(0)
    net = Generator(scale, channels, 8, 1, global_skip=True, **{"batch_norm": False} | more)
    nn.init.normal_(net.tail.weight, std=0.01)
    return net


def awake(net: Sampler) -> Sampler:
    """Its texture no longer 0."""
    torch.manual_seed(1)
    nn.init.normal_(net.head.tail.weight, std=0.05)
    nn.init.normal_(net.head.shape[-1].weight, std=0.1)
    nn.init.zeros_(net.head.shape[-1].bias)
    nn.init.normal_(net.usual)
    return net


def pair(scale=4, channels=1, images=2, height=8, width=10):
    lr = downsample(torch.rand(images, channels, height * scale, width * scale, generator=torch.Generator().manual_seed(0)), scale)
    return lr, normal_noise(0, images, height * scale, width * scale)


# --------------------------------------------------------------------------------------------- noise
def test_noise_is_a_function_of_its_seed():
    """Seeds that share their last 32 bits differ, too."""
    torch.manual_seed(1)
    first = normal_noise(5, 2, 100, 120)
    torch.manual_seed(2)
    assert torch.equal(first, normal_noise(5, 2, 100, 120)) and first.shape == (2, NOISES, 100, 120)
    seeds = (5, 6, 5 + (1 << 32), 5 + (1 << 33), 5 + (1 << 63), 5 + (1 << 90))
    flat = torch.stack([normal_noise(seed, 1, 100, 120).flatten() for seed in seeds])
    likeness = torch.corrcoef(flat) - torch.eye(len(seeds))
    assert likeness.abs().max() < 0.03  # of 48,000 numbers: 6 deviations
    for maps in (first, normal_noise(5 + (1 << 40), 2, 100, 120)):
        assert maps.mean().abs() < 0.02 and abs(maps.var() - 1) < 0.03 and abs((maps**4).mean() - 3) < 0.2  # normal
    assert (first[0] - first[1]).std() > 1  # each image has its own


# --------------------------------------------------------------------------------------------- generator
@pytest.mark.parametrize("make", [trunk, Plain])
def test_at_the_start_sr_is_the_projected_trunk(make):
    """To the bit, whatever the noise: the head's last convolution is 0. Of a network without `with_maps`, too."""
    (lr, noise), base = pair(), make()
    with torch.no_grad():
        smooth = base(lr)
        net = Sampler(base, 4)
        assert torch.equal(net(lr, noise), project(smooth, lr)) and torch.equal(net(lr, -noise), project(smooth, lr))
        assert not torch.equal(net(lr, noise), smooth)
        assert torch.equal(Sampler(base, 4, "")(lr, noise), smooth)  # no reduction: nothing to be consistent with


@pytest.mark.parametrize("make", [trunk, Plain])
def test_noise_changes_the_sample_and_nothing_else_does(make):
    (lr, noise), net = pair(), awake(Sampler(make(), 4))
    with torch.no_grad():
        first = net(lr, noise)
        torch.rand(10)
        assert torch.equal(first, net(lr, noise))
        for channel in range(NOISES):  # each map has its effect
            other = noise.clone()
            other[:, channel] = noise[:, channel].flip(-1)
            assert (net(lr, other) - first).std() > 1e-4
        one = torch.cat([net(lr[k : k + 1], noise[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(first, one, atol=1e-6, rtol=0)  # each image of a batch alone


@pytest.mark.parametrize(
    ("scale", "channels", "kind", "amount"),
    [*((s, c, "bicubic", 0.0) for s in (2, 3, 4, 8) for c in (1, 3)), (4, 1, "gaussian:2", 2.0), (4, 1, "area", 0.0)],
)
def test_every_sample_reduces_to_lr_by_the_reduction_of_the_settings(scale, channels, kind, amount):
    """In float to a millionth, so to the 8-bit level, whatever the head makes; unprojected, the same texture does not."""
    (lr, noise), base = pair(scale, channels), trunk(scale, channels)
    net, reduce = awake(Sampler(base, 4, kind)), KINDS[kind.partition(":")[0]]
    assert net.settings["kind"] == kind and net.settings["texture"] == 4
    with torch.no_grad():
        sr, loose = net(lr, noise), awake(Sampler(base, 4, ""))(lr, noise)
        assert sr.shape == (2, channels, 8 * scale, 10 * scale) and (sr - project(base(lr), lr, scale, kind)).std() > 0.003
        assert (reduce(sr, scale, amount) - lr).abs().max() < 2e-6 < 0.01 < (reduce(loose, scale, amount) - lr).abs().max()
        assert torch.equal(downsample(sr, scale, kind), lr)


def test_the_trunk_rests():
    """No gradient, and eval mode for good: its running statistics stay, and one image is answered whatever stands beside it."""
    base = trunk(batch_norm=True).train()
    base(torch.rand(4, 1, 8, 8))  # other statistics than at the start
    before = {k: v.clone() for k, v in base.state_dict().items()}
    (lr, noise), net = pair(), awake(Sampler(base, 4)).train()
    assert net.training and net.head.training and not any(m.training for m in net.trunk.modules())
    sr = net(lr, noise)
    sr.square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in net.trunk.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.head.parameters())
    after = net.trunk.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    torch.testing.assert_close(net(lr[:1], noise[:1]), sr[:1], atol=1e-6, rtol=0)


def test_shape_makes_the_texture_stronger_or_weaker_by_place():
    """The logarithm of the strength is its first map; never of another sign."""
    (lr, noise), net = pair(), Sampler(trunk(), 4)
    nn.init.normal_(net.head.tail.weight, std=0.05)
    with torch.no_grad():
        _, *known = net.prepare(lr)
        one = net.head(*known, noise)
        net.head.shape[-1].bias[0] += math.log(2)
        torch.testing.assert_close(net.head(*known, noise), 2 * one)
        nn.init.normal_(net.head.shape[-1].weight[:1], std=5.0)
        factor = net.head(*known, noise) / one
        assert factor.min() > 0 and factor.std() > 0.005


def test_sinh_arcsinh_skews_and_changes_the_tails():
    """Of normal numbers: skewness of the sign of `skew`, a fourth moment above or below 3 with `tails`, order kept, 0 stays 0; both 0 change nothing."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).sort().values

    def moments(skew, tails):
        y = sinh_arcsinh(x, torch.tensor(skew), torch.tensor(tails))
        assert (y.diff() >= 0).all() and sinh_arcsinh(torch.zeros(1), torch.tensor(skew), torch.tensor(tails)) == 0
        z = (y - y.mean()) / y.std()
        return (z**3).mean().item(), (z**4).mean().item()

    torch.testing.assert_close(sinh_arcsinh(x, torch.zeros(1), torch.zeros(1)), x, atol=1e-5, rtol=1e-5)
    assert moments(0.3, 0.0)[0] > 0.2 and moments(-0.3, 0.0)[0] < -0.2
    assert moments(0.0, 0.3)[1] > 4 and moments(0.0, -0.3)[1] < 2.6


def test_the_head_can_make_skewed_texture():
    """Where its shape says so: negative skewness, as of speckle on a logarithmic display, of what is symmetric without."""
    net = Sampler(trunk(), 8)
    noise, lr = normal_noise(0, 1, 96, 96), torch.full((1, 1, 24, 24), 0.4)
    nn.init.normal_(net.head.tail.weight, std=0.3)
    with torch.no_grad():
        _, *known = net.prepare(lr)
        net.head.shape[-1].bias[1] = -0.5
        texture = net.head(*known, noise)[..., 8:-8, 8:-8]
        assert (((texture - texture.mean()) / texture.std()) ** 3).mean() < -0.2


@pytest.mark.parametrize(("level", "absent"), [(0.0, (slice(5, 11), slice(9, 16))), (1.0, (slice(3, 13), slice(7, 16)))])
def test_texture_is_absent_where_lr_is_saturated(level, absent):
    """Black LR whose neighbours are so too has no texture; a pixel at the edge of such a patch, and another grey, have. Nor have fill and the pixel
    around it."""
    lr, net = torch.full((1, 1, 16, 16), 0.5), awake(Sampler(trunk(), 4))
    lr[..., 4:12, 8:] = level
    noise = normal_noise(0, 1, 64, 64)
    with torch.no_grad():
        _, *known = net.prepare(lr)
        textured = net.head(*known, noise).abs()[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).amax((2, 3)) > 0  # by LR pixel
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[absent] = False
    assert torch.equal(textured, expected)
    assert saturated(torch.full((1, 3, 8, 8), 249 / 255)).sum() == 0 and saturated(torch.full((2, 3, 1, 9), level)).mean() == 1


def test_local_noise_tells_a_noisy_image_from_a_smooth_one():
    """Half an LR image is noisy: there the maps say so, by the logarithm of the deviation; the level of grey does not count."""
    lr = torch.full((1, 1, 40, 80), 0.5)
    for left, sigma in ((0, 0.01), (40, 0.1)):
        lr[..., left : left + 40] += sigma * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(left))
    maps = local_noise(lr)
    assert maps.shape == (1, 2, 40, 80)
    quiet, loud = maps[..., 10:-10, 10:30].mean((2, 3)), maps[..., 10:-10, 50:70].mean((2, 3))
    torch.testing.assert_close(loud - quiet, torch.ones(1, 2), atol=0.1, rtol=0)  # ten times: 1 in log10
    torch.testing.assert_close(local_noise(lr - 0.2), maps, atol=1e-3, rtol=0)
    three = local_noise(torch.cat([lr, lr - 0.2, 1 - lr], 1))
    torch.testing.assert_close(three, maps[:, [0, 0, 0, 1, 1, 1]], atol=1e-3, rtol=0)


def test_scan_statistics_say_how_rough_a_whole_scan_is():
    """Ten times the noise is 2 in the logarithm of its power, by direction and distance; mirrored, or with a corner of fill, a scan is as rough."""
    noise = torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    quiet, loud = (scan_statistics(0.5 + sigma * noise) for sigma in (0.005, 0.05))
    torch.testing.assert_close((loud - quiet)[0], torch.tensor(6 * [2.0] + [0.0] * 3), atol=0.02, rtol=0)
    torch.testing.assert_close(quiet[0, 6:], torch.tensor([0.5, math.log2(96), 6.0]), atol=1e-3, rtol=0)
    across = noise.roll(1, 3) + noise  # smooth across alone
    rough = (scan_statistics(0.5 + 0.05 * across) - loud)[0] - math.log10(2)
    assert rough[0] < -0.3 and rough[1].abs() < 0.1 and rough[3].abs() < 0.2 and rough[4].abs() < 0.1
    lr = 0.5 + 0.05 * noise
    torch.testing.assert_close(scan_statistics(lr.flip(3)), loud, atol=0.01, rtol=0)
    lr[..., :20, 60:] = 1.0
    torch.testing.assert_close(scan_statistics(torch.cat([lr, lr, lr], 1)), loud, atol=0.05, rtol=0)


def test_texture_is_that_of_the_scan_not_of_the_part():
    """`scan` counts by what is usual in training; nothing that was the same in all of that, nor beyond 2.5 deviations."""
    (lr, noise), net = pair(), awake(Sampler(trunk(), 4))
    net.usual.copy_(torch.stack([torch.zeros(9), torch.tensor([1.0] + 8 * [0.0])]))

    def texture(rough, wide):
        return net.samples(lr, [noise], scan=torch.tensor(2 * [[rough, *7 * [0.0], wide]]))[0]

    with torch.no_grad():
        assert (texture(1.0, 0.0) - texture(2.5, 0.0)).std() > 1e-4
        assert torch.equal(texture(2.5, 0.0), texture(9.0, 0.0)) and torch.equal(texture(1.0, 0.0), texture(1.0, 5.0))


# --------------------------------------------------------------------------------------------- discriminator
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (96, 96)])
def test_discriminator_takes_any_size(channels, height, width):
    """Logits (N, 1) of any size from 16 pixels on; each image is judged alone, as there is no BN."""
    torch.manual_seed(0)
    D = SamplerDiscriminator(channels, 4)
    image, base = torch.rand(2, 2, channels, height, width)
    logits = D(D.see(image, base), base)
    assert logits.shape == (2, 1) and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in D.modules())
    alone = torch.cat([D(D.see(image[k : k + 1], base[k : k + 1]), base[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[1]).abs() > 1e-4


def test_discriminator_sees_the_difference_at_its_contrast_and_the_place():
    torch.manual_seed(0)
    D, (image, base) = SamplerDiscriminator(1, 4), torch.rand(2, 1, 1, 32, 32)
    torch.testing.assert_close(D.see(image, base), 10 * (image - base))
    D.contrast.fill_(3.0)
    torch.testing.assert_close(D.see(image, base), 3 * (image - base))
    assert "contrast" in D.state_dict()
    detail = D.see(image, base)
    assert (D(detail, base) - D(2 * detail, base)).abs() > 1e-4 and (D(detail, base) - D(detail, base.flip(2))).abs() > 1e-4
