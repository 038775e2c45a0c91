"""`sweep`: the same run over a list of settings and seeds, from a small YAML file in notebooks/experiments.

Each point and seed is a run folder, runs/sweeps/<name>/<point>-seed<k>, made by `run_series` as any run is; `sweep.json` in it records what it
was made from. What a file has: notebooks/experiments/README.md.
"""

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..config import PROFILES, Config, UserError, load_config, stage_of
from ..files import NOTEBOOK_FOLDER, read_json, read_text, write, writing
from ..series.provenance import timestamp
from ..series.run_folder import INPUTS, MAKES, Run, run_path
from . import absolute, add_settings, parser, read_settings
from .run import Paused, run_series

EXPERIMENTS = NOTEBOOK_FOLDER / "experiments"
KEYS = {"about", "profile", "settings", *PROFILES, "points", "seeds", "until"}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder, its settings as overrides of the profile, the same as a Config, and its last notebook."""

    folder: Path
    overrides: dict
    config: Config
    until: str

    @property
    def settings(self) -> dict:
        """What the point's numbers depend on; the commit stands in its provenance.json."""
        own = {name: value for name, value in vars(self.config).items() if name == "profile" or stage_of(name) != "machine"}
        return own | {"until": self.until}

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
        if record["settings"] != self.settings:
            return "stale: settings changed"
        return "finished" if record["finished"] else f"failed: {record['error']}" if record["error"] else "interrupted"


def read_sweep(which: str) -> tuple[str, dict]:
    """(name, content) of a YAML file, or of the one in notebooks/experiments with that name. Raises UserError, with what is wrong."""
    shipped = {path.stem: path for path in sorted(EXPERIMENTS.glob("*.yaml"))}
    file = shipped.get(which, Path(which).expanduser())
    if not file.is_file():
        raise UserError(f"there is no sweep {which!r}; give a YAML file, or one of {', '.join(shipped)}")
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not KEYS >= content.keys() >= {"points"}:
        raise UserError(f"{file} needs points: a list of settings, and may have {', '.join(sorted(KEYS - {'points'}))}; nothing else")
    content = {"seeds": [0]} | content
    points = content["points"]
    if not isinstance(points, list):
        raise UserError(f"{file}: points must be a list of settings, such as '- {{scale: 2}}'")
    for key, settings in [(key, content.get(key, {})) for key in ("settings", *PROFILES)] + [("a point", point) for point in points]:
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise UserError(f"{file}: {key} must be settings, such as '{{blocks: 8}}', not {settings!r}")
        if "seed" in settings:
            raise UserError(f"{file}: seed is no setting of a point or of all; give them as 'seeds: [0, 1]'")
    for seeds in [content["seeds"], *(point["seeds"] for point in points if "seeds" in point)]:
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise UserError(f"{file}: seeds must be a list of whole numbers, such as 'seeds: [0, 1]'")
    if content.get("until", "07") not in ("05", "06", "07"):  # 05 measures what the table compares
        raise UserError(f'{file}: until must be the number of the last notebook, "05", "06" or "07"')
    return file.stem, content


def make_points(content: dict, home: Path, profile: str = "", seeds=None, overrides: dict | None = None) -> list[Point]:
    """The points in order, all seeds of one after another. Arguments win over the file, but not over what a point is about.
    A point with the settings of an earlier one is left out, which is said. Raises UserError for two points of one name."""
    profile, made = profile or str(content.get("profile", "quick")), {}
    for point in content["points"]:
        settings = {k: v for k, v in point.items() if k not in ("name", "seeds")}
        name = point.get("name") or "_".join(f"{k}-{v}" for k, v in settings.items()) or "base"
        for seed in point.get("seeds", content["seeds"]) if seeds is None else seeds:
            wanted = content.get("settings", {}) | content.get(profile, {}) | (overrides or {}) | settings | {"seed": seed}
            folder, config = home / f"{re.sub(r'[^A-Za-z0-9._-]', '-', str(name))}-seed{seed}", load_config(profile, **wanted)
            if config in made:
                print(f"{folder.name} is {made[config].folder.name} under this profile, which has these settings already: left out")
            elif folder in [p.folder for p in made.values()]:
                raise UserError(f"two points of the sweep would be the folder {folder.name}; give each a name of its own")
            else:
                made[config] = Point(folder, wanted, config, content.get("until", "07"))
    return list(made.values())


def sweep(points: list[Point], home: Path, again: bool = False, only_list: bool = False) -> int:
    """Run what is not finished, and return the number of failed points; what happens to each is printed. With `again`, stale points are
    moved to `stale/` and run anew; with `only_list`, nothing is run. Raises Paused, at the end, where `max_hours` interrupted points and none failed."""
    outcome: dict[str, list[Point]] = {}
    for number, point in enumerate(points, 1):
        state = point.state
        print(f"[{number}/{len(points)}] {point.folder.name}: {state}", flush=True)
        if not only_list and state != "finished" and (again or not state.startswith("stale")):
            state = _run(point, points)
            print(f"    {state}", flush=True)
        outcome.setdefault(state.partition(":")[0], []).append(point)
    print("; ".join(f"{len(rows)} {state}: {', '.join(p.folder.name for p in rows)}" for state, rows in outcome.items()))
    if stale := outcome.get("stale"):
        print(f"{len(stale)} stale point(s) are in no table; --again runs them anew")
    if done := outcome.get("finished"):
        _table(home, done)
    if "interrupted" in outcome and "failed" not in outcome and not only_list:
        raise Paused
    return len(outcome.get("failed", []))


def _run(point: Point, points: list[Point]) -> str:
    """Run one point to its end or that of `max_hours`; 'finished', 'interrupted', 'failed: why' or 'skipped: how to get the weights'."""
    from ..models.features import WeightsMissing, feature_extractor

    if point.state.startswith("stale"):
        kept = point.folder.parent / "stale" / f"{point.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        kept.parent.mkdir(exist_ok=True)
        point.folder.rename(kept)
    try:
        feature_extractor(point.config.content_features, point.config.feature_weights)
        _share_pretraining(point, points)
        point.note(settings=point.settings, finished=None, error=None)
        run_series(point.config.profile, str(point.folder), "", point.overrides, until=point.until)
        point.note(finished=timestamp())
    except WeightsMissing as error:
        return f"skipped: {error}"
    except Paused:
        pass
    except (UserError, OSError, RuntimeError) as error:
        point.note(settings=point.settings, finished=None, error=str(error))
    return point.state


def _share_pretraining(point: Point, points: list[Point]) -> None:
    """Give a new point the finished pretraining of another that was made from the same, with what went into it: with one seed, on one
    machine with one number of threads, it would be the same to the byte."""
    if point.folder.exists():
        return
    mine = Run(point.folder, point.config)
    for other in points:
        theirs = Run(other.folder, other.config)
        record = theirs.provenance
        facts = record["stages"].get("pretrain", {})
        same = facts.get("finished") and theirs.settings("pretrain") == mine.settings("pretrain")
        if not same or not other.record or other.state.startswith("stale"):
            continue
        part = point.folder.with_name(f"{point.folder.name}.part")  # half of it would look like a training of its own
        shutil.rmtree(part, ignore_errors=True)
        with writing(point.folder):
            shutil.copytree(other.folder / "pretrain", part / "pretrain")
            for name in facts["made_from"].keys() & set(INPUTS["pretrain"]) | {MAKES["pretrain"]}:
                shutil.copy2(other.folder / name, part)
            part.rename(point.folder)
        if point.config.start:
            mine.record("networks", "start", **record["networks"]["start"])
        mine.record("stages", "pretrain", **{"taken_from": other.folder.name} | facts)
        return print(f"    pretraining taken from {other.folder.name}", flush=True)


def _table(home: Path, done: list[Point]) -> None:
    from ..series import runs

    means, _, _ = runs.read_runs([p.folder for p in done], done[0].folder)
    table = runs.group_table(means)
    write(home / "table.csv", table.to_csv())
    print(table.round(3).to_string())


def main(argv: list[str]) -> int:
    words = parser("sweep", "One run for each of a list of settings and seeds.")
    words.add_argument("sweep", metavar="NAME", help="a YAML file, or the name of one in notebooks/experiments")
    add_settings(words)
    words.add_argument("--seeds", nargs="+", type=int, metavar="N", help="other seeds than the file's")
    words.add_argument("--run-dir", default="", help="folder of the points (default: runs/sweeps/NAME)")
    words.add_argument("--again", action="store_true", help="run stale points anew; the old ones are kept in stale/")
    words.add_argument("--list", action="store_true", help="say how each point stands and run nothing")
    args = words.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data, overrides = read_settings(args)
    if "seed" in overrides:
        raise UserError("a sweep has seeds; give --seeds in the place of -p seed")
    name, content = read_sweep(args.sweep)
    home = run_path("", absolute(args.run_dir) or f"runs/sweeps/{name}").resolve()
    points = make_points(content, home, args.profile, args.seeds, overrides | ({"data": data} if data else {}))
    print(f"{name}: {content.get('about', '')}\n{len(points)} points in {home}")
    return int(sweep(points, home, args.again, args.list) > 0)
