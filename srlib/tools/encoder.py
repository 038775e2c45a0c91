"""`train-encoder`: the two small classifiers of phantom classes whose features the series uses offline.

Both learn to tell normal, drusen, DME and CNV in crops of phantoms that no profile's default set holds (their own seeds).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data.phantom import PATHOLOGIES, bscan
from ..files import WEIGHTS, write, writing
from ..models.encoders import Judge, OctEncoder
from ..training.classifier import probabilities, retina_row, train_classifier

FIRST_SEED = 10_000_000  # far from the profiles' phantoms


def train_encoders(out: str | Path = WEIGHTS, eyes: int = 240, steps: int = 500, batch: int = 8) -> dict[str, dict]:
    """Train both, write `<name>.pt` (half precision) into `out`; returns {name: {accuracy, sha256, parameters}}.

    Seeded. `accuracy` is over held-out eyes (a fifth). About six minutes on two cores.
    """
    out = Path(out)
    with writing(out):  # before the work
        out.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for k in tqdm(range(eyes), desc="phantoms"):
        labels.append(k % len(PATHOLOGIES))
        images.append(bscan(FIRST_SEED + k, pathology=PATHOLOGIES[labels[-1]]))
    rows, held = [retina_row(image) for image in images], eyes // 5
    result = {}
    for seed, (name, model) in enumerate({"oct-encoder": OctEncoder(), "judge": Judge()}.items(), 1):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        train_classifier(model, images[held:], rows[held:], labels[held:], steps, batch, seed, name=name)
        accuracy = float(np.mean(probabilities(model, images[:held], rows[:held]).argmax(1) == labels[:held]))
        path = out / f"{name}.pt"
        buffer = io.BytesIO()
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, buffer)
        write(path, buffer.getvalue())
        result[name] = {
            "accuracy": accuracy,
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    return result
