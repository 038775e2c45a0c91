"""The settings of the series, each documented (the profiles, complete sets of them, stand in profiles.py).

`load_config("quick", gan_steps=100)` checks every name and value. A setting belongs to a stage (STAGES), whose results depend on it.
Settings of the stage "machine" say how to compute, not what.
"""

import dataclasses
import difflib
import importlib.util
import operator
import re
import sys
from dataclasses import dataclass, field

from .profiles import PROFILES

STAGES = {  # and what its results depend on: the settings of these stages
    "data": ("data",),
    "pretrain": ("data", "pretrain"),
    "srgan": ("data", "pretrain", "srgan"),
    "evaluation": ("data", "pretrain", "srgan", "evaluation"),
    "sampler": ("data", "pretrain", "sampler"),
    "samples": ("data", "pretrain", "srgan", "evaluation", "sampler", "samples"),
}

REDUCTIONS = ("bicubic", "bicubic-matlab", "gaussian", "frame", "area", "nearest", "paired")  # paired: LR is read from lr/ beside hr/
EXTRACTORS = ("vgg19", "vgg16", "resnet50", "random-vgg19", "none")  # and torchvision's other networks (srlib/models/features.py)
VGG = {"vgg19": (2, 2, 4, 4, 4), "vgg16": (2, 2, 3, 3, 3)}  # convolutions in each block


class UserError(ValueError):
    """A mistake that the reader can mend, in one sentence; notebooks show the sentence without a traceback."""

    def _render_traceback_(self):
        return [f"{type(self).__name__}: {self}"]


class OutOfTime(UserError):
    """`max_hours` ended a training, saved."""


def _setting(default, stage: str, doc: str, choices: tuple = (), low=None, high=None, own: bool = False):
    """`own`: the choices are names of parts, each of which may have an argument behind a colon, and 'MODULE:NAME' is a part of one's own."""
    return field(default=default, metadata={"stage": stage, "doc": doc, "choices": choices, "low": low, "high": high, "own": own})


@dataclass(frozen=True)
class Config:
    """Every setting; the defaults are the paper's recipe (Ledig et al. 2017, sections 3.2 and 3.3)."""

    profile: str = "paper"
    # data
    data: str = _setting("kermany", "data", "'phantom', 'kermany' (looked for in the usual places) or a folder of images")
    channels: int = _setting(3, "data", "1: grey, natively; 3: colour", choices=(1, 3))
    scale: int = _setting(4, "data", "upscaling factor", choices=(2, 3, 4, 8))
    degradation: str = _setting(
        "bicubic", "data", "how LR is made (srlib/degrade.py), its number behind it, as gaussian:1.6", REDUCTIONS, own=True
    )
    bits: int = _setting(0, "data", "bits of a value in deep grey images, as 12 in files of 16; 0: what the file says", low=0, high=32)
    patient_pattern: str = _setting(r"(?:^|/)[A-Za-z]+-(\d+)-[^/]*$", "data", "regular expression on the path; its group is the patient")
    phantoms: int = _setting(0, "data", "number of synthetic eyes (two B-scans each), spread over four classes", low=0)
    phantom_height: int = _setting(496, "data", "rows of a phantom", low=64)
    phantom_width: int = _setting(512, "data", "columns of a phantom", low=64)
    val_share: float = _setting(0.1, "data", "share of the patients used for validation", low=0.01, high=0.45)
    test_share: float = _setting(0.2, "data", "share of the patients used for the test", low=0.01, high=0.45)
    max_images: int = _setting(0, "data", "take at most this many images (0: all), whole patients at random", low=0)
    # pretrain
    seed: int = _setting(0, "pretrain", "seed of weights and crops in all trainings", low=0)
    generator: str = _setting("srresnet", "pretrain", "the network (srlib/models/networks.py)", ("srresnet",), own=True)
    start: str = _setting("", "pretrain", "first weights: 'released', a run's or a release's folder, or a file, of any scale; '': random")
    width: int = _setting(64, "pretrain", "feature maps of the generator", low=4)
    blocks: int = _setting(16, "pretrain", "residual blocks of the generator", low=1)
    batch_norm: bool = _setting(True, "pretrain", "batch normalisation in the generator")
    global_skip: bool = _setting(False, "pretrain", "the generator corrects the bicubic image instead of making it anew")
    smooth: bool = _setting(False, "pretrain", "average 2 x 2 after each PixelShuffle (against checkerboard)")
    crop: int = _setting(96, "pretrain", "side of the HR crops, pixels", low=16)
    batch: int = _setting(16, "pretrain", "crops in a step", low=2)
    pretrain_steps: int = _setting(1_000_000, "pretrain", "updates of the generator alone", low=1)
    pretrain_lr: float = _setting(1e-4, "pretrain", "Adam's learning rate", low=0)
    pretrain_schedule: str = _setting("constant", "pretrain", "learning rate over time", ("constant", "one-cycle"))
    pretrain_loss: str = _setting("mse", "pretrain", "mse or l1 of the batch; psnr: minus its mean PSNR", ("mse", "l1", "psnr"), own=True)
    pretrain_clip: float = _setting(0.0, "pretrain", "longest gradient of a step, its norm; longer ones are cut to it; 0: off", low=0)
    display: float = _setting(
        0.0, "pretrain", "training draws black and white anew, each up to half of this share off; 0: not", low=0, high=0.9
    )
    precision: str = _setting("auto", "pretrain", "auto: bf16 or fp16 where the hardware has it", ("auto", "fp32", "bf16", "fp16"))
    # srgan
    content_features: str = _setting(
        "vgg19:relu5_4", "srgan", "network:layer of the content loss; none: pixels (SRGAN-MSE)", EXTRACTORS, own=True
    )
    feature_weights: str = _setting("", "srgan", "file with its network's state dict; '': data/weights, or torchvision's download")
    content_weight: float = _setting((1 / 12.75) ** 2, "srgan", "factor of the content loss; 0: calibrated from adversarial_share", low=0)
    adversarial_loss: str = _setting(
        "standard", "srgan", "standard: the paper's; MODULE:NAME of your own (losses.py)", ("standard",), own=True
    )
    adversarial_weight: float = _setting(1e-3, "srgan", "factor of the adversarial loss", low=0)
    adversarial_share: float = _setting(
        0.1, "srgan", "the adversarial term's share at the start, with content_weight 0", low=0.001, high=0.999
    )
    d_width: int = _setting(64, "srgan", "feature maps of the discriminator's first layer", low=4)
    gan_crop: int = _setting(96, "srgan", "side of the HR crops of SRGAN's training, pixels", low=16)
    gan_steps: int = _setting(200_000, "srgan", "adversarial updates of SRGAN", low=1)
    gan_lr: float = _setting(1e-4, "srgan", "Adam's learning rate, generator and discriminator", low=0)
    gan_lr_drop: float = _setting(0.5, "srgan", "share of the steps after which the rate falls to a tenth", low=0, high=1)
    # evaluation
    max_test_images: int = _setting(0, "evaluation", "measure at most this many test images (0: all), patients first", low=0)
    # sampler: what is not the paper's
    sampler_width: int = _setting(32, "sampler", "feature maps of the sampler's head, on the frozen SRResNet (srlib/sampler)", low=4)
    sampler_penalty: float = _setting(8.0, "sampler", "factor of its discriminator's squared gradient, which keeps D from winning", low=0)
    sampler_d_width: int = _setting(32, "sampler", "feature maps of its discriminator's first layer", low=4)
    sampler_crop: int = _setting(96, "sampler", "side of the HR crops of the sampler's training, pixels", low=16)
    sampler_steps: int = _setting(20_000, "sampler", "adversarial updates of the sampler", low=1)
    sampler_lr: float = _setting(3e-4, "sampler", "Adam's largest learning rate, head and discriminator", low=0)
    # samples: how the sampler is measured
    sample_images: int = _setting(0, "samples", "test images of which eight samples are compared with HR (0: all)", low=0)
    classifier_steps: int = _setting(200, "samples", "steps of each classifier that learns to tell SR from HR; 0: none", low=0)
    # machine
    device: str = _setting("auto", "machine", "auto takes cuda, mps or cpu", ("auto", "cuda", "mps", "cpu"))
    gpus: int = _setting(0, "machine", "GPUs to train on, a process each, the batch divided among them; 0: all", low=0)
    max_hours: float = _setting(0.0, "machine", "stop a training, saved, when the session is so many hours old; 0: no limit", low=0)
    checkpoint_every: int = _setting(1000, "machine", "steps between checkpoints", low=1)
    validate_every: int = _setting(1000, "pretrain", "steps between validations", low=1)

    @property
    def holds_lr(self) -> bool:
        """Whether HR brought down again is LR. With the noise of a frame and with given pairs it is not, so SR need not be either."""
        return not self.degradation.startswith(("frame", "paired"))

    @property
    def reduction(self) -> tuple[int, str]:
        """What `degrade.downsample` takes after the image: scale and kind; bicubic where LR is given and its making unknown."""
        return self.scale, "bicubic" if self.degradation == "paired" else self.degradation


FIELDS = {f.name: f for f in dataclasses.fields(Config)}


def load_config(profile: str = "quick", /, **overrides) -> Config:
    """The settings of `profile` with `overrides`; a wrong name, type or value raises UserError that names the nearest valid one."""
    if profile not in PROFILES:
        raise UserError(f"there is no profile {profile!r}; {nearest(profile, PROFILES)}")
    known = [name for name in FIELDS if name != "profile"]
    for name, value in overrides.items():
        if name == "profile":
            raise UserError(f"profile is no setting; choose {value!r} with --profile, or as `profile` among a notebook's parameters")
        if name not in known:
            raise UserError(f"there is no setting {name!r}; {nearest(name, known)}")
        overrides[name] = _check(FIELDS[name], value)
    config = Config(profile=profile, **{**PROFILES[profile], **overrides})
    for name, grid in (("crop", 1), ("gan_crop", 16), ("sampler_crop", 1)):  # Ledig's discriminator ends in a dense layer
        side = getattr(config, name)
        if side % grid or side % config.scale:
            raise UserError(
                f"{name}={side} must be a multiple of {f'{grid} and of ' * (grid > 1)}scale={config.scale}; 48 and 96 fit every scale"
            )
    kind, colon, amount = config.degradation.partition(":") if not is_own(config.degradation) else ("", "", "")
    if colon and kind in ("bicubic", "bicubic-matlab", "area", "nearest", "paired"):
        raise UserError(f"degradation={config.degradation!r}: {kind} takes no number; write {kind!r}")
    if colon and not re.fullmatch(r"\d+(\.\d*)?", amount):
        raise UserError(f"degradation={config.degradation!r}: behind the colon stands a number, 0 or more, as in 'gaussian:1.6'")
    _check_layer(config.content_features)
    try:
        groups = re.compile(config.patient_pattern).groups
    except re.error:
        groups = 0
    if not groups:
        raise UserError(f"patient_pattern={config.patient_pattern!r} must be a regular expression with one group, such as '-(\\d+)-'")
    if config.val_share + config.test_share >= 0.9:
        raise UserError("val_share and test_share leave no patients to train on; 0.1 and 0.2 are usual")
    return config


def _check_layer(extractor: str) -> None:
    """The layer of `content_features`, as far as it is known without torch."""
    network, _, layer = extractor.partition(":")
    vgg, wrong = network.removeprefix("random-"), f"content_features={extractor!r}: {network} "
    if vgg in VGG and layer not in vgg_layers(vgg):
        raise UserError(f"{wrong}has no layer {layer!r}; {nearest(layer, vgg_layers(vgg))}")
    if network == "none" and layer:
        raise UserError(f"{wrong}has no layers; set content_features to 'none'")


def vgg_layers(network: str) -> dict[str, str]:
    """The layers of 'vgg19' or 'vgg16' as the paper names them, convB_C and reluB_C (before and after the activation), to torchvision's names."""
    names, k = {}, 0
    for block, convolutions in enumerate(VGG[network], 1):
        for number in range(1, convolutions + 1):
            names |= {f"conv{block}_{number}": f"features.{k}", f"relu{block}_{number}": f"features.{k + 1}"}
            k += 2
        k += 1  # its pooling
    return names


def is_own(text: str) -> bool:
    """Whether `text` is MODULE:NAME of a module that Python finds."""
    module, colon, name = text.partition(":")
    try:
        return bool(colon and name.isidentifier()) and (module in sys.modules or importlib.util.find_spec(module) is not None)
    except (ImportError, ValueError):
        return False


def own_part(text: str):
    """What MODULE:NAME means: a network, a loss, an extractor or a reduction of one's own. UserError where it cannot be had."""
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{text!r} cannot be loaded ({error}); put its file beside run_all.sh") from None


def nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid ones: {', '.join(known)}"


def _check(setting, value):
    meta, kind = setting.metadata, type(setting.default)
    if kind is float and (type(value) is int or (type(value) is str and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.I))):
        value = float(value)  # YAML takes 1e-4 for text
    if type(value) is not kind:
        raise UserError(f"{setting.name} takes a {kind.__name__}, not {value!r}; its default is {setting.default!r}")
    choices, chosen = meta["choices"], value.partition(":")[0] if meta["own"] else value
    if choices and chosen not in choices and not (meta["own"] and (is_own(value) or _in_torchvision(setting.name, chosen))):
        if kind is str:
            own = ", or MODULE:NAME of your own (notebook 06)" if meta["own"] else ""
            raise UserError(f"{setting.name} cannot be {value!r}; {nearest(chosen, choices)}{own}")
        near = min(choices, key=lambda c: abs(c - value))
        raise UserError(f"{setting.name} cannot be {value!r}; the nearest valid value is {near!r}")
    for bound, inside in ((meta["low"], operator.ge), (meta["high"], operator.le)):
        if bound is not None and not inside(value, bound):
            raise UserError(f"{setting.name} cannot be {value!r}; the nearest valid value is {bound!r}")
    return value


def _in_torchvision(setting: str, network: str) -> bool:
    if setting != "content_features":
        return False
    from torchvision import models  # needs torch, so only a network that is not listed is looked up

    return network.removeprefix("random-") in models.list_models(models)


def stage_of(name: str) -> str:
    """The stage whose results depend on the setting `name`; 'machine' for one that none depends on."""
    return FIELDS[name].metadata["stage"]


def departures(config: Config, stage: str) -> list[dict]:
    """What departs from the paper in one stage, by a setting or by none: setting (or what else), paper's value, value here, meaning."""
    paper, names = Config(precision="fp32"), [name for name in FIELDS if name != "profile" and stage_of(name) == stage]
    rows = [(name, getattr(paper, name), getattr(config, name), FIELDS[name].metadata["doc"]) for name in names]
    eight = re.match(r"vgg19:\w+[45]_", config.content_features) and not config.feature_weights
    without = [  # stage, whether the settings let it be one, what, the paper's, here, meaning
        ("pretrain", True, "augmentation", "none named", "half of the crops are mirrored", "left to right, in both trainings"),
        ("pretrain", True, "crops of fill", "as they come", "cut anew", "where more than half is fill, up to 8 times, in both trainings"),
        ("pretrain", True, "images of a batch", "distinct", "drawn with replacement", "two crops may be of one, in both trainings"),
        (
            "pretrain",
            config.batch_norm and config.gpus != 1,
            "batch normalisation",
            "of the batch",
            "of each GPU's own crops",
            "in both trainings",
        ),
        ("srgan", True, "first weights", "SRResNet's last", "SRResNet's best validated", "by its PSNR on validation"),
        ("srgan", ":" in config.content_features, "content loss", "channels not named", "their mean", "equation 5 divides by positions"),
        ("srgan", eight, "VGG-19", "Oxford's", "Oxford's, blocks 4 and 5 in 8 bit", "data/weights; feature_weights takes another file"),
        ("srgan", True, "precision", "fp32", config.precision, FIELDS["precision"].metadata["doc"]),
    ]
    rows += [row for where, holds, *row in without if where == stage and holds]
    return [dict(zip(("setting", "paper", "here", "meaning"), row, strict=True)) for row in rows if row[1] != row[2]]
