"""Frozen feature extractors: VGG through torchvision, and the project's own small OCT encoders.

An extractor takes (N, 1 or 3, H, W) in [0, 1] and returns feature maps. The copy of grey to three channels and ImageNet's
normalisation happen here and nowhere else.

The two encoders are classifiers of the four phantom classes, trained by `python -m srlib train-encoder` (the released files on
an earlier version of the phantoms: data/README.md says why). `oct-encoder` (VGG-style) serves the content loss where VGG-19 cannot be
had; `judge` (residual, another seed and activation) only measures: no loss uses it.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import torch
import torchvision
from torch import nn

from .config import UserError
from .places import HOME, REPOSITORY, mounts, read_bytes

WEIGHTS = REPOSITORY / "data" / "weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHA256 = {
    "oct-encoder": "74e331affd6f60aa32bf742064591455f1aaa8f232a8a6a721f78b31f4a49ae9",
    "judge": "03a64856a91b123cdd6d29440e563b57c450fd302445917874e06b16c3cffc5a",
}
VGG_HELP = (
    "set feature_weights to a file or folder with torchvision's vgg19-dcbb9e9d.pth (a full state dict or the convolutions alone), "
    "or set content_features to 'oct-encoder'"
)


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


class OctEncoder(nn.Module):
    """VGG-style: four blocks of two k3 convolutions (16, 32, 64, 96 maps, BN, ReLU) with average pooling between them.

    Average pooling, because the gradient of max pooling leaves a grid in images that are optimised through it.
    """

    def __init__(self, widths=(16, 32, 64, 96), classes: int = 4):
        super().__init__()
        layers, before = {}, 3
        for b, width in enumerate(widths, 1):
            for c in (1, 2):
                layers[f"conv{b}_{c}"] = nn.Conv2d(before, width, 3, padding=1, bias=False)
                layers[f"bn{b}_{c}"] = nn.BatchNorm2d(width)
                layers[f"relu{b}_{c}"] = nn.ReLU()
                before = width
            layers[f"pool{b}"] = nn.AvgPool2d(2)
        self.features = nn.Sequential()
        for name, layer in layers.items():
            self.features.add_module(name, layer)
        self.classify = nn.Linear(before, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).mean((2, 3)))


class Judge(nn.Module):
    """Residual: a k5 stem and three stages (24, 48, 72 maps, SiLU), strides 1, 2, 2. `maps` gives the output of each stage."""

    def __init__(self, widths=(24, 48, 72), classes: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, padding=2)
        self.stages, before = nn.ModuleList(), widths[0]
        for k, width in enumerate(widths):
            down = nn.Conv2d(before, width, 3, stride=2 if k else 1, padding=1)
            self.stages.append(nn.Sequential(down, nn.BatchNorm2d(width), nn.SiLU(), _JudgeBlock(width)))
            before = width
        self.classify = nn.Linear(before, classes)

    def maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        x, found = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.maps(image)[-1].mean((2, 3)))


class _JudgeBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def feature_extractor(name: str = "vgg19:relu5_4", weights: str | Path | None = None) -> nn.Module:
    """A frozen extractor of one feature map: 'vgg19:LAYER', 'vgg16:LAYER' or 'oct-encoder:LAYER' ('oct-encoder': relu3_2).

    A layer is reluB_C (after the activation, as in the paper: VGG54 is relu5_4, VGG22 relu2_2) or convB_C (before it).
    `weights`, for a VGG: a state dict file or a folder that holds one, full or convolutions only; without it torchvision's
    IMAGENET1K_V1, which needs the network once. Raises UserError for an unknown name or weights that cannot be had.
    """
    network, _, layer = name.partition(":")
    if network == "oct-encoder":
        layers = _load_encoder("oct-encoder", OctEncoder()).features
        layer = layer or "relu3_2"
        names = [n for n, _ in layers.named_children()]
    elif network in ("vgg16", "vgg19"):
        layers = getattr(torchvision.models, network)(weights=None).features
        names = _vgg_names(layers)
        layer = layer or "relu5_4"
    else:
        raise UserError(f"content_features={name!r} is unknown; take 'vgg19:relu5_4', 'vgg16:LAYER' or 'oct-encoder'")
    if layer not in names or layer.startswith(("pool", "bn")):
        valid = ", ".join(n for n in names if n.startswith(("relu", "conv")))
        raise UserError(f"{network} has no layer {layer!r}; it has {valid}")
    if network.startswith("vgg"):
        try:
            layers.load_state_dict(_vgg_state(network, weights))
        except RuntimeError:
            raise UserError(f"feature_weights={str(weights)!r} holds weights of another network than {network}; {VGG_HELP}") from None
    return Frozen(layers[: names.index(layer) + 1])


def _vgg_names(layers: nn.Sequential) -> list[str]:
    names, block, conv = [], 1, 0
    for layer in layers:
        conv += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.MaxPool2d):
            names.append(f"pool{block}")
            block, conv = block + 1, 0
        else:
            names.append(f"{'conv' if isinstance(layer, nn.Conv2d) else 'relu'}{block}_{conv}")
    return names


def _vgg_state(network: str, weights: str | Path | None) -> dict[str, torch.Tensor]:
    if not weights:
        try:
            model = getattr(torchvision.models, network)(weights="IMAGENET1K_V1", progress=False)
        except Exception as error:
            reason = type(error).__name__
            raise UserError(f"{network}'s ImageNet weights could not be downloaded ({reason}); {VGG_HELP}") from None
        return model.features.state_dict()
    path = find_weights(weights, network)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {k.removeprefix("features."): v for k, v in state.items() if re.match(r"(features\.)?\d+\.(weight|bias)$", k)}
    except Exception as error:
        raise UserError(f"{path}: holds no state dict of {network} ({type(error).__name__}); {VGG_HELP}") from None


def find_weights(weights: str | Path, network: str) -> Path:
    """The weights file that `feature_weights` means (a relative path from the repository, on Kaggle from the working folder): itself, or
    the first .pth/.pt file with the network's name in a folder, or in the data set OWNER/SLUG where Kaggle has mounted it."""
    path = HOME / Path(weights).expanduser()
    if path.is_file():
        return path
    folders = [path, *mounts("datasets", str(weights))]
    found = [p for f in folders for p in sorted((*f.glob("*.pt*"), *f.glob("*/*.pt*"))) if network in p.name]
    if not found:
        raise UserError(f"feature_weights={str(weights)!r}: no {network} weights there; {VGG_HELP}")
    return found[0]


def _load_encoder(name: str, model: nn.Module) -> nn.Module:
    path = WEIGHTS / f"{name}.pt"
    try:
        content = read_bytes(path)
    except OSError:
        raise UserError(
            f"{path}: no such file; get it from the repository (a Kaggle kernel carries those that its settings ask for)"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"{path} is not the released file (SHA-256 differs); get it from the repository again")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()


def judge() -> nn.Module:
    """The judge, frozen: (N, 1 or 3, H, W) in [0, 1] to three feature maps, for `metrics.feature_distance` only."""
    model = _load_encoder("judge", Judge())
    model.forward = model.maps
    return Frozen(model).to(memory_format=torch.channels_last)  # with the distance 2.5 times faster on a CPU
