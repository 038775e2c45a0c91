"""`bench`: how fast the series computes on this machine, beside the step that a well-known tutorial ships. Not a test."""

from __future__ import annotations

import itertools
import resource
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from ..config import Config, load_config
from ..data.crops import Crops
from ..data.manifest import build_manifest
from ..data.phantom import bscan
from ..device import FASTEST, autocast_dtype, pick_device
from ..models import Discriminator
from ..models.features import Frozen, feature_extractor, normalise
from ..training.adversarial import Game
from ..training.pretraining import Pretraining
from ..training.stage import make_generator
from ..upscaling import upscale
from . import parser

T4_CROPS = 400  # crops a second that an SRGAN training on a T4 takes, an estimate: 65 TFLOP/s in fp16, a quarter of it reached


class PlainPretraining:
    """The MSE step as tutorials have it: float32, NCHW, an ordinary last convolution."""

    def __init__(self, config: Config, device: torch.device, precision: torch.dtype | None = None):
        self.device, self.precision = device, precision
        self.generator = _plain(make_generator(config), config.channels, device).train()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), 1e-4)

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> None:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            self.optimizer.zero_grad()
            loss = F.mse_loss(self.generator(lr.contiguous()), hr.contiguous())
        loss.backward()
        self.optimizer.step()


class PlainGame:
    """The SRGAN step as tutorials have it: float32, NCHW, a VGG whose weights are left trainable, D and VGG on each input apart."""

    def __init__(self, config: Config, device: torch.device, vgg: nn.Module, precision: torch.dtype | None = None):
        self.device, self.precision = device, precision
        self.generator = _plain(make_generator(config), config.channels, device).train()
        self.discriminator = Discriminator(config.channels, config.crop, config.d_width)
        self.vgg = vgg
        for model in (self.discriminator, self.vgg):
            model.to(device, memory_format=torch.contiguous_format).train()
        self.g_optimizer, self.d_optimizer = (torch.optim.Adam(m.parameters(), 1e-4) for m in (self.generator, self.discriminator))
        self.vgg.requires_grad_(True)

    def step(self, k: int, lr: torch.Tensor, hr: torch.Tensor) -> None:
        lr, hr = lr.contiguous(), hr.contiguous()
        real, fake = torch.ones(len(hr), 1, device=self.device), torch.zeros(len(hr), 1, device=self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            self.g_optimizer.zero_grad()
            sr = self.generator(lr)
            adversarial = F.binary_cross_entropy_with_logits(self.discriminator(2 * sr - 1), real)
            content = F.mse_loss(self.vgg(normalise(sr)), self.vgg(normalise(hr)).detach())
            loss = content + 1e-3 * adversarial
        loss.backward()
        self.g_optimizer.step()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            self.d_optimizer.zero_grad()
            of_real = F.binary_cross_entropy_with_logits(self.discriminator(2 * hr - 1), real)
            of_fake = F.binary_cross_entropy_with_logits(self.discriminator(2 * sr.detach() - 1), fake)
            loss = of_real + of_fake
        loss.backward()
        self.d_optimizer.step()


def _plain(generator: nn.Module, channels: int, device: torch.device) -> nn.Module:
    """The generator in NCHW with an ordinary last convolution in the place of `RowConv2d`."""
    generator.tail = nn.Conv2d(generator.tail.in_channels, channels, 9, padding=4)
    return generator.to(device, memory_format=torch.contiguous_format)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    begin = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 12) -> float:
    """GFLOP/s of a square matrix product, the best of `repeats`: what the machine can do at most."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    _timed(device, lambda: a @ b)
    return 2 * size**3 / min(_timed(device, lambda: a @ b) for _ in range(repeats)) / 1e9


def _batch(config: Config, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    shapes = [(config.batch, config.channels, side, side) for side in (config.crop // config.scale, config.crop)]
    return tuple(torch.rand(s, generator=chance).to(device, memory_format=FASTEST) for s in shapes)


class Work(TorchDispatchMode):
    """Counts FLOPs of products and convolutions. torch's own FlopCounterMode hooks modules, which a penalty's gradient inside a step does not bear."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, count = func(*args, **(kwargs or {})), flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def _work(step: Callable, lr: torch.Tensor, hr: torch.Tensor) -> float:
    """GFLOP of one step."""
    with Work() as work:
        step(1, lr, hr)
    return work.flops / 1e9


def training_steps(device: torch.device, repeats: int = 3) -> pd.DataFrame:
    """Seconds, work and share of the peak of a step of each stage (batch 16, 96 px, 3 channels; VGG-19 with random weights), by turns with a
    tutorial's: `paper`'s MSE and SRGAN steps, and the texture step of the short profiles, which does other work than the plain SRGAN step.
    The work of a plain step is counted as that of ours (what it does beyond that is waste). Then the SRGAN step at other batches and crops."""
    dtype = autocast_dtype("auto", device)
    peak = matmul_rate(device, dtype or torch.float32)
    rows = [{"what": f"matmul peak, {str(dtype or torch.float32)[6:]}", "GFLOP/s": peak, "share of peak": 1.0}]
    config = load_config("paper")

    def vgg() -> nn.Module:
        return torchvision.models.vgg19(weights=None).features[:36]

    def game(**settings) -> tuple[Callable, Config]:
        other = load_config("paper", **settings)
        return Game(other, device, make_generator(other), Frozen(vgg()), itertools.chain).step, other

    drawing = load_config("kaggle", channels=3, gan_crop=config.crop)
    texture = Game(drawing, device, make_generator(drawing), feature_extractor(drawing.content_features), itertools.chain)
    steps = {
        "MSE step": (Pretraining(config, device).step, config),
        "plain MSE step, float32": (PlainPretraining(config, device).step, config),
        "SRGAN step": game(),
        "plain SRGAN step, float32": (PlainGame(config, device, vgg()).step, config),
        "texture step": (texture.step, drawing),
    }
    if dtype:
        steps["plain MSE step, autocast"] = (PlainPretraining(config, device, dtype).step, config)
        steps["plain SRGAN step, autocast"] = (PlainGame(config, device, vgg(), dtype).step, config)
    seconds: dict[str, list[float]] = {}
    work, memory = {}, {}
    for turn in tqdm(range(repeats), desc="steps of paper"):
        for name, (step, settings) in steps.items():
            batch = _batch(settings, device)
            if not turn:
                step(2, *batch)
                if "plain" not in name:
                    work[name] = _work(step, *batch)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            seconds.setdefault(name, []).append(_timed(device, lambda step=step, batch=batch: step(3, *batch)))
            if device.type == "cuda":
                memory[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**30

    def row(name: str, took: float, gflop: float, images: int) -> dict:
        rate = gflop / took
        plain = seconds.get(f"plain {'MSE' if 'MSE' in name else 'SRGAN'} step, float32") if name in seconds else None
        return {
            "what": name, "s": took, "images/s": images / took, "GFLOP": gflop, "GFLOP/s": rate, "share of peak": rate / peak,
            "times as fast as the plain step": statistics.median(plain) / took if plain else np.nan, "GPU memory of a step, GiB": memory.get(name, np.nan),
        }  # fmt: skip

    for name, (_, settings) in steps.items():
        ours = name.removeprefix("plain ").partition(",")[0]
        rows.append(row(name, statistics.median(seconds[name]), work[ours], settings.batch))
    del steps
    for settings in tqdm(
        [{"batch": 4}, {"batch": 8}, {"batch": 32}, {"crop": 48, "gan_crop": 48}, {"crop": 192, "gan_crop": 192}], desc="other sizes"
    ):
        step, other = game(**settings)
        batch = _batch(other, device)
        gflop = _work(step, *batch)
        name = "SRGAN step, " + ", ".join(f"{k} {v}" for k, v in settings.items())
        took = statistics.median(_timed(device, lambda step=step, batch=batch: step(3, *batch)) for _ in range(repeats))
        rows.append(row(name, took, gflop, other.batch))
    return pd.DataFrame(rows).set_index("what")


def reading(folder: Path, counts=(16, 64, 256)) -> pd.DataFrame:
    """Crops a second of the loader in one process, and files a second of the manifest, on JPEGs of 496 x 512; sets of several sizes."""
    scan, rows = bscan(0), []
    for k in range(max(counts)):
        path = folder / f"NORMAL/NORMAL-{k}-1.jpeg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(scan, k, 1)).save(path, quality=75)
    paths = sorted(folder.rglob("*.jpeg"))
    for count in counts:
        for what, room in (("decoded each time", 0), ("kept decoded", 4 << 30)):
            crops = Crops(paths[:count], 96, 10**6, cache_bytes=room)
            for k in range(count if room else 1):
                crops.images(k)
            took = time.perf_counter()
            for k in range(200):
                crops[k]
            rate = 200 / (time.perf_counter() - took)
            rows.append({"what": f"crops of {count} scans, {what}", "a second": rate, "workers for a T4": T4_CROPS / rate})
    begin = time.perf_counter()
    build_manifest(folder)
    rate = max(counts) / (time.perf_counter() - begin)
    rows.append({"what": f"manifest of {max(counts)} files", "a second": rate, "minutes for Kermany's 84,495": 84_495 / rate / 60})
    return pd.DataFrame(rows).set_index("what")


def inference(device: torch.device, sizes=((64, 64), (124, 128), (256, 256), (512, 512))) -> pd.DataFrame:
    """HR megapixels a second through `upscale` with the generators of `quick` and `paper`, by turns with the plain way: float32, NCHW, an
    ordinary last convolution, the whole image at once (up to LR 256 x 256). 124 x 128 gives Kermany's usual 496 x 512."""
    rows = []
    for profile in ("quick", "paper"):
        config = load_config(profile, channels=1)
        generator = make_generator(config).to(device, memory_format=FASTEST).eval()
        plain = _plain(make_generator(config), 1, device).eval()
        for size in sizes:
            lr = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
            x = torch.from_numpy(lr / np.float32(255))[None, None].to(device)
            seconds = {"ours": [], "plain": []}
            with torch.inference_mode():
                for _ in range(3):
                    seconds["ours"].append(_timed(device, lambda lr=lr, generator=generator: upscale(lr, generator)))
                    if max(size) <= 256:
                        seconds["plain"].append(_timed(device, lambda x=x, plain=plain: plain(x)))
            took = min(seconds["ours"])
            rows.append(
                {
                    "what": f"upscale x4 ({profile}), LR {size[0]} x {size[1]}",
                    "s": took,
                    "HR megapixels/s": 16 * lr.size / took / 1e6,
                    "times the plain way": min(seconds["plain"]) / took if seconds["plain"] else np.nan,
                }
            )
    return pd.DataFrame(rows).set_index("what")


def bench(device: str = "auto") -> str:
    """All tables, as text. About seven minutes on two CPU cores."""
    where = pick_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} threads"
    with tempfile.TemporaryDirectory() as folder:
        tables = [training_steps(where), reading(Path(folder)), inference(where)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = "\n\n".join(t.to_string(float_format=lambda v: f"{v:,.3g}" if v < 1000 else f"{v:,.0f}", na_rep="") for t in tables)
    return f"torch {torch.__version__} on {where} ({name})\n\n{text}\n\npeak memory of the process: {peak:.1f} GiB"


def main(argv: list[str]) -> None:
    words = parser("bench", "How fast this machine trains, reads and upscales, beside a plain SRGAN step.")
    words.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    print(bench(words.parse_args(argv).device))
