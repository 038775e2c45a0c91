"""Patches of SR against patches of HR, no patch beside its own: do they come from one world?

A draw of the right texture is as far from HR, pixel by pixel, as another scan is. What it must not have is anything that tells it from HR.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

SIDE, COUNT = 48, 40  # pixels of a patch, patches of an image
BATCH = 32  # patches of each kind in a step of the classifier
SURE = 0.05  # its loss, from log 2 down, at which it tells nearly all apart
REPEATS = 3  # classifiers, each with its own first weights and folds: of the same images one said 0.68, another 0.76


def places(region: np.ndarray, seed: int, count: int = COUNT, side: int = SIDE) -> list[tuple[int, int]]:
    """Where `count` patches of (side, side) begin (row, column), at random, each wholly in the region (H, W); fewer where it has fewer."""
    if min(region.shape) < side:
        return []
    total = np.pad(region.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    free = np.flatnonzero(inside == side * side)
    chosen = np.random.default_rng(seed).choice(free, min(count, len(free)), replace=False)
    return [divmod(int(k), inside.shape[1]) for k in chosen]


def cut(image: np.ndarray, corners: list[tuple[int, int]], side: int = SIDE) -> np.ndarray:
    """The patches that begin at the corners: (N, side, side), grey (mean of the channels), of the image's type."""
    grey = image if image.ndim == 2 else image.mean(2).round().astype(image.dtype)
    return np.stack([grey[y : y + side, x : x + side] for y, x in corners]) if corners else np.empty((0, side, side), image.dtype)


def through_jpeg(image: np.ndarray, tables: dict[int, list[int]]) -> np.ndarray:
    """The grey (H, W) or colour (H, W, 3) image, uint8, saved as JPEG with the quantisation tables of another file, and read again. HR that was a
    JPEG has its 8 x 8 blocks, and a classifier that sees them would tell the format of the file, not the tissue."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", qtables={k: v for k, v in tables.items() if k == 0 or image.ndim == 3})
    return np.asarray(Image.open(buffer))


class Classifier(nn.Module):
    """Is a patch (N, 1, H, W) in [0, 1] HR or SR? What it looks at is the detail, the patch less its mean over 5 x 5 pixels (times 32): SR and HR
    agree in the rest. Four k3 convolutions (16, 32 at half the size, 32, 64 at a quarter), LeakyReLU 0.2, the mean over positions, two logits."""

    def __init__(self):
        super().__init__()
        widths = ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2))
        layers = (layer for a, b, stride in widths for layer in (nn.Conv2d(a, b, 3, stride, 1), nn.LeakyReLU(0.2)))
        self.body, self.classify = nn.Sequential(*layers), nn.Linear(64, 2)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        smooth = F.avg_pool2d(patches, 5, 1, 2, count_include_pad=False)
        return self.classify(self.body(32 * (patches - smooth)).mean((2, 3)))


def told_apart(
    sr: np.ndarray, hr: np.ndarray, patients: np.ndarray, steps: int = 200, seed: int = 0, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """How well a fresh classifier tells SR from HR on patients that it has not seen: patient to accuracy, the mean of both kinds' and of REPEATS
    classifiers; 0.5: it cannot (Lopez-Paz & Oquab 2017).

    `sr`, `hr`: patches (N, side, side) uint8; `patients` (N,): whose each pair is. Patients are dealt to two folds; a `Classifier` learns on
    one, in `steps` steps of 32 HR and 32 SR patches (cross-entropy, Adam 3e-3), fewer where it has learnt all there is (a mean loss below SURE
    over the last 20), and is asked on the other; then the reverse. {} for fewer than two patients."""
    names = np.unique(patients)
    if len(names) < 2:
        return {}
    both = [torch.from_numpy(patches).to(device)[:, None] for patches in (hr, sr)]
    found: dict[str, list] = {}
    for repeat in range(REPEATS):
        chance = np.random.default_rng([seed, repeat])
        fold = dict(zip(chance.permutation(names), np.arange(len(names)) % 2, strict=True))
        folds = np.array([fold[name] for name in patients])
        for test in (0, 1):
            net = _learnt(both, np.flatnonzero(folds != test), steps, chance, torch.device(device))
            asked = np.flatnonzero(folds == test)
            right = _right(net, both, asked)
            for patient in np.unique(patients[asked]):
                found.setdefault(patient, []).append(right[:, patients[asked] == patient].mean())
    return {patient: float(np.mean(values)) for patient, values in sorted(found.items())}


def _learnt(both: list[torch.Tensor], train: np.ndarray, steps: int, chance: np.random.Generator, device: torch.device) -> Classifier:
    """A classifier that has learnt on the patches `train` of both kinds."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(chance.integers(1 << 32)))
        net = Classifier().to(device, memory_format=torch.channels_last)
    optimizer, truth = torch.optim.Adam(net.parameters(), 3e-3), torch.arange(2, device=device).repeat_interleave(BATCH)
    losses: list[float] = []
    while len(losses) < steps and not (len(losses) >= 20 and np.mean(losses[-20:]) < SURE):
        batch = torch.cat([patches[chance.choice(train, BATCH)] for patches in both]).float() / 255
        loss = F.cross_entropy(net(batch), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net


@torch.inference_mode()
def _right(net: Classifier, both: list[torch.Tensor], asked: np.ndarray) -> np.ndarray:
    """(2, N): whether each of the patches `asked` is told rightly, in each kind."""
    parts = np.array_split(asked, -(-len(asked) // 256))
    return np.array(
        [[truly == said for k in parts for said in net(patches[k].float() / 255).argmax(1).tolist()] for truly, patches in enumerate(both)]
    )


def _bounded(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.sqrt((values**2).mean(1, keepdims=True)), 1)


def kid(
    sr: np.ndarray, hr: np.ndarray, sr_patients: np.ndarray, hr_patients: np.ndarray, resamples: int = 1000
) -> tuple[float, float, float]:
    """Kernel inception distance (Binkowski et al. 2018) of features (N, D): the squared maximum mean discrepancy under the kernel
    (x y / D + 1)^3, unbiased; 0 for one distribution, so that it may fall below. (value, low, high): the 95 % bootstrap interval over patients,
    moved so that its mean is the value (a patient drawn twice makes a resample less various than the patients are).

    Features are standardised by HR's mean and deviation, and vectors longer than a usual one (the root of D) are cut to that length: a few bright
    patches among dark ones, thirty times as long, cubed, would decide alone. Kernel sums are kept by pairs of patients, so that a resample is a
    weighted sum."""
    mean, deviation = hr.mean(0), np.maximum(hr.std(0), 1e-6)
    sr, hr = (_bounded((values - mean) / deviation) for values in (sr, hr))
    names = np.unique(np.concatenate([sr_patients, hr_patients]))
    belongs = [(patients[None] == names[:, None]).astype(float) for patients in (sr_patients, hr_patients)]
    counts = [b.sum(1) for b in belongs]

    def sums(x, y, a, b, same):
        kernel = (x @ y.T / x.shape[1] + 1) ** 3
        return a @ (kernel - np.diag(np.diag(kernel)) if same else kernel) @ b.T

    within = [sums(x, x, b, b, True) for x, b in zip((sr, hr), belongs, strict=True)]
    across = sums(sr, hr, *belongs, False)

    def distance(weights):  # (R, patients): how often each patient is in the resample; nan where a side is empty
        total = 0.0
        for kernel, n in zip(within, counts, strict=True):
            # a patient drawn twice is two patients, who share no pair of a patch with itself
            pairs = (weights @ n) ** 2 - (weights**2 @ n)
            total = total + np.einsum("rp,pq,rq->r", weights, kernel, weights) / pairs
        n, m = (weights @ c for c in counts)
        return total - 2 * np.einsum("rp,pq,rq->r", weights, across, weights) / (n * m)

    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, found = distance(np.ones((1, len(names))))[0], distance(drawn)
    found = found[np.isfinite(found)]
    low, high = np.quantile(found - found.mean() + value, [0.025, 0.975]) if len(found) > 1 else (np.nan, np.nan)
    return float(value), float(low), float(high)
