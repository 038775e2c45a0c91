"""The losses, and what public code gets wrong about them: dead gradients, a trainable or unnormalised VGG, a wrong factor."""

import math

import pytest
import torch

from srlib import features
from srlib.config import UserError, load_config
from srlib.degrade import KINDS, downsample
from srlib.features import feature_extractor, judge
from srlib.losses import ContentLoss, adversarial_loss, discriminator_loss, grid_loss, lr_loss, psnr_loss


@pytest.fixture(scope="module")
def random_vgg(tmp_path_factory):
    """A VGG-19 state dict without meaning, so that the code is tested where the weights cannot be had."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg19_random.pth"
    torch.save(torchvision.models.vgg19(weights=None).features.state_dict(), path)
    return path


def test_content_loss_has_a_gradient_and_the_extractor_none(random_vgg):
    for name, weights in (("vgg19:relu2_2", random_vgg), ("oct-encoder", "")):
        loss = ContentLoss(feature_extractor(name, weights))
        sr = torch.rand(1, 1, 48, 48, requires_grad=True)
        loss(sr, torch.rand(1, 1, 48, 48)).backward()
        assert sr.grad.abs().sum() > 0
        assert all(not p.requires_grad and p.grad is None for p in loss.parameters())


def test_extractor_stays_in_eval_mode():
    loss = ContentLoss(feature_extractor("oct-encoder")).train()
    assert not any(m.training for m in loss.extractor.modules())
    image = torch.rand(2, 1, 48, 48)
    torch.testing.assert_close(loss.extractor(image), loss.extractor(image))


def test_grey_and_its_copy_to_three_channels_agree():
    net, grey = feature_extractor("oct-encoder"), torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))


def test_input_is_normalised_for_imagenet(random_vgg):
    net = feature_extractor("vgg19:conv1_1", random_vgg)
    image = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    plain = torch.nn.functional.conv2d(
        (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1), net.body[0].weight, net.body[0].bias, padding=1
    )
    torch.testing.assert_close(net(image), plain)


@pytest.mark.parametrize(("layer", "depth", "shape"), [("relu2_2", 9, 128), ("relu5_4", 36, 512), ("conv5_4", 35, 512), ("relu1_1", 2, 64)])
def test_vgg_layers_are_where_their_names_say(random_vgg, layer, depth, shape):
    net = feature_extractor(f"vgg19:{layer}", random_vgg)
    assert len(net.body) == depth
    maps = net(torch.rand(1, 1, 32, 32))
    assert maps.shape[1] == shape
    assert (maps.min() < 0) == layer.startswith("conv")  # before the activation, as in ESRGAN; the paper's is after it
    assert isinstance(net.body[-1], torch.nn.ReLU if layer.startswith("relu") else torch.nn.Conv2d)


def test_vgg_weights_in_every_form(random_vgg, tmp_path):
    state = torch.load(random_vgg, weights_only=True)
    full = {f"features.{k}": v for k, v in state.items()} | {"classifier.0.weight": torch.zeros(1)}
    torch.save(full, tmp_path / "vgg19-full.pth")
    image = torch.rand(1, 1, 16, 16)
    expected = feature_extractor("vgg19:relu1_2", random_vgg)(image)
    for weights in (tmp_path / "vgg19-full.pth", tmp_path):
        torch.testing.assert_close(feature_extractor("vgg19:relu1_2", weights)(image), expected)


def test_names_and_files_that_are_wrong(tmp_path):
    for name in ("resnet", "judge", "vgg19:relu9_9", "oct-encoder:pool1"):
        with pytest.raises(UserError):
            feature_extractor(name)
    (tmp_path / "vgg19.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"vgg19\.pth"):
        feature_extractor("vgg19:relu5_4", tmp_path / "vgg19.pth")
    with pytest.raises(UserError, match="feature_weights"):
        feature_extractor("vgg19:relu5_4", tmp_path / "missing.pth")


def test_a_changed_encoder_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "oct-encoder.pt").write_bytes((features.WEIGHTS / "oct-encoder.pt").read_bytes() + b"x")
    monkeypatch.setattr(features, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="SHA-256"):
        feature_extractor("oct-encoder")


def test_the_judge_is_another_network():
    assert type(judge().body) is not type(feature_extractor("oct-encoder").body)
    assert len(judge()(torch.rand(1, 1, 64, 64))) == 3
    size = sum((features.WEIGHTS / f"{n}.pt").stat().st_size for n in features.SHA256)
    assert size < 1e6


def test_adversarial_losses_by_hand():
    logits = torch.tensor([[0.0], [2.0]])
    sigmoid = 1 / (1 + math.exp(-2))
    assert adversarial_loss(logits).item() == pytest.approx(-(math.log(0.5) + math.log(sigmoid)) / 2, rel=1e-5)
    expected = -(math.log(0.5) + math.log(sigmoid)) / 2 - (math.log(0.5) + math.log(1 - sigmoid)) / 2
    assert discriminator_loss(logits, logits).item() == pytest.approx(expected, rel=1e-5)


def test_relativistic_losses_by_hand():
    """Each logit less the mean of the other side's; the generator's has the roles exchanged, and both move HR's logits too."""
    hr, sr = torch.tensor([[2.0], [0.0]], requires_grad=True), torch.tensor([[-1.0], [-3.0]], requires_grad=True)

    def log1p(*values):
        return sum(math.log1p(math.exp(v)) for v in values) / len(values)

    assert discriminator_loss(hr, sr, relativistic=True).item() == pytest.approx(log1p(-4, -2) + log1p(-2, -4))
    loss = adversarial_loss(sr, hr)
    assert loss.item() == pytest.approx((log1p(2, 4) + log1p(4, 2)) / 2)
    loss.backward()
    assert (sr.grad < 0).all() and (hr.grad > 0).all()
    chance = torch.zeros(3, 1)
    assert adversarial_loss(chance, chance).item() == pytest.approx(adversarial_loss(chance).item())


def test_the_generator_is_pushed_towards_real():
    logits = torch.zeros(1, 1, requires_grad=True)
    adversarial_loss(logits).backward()
    assert logits.grad.item() < 0  # a larger logit (more real) lowers the loss


def test_the_papers_factor_scales_features_not_the_loss():
    assert load_config("paper").content_weight == pytest.approx(0.00615, rel=0.001)  # (1 / 12.75)^2
    assert load_config("paper").adversarial_weight == 1e-3


def test_real_vgg(vgg_file):
    """The measured content loss of a real network on real weights: relu5_4 is sparse, relu2_2 is not."""
    from srlib.degrade import downsample, to_tensor, upsample
    from srlib.phantom import bscan

    hr = to_tensor(bscan(1)[:384, :384])
    blurred = upsample(downsample(hr))
    deep, shallow = (feature_extractor(f"vgg19:{layer}", vgg_file) for layer in ("relu5_4", "relu2_2"))
    assert 0.8 < (deep(hr) == 0).float().mean() < 0.99
    assert ContentLoss(shallow)(blurred, hr) > 2 * ContentLoss(deep)(blurred, hr) > 0


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_grid_loss_measures_the_grid_alone(scale):
    """The variance of a pattern that repeats with the LR pixel; nothing for a constant or for detail of another period."""
    side = 16 * scale
    pattern = torch.randn(scale, scale)
    grid = pattern.repeat(16, 16)[None, None].repeat(2, 1, 1, 1)
    assert grid_loss(grid, scale).item() == pytest.approx(pattern.var(correction=0).item(), rel=1e-4)
    assert grid_loss(torch.full((2, 3, side, side), 0.7), scale).item() < 1e-10
    wave = torch.sin(2 * torch.pi * torch.arange(side) / (8 * scale)).expand(2, 1, side, side)
    assert grid_loss(wave, scale).item() < 1e-8
    grid.requires_grad_()
    assert torch.autograd.grad(grid_loss(grid, scale), grid)[0].abs().sum() > 0


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


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "speckle"])
def test_lr_loss_is_small_for_hr_alone_and_has_a_gradient(kind):
    torch.manual_seed(0)
    hr = 0.3 + 0.4 * torch.rand(2, 1, 32, 32)
    lr = downsample(hr, 4, kind)
    assert lr_loss(hr, lr, 4, kind) < 1e-4  # what rounding leaves
    sr = (hr + 0.1).requires_grad_()
    loss = lr_loss(sr, lr, 4, kind)
    loss.backward()
    assert loss.item() == pytest.approx(0.04, rel=0.05) and (sr.grad.flatten(1).sum(1) > 0).all()
