"""`downstream`: does super-resolution help a classifier of the classes? Trained on one kind of image, tested on another, patients apart.

The split is the run's own: the classifier learns from scans of its training patients and is tested on its test patients, whom no SR
training has seen either. (SR of the training scans is made by networks that have trained on them; SR of the test scans is not.)
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from ..config import UserError
from ..data.reading import read_pair
from ..device import pick_device
from ..evaluation.methods import Arms, Scene
from ..evaluation.run import choose
from ..files import write
from ..models.encoders import OctEncoder
from ..models.weights import load_generator
from ..training.classifier import SIDE, probabilities, retina_row, train_classifier
from .opening import open_run
from .run_folder import read_config, run_path

ARMS = ("hr", "bicubic", "srresnet", "srgan")
PAIRS = [("hr", arm) for arm in ARMS] + [(arm, arm) for arm in ARMS[1:]]  # (trained on, tested on)
MOST = {"train": 800, "test": 400}  # scans, one of each patient first: they are held in memory, four times
BATCH, RESAMPLES = 8, 1000
MEASURES = {"accuracy": "accuracy", "auc": "AUC", "macro_f1": "macro-F1"}


def downstream(run_dir: str, seeds=(0, 1, 2), steps: int = 400) -> str:
    """Train a small classifier (`OctEncoder`'s shape, from random weights) on each arm for each seed, test it; writes `downstream.csv` (a
    row for each classifier, arm and test scan, with the probability of each class) and `downstream_summary.csv` into the finished run
    `run_dir`, and returns the summary as text. Raises UserError for a run that is not finished or whose patients do not suffice.
    """
    if steps < 1 or min(seeds) < 0:
        raise UserError(f"steps={steps}, seeds={list(seeds)}: a classifier needs 1 step or more, and its seeds are 0 or more")
    folder = run_path("", run_dir)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run; name the folder of a finished one")
    run = open_run("06", read_config(folder / "config.json").profile, str(folder))
    device = pick_device(run.config.device)
    parts = {split: choose(run.manifest[run.manifest.split == split], most) for split, most in MOST.items()}
    classes = sorted(set(parts["train"].label))
    parts["test"] = parts["test"][parts["test"].label.isin(classes)]
    if len(classes) < 2 or parts["test"].patient.nunique() < 2:
        raise UserError(
            f"{folder} has {len(classes)} class(es) and {parts['test'].patient.nunique()} test patient(s); at least two are needed"
        )
    images = {split: _arms(run, table, device, split) for split, table in parts.items()}
    rows = {split: [retina_row(image) for image in arms["hr"]] for split, arms in images.items()}  # one place for all arms
    side = min(SIDE, *(n // 16 * 16 for arms in images.values() for image in arms["hr"] for n in image.shape[:2]))
    labels, found = [classes.index(label) for label in parts["train"].label], []
    for seed in seeds:
        for arm in ARMS:
            torch.manual_seed(seed)
            model = OctEncoder(classes=len(classes)).to(device)
            name = f"{arm}, seed {seed}"
            train_classifier(model, images["train"][arm], rows["train"], labels, steps, BATCH, seed, side=side, name=name)
            for tested in [t for trained, t in PAIRS if trained == arm]:
                p = probabilities(model, images["test"][tested], rows["test"], side)
                facts = parts["test"][["path", "patient", "label"]].reset_index(drop=True).assign(trained=arm, tested=tested, seed=seed)
                found.append(facts.join(pd.DataFrame(p, columns=[f"p_{c}" for c in classes])))
    table = pd.concat(found, ignore_index=True).round(6)
    write(folder / "downstream.csv", table.to_csv(index=False))
    summary = summarise(table)
    write(folder / "downstream_summary.csv", summary.to_csv())
    return f"{caution(table, run.is_phantom)}\n{readable(summary).to_string()}"


def _arms(run, table: pd.DataFrame, device: torch.device, split: str) -> dict[str, list[np.ndarray]]:
    """Each scan of the table as HR, bicubic, SRResNet and SRGAN, uint8."""
    networks = {name: load_generator(run.folder / f"{name}.pt", device) for name in ("srresnet", "srgan")}
    arms, images = Arms(run.config.scale, linear=None, gaussian=None, **networks), {arm: [] for arm in ARMS}
    for path in tqdm(table.path, desc=f"{split} scans", mininterval=1.0, ncols=100):
        lr, hr = read_pair(run.root / path, run.config)
        scene = Scene(lr, path, arms)
        for arm, found in images.items():
            found.append(hr if arm == "hr" else scene[arm])
    return images


def scores(truth: np.ndarray, p: np.ndarray) -> tuple[float, float, float]:
    """(accuracy, AUC, macro-F1) of class numbers (n,) and probabilities (n, classes). AUC: one class against the rest, by ranks (Mann
    and Whitney), mean over the classes; like macro-F1 over those that occur in `truth`."""
    said, ranks, auc, f1 = p.argmax(1), rankdata(p, axis=0), [], []
    for k in np.unique(truth):
        own = truth == k
        n, rest = own.sum(), (~own).sum()
        auc.append((ranks[own, k].sum() - n * (n + 1) / 2) / (n * rest) if rest else np.nan)
        f1.append(2 * (own & (said == k)).sum() / (n + (said == k).sum()))
    return float((said == truth).mean()), float(np.mean(auc)), float(np.mean(f1))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """From downstream.csv's table: a row for each (trained, tested), and for each measure M its mean over seeds, M_low and M_high (95 %,
    bootstrap over patients, seeds averaged), M_sd (standard deviation between seeds), and M_gain, M_gain_low, M_gain_high: less that of
    bicubic with the same training, patient for patient (on its own kind: bicubic trained on bicubic)."""
    names = [c for c in table if c.startswith("p_")]
    classes, patients = [c[2:] for c in names], sorted(table.patient.unique())
    rng = np.random.default_rng(0)
    draws = [np.arange(len(patients)), *(rng.integers(len(patients), size=len(patients)) for _ in range(RESAMPLES))]  # the first: as it is
    found, between = {}, {}
    for pair in PAIRS:
        by_seed = []
        for _, part in table[(table.trained == pair[0]) & (table.tested == pair[1])].groupby("seed"):
            truth, p = part.label.map(classes.index).to_numpy(), part[names].to_numpy()
            of_patient = [np.flatnonzero(part.patient.to_numpy() == patient) for patient in patients]
            picks = [np.concatenate([of_patient[k] for k in draw]) for draw in draws]
            by_seed.append([scores(truth[pick], p[pick]) for pick in picks])
        found[pair] = np.mean(by_seed, 0)
        between[pair] = np.std(by_seed, 0, ddof=1)[0] if len(by_seed) > 1 else np.full(3, np.nan)
    rows = {}
    for pair, values in found.items():
        gain = values - found["hr" if pair[0] == "hr" else "bicubic", "bicubic"]
        row = rows[pair] = {}
        for k, measure in enumerate(MEASURES):
            for name, numbers in ((measure, values[:, k]), (f"{measure}_gain", gain[:, k])):
                low, high = np.nanpercentile(numbers[1:], (2.5, 97.5))
                row |= {name: numbers[0], f"{name}_low": low, f"{name}_high": high}
            row[f"{measure}_sd"] = between[pair][k]
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["trained", "tested"]).round(4)


def readable(summary: pd.DataFrame) -> pd.DataFrame:
    """`summarise`'s table as text for readers."""
    from ..evaluation.methods import named

    def text(row, name, sign=""):
        return f"{row[name]:{sign}.3f} [{row[f'{name}_low']:{sign}.3f},\u00a0{row[f'{name}_high']:{sign}.3f}]"

    rows = []
    for (trained, tested), row in summary.iterrows():
        facts = {"trained on": named(trained), "tested on": named(tested)} | {title: text(row, m) for m, title in MEASURES.items()}
        rows.append(
            facts
            | {
                "accuracy between seeds": f"{row.accuracy_sd:.3f}",
                "accuracy less bicubic's": "" if tested == "bicubic" else text(row, "accuracy_gain", "+"),
            }
        )
    return pd.DataFrame(rows).set_index(["trained on", "tested on"])


def caution(table: pd.DataFrame, phantom: bool) -> str:
    """What a reader must know of the table, in words."""
    said = f"{table.path.nunique()} test scans of {table.patient.nunique()} patients, {table.seed.nunique()} seed(s); intervals: 95 %, bootstrap over patients"
    return (
        ("Phantoms: a demonstration, not a result on OCT. " if phantom else "") + said + ". The classifier is small and its training short."
    )
