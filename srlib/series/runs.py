"""Finished runs read beside each other: which can be compared, what differs in their settings, what they measured by patient."""

import re
from pathlib import Path

import pandas as pd

from ..config import UserError, stage_of
from ..evaluation.statistics import by_patient
from ..files import read_json, read_table
from .run_folder import Run, read_config


def find_runs(home: Path) -> list[Path]:
    """The finished runs in a folder, and those of the sweeps in it."""
    files = [*home.glob("*/evaluation/metrics.csv"), *home.glob("sweeps/*/*/evaluation/metrics.csv")]
    return sorted(file.parent.parent for file in files)


def read_runs(folders, reference: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """(means, facts, left out) of the runs that can be compared with the run `reference`, which comes first: those measured on the same
    test images in the same way.

    means: a row for each run, method and patient, `statistics.by_patient` in the valid region and run, group, seed. facts,
    a row for each run: folder, config, git (the commit that began it), group, seed, `changed` (settings that differ from the reference's), and the
    shares of the loss terms (0: there is none) up to the first validation of the adversarial training. Runs that differ in the seed alone are one
    group, named after the first of them. left out: a run's name to the reason."""
    means, facts, out, groups = [], [], {}, {}
    reference = Path(reference)
    own, images = read_config(reference / "config.json"), _test_images(reference)
    for folder in [reference, *(f for f in map(Path, folders) if f.resolve() != reference.resolve())]:
        name = folder.name if folder.parent == reference.parent else f"{folder.parent.name}/{folder.name}"
        try:
            config = read_config(folder / "config.json")
        except UserError as error:
            out[name] = str(error)
            continue
        if (config.channels, config.max_test_images) != (own.channels, own.max_test_images) or not images.equals(_test_images(folder)):
            out[name] = "other test images, other names for their patients or another protocol"
            continue
        settings = {k: v for k, v in vars(config).items() if k not in ("data", "profile", "seed") and stage_of(k) != "machine"}
        group = groups.setdefault(str(settings), re.sub(r"-seed\d+$", "", name))
        same = {"run": name, "group": group, "seed": config.seed}
        means.append(by_patient(Run(folder, config).metrics).reset_index().assign(**same))
        history = read_table(folder / "srgan" / "history.csv")
        shares = history[history.step > 0].reindex(columns=["adversarial_share", "content_share"]).iloc[0].fillna(0)
        git = read_json(folder / "provenance.json").get("made_by", {}).get("git", "")
        changed = {k: v for k, v in settings.items() if v != getattr(own, k)}
        facts.append(same | {"changed": changed, "folder": folder, "config": config, "git": git, **shares})
    return pd.concat(means, ignore_index=True), pd.DataFrame(facts).set_index("run"), out


def _test_images(folder: Path) -> pd.DataFrame:
    """Hash and patient of each."""
    table = read_table(folder / "manifest.csv")
    return table[table.split == "test"][["sha256", "patient"]].drop_duplicates().sort_values(["sha256", "patient"], ignore_index=True)


def group_table(means: pd.DataFrame, measures=("gain_db", "ssim", "lpips", "band2_db"), methods=("srresnet", "srgan")) -> pd.DataFrame:
    """Mean of each measure for each (group, method), over patients, then seeds; where a group has several seeds, M_sd is
    the deviation between them."""
    runs = means[means.method.isin(methods)].groupby(["group", "method", "seed"], sort=False)[[m for m in means if m in measures]].mean()
    groups = runs.groupby(["group", "method"], sort=False)
    table = groups.mean().join(groups.std().add_suffix("_sd")).assign(seeds=groups.size())
    return table.dropna(axis=1, how="all")
