"""`sweep`: the same run over a list of settings and seeds, from a small YAML file in notebooks/experiments.

A file has: `about`, a sentence; `profile`; `settings` that all points share; settings under a profile's name, which they share in that
profile alone; `points`, a list of settings in which they differ ({}: none), each with a `name` where its settings are too long for one;
`seeds`; and perhaps `cross: true`, which tests each point on every point's degradation. Each point and seed is a run folder,
runs/sweeps/<name>/<point>-seed<k>, made by `run_series` as any run is; `sweep.json` in it records what it was made from.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from ..config import PROFILES, Config, UserError, load_config
from ..files import NOTEBOOK_FOLDER, read_json, read_text, write, writing
from . import runs
from .provenance import timestamp
from .run_folder import MAKES, Run, run_path
from .runner import Paused, run_series

EXPERIMENTS = NOTEBOOK_FOLDER / "experiments"
KEYS = {"about", "profile", "settings", *PROFILES, "points", "seeds", "cross"}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder, its settings as overrides of the profile, and the same as a Config."""

    folder: Path
    overrides: dict
    config: Config

    @property
    def record(self) -> dict:
        file = self.folder / "sweep.json"
        return read_json(file) if file.exists() else {}

    def note(self, **facts) -> None:
        write(self.folder / "sweep.json", json.dumps(self.record | facts, indent=1) + "\n")

    @property
    def state(self) -> str:
        """'new', 'finished', 'interrupted', 'failed: why', or 'stale: what changed'."""
        record = self.record
        if not record:
            return "stale: not made by a sweep" if (self.folder / "config.json").exists() else "new"
        now = runs.made_from(self.config)
        if changed := [key for key in now if record["made_from"][key] != now[key]]:
            return f"stale: {' and '.join(changed)} changed"
        return "finished" if record["finished"] else f"failed: {record['error']}" if record["error"] else "interrupted"


def read_sweep(which: str) -> tuple[str, dict]:
    """(name, content) of a YAML file, or of the one in notebooks/experiments with that name. Raises UserError, with what is wrong."""
    named = EXPERIMENTS / f"{which}.yaml"
    file = named if named.exists() else Path(which).expanduser()
    if not file.is_file():
        raise UserError(
            f"there is no sweep {which!r}; give a YAML file, or one of {', '.join(sorted(p.stem for p in EXPERIMENTS.glob('*.yaml')))}"
        )
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not KEYS >= content.keys() >= {"points"}:
        raise UserError(f"{file} needs points: a list of settings, and may have {', '.join(sorted(KEYS - {'points'}))}; nothing else")
    if not isinstance(content["points"], list) or not all(isinstance(point, dict) for point in content["points"]):
        raise UserError(f"{file}: points must be a list of settings, such as '- {{scale: 2}}'")
    for key in ("settings", *PROFILES):
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{file}: {key} must be settings, such as '{key}: {{blocks: 8}}'")
    for settings in (*content["points"], *(content.get(key, {}) for key in ("settings", *PROFILES))):
        if wrong := [name for name in settings if name in ("seed", "profile") or not isinstance(name, str)]:
            todo = {"seed": "give them as 'seeds: [0, 1]'", "profile": "give it as 'profile: quick'"}
            raise UserError(f"{file}: {wrong[0]} is no setting of a point or of all; {todo.get(wrong[0], 'leave it out')}")
    for point in content["points"]:
        if not isinstance(point.get("name", "x"), str) or not point.get("name", "x").strip():
            raise UserError(f"{file}: the name of a point must be text, such as '- {{name: twice, scale: 2}}'")
    if not isinstance(content.get("profile", ""), str):
        raise UserError(f"{file}: profile must be a name, one of {', '.join(PROFILES)}")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{file}: seeds must be a list of whole numbers, such as 'seeds: [0, 1]'")
    return file.stem, content


def sweeps() -> pd.DataFrame:
    """What comes with the series: a row for each file in notebooks/experiments."""
    rows = [(path.stem, read_sweep(path.stem)[1]) for path in sorted(EXPERIMENTS.glob("*.yaml"))]
    facts = [
        {"sweep": name, "points": len(c["points"]), "seeds": len(c.get("seeds", [0])), "about": c.get("about", "")} for name, c in rows
    ]
    return pd.DataFrame(facts, columns=["sweep", "points", "seeds", "about"]).set_index("sweep")  # empty where there is no clone


def make_points(content: dict, home: Path, profile: str = "", seeds=None, data: str = "", overrides: dict | None = None) -> list[Point]:
    """The points in order, all seeds of one after another. Arguments win over the file, but not over what a point is about.
    A point with the settings of an earlier one is left out, which is said. Raises UserError for two points of one name."""
    profile, found = profile or content.get("profile", "quick"), []
    for point in content["points"]:
        settings = {k: v for k, v in point.items() if k != "name"}
        name = point.get("name") or "_".join(f"{k}-{v}" for k, v in settings.items()) or "base"
        for seed in content.get("seeds", [0]) if seeds is None else seeds:
            wanted = {
                **content.get("settings", {}),
                **content.get(profile, {}),
                **({"data": data} if data else {}),
                **(overrides or {}),
                **settings,
                "seed": seed,
            }
            made = Point(home / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}-seed{seed}", wanted, load_config(profile, **wanted))
            same = next((p for p in found if p.config == made.config), None)
            if same:
                print(f"{made.folder.name} is {same.folder.name} under this profile, which has these settings already: left out")
            elif made.folder in [p.folder for p in found]:
                raise UserError(f"two points of the sweep would be the folder {made.folder.name}; give each a name of its own")
            else:
                found.append(made)
    return found


def sweep(
    which: str,
    profile: str = "",
    seeds=None,
    data: str = "",
    overrides: dict | None = None,
    run_dir: str = "",
    again=False,
    only_list=False,
) -> int:
    """Run what is not finished, and return the number of failed points; what happens to each is printed. With `again`, stale points are
    moved to `stale/` and run anew; with `only_list`, nothing is run. The table of finished points goes to table.csv. Raises Paused, at
    the end, where `max_hours` interrupted points and none failed."""
    name, content = read_sweep(which)
    if "seed" in (overrides or {}):
        raise UserError("a sweep has seeds; give --seeds in the place of -p seed")
    home = run_path("", run_dir or f"runs/sweeps/{name}").resolve()
    points = make_points(content, home, profile, seeds, data, overrides)
    print(f"{name}: {content.get('about', '')}\n{len(points)} points in {home}")
    outcome = {}
    for number, point in enumerate(points, 1):
        state = point.state
        print(f"[{number}/{len(points)}] {point.folder.name}: {state}", flush=True)
        if not only_list and state != "finished" and (again or not state.startswith("stale")):
            state = _run(point, points, again=state.startswith("stale"))
            print(f"    {state}", flush=True)
        outcome.setdefault(state.partition(":")[0], []).append(point)
    print("; ".join(f"{len(found)} {state}: {', '.join(p.folder.name for p in found)}" for state, found in outcome.items()))
    if stale := outcome.get("stale"):
        print(f"{len(stale)} stale point(s) are in no table; --again runs them anew")
    if done := outcome.get("finished"):
        _tables(home, done, content.get("cross", False) and not only_list)
    if "interrupted" in outcome and "failed" not in outcome and not only_list:
        raise Paused
    return len(outcome.get("failed", []))


def _run(point: Point, points: list[Point], again: bool) -> str:
    """Run one point to its end or that of `max_hours`; 'finished', 'interrupted', 'failed: why' or 'skipped: how to get the weights'."""
    from ..models.features import WeightsMissing, feature_extractor

    if again:
        kept = point.folder.parent / "stale" / f"{point.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        kept.parent.mkdir(exist_ok=True)
        point.folder.rename(kept)
    try:
        feature_extractor(point.config.content_features, point.config.feature_weights)
        _share_pretraining(point, points)
        point.note(made_from=runs.made_from(point.config), finished=None, error=None)
        run_series(point.config.profile, str(point.folder), "", point.overrides)
        point.note(finished=timestamp())
    except WeightsMissing as error:
        return f"skipped: {error}"
    except Paused:
        pass
    except (UserError, OSError, RuntimeError) as error:
        point.note(made_from=runs.made_from(point.config), finished=None, error=str(error))
    return point.state


def _share_pretraining(point: Point, points: list[Point]) -> None:
    """Give a new point the finished pretraining of another that was made from the same, with what went into it: with one seed, on one
    machine with one number of threads, it would be the same to the byte."""
    if point.folder.exists():
        return
    mine, stage = Run(point.folder, point.config), "pretrain"
    for other in points:
        theirs = Run(other.folder, other.config)
        record = theirs.provenance
        facts = record["stages"].get(stage, {})
        same = facts.get("finished") and theirs.settings(stage) == mine.settings(stage)
        if same and other.record and not other.state.startswith("stale"):
            try:
                with writing(point.folder):
                    shutil.copytree(other.folder / stage, point.folder / stage)
                    for name in (*theirs.inputs(stage), *MAKES[stage]):
                        shutil.copy2(other.folder / name, point.folder)
            except UserError:
                shutil.rmtree(point.folder, ignore_errors=True)  # half of it would look like a training of its own
                raise
            if point.config.start:
                mine.record("networks", "start", **record["networks"]["start"])
            mine.record("stages", stage, **{"taken_from": other.folder.name} | facts)
            print(f"    pretraining taken from {other.folder.name}", flush=True)
            return


def _tables(home: Path, done: list[Point], cross: bool) -> None:
    means, _, _ = runs.read_runs([p.folder for p in done], done[0].folder)
    table = runs.group_table(means)
    write(home / "table.csv", table.to_csv())
    print(table.round(3).to_string())
    if cross:
        from .cross import cross_table, evaluate_cross

        table = evaluate_cross({p.folder: p.config for p in done}, list({p.config.reduction: p.config for p in done}.values()))
        write(home / "cross.csv", table.to_csv(index=False))
        print(cross_table(table).round(2).to_string())
