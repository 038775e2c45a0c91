"""A run folder is opened: the settings are checked against what it holds, and weights that it is given are taken in. Nothing here needs torch but
to read weights, so the runner starts at once."""

from __future__ import annotations

import contextlib
import dataclasses

from ..config import UserError, load_config, stage_of
from ..files import file_hash, write
from .run_folder import MAKES, NOTEBOOKS, Run, read_config, run_path

UNTRAINED = ("01", "02", "05")  # what remains where the setting `networks` names trained ones


def open_run(notebook: str, profile: str = "quick", run_dir: str = "", data: str = "", overrides: dict | None = None) -> Run:
    """What every notebook's set-up calls with its parameters: check them, and return the run.

    Notebook 01 writes config.json; a later one reads it and accepts changes to its own stage's settings (and to the machine's).
    Raises UserError, one sentence, for a wrong name or value, a setting of another stage, a missing earlier stage, or a setting
    that contradicts what the folder already holds; before the pretraining also for weights that are missing.
    """
    name, stage, needs = NOTEBOOKS[notebook]
    wanted = dict(overrides or {})
    if data:
        wanted["data"] = data
    folder = run_path(profile, run_dir)
    file = folder / "config.json"
    if notebook == "01":
        run = Run(folder, load_config(profile, **wanted))
        run.refuse_scans()
        with run.lock():
            if file.exists():
                run.refuse_changes(read_config(file))
            _take_networks(run)
            _take_start(run)
            run.write_config()
        return run
    if not file.exists():
        raise UserError(f"{folder} holds no run yet; run 01_explore_data first, with the same run_dir (or the whole series)")
    stored = read_config(file)
    load_config(profile, **wanted)  # names the nearest valid setting or value
    if stored.profile != profile:
        raise UserError(f"{folder} was made with profile={stored.profile!r}, not {profile!r}; set that profile or another run_dir")
    for key, value in wanted.items():
        if getattr(stored, key) != value and stage_of(key) not in (stage, "machine"):
            owner = next((n for n, s, _ in NOTEBOOKS.values() if s == stage_of(key)), "01_explore_data")
            raise UserError(
                f"{key} is {getattr(stored, key)!r} in {folder} and belongs to {owner}; change it there, with another run_dir where that stage has run"
            )
    run = Run(folder, dataclasses.replace(stored, **wanted))
    if run.config.networks and notebook not in UNTRAINED:
        raise UserError(f"{folder} measures networks={run.config.networks!r} and trains nothing; open {name} with another run_dir")
    # who only reads may do so while another process trains
    with run.lock() if run.config.networks or run.config != stored else contextlib.nullcontext():
        _take_networks(run)
        for need in needs:
            missing = [f for f in MAKES[need] if not (folder / f).exists()]
            if missing:
                owner = next(n for n, s, _ in NOTEBOOKS.values() if s == need)
                raise UserError(f"{folder / missing[0]} is missing; run {owner} first (or the whole series)")
            if run.is_trained(need) and (why := run.changed(need)):
                number = next(n for n, (_, s, _) in NOTEBOOKS.items() if s == need)
                raise UserError(f"{folder / MAKES[need][0]} was trained with {why}; --from {number} trains it again")
        run.refuse_changes(stored)
        if notebook == "03":
            _ask_for_weights(run)
        if run.config.start != stored.start:
            _take_start(run)
        if run.config != stored:
            run.write_config()
    return run


def _ask_for_weights(run: Run) -> None:
    """Raise UserError where the network of the content loss cannot be had: before the hours of the pretraining, not after them."""
    if run.provenance["stages"].get("pretrain", {}).get("finished"):
        return
    from ..sampler.training import content_extractor

    try:
        content_extractor(run.config)
    except UserError as error:
        raise UserError(f"{error} (notebook 04 needs this; change it in 01_explore_data or on the command line)") from None


def _take_networks(run: Run) -> None:
    """Copy the two networks that the setting `networks` names into the folder, where it does. Raises UserError where they are not
    for these images (scale, channels, LR kind), are damaged, or where a training of the folder's own is in it."""
    wanted = run.config.networks
    if not wanted:
        return
    if run.is_trained("pretrain"):
        raise UserError(f"{run.folder} holds a training of its own; for networks={wanted!r} choose another run_dir (--run-dir)")
    from .. import trained

    source = None if wanted == "released" else run_path("", wanted)
    files, entry = trained.pair(source, run.config.scale)
    for file in files.values():
        shape = trained.load_generator(file).settings
        for key in ("scale", "channels"):
            if shape[key] != getattr(run.config, key):
                raise UserError(f"{file} is for {key}={shape[key]}, not {getattr(run.config, key)}; set {key} or other networks")
    if entry:
        learnt = entry["scale"], trained.reduction(entry, "reduction")
    else:
        learnt = read_config(source / "config.json").reduction if (source / "config.json").exists() else run.config.reduction
    if learnt != run.config.reduction:
        raise UserError(f"networks={wanted!r} undo another reduction; set degradation={learnt[1]!r}")
    for name, file in files.items():
        write(run.folder / f"{name}.pt", file.read_bytes())
        run.record("networks", name, file=str(file), sha256=file_hash(file))


def _take_start(run: Run) -> None:
    """Copy the weights that the setting `start` names to start.pt, where it does and nothing was trained from them yet. Raises UserError for
    weights that are not there, damaged, or of another shape than the settings."""
    wanted = run.config.start
    if not wanted or (run.is_trained("pretrain") and (run.folder / "start.pt").exists()):
        return
    from .. import trained
    from ..training.stage import make_generator

    source = None if wanted == "released" else run_path("", wanted)
    if source and source.is_file():
        file = source
    else:  # of this scale or, where there is none, of another
        there = str(run.config.scale) in trained.listed(source or trained.WEIGHTS)
        file = trained.pair(source, run.config.scale if there else 0)[0]["srresnet"]
    theirs, mine = trained.load_generator(file).settings, make_generator(run.config).settings
    if "texture" in theirs:
        raise UserError(f"start={wanted!r} is an SRGAN, whose SRResNet does not learn; name the srresnet.pt beside it")
    if other := {key: value for key, value in theirs.items() if mine.get(key) != value and key != "scale"}:
        words = " ".join(f"-p {key} {str(value).lower()}" for key, value in other.items())
        raise UserError(f"start={wanted!r} is a network of another shape; set {words}, or other weights")
    write(run.folder / "start.pt", file.read_bytes())
    run.record("networks", "start", file=str(file), sha256=file_hash(file))
