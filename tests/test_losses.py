"""The losses, and what public code gets wrong about them: dead gradients, a trainable or unnormalised VGG, a wrong factor."""

import math

import numpy as np
import pytest
import torch
import torchvision

from srlib.config import VGG, UserError, vgg_layers
from srlib.files import WEIGHTS
from srlib.models import features
from srlib.models.features import Frozen, feature_extractor
from srlib.sampler.features import LocalGrain
from srlib.sampler.training import MeanContentLoss, gradient_penalty, pairing_loss
from srlib.training.losses import ContentLoss, adversarial_loss, discriminator_loss, psnr_loss


@pytest.fixture(scope="module")
def random_vgg(random_weights):
    return random_weights["vgg19"]


def test_content_loss_has_a_gradient_and_the_extractor_none(random_vgg):
    for name, weights in (("vgg19:relu2_2", random_vgg), ("vgg19:relu1_2", "")):
        loss = ContentLoss(feature_extractor(name, weights))
        sr = torch.rand(1, 1, 48, 48, requires_grad=True)
        loss(sr, torch.rand(1, 1, 48, 48)).backward()
        assert sr.grad.abs().sum() > 0
        assert all(not p.requires_grad and p.grad is None for p in loss.parameters())


def test_grey_and_its_copy_to_three_channels_agree():
    net, grey = feature_extractor("vgg19:relu2_2"), torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))


def test_input_is_normalised_for_imagenet(random_vgg):
    net = feature_extractor("vgg19:conv1_1", random_vgg)
    image = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    plain = torch.nn.functional.conv2d(
        (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1),
        net.state_dict()["body.features.0.weight"],
        net.state_dict()["body.features.0.bias"],
        padding=1,
    )
    torch.testing.assert_close(net(image), plain)


@pytest.mark.parametrize("network", VGG)
def test_vgg_layers_are_where_their_names_say(network):
    """Convolutions and activations in torchvision's numbering, a pooling between blocks; a map before the activation has values below 0, as in
    ESRGAN; the paper's is after it."""
    with torch.device("meta"):
        layers = getattr(torchvision.models, network)(weights=None).features
    kinds = {"conv": torch.nn.Conv2d, "relu": torch.nn.ReLU}
    for name, node in vgg_layers(network).items():
        assert isinstance(layers[int(node.removeprefix("features."))], kinds[name[:4]]), name
    assert len(vgg_layers(network)) == sum(isinstance(layer, tuple(kinds.values())) for layer in layers)


@pytest.mark.parametrize(("layer", "shape"), [("relu2_2", 128), ("relu5_4", 512), ("conv5_4", 512), ("relu1_1", 64)])
def test_vgg_maps(random_vgg, layer, shape):
    maps = feature_extractor(f"vgg19:{layer}", random_vgg)(torch.rand(1, 1, 32, 32))
    assert maps.shape[1] == shape and (maps.min() < 0) == layer.startswith("conv")


def test_vgg_weights_in_every_form(random_vgg, tmp_path):
    state = torch.load(random_vgg, weights_only=True)
    full = {f"features.{k}": v for k, v in state.items()} | {"classifier.0.weight": torch.zeros(1)}
    torch.save(full, tmp_path / "vgg19-full.pth")
    image = torch.rand(1, 1, 16, 16)
    expected = feature_extractor("vgg19:relu1_2", random_vgg)(image)
    torch.testing.assert_close(feature_extractor("vgg19:relu1_2", tmp_path / "vgg19-full.pth")(image), expected)


def test_names_and_files_that_are_wrong(tmp_path):
    for name in ("resnet", "vgg19:relu9_9", "vgg19:pool1"):
        with pytest.raises(UserError):
            feature_extractor(name)
    (tmp_path / "vgg19.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"vgg19\.pth"):
        feature_extractor("vgg19:relu5_4", tmp_path / "vgg19.pth")
    with pytest.raises(UserError, match="feature_weights"):
        feature_extractor("vgg19:relu5_4", tmp_path / "missing.pth")


def test_the_repositorys_vgg_is_the_original_one():
    """Without feature_weights, and nothing is downloaded: the reference values of relu5_4 are those of the file as it came."""
    net, packed = feature_extractor("vgg19:conv5_1"), np.load(WEIGHTS / "vgg19.npz")
    assert torch.equal(net.state_dict()["body.features.0.weight"], torch.from_numpy(packed["features.0.weight"]).float())
    scale, least = packed["features.28.weight.affine"]
    torch.testing.assert_close(
        net.state_dict()["body.features.28.weight"], torch.from_numpy(packed["features.28.weight"] * scale + least).float()
    )
    assert net.state_dict()["body.features.28.bias"].dtype == torch.float32 and not any(p.requires_grad for p in net.parameters())


def test_a_changed_weights_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "vgg19.npz").write_bytes((WEIGHTS / "vgg19.npz").read_bytes() + b"x")
    monkeypatch.setattr(features, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="SHA-256"):
        feature_extractor("vgg19:relu5_4")


def test_adversarial_losses_by_hand():
    logits = torch.tensor([[0.0], [2.0]])
    sigmoid = 1 / (1 + math.exp(-2))
    assert adversarial_loss(logits).item() == pytest.approx(-(math.log(0.5) + math.log(sigmoid)) / 2, rel=1e-5)
    expected = -(math.log(0.5) + math.log(sigmoid)) / 2 - (math.log(0.5) + math.log(1 - sigmoid)) / 2
    assert discriminator_loss(logits, logits).item() == pytest.approx(expected, rel=1e-5)


def test_real_vgg():
    """The measured content loss of a real network on real weights: relu5_4 is sparse, relu2_2 is not."""
    from srlib.data.phantom import bscan
    from srlib.degrade import downsample, to_tensor, upsample

    hr = to_tensor(bscan(1)[64:256, :192])
    blurred = upsample(downsample(hr))
    deep, shallow = (feature_extractor(f"vgg19:{layer}") for layer in ("relu5_4", "relu2_2"))
    assert 0.8 < (deep(hr) == 0).float().mean() < 0.99
    assert ContentLoss(shallow)(blurred, hr) > 2 * ContentLoss(deep)(blurred, hr) > 0


def test_content_loss_of_two_equal_samples_is_the_papers():
    """MSE of features, with its gradient."""
    extractor = feature_extractor("vgg19:relu1_2")
    hr, sr = torch.rand(2, 2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    sr.requires_grad_()
    expected = torch.nn.functional.mse_loss(extractor(sr), extractor(hr))
    for value in (ContentLoss(extractor)(sr, hr), MeanContentLoss(extractor)(sr, sr, hr)):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, sr)[0], torch.autograd.grad(expected, sr, retain_graph=True)[0])


def test_two_samples_do_not_punish_the_texture():
    """Samples about a mean that is .1 from HR, each with its own noise of deviation .3: two of them have the squared distance of the mean on
    average, one has the noise's variance on top. Of each sample the gradient points from the other's error."""
    loss, rng = MeanContentLoss(torch.nn.Identity()), torch.Generator().manual_seed(0)
    hr = torch.rand(4, 1, 128, 128, generator=rng)
    one, two = (hr + 0.1 + 0.3 * torch.randn(hr.shape, generator=rng) for _ in range(2))
    assert loss(one, two, hr).item() == pytest.approx(0.01, abs=0.002)  # of 65,536 pixels: 5 deviations
    assert ContentLoss(torch.nn.Identity())(one, hr).item() == pytest.approx(0.01 + 0.09, abs=0.003)
    one.requires_grad_()
    (slope,) = torch.autograd.grad(loss(one, two, hr), one)
    torch.testing.assert_close(slope, (two - hr) / hr.numel())


class Power(torch.nn.Module):
    """The first maps of local-grain: how strong each wave is."""

    def __init__(self):
        super().__init__()
        self.net = Frozen(LocalGrain())

    def forward(self, image):
        return self.net(image)[:, :33]


def test_local_grain_is_the_log_power_of_each_wave():
    """Of white noise the same in each, of grey levels whatever the copy to three channels: twice the contrast is log 4 more; another sample of
    the same texture is near, a blurred one far. It has a gradient and no weights."""
    power, rng = Power(), torch.Generator().manual_seed(0)
    noise, other = 0.45 + 0.1 * torch.randn(2, 8, 1, 96, 96, generator=rng)
    maps = power(noise)
    assert maps.shape[1] == 33 and min(maps.shape[2:]) > 8 and not list(power.parameters())
    torch.testing.assert_close(maps.exp().mean(), torch.tensor(0.01 + (0.5 / 255) ** 2), rtol=0.05, atol=0)
    means, others = maps.mean((0, 2, 3)), power(other).mean((0, 2, 3))
    assert (means.exp() / 0.01).numpy() == pytest.approx(1, abs=0.35)  # (the mean of a logarithm lies below)
    assert (means - others).abs().max() < 0.15
    torch.testing.assert_close(power(noise.expand(-1, 3, -1, -1)), maps)
    assert (power(0.45 + 2 * (noise - 0.45)) - maps).mean().item() == pytest.approx(math.log(4), abs=0.01)
    loss, blurred = ContentLoss(power), torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert loss(other, noise) < loss(blurred, noise) / 5
    noise.requires_grad_()
    assert torch.autograd.grad(loss(noise, other), noise)[0].abs().sum() > 0


@pytest.mark.parametrize("turns", [((3 / 8, 0), (0, 3 / 8)), ((1 / 4, 1 / 4), (1 / 4, -1 / 4))], ids=["axes", "diagonals"])
def test_local_grain_tells_directions_apart(turns):
    y, x = torch.arange(96.0)[:, None], torch.arange(96.0)
    stripes = [0.45 + 0.1 * torch.cos(2 * torch.pi * (fy * y + fx * x))[None, None] for fy, fx in turns]
    one, other = (Power()(image).mean((0, 2, 3)) for image in stripes)
    assert one.argmax() != other.argmax() and one[one.argmax()] > max(other[one.argmax()] + 3, one.median() + math.log(100))
    torch.testing.assert_close(one.max(), other.max(), atol=1e-2, rtol=0)


def test_pairing_losses_by_hand():
    """Each logit beside that of its own LR, not the mean; the generator's has the two exchanged, log 2 where D cannot tell."""
    hr, sr = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [-3.0]])
    expected = (math.log1p(math.exp(-3)) + math.log1p(math.exp(-3))) / 2
    assert pairing_loss(hr, sr).item() == pytest.approx(expected)
    crossed = pairing_loss(hr, sr.flip(0)).item()
    assert crossed == pytest.approx((math.log1p(math.exp(-5)) + math.log1p(math.exp(-1))) / 2) and crossed > expected
    sr.requires_grad_()
    loss = pairing_loss(sr, hr)
    assert loss.item() == pytest.approx(math.log1p(math.exp(3)))
    assert (torch.autograd.grad(loss, sr)[0] < 0).all()  # pushed towards real
    assert pairing_loss(hr, hr).item() == pytest.approx(math.log(2))


def test_gradient_penalty_by_hand():
    """w x has the slope w at every input, a x^2 / 2 has a x: squared, summed over pixels, mean over the batch. The weights have a gradient."""
    rng = torch.Generator().manual_seed(0)
    x, w = (torch.rand(3, 2, 4, 5, generator=rng) for _ in range(2))
    x.requires_grad_()
    w = w[:1].requires_grad_()
    penalty = gradient_penalty((w * x).sum((1, 2, 3))[:, None], x)
    assert penalty.item() == pytest.approx(w.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(penalty, w)[0], 2 * w)
    a = torch.tensor(1.5, requires_grad=True)
    penalty = gradient_penalty((a * x.square() / 2).sum((1, 2, 3))[:, None], x)
    squares = x.square().sum().item() / 3
    assert penalty.item() == pytest.approx(1.5**2 * squares, rel=1e-5)
    assert torch.autograd.grad(penalty, a)[0].item() == pytest.approx(2 * 1.5 * squares, rel=1e-5)


def test_psnr_loss_is_minus_the_mean_psnr():
    """Against scikit-image, image by image; an image without error has a finite value and no gradient."""
    from skimage.metrics import peak_signal_noise_ratio

    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(3, 1, 20, 24, generator=generator)
    sr = hr + torch.tensor([0.01, 0.1, 0.3])[:, None, None, None] * torch.randn(hr.shape, generator=generator)
    expected = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1) for a, b in zip(sr, hr, strict=True)]
    assert psnr_loss(sr, hr, floor=0).item() == pytest.approx(-sum(expected) / 3, abs=1e-3)
    same = hr.clone().requires_grad_()
    value = psnr_loss(same, hr)
    assert value.item() == pytest.approx(-56, abs=0.1)
    assert (torch.autograd.grad(value, same)[0] == 0).all()


def test_local_grain_knows_skewness_and_tails():
    """Its last maps tell a sample from its mirror image in brightness, and many small speckles from few strong ones of
    the same power. It has a gradient, and no value of a flat image is nan."""
    net = Frozen(LocalGrain())
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 1, 96, 96, generator=rng)
    skewed = (torch.rand(1, 1, 96, 96, generator=rng).log() + 1) * -1  # exponential: skewness 2
    rare = normal * (torch.rand(1, 1, 96, 96, generator=rng) < 0.1) * 10**0.5
    bright, dark, few, many = (net(0.5 + 0.05 * texture).mean((0, 2, 3)) for texture in (skewed, -skewed, rare, normal))
    assert len(bright) == 37 and bright[33] > 1 > -1 > dark[33] and abs(many[33]) < 0.3
    torch.testing.assert_close(bright[:33], dark[:33])
    assert few[34] > many[34] + 2
    flat = torch.full((1, 1, 32, 32), 0.5, requires_grad=True)
    assert net(flat).isfinite().all()
    net(flat + 0.05 * torch.rand(1, 1, 32, 32)).sum().backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().sum() > 0
