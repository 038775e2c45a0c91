"""`train-encoder`: the two small classifiers of phantom classes whose features the series uses offline.

Both learn to tell normal, drusen, DME and CNV in crops of phantoms that no profile's default set holds (their own seeds).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..features import WEIGHTS, Judge, OctEncoder, normalise
from ..phantom import PATHOLOGIES, bscan

FIRST_SEED = 10_000_000  # far from the profiles' phantoms
SIDE = 224


def train_encoders(out: str | Path = WEIGHTS, eyes: int = 240, steps: int = 500, batch: int = 8) -> dict[str, dict]:
    """Train both, write `<name>.pt` (half precision) into `out`; returns {name: {accuracy, sha256, parameters}}.

    Seeded. `accuracy` is over held-out eyes (a fifth), one centre crop each. About six minutes on two cores.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for k in tqdm(range(eyes), desc="phantoms"):
        labels.append(k % len(PATHOLOGIES))
        images.append(bscan(FIRST_SEED + k, pathology=PATHOLOGIES[labels[-1]]))
    held = eyes // 5
    result = {}
    for seed, (name, model) in enumerate({"oct-encoder": OctEncoder(), "judge": Judge()}.items(), 1):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        _train(name, model, images[held:], labels[held:], steps, batch, seed)
        accuracy = _accuracy(model, images[:held], labels[:held])
        path = out / f"{name}.pt"
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, path)
        result[name] = {
            "accuracy": accuracy,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    return result


def _crop(image: np.ndarray, rng: np.random.Generator | None) -> torch.Tensor:
    """A square with the retina in it: around the row of the brightest band, near the centre column unless `rng` moves it."""
    row = int(image.astype(np.float32).mean(1).argmax())
    dy, dx = (0, 0) if rng is None else (int(rng.integers(-30, 31)), int(rng.integers(-90, 91)))
    top = int(np.clip(row - SIDE * 2 // 3 + dy, 0, image.shape[0] - SIDE))
    left = int(np.clip((image.shape[1] - SIDE) // 2 + dx, 0, image.shape[1] - SIDE))
    patch = torch.from_numpy(image[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255)
    if rng is not None and rng.random() < 0.5:
        patch = patch.flip(1)
    return patch[None]


def _train(name, model, images, labels, steps, batch, seed):
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    bar = tqdm(range(steps), desc=name)
    for _ in bar:
        chosen = rng.integers(len(images), size=batch)
        x = torch.stack([_crop(images[i], rng) * rng.uniform(0.8, 1.2) + rng.uniform(-0.05, 0.05) for i in chosen])
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(normalise(x)), torch.tensor([labels[i] for i in chosen]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    model.eval()


@torch.inference_mode()
def _accuracy(model, images, labels) -> float:
    right = [model(normalise(_crop(i, None)[None])).argmax().item() == k for i, k in zip(images, labels, strict=True)]
    return float(np.mean(right))
