"""Frozen feature extractors of losses and measures: any layer of torchvision's networks.

An extractor takes (N, 1 or 3, H, W) in [0, 1] and returns feature maps. The copy of grey to three channels and ImageNet's
normalisation happen here and nowhere else.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ..config import VGG, UserError, nearest, own_part, vgg_layers
from ..files import HOME, WEIGHTS, released

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS_HELP = (
    "set feature_weights to torchvision's {network}-*.pth (vgg19-dcbb9e9d.pth, vgg16-397923af.pth, "
    "resnet50-0676ba61.pth; of a VGG the convolutions suffice), or take vgg19 without feature_weights: data/weights holds it"
)
SHA256 = {  # of the convolutions in data/weights (its README says whose they are)
    "vgg19": "2a8974871658c5ddaa45a5e450a6ae9b0aeae5049f06b28f3cf61fe56f680b6d",
    "alexnet": "48d0cc2bee458fd0679bfb6d2ecd24706cbc82b77e5ba6e6f52dcd53b92c19e1",
}


class WeightsMissing(UserError):
    """Weights that are neither here nor can be downloaded."""


class Frozen(nn.Module):
    """`body` behind ImageNet's normalisation; frozen (no gradient for its weights) and always in eval mode."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = (image.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        maps = self.body((image.expand(-1, 3, -1, -1) - mean) / std)
        return maps["maps"] if isinstance(maps, dict) else maps


def feature_extractor(name: str = "vgg19:relu5_4", weights: str | Path | None = None) -> nn.Module:
    """A frozen extractor of one feature map, 'NETWORK:LAYER' of an ImageNet network of torchvision.

    A layer of a VGG is reluB_C (after the activation, as in the paper: VGG54 is relu5_4, VGG22 relu2_2) or convB_C (before it); of any network a node
    of `torchvision.models.feature_extraction.get_graph_node_names`, such as resnet50:layer3. 'random-vgg19:LAYER' is VGG-19 before any
    training, a control that knows nothing of images; 'none' gives the image itself (the paper's SRGAN-MSE); 'MODULE:NAME' calls your own function
    of `weights`, which gives a module from ImageNet's normalisation to feature maps.

    `weights`: a state dict file, full or convolutions only; without it VGG-19 is the original one in data/weights,
    the others torchvision's IMAGENET1K_V1, which is downloaded once. Raises UserError for an unknown name, WeightsMissing for weights that cannot be had.
    """
    network, _, layer = name.partition(":")
    trained = network.removeprefix("random-")
    if trained in torchvision.models.list_models(torchvision.models):
        return Frozen(_layer(trained, layer, weights, trained == network))
    return Frozen(nn.Identity() if network == "none" else own_part(name)(weights))


def _layer(network: str, layer: str, weights: str | Path | None, trained: bool) -> nn.Module:
    """The part of a network up to a layer; it returns {'maps': ...}."""
    with torch.random.fork_rng([]), torch.device("meta" if trained else "cpu"):  # random weights take seconds
        torch.manual_seed(0)
        model = torchvision.models.get_model(network, weights=None)
    names = vgg_layers(network) if network in VGG else {}
    try:
        body = create_feature_extractor(model, {names.get(layer, layer): "maps"})
    except ValueError:
        known = names or get_graph_node_names(model)[1]
        raise UserError(f"content_features: {network} has no layer {layer!r}; {nearest(layer, known)}") from None
    if not trained:
        return body
    try:
        missing = body.load_state_dict(_state(network, weights), strict=False, assign=True).missing_keys
    except RuntimeError:
        missing = True
    if missing:
        raise UserError(
            f"feature_weights={str(weights)!r} holds weights of another network than {network}; {WEIGHTS_HELP.format(network=network)}"
        )
    return body


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


def _state(network: str, weights: str | Path | None) -> dict[str, torch.Tensor]:
    """ImageNet's weights of a network, of `weights` or where there is none those at hand."""
    help = WEIGHTS_HELP.format(network=network)
    if weights:
        path = HOME / Path(weights).expanduser()
        if not path.is_file():
            raise WeightsMissing(f"feature_weights={str(weights)!r} is no file; {help}")
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
            return {f"features.{key}" if key[0].isdigit() else key: value for key, value in state.items()}  # (of convolutions saved alone)
        except Exception as error:
            raise UserError(f"{path}: holds no state dict of {network} ({type(error).__name__}); {help}") from None
    if network == "vgg19":
        return convolutions(network)
    try:
        return torchvision.models.get_model_weights(network).IMAGENET1K_V1.get_state_dict(progress=False)
    except Exception as error:
        raise WeightsMissing(f"{network}'s ImageNet weights could not be downloaded ({type(error).__name__}); {help}") from None


def lpips() -> nn.Module:
    """LPIPS (Zhang et al. 2018) as torchmetrics has it, on AlexNet's convolutions in data/weights: (sr, hr), each (N, 3, H, W) in [-1, 1], to
    (N, 1, 1, 1), lower is nearer."""
    from torchmetrics.functional.image.lpips import _LPIPS  # (its public classes download AlexNet)

    with torch.random.fork_rng([]):
        network = _LPIPS(net="alex", pnet_rand=True)
    layers = {name: layer for part in network.net.children() for name, layer in part.named_children()}
    nn.ModuleDict({"features": nn.ModuleDict(layers)}).load_state_dict(convolutions("alexnet"))
    return network
