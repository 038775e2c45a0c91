"""Classifiers of B-scans by class: the encoders of `train-encoder`, the VGG that is tuned to a run's own classes, and `downstream`'s.

A scan enters as squares around the row where it is brightest, its retina. Images are uint8 arrays (H, W) or (H, W, 3).
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from tqdm import tqdm

from ..config import Config, UserError
from ..data.reading import read_image
from ..device import autocast_dtype
from ..files import write
from ..models.features import WeightsMissing, feature_extractor, find_weights, load_imagenet, normalise
from . import parallel

SIDE = 224
TUNING_SIDE, TUNING_BATCH, TUNING_RATE = 128, 8, 1e-4
MOST_SCANS = 1000  # of a class, for tuning: they are held in memory


def retina_row(image: np.ndarray) -> int:
    """The row with the greatest mean level, fill (250 and more) aside."""
    grey = image.astype(np.float32) if image.ndim == 2 else image.mean(2, dtype=np.float32)
    return int(np.where(grey >= 250, 0, grey).mean(1).argmax())


def square(image: np.ndarray, row: int, side: int, rng: np.random.Generator | None = None, across: float = 0.5) -> torch.Tensor:
    """(C, side, side) in [0, 1]: two thirds of it above `row`; its place across is a share of what lies within the image's middle half.
    `rng` moves it by up to 30 rows, anywhere across that half, and flips it at random."""
    shift = 0 if rng is None else int(rng.integers(-30, 31))
    across = across if rng is None else float(rng.random())
    height, width = image.shape[:2]
    top = int(np.clip(row - side * 2 // 3 + shift, 0, height - side))
    left = int((0.25 + 0.5 * across) * (width - side))
    patch = torch.from_numpy(image[top : top + side, left : left + side].astype(np.float32) / 255)
    patch = patch.reshape(side, side, -1).permute(2, 0, 1)
    return patch.flip(2) if rng is not None and rng.random() < 0.5 else patch


def train_classifier(
    model: nn.Module,
    images,
    rows,
    labels,
    steps: int,
    batch: int,
    seed: int,
    rate: float = 3e-3,
    side: int = SIDE,
    name: str = "classifier",
) -> None:
    """Train `model` ((N, 3, side, side), normalised as for ImageNet, to logits) on random squares, the classes equally often, contrast
    and brightness varied; AdamW, one cycle, on the model's device. `rows`: `retina_row` of each image. Seeded."""
    rng, device = np.random.default_rng(seed), next(model.parameters()).device
    dtype = autocast_dtype("auto", device)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    labels = np.asarray(labels)
    of_class = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    model.train()
    bar = tqdm(range(steps), desc=name, mininterval=1.0, ncols=100, file=sys.stdout)
    for _ in bar:
        chosen = [int(rng.choice(of_class[int(rng.integers(len(of_class)))])) for _ in range(batch)]
        x = torch.stack([square(images[i], rows[i], side, rng) * rng.uniform(0.8, 1.2) + rng.uniform(-0.05, 0.05) for i in chosen])
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(normalise(x.float().to(device)))
        loss = F.cross_entropy(logits.float(), torch.from_numpy(labels[chosen]).to(device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    model.eval()


@torch.inference_mode()
def probabilities(model: nn.Module, images, rows, side: int = SIDE) -> np.ndarray:
    """(images, classes): the mean over three squares of each image, left, middle and right, of the softmax."""
    device, found = next(model.parameters()).device, []
    for image, row in zip(images, rows, strict=True):
        views = torch.stack([square(image, row, side, across=a) for a in (0.0, 0.5, 1.0)])
        found.append(model(normalise(views.to(device))).float().softmax(1).mean(0).cpu().numpy())
    return np.stack(found)


class VggClassifier(nn.Module):
    """VGG-19's convolutions, their mean over positions, and one dense layer."""

    def __init__(self, classes: int):
        super().__init__()
        self.features = torchvision.models.vgg19(weights=None).features
        self.classify = nn.Linear(512, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).mean((2, 3)))


def content_extractor(config: Config, train, val, folder: str | Path, device: torch.device) -> nn.Module:
    """The extractor of the setting `content_features`; for 'oct-vgg' its weights are tuned first (`tuned_vgg`), by the first of several processes."""
    weights = config.feature_weights
    if config.content_features.partition(":")[0] == "oct-vgg":
        weights = parallel.from_first(tuned_vgg(config, train, val, folder, device) if parallel.rank() == 0 else None)
    return feature_extractor(config.content_features, weights)


def tuned_vgg(config: Config, train, val, folder: str | Path, device: torch.device) -> Path:
    """The weights of `oct-vgg`: VGG-19 from `feature_weights`, tuned for `tuning_steps` to tell the classes (the folders' names) of the
    training images. Written once, with what it was tuned with, to `folder`/srgan/oct-vgg.pt, and returned as a path; later calls find it
    there. A file that was tuned with something else, or does not say with what, is made again.

    Says what share of the validation images it names rightly. Raises UserError where there is one class only and where a training has begun
    with a file that was tuned with something else, WeightsMissing without ImageNet's weights to begin with.
    """
    path = Path(folder) / "srgan" / "oct-vgg.pt"
    names = sorted({Path(p).parent.name for p in train})
    if len(names) < 2:
        raise UserError("content_features='oct-vgg' needs images of two classes or more, a folder each; choose another extractor")
    found = _tuned_with(path) if path.exists() else {}
    wanted = {"tuning_steps": config.tuning_steps, "feature_weights": "IMAGENET1K_V1", "classes": names, "seed": config.seed}
    if config.feature_weights:
        try:
            with open(find_weights(config.feature_weights, "vgg19"), "rb") as file:
                wanted["feature_weights"] = hashlib.file_digest(file, "sha256").hexdigest()
        except WeightsMissing:
            if not found:
                raise
            wanted["feature_weights"] = found.get("feature_weights")  # a run that goes on elsewhere needs them no more
    if found == wanted:
        return path
    other = " and ".join(key for key in wanted if found.get(key) != wanted[key])
    if found and (path.parent / "checkpoint.pt").exists():
        raise UserError(
            f"{path} was tuned with another {other} than now, and the training there began with it; "
            "put that back, or choose another folder with run_dir (--run-dir)"
        )
    if path.exists():
        print(f"oct-vgg: tuned again, as {path} " + (f"was tuned with another {other}" if found else "does not say with what it was tuned"))
    torch.manual_seed(config.seed)
    model = VggClassifier(len(names))
    load_imagenet("vgg19", model, config.feature_weights)
    model = model.to(device, memory_format=torch.channels_last)
    kept = [p for name in names for p in [p for p in train if Path(p).parent.name == name][:MOST_SCANS]]
    judged = [p for p in list(val)[:MOST_SCANS] if Path(p).parent.name in names]
    images, held = ([read_image(p, config.channels, config.bits) for p in paths] for paths in (kept, judged))
    labels, truth = ([names.index(Path(p).parent.name) for p in paths] for paths in (kept, judged))
    rows, held_rows = ([retina_row(i) for i in part] for part in (images, held))
    side = min(TUNING_SIDE, *(n // 16 * 16 for image in (*images, *held) for n in image.shape[:2]))
    train_classifier(model, images, rows, labels, config.tuning_steps, TUNING_BATCH, config.seed, TUNING_RATE, side, "oct-vgg")
    if held:
        right = np.mean(probabilities(model, held, held_rows, side).argmax(1) == truth)
        print(f"oct-vgg: {right:.0%} of {len(held)} validation images named rightly, chance {1 / len(names):.0%}")
    buffer = io.BytesIO()
    torch.save({k: v.cpu() for k, v in model.features.state_dict().items()} | {"tuned_with": wanted}, buffer)
    write(path, buffer.getvalue())
    return path


def _tuned_with(path: Path) -> dict:
    """What a file of `tuned_vgg` says that it was tuned with; nothing where it is older or damaged."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["tuned_with"])
    except Exception:
        return {}
