"""Patches of SR against patches of HR, no patch beside its own: do they come from one distribution?

A sample with the right texture is as far from HR, pixel by pixel, as another scan is. What it must not have is anything that tells it from HR.
"""

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
    agree in the rest; or, without `detail`, the raw patch (less 0.25, times 4). Four k3 convolutions (16, 32 at half the size, 32, 64 at a quarter),
    LeakyReLU 0.2, the mean over positions, two logits."""

    def __init__(self, detail: bool = True):
        super().__init__()
        self.detail, widths = detail, ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2))
        layers = (layer for a, b, stride in widths for layer in (nn.Conv2d(a, b, 3, stride, 1), nn.LeakyReLU(0.2)))
        self.body, self.classify = nn.Sequential(*layers), nn.Linear(64, 2)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        smooth = F.avg_pool2d(patches, 5, 1, 2, count_include_pad=False) if self.detail else 0.25
        return self.classify(self.body((32 if self.detail else 4) * (patches - smooth)).mean((2, 3)))


def c2st(
    sr: np.ndarray, hr: np.ndarray, patients: np.ndarray, steps: int = 200, seed: int = 0, device="cpu", detail: bool = True
) -> dict[str, float]:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017): how well a fresh classifier tells SR from HR on patients that it has not seen. Patient
    to accuracy, the mean of both kinds' and of REPEATS classifiers; 0.5: it cannot.

    `sr`, `hr`: patches (N, side, side) uint8; `patients` (N,): whose each pair is. Patients are dealt to two folds; a `Classifier` learns on
    one, in `steps` steps of 32 HR and 32 SR patches (cross-entropy, Adam 3e-3), fewer where it has learnt all there is (a mean loss below SURE
    over the last 20), and is asked on the other; then the reverse. {} for fewer than two patients.

    `detail`: what the classifier looks at. The sampler's content loss (`local-grain`) takes moments of the same residual, so that what was trained on
    it may pass here for that alone: the raw view, `detail=False`, stands beside it. It learns slowly: phantoms smoothed and with noise, which the detail
    gives away at once (0.998 after 60 steps), it told at 0.51 after 60 steps, 0.88 after 200 and 1.00 after 500."""
    names = np.unique(patients)
    if len(names) < 2:
        return {}
    both = [torch.from_numpy(patches).to(device)[:, None] for patches in (hr, sr)]
    accuracy: dict[str, list] = {name: [] for name in names}
    for repeat in range(REPEATS):
        rng = np.random.default_rng([seed, repeat])
        fold = dict(zip(rng.permutation(names), np.arange(len(names)) % 2, strict=True))
        folds = np.array([fold[name] for name in patients])
        for test in (0, 1):
            network = _trained(both, np.flatnonzero(folds != test), steps, rng, detail)
            right = _right(network, both, np.flatnonzero(folds == test))
            for name in np.unique(patients[folds == test]):
                accuracy[name].append(right[:, patients[folds == test] == name].mean())
    return {name: float(np.mean(values)) for name, values in accuracy.items()}


def _trained(both: list[torch.Tensor], train: np.ndarray, steps: int, rng: np.random.Generator, detail: bool) -> Classifier:
    """A classifier that has learnt on the patches `train` of both kinds."""
    device = both[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.integers(1 << 32)))
        network = Classifier(detail).to(device, memory_format=torch.channels_last)
    optimizer, truth = torch.optim.Adam(network.parameters(), 3e-3), torch.arange(2, device=device).repeat_interleave(BATCH)
    losses: list[float] = []
    while len(losses) < steps and not (len(losses) >= 20 and np.mean(losses[-20:]) < SURE):
        batch = torch.cat([patches[rng.choice(train, BATCH)] for patches in both]).float() / 255
        loss = F.cross_entropy(network(batch), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network


@torch.inference_mode()
def _right(network: Classifier, both: list[torch.Tensor], test: np.ndarray) -> np.ndarray:
    """(2, N): whether each of the patches `test` is told rightly, in each kind."""
    said = [torch.cat([network(part.float() / 255).argmax(1) for part in patches[test].split(256)]) for patches in both]
    return np.stack([(answer == truth).cpu().numpy() for truth, answer in enumerate(said)])


def kid(
    sr: np.ndarray, hr: np.ndarray, sr_patients: np.ndarray, hr_patients: np.ndarray, resamples: int = 1000
) -> tuple[float, float, float]:
    """Kernel inception distance (Binkowski et al. 2018) of features (N, D): the squared maximum mean discrepancy under the kernel
    (x y / D + 1)^3, unbiased; 0 for one distribution, so that it may fall below. (value, low, high): the 95 % bootstrap interval over patients,
    moved so that its mean is the value (a patient who is taken twice makes a resample less various than the patients are).

    Where both sides have the same patients, row by row, row i of both is one place, and what the two share there would make SR look nearer than
    it is: the cross sum leaves the pairs (i, i) out, as the sums within do (the paired U statistic: Gretton et al. 2012, lemma 6).

    Features are standardised by HR's mean and deviation, and vectors longer than a usual one (the root of D) are cut to that length: a few bright
    patches among dark ones, thirty times as long, cubed, would decide alone."""
    mean, deviation = hr.mean(0), np.maximum(hr.std(0), 1e-6)
    names = np.unique(np.concatenate([sr_patients, hr_patients]))
    sides = []
    for values, patients in ((sr, sr_patients), (hr, hr_patients)):
        values = (values - mean) / deviation
        values = values / np.maximum(np.sqrt((values**2).mean(1, keepdims=True)), 1)
        sides.append((values, (patients[None] == names[:, None]).astype(float)))

    def by_patients(x, x_of, y, y_of, own):  # the kernel's sum and its pairs, by pairs of patients, so that a resample is a weighted sum
        kernel, pairs = (x @ y.T / x.shape[1] + 1) ** 3, np.outer(x_of.sum(1), y_of.sum(1))
        if own:  # a patient who is taken twice is two patients, who share no pair of a patch with itself
            np.fill_diagonal(kernel, 0)
            pairs -= np.diag(x_of.sum(1))
        return x_of @ kernel @ y_of.T, pairs

    x, y = sides
    across = by_patients(*x, *y, np.array_equal(sr_patients, hr_patients))
    terms = ((1, by_patients(*x, *x, True)), (1, by_patients(*y, *y, True)), (-2, across))

    def distance(weights):  # (resamples, patients): how often each patient is taken; nan where a side is empty
        weighed = [(factor, *(((weights @ each) * weights).sum(1) for each in term)) for factor, term in terms]
        return sum(factor * total / pairs for factor, total, pairs in weighed)

    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, values = distance(np.ones((1, len(names))))[0], distance(weights)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values - values.mean() + value, [0.025, 0.975]) if len(values) > 1 else (np.nan, np.nan)
    return float(value), float(low), float(high)
