"""What can be exchanged by a setting: networks, losses, extractors and reductions of one's own, and any layer of torchvision's networks."""

import pytest
import torch
from running import Plain
from test_training import TINY
from torch import nn

from srlib import degrade
from srlib.config import UserError, load_config
from srlib.models import features, networks
from srlib.models.features import feature_extractor
from srlib.sampler.network import Sampler, normal_noise
from srlib.sampler.training import train_sampler
from srlib.trained import load_generator, save_weights
from srlib.training import losses, pretraining
from srlib.training.adversarial import train_srgan
from srlib.training.stage import make_generator

USED = []


def noted(name, function):
    def call(*args):
        USED.append(name)
        return function(*args)

    return call


brightest = noted("degradation", lambda hr, scale: nn.functional.max_pool2d(hr, scale))
fourth = noted("pretrain_loss", lambda sr, hr: ((sr - hr) ** 4).mean())
pool = noted("content_features", lambda weights: nn.AvgPool2d(2))
squares = losses.Adversarial(
    noted("g", lambda sr, hr: ((sr - 1) ** 2).mean()), noted("d", lambda hr, sr: ((hr - 1) ** 2).mean() + (sr**2).mean())
)
OWN = dict(degradation="brightest", pretrain_loss="fourth", adversarial_loss="squares", content_features="pool")


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


def test_parts_of_ones_own_train(images, tmp_path):
    """One of each kind, as MODULE:NAME, known to load_config and used by all stages; the weights say which network they are. A network without
    `with_maps` can be the base of the sampler; a reduction that is not linear is not projected by."""
    own = {name: f"{__name__}:{part}" for name, part in OWN.items()}
    config = load_config("smoke", **TINY | own, generator="running:Plain")
    USED.clear()
    pretraining.pretrain_generator(config, *images, tmp_path)
    history = train_srgan(config, *images, tmp_path)
    assert set(USED) == {"degradation", "pretrain_loss", "content_features", "g", "d"} and history.content.iloc[-1] > 0
    assert type(load_generator(tmp_path / "srgan.pt")) is Plain
    assert train_sampler(config, *images, tmp_path).content.iloc[-1] > 0
    network = load_generator(tmp_path / "sampler.pt")
    assert type(network.trunk) is Plain and network.settings["kind"] == ""
    save_weights(tmp_path / "lost.pt", network)
    stored = torch.load(tmp_path / "lost.pt", weights_only=True)
    stored["settings"]["generator"] = "gone:Plain"
    torch.save(stored, tmp_path / "lost.pt")
    with pytest.raises(
        UserError, match=r"lost.pt: 'gone:Plain' cannot be loaded \(No module named 'gone'\); put its file beside run_all.sh"
    ):
        load_generator(tmp_path / "lost.pt")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"generator": "srresnt"}, "did you mean 'srresnet'"),
        ({"generator": "nowhere:Net"}, "generator cannot be 'nowhere:Net'; valid ones: srresnet, or MODULE:NAME of your own"),
        ({"content_features": "vgg91:relu5_4"}, "did you mean 'vgg19'"),
        (
            {"content_features": "local-grain"},
            "content_features cannot be 'local-grain'",
        ),
        ({"adversarial_loss": "standrd"}, "did you mean 'standard'"),
        ({"degradation": "gausian"}, "did you mean 'gaussian'"),
    ],
)
def test_misspelt_parts(setting, words):
    with pytest.raises(UserError, match=words):
        load_config("smoke", **setting)


# --------------------------------------------------------------------------------------------- extractors
@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [("vgg16:relu5_3", 512, 16), ("resnet50:layer1", 256, 4), ("resnet50:layer3", 1024, 16)],
)
def test_extractors_of_other_networks(random_weights, name, channels, stride):
    """Each stops at its layer."""
    net = feature_extractor(name, random_weights[name.partition(":")[0]])
    maps = net.train()(torch.rand(1, 1, 64, 64))
    assert maps.shape == (1, channels, 64 // stride, 64 // stride)
    assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())


def test_resnet_has_its_files_weights(random_weights):
    state = torch.load(random_weights["resnet50"], weights_only=True)
    taken = feature_extractor("resnet50:layer2", random_weights["resnet50"]).body.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in taken.items()) and "layer2.3.bn3.weight" in taken
    with pytest.raises(UserError, match="another network than resnet50"):
        feature_extractor("resnet50:layer2", random_weights["vgg16"])
    with pytest.raises(UserError, match="has no layer 'layer5'"):
        feature_extractor("resnet50:layer5", random_weights["resnet50"])


def test_a_random_network_is_the_same_each_time_and_disturbs_nothing():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = feature_extractor("random-resnet18:layer1")
    assert torch.equal(torch.rand(3), expected)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(one(image), feature_extractor("random-resnet18:layer1")(image)) and one(image).std() > 0


def test_none_is_the_error_of_pixels():
    sr, hr = torch.rand(2, 2, 1, 8, 8)
    scale = sum(1 / s**2 for s in features.IMAGENET_STD) / 3
    assert losses.ContentLoss(feature_extractor("none"))(sr, hr).item() == pytest.approx(scale * ((sr - hr) ** 2).mean().item(), rel=1e-5)
