"""What all trainings share: the generator of the settings, the stream of pairs, autocast, Adam, one update."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .. import degrade
from ..config import Config, UserError
from ..data.crops import Crops, batches
from ..device import FASTEST
from ..models.networks import build
from ..trained import load_weights
from . import parallel


def make_generator(config: Config) -> torch.nn.Module:
    """The generator of the settings (`models.networks.build`); UserError for settings that it cannot have."""
    names = ("generator", "scale", "channels", "width", "blocks", "global_skip", "batch_norm", "smooth")
    try:
        return build({name: getattr(config, name) for name in names})
    except ValueError as error:
        raise UserError(str(error)) from None


def first_generator(config: Config, folder: Path) -> torch.nn.Module:
    """The generator before its first step: random, or with the weights in `folder`/start.pt, which `Run` puts there for the setting `start`; of
    another scale, with those up to its upsampling and what fits of that (as Lim et al. 2017, section 4.3, begin x3 and x4)."""
    generator = make_generator(config)
    if config.start:
        weights, own = load_weights(folder / "start.pt")["weights"], generator.state_dict()
        generator.load_state_dict(own | {name: weights[name] for name in own.keys() & weights.keys()})
    return generator


def pretrained_generator(config: Config, folder: Path) -> torch.nn.Module:
    """The generator with the weights in `folder`/srresnet.pt; UserError where they are not there or of another shape."""
    generator, stored = make_generator(config), load_weights(folder / "srresnet.pt")
    if generator.settings != {"generator": "srresnet"} | stored["settings"]:
        raise UserError(f"{folder / 'srresnet.pt'} has another shape than the settings; run notebook 03 again or choose another run_dir")
    generator.load_state_dict(stored["weights"])
    return generator


def training_pairs(paths, config: Config, device: torch.device, steps: int, seed: int, statistics: Callable | None = None):
    """A function from the first step to the stream of (lr, hr) batches from there on; LR is made on the device, or read. `statistics`
    (`scan_statistics`) of the LR of each crop's whole scan stand third; of the crop's, where that is made anew (frame, `display`).

    On a GPU crops are cut there too, from scans that stay in up to a quarter of its memory."""
    paired = config.scale if config.degradation == "paired" else 0
    room = (4 << 30) // parallel.size()
    place = (device, torch.cuda.get_device_properties(device).total_memory // 4) if device.type == "cuda" else ()
    crops = Crops(paths, config.crop, steps * config.batch, config.channels, seed, paired, config.bits, room, *place)
    alone = config.display or config.degradation == "frame"

    @functools.cache
    def of_scan(index: int) -> torch.Tensor:
        hr, *lr = (degrade.to_tensor(image.numpy()) for image in crops.images[index])
        return statistics(lr[0] if paired else degrade.downsample(hr, *config.reduction)).to(device)

    def stream(first: int):
        part = parallel.share(config.batch)
        for k, item in enumerate(batches(crops, config.batch, first, part), first):
            pair = [x.to(device, non_blocking=True, memory_format=FASTEST) for x in (item if paired else [item])]
            if config.display:
                rng, shape = np.random.default_rng([seed, k]), (2, config.batch, 1, 1, 1)
                low, high = rng.uniform(0, config.display / 2, shape).astype(np.float32)[:, part]
                pair = [torch.from_numpy(low).to(device) + torch.from_numpy(1 - high - low).to(device) * x for x in pair]
            pair = pair if paired else [degrade.downsample(*pair, *config.reduction), *pair]
            if statistics:
                places = (crops.place(n)[0] for n in range(k * config.batch, (k + 1) * config.batch)[part])
                pair.append(statistics(pair[0]) if alone else torch.cat([of_scan(index) for index in places]))
            yield pair

    return stream


def placed(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`model` on the device, in the fastest memory format, ready to train."""
    return model.to(device, memory_format=FASTEST).train()


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` (None: off)."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def turn_log(terms: dict[str, torch.Tensor], d_hr: torch.Tensor, d_sr: torch.Tensor, **others) -> dict[str, torch.Tensor]:
    """What is logged of a turn: G's loss, its weighted terms and their shares, D's mean logits, and `others`."""
    loss = sum(terms.values())
    shares = {f"{name}_share": value / loss for name, value in terms.items()}
    return dict(loss=loss, d_hr=d_hr.mean(), d_sr=d_sr.mean(), **others, **terms, **shares)


def adam(model: torch.nn.Module, rate: float, device: torch.device) -> torch.optim.Adam:
    weights = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(weights, rate, betas=(0.9, 0.999), fused=device.type != "mps")


def update(loss: torch.Tensor, model: torch.nn.Module, optimizer, scaler, longest: float = 0.0) -> torch.Tensor:
    """One step of `optimizer` down the gradient of `loss`, averaged over the processes; returns the gradient's norm, before it was cut to
    `longest` (0: not cut)."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    parallel.average_gradients(model)
    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, longest or torch.inf)
    scaler.step(optimizer)
    return norm.nan_to_num(0, 0, 0) if scaler.is_enabled() else norm  # the scaler leaves out steps that overflow, and halves its scale
