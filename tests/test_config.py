"""Settings and profiles: wrong names and values are one sentence that names the nearest valid one."""

import subprocess
import sys

import pytest

from srlib.config import FIELDS, PROFILES, STAGES, Config, UserError, departures, load_config


def test_profiles_are_complete_and_valid():
    for profile in ("smoke", "quick", "kaggle", "paper"):
        config = load_config(profile)
        assert config.profile == profile and isinstance(config, Config)
    assert set(PROFILES) == {"smoke", "quick", "kaggle", "paper"}


def test_paper_is_the_published_recipe():
    c = load_config("paper")
    assert (c.width, c.blocks, c.crop, c.batch, c.scale) == (64, 16, 96, 16, 4)
    assert (c.pretrain_steps, c.pretrain_lr, c.pretrain_schedule) == (1_000_000, 1e-4, "constant")
    assert (c.gan_steps, c.gan_lr, c.gan_lr_drop) == (200_000, 1e-4, 0.5)
    assert (c.content_features, c.adversarial_weight, c.d_width) == ("vgg19:relu5_4", 1e-3, 64)
    assert (c.adversarial_loss, c.content_weight, c.gan_crop) == ("standard", pytest.approx((1 / 12.75) ** 2), 96)
    assert not (c.global_skip or c.smooth) and c.batch_norm
    rows = [row for stage in ("pretrain", "srgan") for row in departures(c, stage)]
    assert {row["setting"] for row in rows} & {*FIELDS} == {"precision"}  # all else is no setting


def test_departures_that_no_setting_makes():
    """They stand in every profile, each where the settings let it be one."""
    whole = {"augmentation", "crops of fill", "images of a batch", "batch normalisation", "precision"}
    srgan = {"first weights", "content loss", "VGG-19", "precision"}

    def listed(stage, **settings):
        return {row["setting"] for row in departures(load_config("paper", **settings), stage)} - settings.keys()

    assert listed("pretrain") == whole and listed("srgan") == srgan
    assert listed("pretrain", gpus=1, precision="fp32") == whole - {"batch normalisation", "precision"}
    assert listed("srgan", content_features="vgg19:relu2_2") == listed("srgan", feature_weights="vgg19.pth") == srgan - {"VGG-19"}
    assert listed("srgan", content_features="none") == {"first weights", "precision"}


def test_every_departure_is_listed():
    listed = {row["setting"] for stage in STAGES for row in departures(load_config("quick"), stage)}
    assert {"global_skip", "width", "pretrain_steps", "gan_crop", "gan_lr", "d_width", "channels"} <= listed


@pytest.mark.parametrize("profile", ["smoke", "quick", "kaggle"])
def test_every_profile_has_the_papers_losses(profile):
    """And their factors; smoke alone takes a shallower layer of VGG-19."""
    c, paper = load_config(profile), load_config("paper")
    for name in ("content_weight", "adversarial_weight", "adversarial_loss", *(["content_features"] if profile != "smoke" else [])):
        assert getattr(c, name) == getattr(paper, name)
    assert c.content_features.startswith("vgg19:")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"gan_step": 3}, "did you mean 'gan_steps'"),
        ({"scale": 5}, "nearest valid value is 4"),
        ({"scale": "4"}, "takes a int"),
        ({"pretrain_schedule": "onecycle"}, "did you mean 'one-cycle'"),
        ({"gan_lr_drop": 1.5}, "nearest valid value is 1"),
        ({"batch": 0}, "nearest valid value is 2"),
        ({"global_skip": 1}, "takes a bool"),
        ({"crop": 90}, "crop=90 must be a multiple of scale=4"),
        ({"crop": 64, "scale": 3}, "multiple of scale=3"),
        ({"gan_crop": 40}, "gan_crop=40 must be a multiple of 16 and of scale=4"),
        ({"sampler_crop": 64, "crop": 48, "gan_crop": 48, "scale": 3}, "sampler_crop=64 must be a multiple of scale=3"),
        ({"texture": 32}, "there is no setting 'texture'"),
        ({"sampler_penalty": -8.0}, "nearest valid value is 0"),
        ({"pixel_share": 0.3}, "there is no setting 'pixel_share'"),
        ({"pretrain_lr": float("nan")}, "pretrain_lr cannot be nan"),
        ({"content_features": "vgg19:nonsense"}, "vgg19 has no layer 'nonsense'; valid ones: conv1_1, relu1_1"),
        ({"content_features": "vgg16:relu5_4"}, "vgg16 has no layer 'relu5_4'; did you mean 'relu5_"),
        ({"content_features": "none:relu1_1"}, "none has no layers; set content_features to 'none'"),
    ],
)
def test_wrong_settings(overrides, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        load_config("quick", **overrides)


def test_names_are_checked_without_torch():
    """So the runner starts at once, also for a run's stored settings, all of which are checked."""
    code = (
        "import dataclasses, sys; from srlib.config import Config, load_config\n"
        "settings = dataclasses.asdict(Config()) | {'content_features': 'resnet50:layer3', 'batch_norm': False}\n"
        "load_config(settings.pop('profile'), **settings)\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_wrong_profile():
    with pytest.raises(UserError, match="did you mean 'quick'"):
        load_config("quik")


def test_settings_are_documented_and_frozen():
    assert all(f.metadata["doc"] for name, f in FIELDS.items() if name != "profile")
    with pytest.raises(AttributeError):
        load_config().scale = 2
    assert load_config("quick", pretrain_lr=1).pretrain_lr == 1.0


def test_the_number_of_a_degradation():
    assert load_config(degradation="gaussian:1.6").reduction == (4, "gaussian:1.6") and load_config().reduction == (4, "bicubic")
    assert not load_config(degradation="frame:8").holds_lr
    for wrong in ("gaussian:", "gaussian:-1", "gaussian:nan", "bicubic:2", "paired:1"):
        with pytest.raises(UserError, match=r"degradation='\w+:.*'.*: (behind the colon stands a number|\w+ takes no number)"):
            load_config(degradation=wrong)
