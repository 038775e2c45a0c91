"""What can be exchanged by a setting: networks, losses, extractors and reductions of one's own, and any layer of torchvision's networks."""

import pytest
import torch
import torchvision
from running import train_adversarially as train
from test_training import begin
from torch import nn

from srlib import degrade
from srlib.config import UserError, load_config
from srlib.models import features, networks
from srlib.models.features import WeightsMissing, feature_extractor
from srlib.sampler.network import Sampler, normal_noise
from srlib.trained import load_generator, save_weights
from srlib.training import losses, pretraining
from srlib.training.stage import make_generator

TINY = dict(
    crop=32, gan_crop=32, batch=4, pretrain_steps=3, gan_steps=2, validate_every=2, checkpoint_every=3, width=8, blocks=1, d_width=4
)
USED = []


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """State dicts without meaning of three networks in a folder, named as torchvision names them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, file in (("vgg19", "vgg19-dcbb9e9d.pth"), ("vgg16", "vgg16-397923af.pth")):
        torch.save(getattr(torchvision.models, name)(weights=None).features.state_dict(), folder / file)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50-0676ba61.pth")
    return folder


def noted(name, function):
    def call(*args):
        USED.append(name)
        return function(*args)

    return call


class Plain(nn.Module):
    """A generator with nothing of SRResNet's."""

    def __init__(self, scale, channels, **_):
        super().__init__()
        self.scale, self.body = scale, nn.Conv2d(channels, channels * scale**2, 3, padding=1)

    def forward(self, lr):
        return degrade.upsample(lr, self.scale) + nn.functional.pixel_shuffle(self.body(lr).float(), self.scale)


brightest = noted("degradation", lambda hr, scale: nn.functional.max_pool2d(hr, scale))
fourth = noted("pretrain_loss", lambda sr, hr: ((sr - hr) ** 4).mean())
pool = noted("content_features", lambda weights: nn.AvgPool2d(2))
squares = losses.Adversarial(
    noted("g", lambda sr, hr: ((sr - 1) ** 2).mean()), noted("d", lambda hr, sr: ((hr - 1) ** 2).mean() + (sr**2).mean())
)
negative = losses.Adversarial(lambda sr, hr: -(sr**2).mean() - 1, losses.discriminator_loss)
OWN = dict(generator="Plain", degradation="brightest", pretrain_loss="fourth", adversarial_loss="squares", content_features="pool")


@pytest.mark.parametrize("scale", [3, 4])
def test_a_generator_scales_and_comes_back_from_its_file(scale, tmp_path):
    net = make_generator(load_config("smoke", scale=scale, crop=48, gan_crop=48)).eval()
    lr = torch.rand(2, 1, 12, 10)
    torch.testing.assert_close(net(lr), degrade.upsample(lr, scale))  # the global skip's start
    nn.init.normal_(net.tail.weight, std=0.01)
    save_weights(tmp_path / "a.pt", net)
    again = load_generator(tmp_path / "a.pt")
    assert again.settings == net.settings and again.settings["generator"] == "srresnet" and type(again) is type(net)
    torch.testing.assert_close(again(lr), net(lr))
    sampler, noise = Sampler(net, 4), normal_noise(0, 2, 12 * scale, 10 * scale)
    nn.init.normal_(sampler.head.tail.weight, std=0.05)
    save_weights(tmp_path / "b.pt", sampler)
    again = load_generator(tmp_path / "b.pt")
    assert again.settings == sampler.settings and type(again.trunk) is type(net) and type(again) is Sampler
    torch.testing.assert_close(again(lr, noise), sampler(lr, noise))


def test_a_file_without_the_name_is_srresnet(tmp_path):
    net = networks.Generator(4, 1, 8, 1)
    assert "generator" not in net.settings  # as files were written before
    save_weights(tmp_path / "old.pt", net)
    assert type(load_generator(tmp_path / "old.pt")) is networks.Generator


@pytest.mark.parametrize("texture", [4, 0])
def test_parts_of_ones_own_train(images, tmp_path, texture):
    """One of each kind, as MODULE:NAME, known to load_config and used by both stages; the weights say which network they are. A network without
    `with_maps` can be the base of the sampler; a reduction that is not linear is not projected by."""
    config = load_config("smoke", **TINY, **{name: f"{__name__}:{part}" for name, part in OWN.items()}, texture=texture)
    USED.clear()
    pretraining.pretrain_generator(config, *images, tmp_path)
    history = train(config, *images, tmp_path)
    assert set(USED) == {"degradation", "pretrain_loss", "content_features", "g", "d"} and history.content.iloc[-1] > 0
    network = load_generator(tmp_path / "srgan.pt")
    assert type(network.trunk if texture else network) is Plain and network.settings.get("kind", "") == ""
    save_weights(tmp_path / "lost.pt", network)
    stored = torch.load(tmp_path / "lost.pt", weights_only=True)
    stored["settings"]["generator"] = "gone:Plain"
    torch.save(stored, tmp_path / "lost.pt")
    with pytest.raises(
        UserError, match=r"lost.pt: 'gone:Plain' cannot be loaded \(No module named 'gone'\); its file lies beside run_all.sh"
    ):
        load_generator(tmp_path / "lost.pt")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"generator": "srresnt"}, "did you mean 'srresnet'"),
        ({"generator": "nowhere:Net"}, "generator cannot be 'nowhere:Net'; valid ones: srresnet, or MODULE:NAME of your own"),
        ({"content_features": "vgg91:relu5_4"}, "did you mean 'vgg19'"),
        (
            {"content_features": "local-grain", "texture": 0, "gan_crop": 32},
            "local-grain belongs to the sampler; with texture=0 write vgg19:relu5_4",
        ),
        ({"adversarial_loss": "relative"}, "did you mean 'relativistic'"),
        ({"degradation": "gausian"}, "did you mean 'gaussian'"),
    ],
)
def test_misspelt_parts(setting, words):
    with pytest.raises(UserError, match=words):
        load_config("smoke", **setting)


def test_a_loss_without_size_cannot_be_calibrated(images, tmp_path):
    config = load_config("smoke", **TINY, adversarial_loss=f"{__name__}:negative", content_features="vgg19:relu1_2")
    begin(config, tmp_path)
    with pytest.raises(UserError, match="content_weight=0 cannot be calibrated"):
        train(config, *images, tmp_path)


# --------------------------------------------------------------------------------------------- extractors
@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [("vgg16:relu5_3", 512, 16), ("resnet50:layer1", 256, 4), ("resnet50:layer3", 1024, 16)],
)
def test_extractors_of_other_networks(random_weights, name, channels, stride):
    """Each finds its own file in the folder, and stops at its layer."""
    net = feature_extractor(name, random_weights)
    maps = net.train()(torch.rand(1, 1, 64, 64))
    assert maps.shape == (1, channels, 64 // stride, 64 // stride)
    assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())


def test_resnet_has_its_files_weights(random_weights):
    state = torch.load(random_weights / "resnet50-0676ba61.pth", weights_only=True)
    taken = feature_extractor("resnet50:layer2", random_weights).body.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in taken.items()) and "layer2.3.bn3.weight" in taken
    with pytest.raises(UserError, match="another network than resnet50"):
        feature_extractor("resnet50:layer2", random_weights / "vgg16-397923af.pth")
    with pytest.raises(UserError, match="has no layer 'layer5'"):
        feature_extractor("resnet50:layer5", random_weights)


def test_random_vgg_is_the_same_each_time_and_disturbs_nothing():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = feature_extractor("random-vgg19:relu1_2")
    assert torch.equal(torch.rand(3), expected)
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(one(image), feature_extractor("random-vgg19:relu1_2")(image)) and one(image).std() > 0


def test_none_is_the_error_of_pixels():
    sr, hr = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    scale = sum(1 / s**2 for s in features.IMAGENET_STD) / 3
    assert losses.ContentLoss(feature_extractor("none"))(sr, hr).item() == pytest.approx(scale * ((sr - hr) ** 2).mean().item(), rel=1e-5)


def test_missing_weights_say_how_to_get_them(tmp_path):
    for name in ("vgg16:relu5_3", "resnet50:layer3"):
        with pytest.raises(WeightsMissing, match=r"feature_weights.*\.pth"):
            feature_extractor(name, tmp_path)


def test_extractors_start_at_the_same_share_of_the_loss(images, tmp_path):
    """Calibrated: on the first batches the content term has its stated share beside the adversarial one, whichever the extractor; and it is
    recorded. Where texture is drawn, 'none' means no content loss, as there is the pixel term; otherwise it is the content loss of no network."""
    pretraining.pretrain_generator(load_config("smoke", **TINY), *images, tmp_path / "a")
    for name, texture in (("none", 0), ("none", 4), ("random-vgg19:relu1_2", 4), ("local-grain", 4)):
        config = load_config("smoke", **TINY, content_features=name, content_weight=0.0, texture=texture, adversarial_share=0.4)
        folder = tmp_path / f"{name.replace(':', '')}-{texture}"
        folder.mkdir()
        (folder / "srresnet.pt").write_bytes((tmp_path / "a/srresnet.pt").read_bytes())
        history = train(config, *images, folder)
        recorded = torch.load(folder / "srgan.pt", weights_only=True)["loss_weights"]
        assert recorded["adversarial"] == config.adversarial_weight and recorded["pixel"] > 0
        if name == "none" and texture:
            assert "content" not in history
            continue
        last = history.iloc[-1]
        assert last.adversarial / (last.adversarial + last.content) == pytest.approx(0.4, abs=0.12), name
        assert recorded["content"] > 0
