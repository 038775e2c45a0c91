"""A run folder is opened: settings are checked against what it holds. Only reading given weights needs torch, so the runner starts at once."""

import contextlib
import dataclasses
from pathlib import Path

from ..config import Config, UserError, load_config, stage_of
from ..files import HOME, file_hash, write
from .run_folder import ANOTHER, MAKES, NOTEBOOKS, OWNERS, TRAININGS, Run, locked, read_config, run_path


def open_run(notebook: str, profile: str = "quick", run_dir: str = "", data: str = "", overrides: dict | None = None) -> Run:
    """What every notebook's set-up calls with its parameters: check them, and return the run.

    Notebook 01 writes config.json; a later one reads it and accepts changes to its own stage's settings (and to the machine's). Raises UserError
    for a wrong name or value, and for a setting or a missing file that contradicts what the folder holds or what the notebook needs.
    """
    _, stages, needs = NOTEBOOKS[notebook]
    given = (overrides or {}) | ({"data": data} if data else {})
    config, folder = load_config(profile, **given), run_path(profile, run_dir)
    stored = read_config(folder / "config.json") if (folder / "config.json").exists() else None
    named = {stored.data, given.get("data", stored.data)} if stored else set()
    if len(named) > 1 and "phantom" not in named and Run(folder, stored).is_trained("pretrain"):
        _find_moved(Run(folder, stored), given.pop("data"))
        config = dataclasses.replace(config, data=stored.data)
    if notebook == "01":
        _refuse_scans(folder, config)
    elif not stored:
        raise UserError(f"{folder} holds no run yet; run 01_explore_data first, with the same run_dir (or the whole series)")
    else:
        config = dataclasses.replace(stored, **{key: getattr(config, key) for key in given}, profile=profile)
        _refuse_settings_of_others(stages, folder, stored, config)
    run = Run(folder, config)
    # who only reads may do so while another process trains
    with locked(folder) if notebook == "01" or config != stored else contextlib.nullcontext():
        for stage in needs:
            _refuse_missing(run, stage)
        if stored:
            _refuse_changes(run, stored)
        if notebook == "03":
            _ask_for_weights(run)
        if config.start and (notebook == "01" or config.start != stored.start):
            _take_start(run)
        if config != stored:
            run.write_config()
    return run


def _find_moved(run: Run, data: str) -> None:
    """Note that the images of a trained run are in `data` now. Raises UserError where other images are."""
    from ..data import reading, sources

    root = sources.locate(data).absolute()
    if str(root) == run.provenance["data"]["images"]["root"]:
        return
    if lost := next((path for path in run.manifest.path if not reading.page_of(root / path)[0].exists()), ""):
        raise UserError(f"{run.folder} was made with data={run.config.data!r}, and {root} does not hold its {lost}; {ANOTHER}")
    with locked(run.folder):
        run.make_manifest(data)


def _refuse_scans(folder: Path, config: Config) -> None:
    """Raise UserError where a new run would write among scans: its pictures would be taken for scans."""
    from ..data.reading import EXTENSIONS

    if (folder / "config.json").exists() or not folder.is_dir():
        return
    if folder.resolve() == (HOME / config.data).resolve() or any(file.suffix.lower() in EXTENSIONS for file in folder.iterdir()):
        raise UserError(f"{folder} holds scans; {ANOTHER}")


def _refuse_settings_of_others(stages: tuple, folder: Path, stored: Config, config: Config) -> None:
    """Raise UserError where a notebook changes the profile or a setting of other stages than its own."""
    if stored.profile != config.profile:
        raise UserError(f"{folder} was made with profile={stored.profile!r}, not {config.profile!r}; set that profile or another run_dir")
    for key, value in vars(stored).items():
        if getattr(config, key) != value and stage_of(key) not in (*stages, "machine"):
            where = f"{folder} and belongs to {NOTEBOOKS[OWNERS[stage_of(key)]][0]}"
            raise UserError(f"{key} is {value!r} in {where}; change it there, with another run_dir where that stage has run")


def _refuse_missing(run: Run, stage: str) -> None:
    """Raise UserError where a stage that the notebook needs has not run, or was trained from something else."""
    number, file = OWNERS[stage], run.folder / MAKES[stage]
    if not file.exists():
        raise UserError(f"{file} is missing; run {NOTEBOOKS[number][0]} first (or the whole series)")
    if (run.is_trained(stage) or stage == "evaluation") and (why := run.changed(stage)):
        raise UserError(f"{file} was made with {why}; --from {number} makes it again")


def _refuse_changes(run: Run, stored: Config) -> None:
    """Raise UserError where a setting differs from `stored` and a training that depends on it is in the folder."""
    trained = [name for stage in TRAININGS if run.is_trained(stage) for name in ("profile", *run.settings(stage))]
    for name in trained:
        if (old := getattr(stored, name)) != (new := getattr(run.config, name)):
            raise UserError(f"{run.folder} was made with {name}={old!r}, not {new!r}; {ANOTHER}")


def _ask_for_weights(run: Run) -> None:
    """Raise UserError where the network of the content loss cannot be had: before the hours of the pretraining, not after them."""
    if run.provenance["stages"].get("pretrain", {}).get("finished"):
        return
    from ..models.features import feature_extractor

    try:
        feature_extractor(run.config.content_features, run.config.feature_weights)
    except UserError as error:
        raise UserError(f"{error} (notebook 04 needs this; change it in 01_explore_data or on the command line)") from None


def _take_start(run: Run) -> None:
    """Copy the weights that the setting `start` names to start.pt, where nothing was trained from them yet. Raises UserError for
    weights that are not there, damaged, or of another shape than the settings."""
    from .. import trained
    from ..training.stage import make_generator

    wanted = run.config.start
    if run.is_trained("pretrain") and (run.folder / "start.pt").exists():
        return
    file = None if wanted == "released" else run_path("", wanted)
    if not file or (file.is_dir() and trained.listed(file)):  # of this scale or, where there is none, of another
        scales = {entry["scale"] for entry in trained.listed(file or trained.WEIGHTS).values() if "srresnet" in entry}
        file = trained.find("srresnet", file, run.config.scale if run.config.scale in scales else 0)[0]
    elif not file.is_file():
        file = file / "srresnet.pt"
    theirs, mine = trained.load_generator(file).settings, make_generator(run.config).settings
    if "texture" in theirs:
        raise UserError(f"start={wanted!r} is a sampler, whose SRResNet does not learn; name the srresnet.pt beside it")
    if other := {key: value for key, value in theirs.items() if mine.get(key) != value and key != "scale"}:
        words = " ".join(f"-p {key} {str(value).lower()}" for key, value in other.items())
        raise UserError(f"start={wanted!r} is a network of another shape; set {words}, or other weights")
    write(run.folder / "start.pt", file.read_bytes())
    run.record("networks", "start", file=str(file), sha256=file_hash(file))
