"""Patches of each method against HR's over the test images: evaluation/unpaired.csv (`metrics.unpaired` says what is measured)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..config import Config
from ..device import FASTEST
from ..files import write
from ..metrics import unpaired
from ..models.features import feature_extractor
from .statistics import interval

FEATURES = "vgg19:relu4_4"  # of the KID: their mean over the positions of a patch, 512 numbers


class Patches:
    """Collects the patches of HR and of methods, at the same places of one image after the other, all of HR's file format; `measure` compares them."""

    def __init__(self, methods):
        self.patients: list[np.ndarray] = []
        self.found: dict[str, list[np.ndarray]] = {name: [] for name in ("hr", *methods)}

    def add(self, images: dict[str, np.ndarray], valid: np.ndarray, patient: str, seed: int, tables: dict | None = None) -> None:
        """`images`: 'hr' and the methods, uint8; `valid`: where patches may lie (H, W); `patient`: whose they are; `seed`: of the places; `tables`: the
        quantisation tables of the JPEG that HR was, where it was one: the methods' images go through such a JPEG, too."""
        corners = unpaired.places(valid, seed)
        self.patients.append(np.full(len(corners), patient, object))
        for name, patches in self.found.items():
            image = unpaired.through_jpeg(images[name], tables) if tables and name != "hr" else images[name]
            patches.append(unpaired.cut(image, corners))

    def measure(self, steps: int, seed: int = 0, device="cpu") -> pd.DataFrame:
        """A row for each method and measure: value, low, high (95 %, bootstrap over patients), patients, network. Measures: told_apart (accuracy of
        a fresh classifier after `steps`; left out for 0), kid, and for the method 'hr' the kid of one half of the patients against the other."""
        patients = np.concatenate(self.patients)
        found = {name: np.concatenate(patches) for name, patches in self.found.items()}
        names, rows = np.unique(patients), []
        if len(names) < 2:
            return pd.DataFrame(columns=["method", "measure", "value", "low", "high", "patients", "network"])
        network = feature_extractor(FEATURES).to(device, memory_format=FASTEST)
        features = {name: _features(patches, network, device) for name, patches in found.items()}
        first = np.isin(patients, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
        pairs = {"hr": (features["hr"][first], features["hr"][~first], patients[first], patients[~first])}
        pairs |= {name: (features[name], features["hr"], patients, patients) for name in found if name != "hr"}
        for name, pair in pairs.items():
            value, low, high = unpaired.kid(*pair)
            rows.append({"method": name, "measure": "kid", "value": value, "low": low, "high": high, "network": FEATURES})
        for name in pairs if steps else ():
            if name != "hr":
                told = list(unpaired.told_apart(found[name], found["hr"], patients, steps, seed, device).values())
                low, high = interval(told)
                rows.append({"method": name, "measure": "told_apart", "value": np.mean(told), "low": low, "high": high, "network": "fresh"})
        return pd.DataFrame(rows).assign(patients=len(names)).round(6)

    def write(self, folder: Path, config: Config, device) -> None:
        """`measure` to `folder`/unpaired.csv."""
        table = self.measure(config.classifier_steps, config.seed, device)
        write(folder / "unpaired.csv", table.to_csv(index=False))


@torch.inference_mode()
def _features(patches: np.ndarray, network: torch.nn.Module, device) -> np.ndarray:
    parts = np.array_split(patches, -(-len(patches) // 64)) if len(patches) else []
    maps = (network((torch.from_numpy(part)[:, None].float() / 255).to(device)) for part in parts)
    return np.concatenate([part.mean((2, 3)).double().cpu().numpy() for part in maps])
