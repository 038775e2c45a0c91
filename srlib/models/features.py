"""Frozen feature extractors of losses and measures: VGG and ResNet through torchvision, and local statistics of the grain.

An extractor takes (N, 1 or 3, H, W) in [0, 1] and returns feature maps. The copy of grey to three channels and ImageNet's
normalisation happen here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ..config import LAYERS, UserError
from ..files import HOME, WEIGHTS, mounts, released

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS_HELP = (
    "set feature_weights to a file or folder with torchvision's {network}-*.pth (vgg19-dcbb9e9d.pth, vgg16-397923af.pth, "
    "resnet50-0676ba61.pth; of a VGG the convolutions suffice), or take vgg19 without feature_weights: data/weights holds it"
)
SHA256 = {  # of the convolutions in data/weights (its README says whose they are)
    "vgg19": "2a8974871658c5ddaa45a5e450a6ae9b0aeae5049f06b28f3cf61fe56f680b6d",
    "alexnet": "48d0cc2bee458fd0679bfb6d2ecd24706cbc82b77e5ba6e6f52dcd53b92c19e1",
}


class WeightsMissing(UserError):
    """Weights that are neither here nor can be downloaded."""


def normalise(image: torch.Tensor) -> torch.Tensor:
    """(N, 1 or 3, H, W) in [0, 1] to three channels with ImageNet's mean 0 and standard deviation 1."""
    mean, std = (image.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.expand(-1, 3, -1, -1) - mean) / std


class Frozen(nn.Module):
    """`body` behind ImageNet's normalisation; frozen (no gradient for its weights) and always in eval mode."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, image: torch.Tensor):
        return self.body(normalise(image))


def feature_extractor(name: str = "vgg19:relu5_4", weights: str | Path | None = None) -> nn.Module:
    """A frozen extractor of one feature map: 'NETWORK:LAYER', NETWORK one of EXTRACTORS; without a layer its usual one.

    A layer of a VGG is reluB_C (after the activation, as in the paper: VGG54 is relu5_4, VGG22 relu2_2) or
    convB_C (before it); of resnet50 layer1 to layer4. `weights`, for ImageNet's networks: a state dict file or a folder that holds one,
    full or convolutions only; without it VGG-19 is the original one in data/weights, the others torchvision's IMAGENET1K_V1, which is downloaded
    once. Raises UserError for an unknown name, WeightsMissing for weights that cannot be had.
    """
    network, _, layer = name.partition(":")
    if network not in EXTRACTORS:
        raise UserError(f"content_features={name!r} is unknown; take one of {', '.join(EXTRACTORS)}, with or without ':LAYER'")
    return Frozen(EXTRACTORS[network](layer, weights))


def _upto(network: str, layers: dict[str, nn.Module], layer: str) -> nn.Sequential:
    """The layers up to one that a content loss can use; UserError where there is none of that name."""
    usable = [n for n in layers if n.startswith(("relu", "conv", "layer"))]
    if layer not in usable:
        raise UserError(f"{network} has no layer {layer!r}; it has {', '.join(usable)}")
    return nn.Sequential(*list(layers.values())[: list(layers).index(layer) + 1])


def _named(network: str, layers: nn.Sequential) -> dict[str, nn.Module]:
    """A VGG's layers by their names; those that no loss uses, its poolings, by number."""
    names = iter(LAYERS[network])
    return {f"pool, layer {k}" if isinstance(layer, nn.MaxPool2d) else next(names): layer for k, layer in enumerate(layers)}


def convolutions(network: str) -> dict[str, torch.Tensor]:
    """The state dict, float32, of the convolutions in data/weights/`network`.npz; of 8 bit they are level * scale + least."""
    packed, state = np.load(released(WEIGHTS / f"{network}.npz", SHA256[network])), {}
    for name in packed.files:
        values = packed[name]
        if name.endswith(".affine"):
            continue
        if values.dtype == np.uint8:
            scale, least = packed[f"{name}.affine"]
            values = values * scale + least
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def _imagenet(network: str, layer: str, weights: str | Path | None) -> nn.Module:
    with torch.device("meta"):  # random weights would take seconds
        model = getattr(torchvision.models, network)(weights=None)
    model.to_empty(device="cpu")
    if network == "resnet50":
        target, layer = model, layer or "layer3"
        layers = dict(list(model.named_children())[:8])  # without the classifier
    else:
        target, layer = model.features, layer or {"vgg19": "relu5_4", "vgg16": "relu5_3"}[network]
        layers = _named(network, model.features)
    body = _upto(network, layers, layer)
    kept = r"(features\.)?(\d+\.(weight|bias))$" if network.startswith("vgg") else r"()((?!fc\.).*)$"
    state = {match[2]: value for key, value in _state(network, weights).items() if (match := re.match(kept, key))}
    try:
        missing, unknown = target.load_state_dict(state, strict=False)
    except RuntimeError:
        unknown = True
    if unknown or any(not key.startswith("fc.") for key in missing):
        help = WEIGHTS_HELP.format(network=network)
        raise UserError(f"feature_weights={str(weights)!r} holds weights of another network than {network}; {help}")
    return body


def _state(network: str, weights: str | Path | None) -> dict[str, torch.Tensor]:
    """ImageNet's weights of a network, of `weights` or where there is none those at hand."""
    help = WEIGHTS_HELP.format(network=network)
    if weights:
        path = find_weights(weights, network)
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise UserError(f"{path}: holds no state dict of {network} ({type(error).__name__}); {help}") from None
    if network == "vgg19":
        return convolutions(network)
    try:
        return getattr(torchvision.models, network)(weights="IMAGENET1K_V1", progress=False).state_dict()
    except Exception as error:
        raise WeightsMissing(f"{network}'s ImageNet weights could not be downloaded ({type(error).__name__}); {help}") from None


def _random_vgg(layer: str, weights) -> nn.Module:
    """VGG-19 as it is before any training, seeded: a control that knows nothing of images."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = torchvision.models.vgg19(weights=None).features
    return _upto("random-vgg19", _named("random-vgg19", layers), layer or "relu5_4")


class LocalGrain(nn.Module):
    """Local statistics of the grain: its logarithmic power spectrum, skewness and kurtosis, and nothing of where each grain lies.

    (N, 3, H, W) to (N, 37, about H / 8, W / 8), of the mean of the channels, in windows of 16 pixels, 8 apart. The first 33 maps are the logarithm
    of the mean power of each wave of an 8 x 8 Fourier transform (33 frequencies and directions, all but the mean). The last four are skewness and
    the logarithm of the fourth moment over the squared second, of the image less its mean over 5 x 5 pixels, of the image and of one of half
    its size; times WEIGHT, so that four maps count beside 33. A floor of half a grey level hides the rounding to 8 bit.
    """

    FLOOR = (0.5 / 255) ** 2
    WEIGHT = 3.0

    def __init__(self):
        super().__init__()
        half = [(u, v) for v in range(5) for u in range(-3, 5) if (v or u > 0) and (v < 4 or u >= 0)]  # the rest are their mirror images
        y, x = torch.arange(8.0)[:, None], torch.arange(8.0)
        window = torch.sin(torch.pi * (y + 0.5) / 8) * torch.sin(torch.pi * (x + 0.5) / 8)
        phase = torch.stack([2 * torch.pi * (u * x + v * y) / 8 for u, v in half])
        waves = torch.cat([phase.cos(), phase.sin()])
        waves = window * (waves - (window * waves).sum((1, 2), keepdim=True) / window.sum()) / window.norm()  # blind to brightness
        # back to [0, 1], but for a constant; mean of channels
        self.register_buffer("to_grey", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) / 3)
        self.register_buffer("waves", waves[:, None] * self.to_grey)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            power = F.conv2d(image.float(), self.waves, stride=2).square().unflatten(1, (2, 33)).sum(1)
            power = (F.avg_pool2d(power, min(8, *power.shape[-2:]), 4) + self.FLOOR).log()
            grey = (image.float() * self.to_grey).sum(1, keepdim=True)
            moments = [m for x, side in ((grey, 16), (F.avg_pool2d(grey, 2), 8)) for m in self._moments(x, side)]
            return torch.cat([power, *(self.WEIGHT * F.interpolate(m, size=power.shape[-2:]) for m in moments)], 1)

    def _moments(self, grey: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        detail, side = grey - F.avg_pool2d(grey, 5, 1, 2, count_include_pad=False), min(side, *grey.shape[-2:])
        second, third, fourth = (F.avg_pool2d(detail**k, side, side // 2) for k in (2, 3, 4))
        second, fourth = second + 9 * self.FLOOR, fourth + 81 * self.FLOOR**2
        return third / second**1.5, fourth.log() - 2 * second.log()


# Name: a function of (layer, '' where none was given; the setting feature_weights) that gives the layers up to there, which take
# (N, 3, H, W) in ImageNet's normalisation. A new extractor is a function and a line.
EXTRACTORS: dict[str, Callable[[str, str | Path | None], nn.Module]] = {
    "vgg19": partial(_imagenet, "vgg19"),
    "vgg16": partial(_imagenet, "vgg16"),
    "resnet50": partial(_imagenet, "resnet50"),
    "random-vgg19": _random_vgg,
    "local-grain": lambda layer, weights: LocalGrain(),
    "none": lambda layer, weights: nn.Identity(),  # a mean squared error of pixels (the paper's SRGAN-MSE)
}


def find_weights(weights: str | Path, network: str) -> Path:
    """The weights file that `feature_weights` means (a relative path from the repository, on Kaggle from the working folder): itself, or
    the first .pth/.pt file with the network's name in a folder, or in the data set OWNER/SLUG where Kaggle has mounted it. Raises WeightsMissing."""
    path = HOME / Path(weights).expanduser()
    if path.is_file():
        return path
    folders = [path, *mounts("datasets", str(weights))]
    found = [p for f in folders for p in sorted((*f.glob("*.pt*"), *f.glob("*/*.pt*"))) if network in p.name]
    if not found:
        raise WeightsMissing(f"feature_weights={str(weights)!r}: no {network} weights there; {WEIGHTS_HELP.format(network=network)}")
    return found[0]


def lpips() -> nn.Module:
    """LPIPS (Zhang et al. 2018) as torchmetrics has it, on AlexNet's convolutions in data/weights: (sr, hr), each (N, 3, H, W) in [-1, 1], to
    (N, 1, 1, 1), lower is nearer."""
    from torchmetrics.functional.image.lpips import _LPIPS  # (its public classes download AlexNet)

    with torch.random.fork_rng([]):
        network = _LPIPS(net="alex", pnet_rand=True)
    layers = {name: layer for part in network.net.children() for name, layer in part.named_children()}
    nn.ModuleDict({"features": nn.ModuleDict(layers)}).load_state_dict(convolutions("alexnet"))
    return network
