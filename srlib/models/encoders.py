"""The project's two small networks, classifiers of the four phantom classes, trained by `python -m srlib train-encoder` (the released files on an
earlier version of the phantoms: data/README.md says why): `oct-encoder` (VGG-style) serves the content loss where VGG-19 cannot be had; `judge`
(residual, another seed and activation) only measures: no loss uses it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from ..files import WEIGHTS, released

SHA256 = {
    "oct-encoder": "74e331affd6f60aa32bf742064591455f1aaa8f232a8a6a721f78b31f4a49ae9",
    "judge": "03a64856a91b123cdd6d29440e563b57c450fd302445917874e06b16c3cffc5a",
}


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
        self.features = nn.Sequential(OrderedDict(layers))
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


def load_encoder(name: str, model: nn.Module) -> nn.Module:
    """`model` with the released weights of that name, in eval mode. Raises UserError where the file is missing or another one."""
    state = torch.load(released(WEIGHTS / f"{name}.pt", SHA256[name]), map_location="cpu", weights_only=True)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return model.eval()
