"""A run folder: its settings, what each stage was made from, its lock. Nothing here needs torch, so the runner starts at once."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from ..config import FIELDS, STAGES, Config, UserError, load_config, stage_of
from ..files import HOME, file_hash, read_json, read_table, read_text, write
from .provenance import commit, device_used, made_by, timestamp

NOTEBOOKS = {  # number: (file, stages whose settings it accepts, the last one its result, stages it needs)
    "01": ("01_explore_data", ("data",), ()),
    "02": ("02_synthesize_lr", (), ("data",)),
    "03": ("03_pretrain_generator", ("pretrain",), ("data",)),
    "04": ("04_train_srgan", ("srgan",), ("data", "pretrain")),
    "05": ("05_evaluate", ("evaluation",), ("data", "pretrain", "srgan")),
    "06": ("06_experiments", (), ("data", "pretrain", "srgan", "evaluation")),
    "07": ("07_sample_texture", ("sampler", "samples"), ("data", "pretrain", "srgan", "evaluation")),
}
OWNERS = {stage: number for number, (_, stages, _) in NOTEBOOKS.items() for stage in stages}  # the notebook of each stage
TRAININGS = ("pretrain", "srgan", "sampler")
MAKES = {
    "data": "manifest.csv", "pretrain": "srresnet.pt", "srgan": "srgan.pt", "evaluation": "evaluation/metrics.csv",
    "sampler": "sampler.pt", "samples": "sampler/metrics.csv",
}  # fmt: skip
INPUTS = {  # files that go into a stage; start.pt where the setting `start` is given
    "data": (),
    "pretrain": ("manifest.csv", "start.pt"),
    "srgan": ("manifest.csv", "srresnet.pt"),
    "evaluation": ("manifest.csv", "srresnet.pt", "srgan.pt"),
    "sampler": ("manifest.csv", "srresnet.pt"),
    "samples": ("manifest.csv", "srresnet.pt", "srgan.pt", "sampler.pt"),
}
ANOTHER = "choose another folder with run_dir (--run-dir)"


def run_path(profile: str, run_dir: str = "") -> Path:
    """The folder that `run_dir` means: absolute, or under the repository (Kaggle's working folder there); '' is runs/<profile>."""
    return HOME / (Path(run_dir).expanduser() if run_dir else Path("runs") / profile)


def read_config(file: Path) -> Config:
    """The settings in a run's config.json; one that it lacks, as it is newer than the run, has its default and not what the profile
    says today. UserError where they cannot be read."""
    settings = dataclasses.asdict(Config()) | read_json(file)
    try:
        return load_config(settings.pop("profile"), **settings)
    except UserError as error:
        raise UserError(f"{file} cannot be used ({error}); choose another run_dir") from None


@contextlib.contextmanager
def locked(folder: Path):
    """Hold a run folder for this process; the notebooks of a runner that holds it pass through. UserError where another process does."""
    if os.environ.get("SRLIB_LOCKED") == str(folder):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "run.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is in use by another process; wait for it, or {ANOTHER}") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); {ANOTHER}") from None
    with lock:
        yield


class Run:
    """A run folder with its settings. `folder`: Path; `config`: Config."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config

    def __repr__(self):
        folder = self.folder.relative_to(HOME) if self.folder.is_relative_to(HOME) else self.folder
        return f"run folder {folder}, profile {self.config.profile}, data {self.config.data}"

    def write_config(self) -> None:
        write(self.folder / "config.json", json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")

    # -------------------------------------------------------------------------------------------- what it was made from
    @property
    def provenance(self) -> dict:
        file = self.folder / "provenance.json"
        return {"stages": {}, "notebooks": {}} | (read_json(file) if file.exists() else {})

    def record(self, part: str, name: str, **facts) -> None:
        """Merge `facts` into provenance[part][name]."""
        record = self.provenance
        record.setdefault("made_by", made_by())
        record.setdefault(part, {}).setdefault(name, {}).update(facts)
        write(self.folder / "provenance.json", json.dumps(record, indent=1) + "\n")

    def settings(self, stage: str) -> dict:
        """The settings that the stage's results depend on (`config.STAGES`)."""
        return {name: getattr(self.config, name) for name in FIELDS if name != "profile" and stage_of(name) in STAGES[stage]}

    def made_from(self, stage: str) -> dict:
        """What the stage's results depend on: `settings`, and {file: SHA-256} of its inputs ('' of one that is missing)."""
        files = [self.folder / name for name in INPUTS[stage] if name != "start.pt" or self.config.start]
        return self.settings(stage) | {file.name: file_hash(file) if file.exists() else "" for file in files}

    def changed(self, stage: str) -> str:
        """What the stage was made from and is not so today, as 'gan_steps 280, now 300 and other images'; '' where all is as it was."""
        noted, now = self.provenance["stages"].get(stage, {}).get("made_from"), self.made_from(stage)
        if noted is None:
            return "settings that provenance.json does not hold"
        differ = [name for name in now if now[name] != noted.get(name)]
        files = {name: "other images" if name == "manifest.csv" else f"another {name}" for name in INPUTS[stage]}
        return " and ".join(files.get(name) or f"{name} {noted.get(name)!r}, now {now[name]!r}" for name in differ)

    def fingerprint(self, stage: str) -> str:
        """A short name of `made_from`, for checkpoints and notebooks' records."""
        return hashlib.sha256(json.dumps(self.made_from(stage)).encode()).hexdigest()

    def is_trained(self, stage: str) -> bool:
        """Whether the folder holds a training of the stage, finished or not."""
        return (self.folder / stage / "checkpoint.pt").exists()

    @contextlib.contextmanager
    def stage(self, name: str):
        """Hold the folder, note what the stage is made from, and note its end; gives the fingerprint. Raises UserError where a training in the folder
        was made from something else."""
        with locked(self.folder):
            if self.is_trained(name) and (why := self.changed(name)):
                raise UserError(f"{self.folder / name} was trained with {why}; --from {OWNERS[name]} trains it again, or {ANOTHER}")
            if self.is_trained(name) and self.provenance["stages"][name]["finished"]:  # leave the record of when it was
                yield self.fingerprint(name)
                return
            facts = dict(made_from=self.made_from(name), device=device_used(self.config), git=commit())
            self.record("stages", name, **facts, started=timestamp(), finished=None)
            start = time.monotonic()
            yield self.fingerprint(name)
            self.record("stages", name, finished=timestamp(), seconds=round(time.monotonic() - start, 1))

    # -------------------------------------------------------------------------------------------- its images
    def make_manifest(self, moved: str = "") -> pd.DataFrame:
        """Find or make the images, split them by patient, write manifest.csv (and skipped.csv); the table. `moved`: where the images of the setting
        `data` are now. Raises UserError where a training in the folder was made from other images."""
        from ..data import manifest, sources

        c, noted = self.config, self.provenance.get("data", {}).get("images", {})
        if self.is_phantom and not c.phantoms:
            raise UserError("data='phantom' needs phantoms > 0 (quick has 120)")
        known = noted["root"] if noted.get("data") == c.data and Path(noted["root"]).is_dir() else c.data
        root = sources.make_phantoms(c) if self.is_phantom else sources.locate(moved or known).absolute()
        _check_pairs(c, root)
        table = manifest.build_manifest(root, c)
        text, file = table.to_csv(index=False), self.folder / "manifest.csv"
        if self.is_trained("pretrain") and file.exists() and read_text(file) != text:
            raise UserError(f"the images in {root} changed since {self.folder} was trained; {ANOTHER}")
        write(file, text)
        skipped = pd.DataFrame(table.attrs["skipped"], columns=["path", "reason"])
        write(self.folder / "skipped.csv", skipped.to_csv(index=False))
        self.record("data", "images", root=str(root), data=c.data, kind="phantom" if self.is_phantom else "files", count=len(table))
        if doubtful := table.attrs["doubtful"]:
            print(f"warning: {len(doubtful)} image(s) may have fewer bits than their files say: {', '.join(doubtful[0])}")
        return table

    @property
    def manifest(self) -> pd.DataFrame:
        return read_table(self.folder / "manifest.csv")

    @property
    def metrics(self) -> pd.DataFrame:
        """What notebook 05 measured, and 07 where it has run since, one table."""
        files = [self.folder / "evaluation" / "metrics.csv", *([] if self.changed("samples") else [self.folder / MAKES["samples"]])]
        return pd.concat([read_table(file) for file in files if file.exists()], ignore_index=True)

    @property
    def root(self) -> Path:
        """The folder that the manifest's paths start from."""
        root = Path(self.provenance["data"]["images"]["root"])
        if root.is_dir():
            return root
        if not self.is_phantom:
            raise UserError(f"{root}, where this run's images were, is gone; name the folder where they are now with data (--data)")
        from ..data import sources

        if (drawn := sources.make_phantoms(self.config)).name != root.name:
            raise UserError(f"{root}, where this run's phantoms were, is gone, and this version draws others; {ANOTHER}")
        return drawn

    @property
    def is_phantom(self) -> bool:
        return self.config.data == "phantom"

    def read(self, path: str | Path, channels: int = 0) -> np.ndarray:
        """An image of the run by its path in the manifest, as the settings read it; `channels`: another number than theirs."""
        from ..data.reading import read_image

        return read_image(self.root / path, channels or self.config.channels, self.config.bits)

    def images(self, split: str, min_side: int = 0) -> list[Path]:
        """Paths of a split's images of at least `min_side` pixels a side; UserError where none is left."""
        table = self.manifest
        table = table[(table.split == split) & (table[["height", "width"]] >= min_side).all(axis=1)]
        if not len(table):
            raise UserError(f"no image of the {split} split is {min_side} pixels or more a side; set a smaller crop or give larger images")
        root = self.root  # looked up once
        return [root / p for p in table.path]

    def show(self, figure, name: str = "", phantom: bool | None = None) -> None:
        """Display a figure (matplotlib's or a Pillow image) in a notebook, marked where it shows phantoms (None: where the run does), and keep it
        as figures/`name`.png where it has a name. Shown as a PNG, whatever matplotlib's backend."""
        from IPython.display import Image, display

        from ..figures.panels import png

        content = png(figure, self.is_phantom if phantom is None else phantom)
        if name:
            write(self.folder / "figures" / f"{name}.png", content)
        display(Image(data=content))


def _check_pairs(config: Config, root: Path) -> None:
    """Raise UserError where the folders say something else of given pairs than the setting."""
    from ..data.reading import subfolder

    hr, lr, paired = subfolder(root, "hr"), subfolder(root, "lr"), config.degradation == "paired"
    if hr and lr and not paired:
        raise UserError(
            f"{root} holds {lr.name}/ and {hr.name}/; take -p degradation paired for these pairs, or --data {hr} to make LR from HR"
        )
    if paired and not (hr and lr):
        raise UserError(f"degradation='paired' needs the folders lr/ and hr/ in {root}")
