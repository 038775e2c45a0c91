"""`bench`: how fast this machine trains, reads and upscales, beside a plain SRGAN step as tutorials have it. Not a test."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config, load_config
from ..data.crops import Crops
from ..data.phantom import bscan
from ..device import FASTEST, pick_device
from ..models import Discriminator
from ..models.features import Frozen, normalise
from ..training.adversarial import Game
from ..training.pretraining import Pretraining
from ..training.stage import make_generator
from ..upscaling import upscale
from . import parser

REPEATS = 3


def plain_pretraining(config: Config, device: torch.device) -> Callable:
    """The MSE step of a tutorial: float32, NCHW, an ordinary last convolution."""
    generator = _plain(make_generator(config), config.channels, device)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-4)

    def step(k: int, lr: torch.Tensor, hr: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.mse_loss(generator(lr.contiguous()), hr.contiguous()).backward()
        optimizer.step()

    return step


def plain_srgan(config: Config, device: torch.device, vgg: nn.Module) -> Callable:
    """The SRGAN step of a tutorial: as above, a VGG whose weights are left trainable, D and VGG on each input apart."""
    generator = _plain(make_generator(config), config.channels, device)
    discriminator, vgg = Discriminator(config.channels, config.crop, config.d_width).to(device).train(), vgg.to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(model.parameters(), 1e-4) for model in (generator, discriminator))
    real, fake = torch.ones(config.batch, 1, device=device), torch.zeros(config.batch, 1, device=device)
    cross_entropy = F.binary_cross_entropy_with_logits

    def step(k: int, lr: torch.Tensor, hr: torch.Tensor) -> None:
        lr, hr = lr.contiguous(), hr.contiguous()
        g_optimizer.zero_grad()
        sr = generator(lr)
        content = F.mse_loss(vgg(normalise(sr)), vgg(normalise(hr)).detach())
        (content + 1e-3 * cross_entropy(discriminator(2 * sr - 1), real)).backward()
        g_optimizer.step()
        d_optimizer.zero_grad()
        of_sr = cross_entropy(discriminator(2 * sr.detach() - 1), fake)
        (cross_entropy(discriminator(2 * hr - 1), real) + of_sr).backward()
        d_optimizer.step()

    return step


def _plain(generator: nn.Module, channels: int, device: torch.device) -> nn.Module:
    """The generator in NCHW with an ordinary last convolution in the place of `RowConv2d`."""
    generator.tail = nn.Conv2d(generator.tail.in_channels, channels, 9, padding=4)
    return generator.to(device, memory_format=torch.contiguous_format).train()


def training_steps(device: torch.device) -> pd.DataFrame:
    """Seconds and GFLOP of a step of each of `paper`'s stages (batch 16, 96 px, 3 channels; VGG-19 with random weights), by turns with the plain one."""
    config, chance = load_config("paper"), torch.Generator().manual_seed(0)

    def vgg() -> nn.Module:
        return torchvision.models.vgg19(weights=None).features[:36]

    steps = {
        "MSE step": Pretraining(config, device).step,
        "plain MSE step": plain_pretraining(config, device),
        "SRGAN step": Game(config, device, make_generator(config), Frozen(vgg()), itertools.chain).step,
        "plain SRGAN step": plain_srgan(config, device, vgg()),
    }
    shapes = ((config.batch, config.channels, side, side) for side in (config.crop // config.scale, config.crop))
    batch = [torch.rand(shape, generator=chance).to(device, memory_format=FASTEST) for shape in shapes]
    work, seconds = {}, {name: [] for name in steps}
    for name, step in steps.items():
        step(2, *batch)
        with FlopCounterMode(display=False) as counter:
            step(2, *batch)
        work[name] = counter.get_total_flops() / 1e9
    for _, (name, step) in itertools.product(range(REPEATS), steps.items()):
        seconds[name].append(_timed(device, lambda step=step: step(3, *batch)))
    took = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [{"what": n, "s": s, "images/s": config.batch / s, "GFLOP": work[n], "GFLOP/s": work[n] / s} for n, s in took.items()]
    return pd.DataFrame(rows).set_index("what")


def reading(folder: Path, count: int = 64) -> pd.DataFrame:
    """Crops a second of the loader in one process, on JPEGs of 496 x 512."""
    scan, rows = bscan(0), []
    for k in range(count):
        Image.fromarray(np.roll(scan, k, 1)).save(folder / f"{k}.jpeg", quality=75)
    for what, room in (("decoded each time", 0), ("kept decoded", 4 << 30)):
        crops = Crops(sorted(folder.glob("*.jpeg")), 96, 10**6, cache_bytes=room)
        for k in range(count if room else 1):
            crops.images[k]
        took = _timed(torch.device("cpu"), lambda crops=crops: [crops[k] for k in range(200)])
        rows.append({"what": f"crops, {what}", "a second": 200 / took})
    return pd.DataFrame(rows).set_index("what")


def inference(device: torch.device) -> pd.DataFrame:
    """HR megapixels a second through `upscale` with the generators of `quick` and `paper`; LR of 124 x 128 gives Kermany's usual 496 x 512."""
    rows = []
    for profile, size in itertools.product(("quick", "paper"), ((124, 128), (512, 512))):
        generator = make_generator(load_config(profile, channels=1)).to(device, memory_format=FASTEST).eval()
        lr = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        took = min(_timed(device, lambda lr=lr, generator=generator: upscale(lr, generator)) for _ in range(REPEATS))
        rows.append({"what": f"upscale x4 ({profile}), LR {size[0]} x {size[1]}", "s": took, "HR megapixels/s": 16 * lr.size / took / 1e6})
    return pd.DataFrame(rows).set_index("what")


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that `work` takes, on a GPU until it has ended there."""
    wait = getattr(torch, device.type).synchronize
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def main(argv: list[str]) -> None:
    words = parser("bench", "How fast this machine trains, reads and upscales, beside a plain SRGAN step.")
    words.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    device = pick_device(words.parse_args(argv).device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {device} ({name})")
    with tempfile.TemporaryDirectory() as folder:
        for table in (training_steps(device), reading(Path(folder)), inference(device)):
            print(f"\n{table.to_string(float_format='{:,.3g}'.format, na_rep='')}")
