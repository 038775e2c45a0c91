"""`bench`: how fast this machine trains and upscales. Not a test."""

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torchvision
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

from ..config import load_config
from ..device import FASTEST, pick_device
from ..models.features import Frozen
from ..training.adversarial import LedigTraining
from ..training.pretraining import Pretraining
from ..training.stage import make_generator
from ..upscaling import upscale
from . import parser

REPEATS = 3


def training_steps(device: torch.device) -> pd.DataFrame:
    """Seconds and GFLOP of a step of each of `paper`'s stages (batch 16, 96 px, 3 channels; VGG-19 with random weights), by turns."""
    config, vgg = load_config("paper"), torchvision.models.vgg19(weights=None).features[:36].to(device)
    steps = {
        "MSE step": Pretraining(config, device).step,
        "SRGAN step": LedigTraining(config, device, make_generator(config), Frozen(vgg), itertools.chain).step,
    }
    shapes = ((config.batch, config.channels, side, side) for side in (config.crop // config.scale, config.crop))
    batch = [torch.rand(shape).to(device, memory_format=FASTEST) for shape in shapes]
    work = {}
    for name, step in steps.items():
        step(2, *batch)  # the first one takes longer
        with FlopCounterMode(display=False) as counter:
            step(2, *batch)
        work[name] = counter.get_total_flops() / 1e9
    rounds = [{name: _timed(lambda step=step: step(3, *batch)) for name, step in steps.items()} for _ in range(REPEATS)]
    table = pd.DataFrame({"s": pd.DataFrame(rounds).median(), "GFLOP": work})
    return table.assign(**{"images/s": config.batch / table.s, "GFLOP/s": table.GFLOP / table.s})


def inference(device: torch.device) -> pd.DataFrame:
    """HR megapixels a second through `upscale` with the generators of `quick` and `paper`; LR of 124 x 128 gives Kermany's usual 496 x 512."""
    rows = []
    for profile, size in itertools.product(("quick", "paper"), ((124, 128), (512, 512))):
        generator = make_generator(load_config(profile, channels=1)).to(device, memory_format=FASTEST).eval()
        lr = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        took = min(_timed(lambda lr=lr, generator=generator: upscale(lr, generator)) for _ in range(REPEATS))
        rows.append({"what": f"upscale x4 ({profile}), LR {size[0]} x {size[1]}", "s": took, "HR megapixels/s": 16 * lr.size / took / 1e6})
    return pd.DataFrame(rows).set_index("what")


def _timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, on a GPU until it has ended there."""
    begin = timer()  # waits for it
    work()
    return timer() - begin


def main(argv: list[str]) -> None:
    words = parser("bench", "How fast this machine trains and upscales.")
    words.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    device = pick_device(words.parse_args(argv).device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {device} ({name})")
    for table in (training_steps(device), inference(device)):
        print(f"\n{table.to_string(float_format='{:,.3g}'.format)}")
