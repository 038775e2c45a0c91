"""A run folder: its settings, what each stage was made from, its lock. Nothing here needs torch, so the runner starts at once."""

from __future__ import annotations

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

from ..config import FIELDS, STAGES, Config, UserError, load_config
from ..files import HOME, damaged, file_hash, read_json, read_table, read_text, write, writing
from .provenance import device_used, made_by, timestamp

NOTEBOOKS = {  # number: (file, stage whose settings it accepts, stages it needs)
    "01": ("01_explore_data", "data", ()),
    "02": ("02_synthesize_lr", None, ("data",)),
    "03": ("03_pretrain_generator", "pretrain", ("data",)),
    "04": ("04_train_srgan", "srgan", ("data", "pretrain")),
    "05": ("05_evaluate", "evaluation", ("data", "pretrain", "srgan")),
    "06": ("06_experiments", None, ("data", "pretrain", "srgan", "evaluation")),
}
MAKES = {"data": ("manifest.csv",), "pretrain": ("srresnet.pt",), "srgan": ("srgan.pt",), "evaluation": ("evaluation/metrics.csv",)}
INPUTS = {  # what goes into a stage; start.pt where the setting `start` is given
    "data": (),
    "pretrain": ("manifest.csv", "start.pt"),
    "srgan": ("manifest.csv", "srresnet.pt"),
    "evaluation": ("manifest.csv", "srresnet.pt", "srgan.pt"),
}


def run_path(profile: str, run_dir: str = "") -> Path:
    """The folder that `run_dir` means: absolute, or under the repository (Kaggle's working folder there); '' is runs/<profile>."""
    return HOME / (Path(run_dir).expanduser() if run_dir else Path("runs") / profile)


def read_config(file: Path) -> Config:
    """The settings in a run's config.json; one that it lacks, as it is newer than the run, has its default and not what the profile
    says today. UserError where they cannot be read."""
    try:
        settings = dataclasses.asdict(Config()) | json.loads(file.read_text(encoding="utf-8"))
        return load_config(settings.pop("profile"), **settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be used ({error}); choose another run_dir") from None


def _hash(settings: dict, inputs: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([settings, list(inputs.values())], sort_keys=True).encode()).hexdigest()


class Run:
    """A run folder with its settings. `folder`: Path; `config`: Config."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config

    def __repr__(self):
        folder = self.folder.relative_to(HOME) if self.folder.is_relative_to(HOME) else self.folder
        return f"run folder {folder}, profile {self.config.profile}, data {self.config.data}"

    def write_config(self) -> None:
        write(self.folder / "config.json", json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")

    # -------------------------------------------------------------------------------------------- provenance
    @property
    def provenance(self) -> dict:
        file = self.folder / "provenance.json"
        record = {"stages": {}, "notebooks": {}} | (read_json(file) if file.exists() else {})
        if wrong := [name for name, part in record.items() if not isinstance(part, dict)]:
            raise damaged(file, f"{wrong[0]} is no JSON object")
        return record

    def record(self, part: str, name: str, **facts) -> None:
        """Merge `facts` into provenance[part][name]."""
        record = self.provenance
        record.setdefault("made_by", made_by())
        record.setdefault(part, {}).setdefault(name, {}).update(facts)
        write(self.folder / "provenance.json", json.dumps(record, indent=1) + "\n")

    def settings(self, stage: str) -> dict:
        """The settings that the stage's results depend on: its own and those of the stages before it."""
        upto = STAGES[: STAGES.index(stage) + 1]
        return {name: getattr(self.config, name) for name, f in FIELDS.items() if f.metadata.get("stage") in upto}

    def inputs(self, stage: str) -> dict[str, str]:
        """SHA-256 of the files that go into the stage; '' of one that is not there."""
        files = [self.folder / f for f in INPUTS[stage] if f != "start.pt" or self.config.start]
        return {f.name: file_hash(f) if f.exists() else "" for f in files}

    def changed(self, stage: str) -> str:
        """What the stage was made with and is not so today, as 'gan_steps 280, now 300 and other images'; '' where all is as it was.
        A setting that is newer than the record had its default."""
        noted, inputs = self.provenance["stages"].get(stage, {}), self.inputs(stage)
        if "fingerprint" not in noted:
            return "settings that provenance.json does not hold"
        pairs = [(name, noted["settings"].get(name, FIELDS[name].default), value) for name, value in self.settings(stage).items()]
        words = [f"{name} {then!r}, now {now!r}" for name, then, now in pairs if then != now]
        named = {name: "other images" if name == "manifest.csv" else f"another {name}" for name in inputs}
        words += [named[name] for name, sha256 in inputs.items() if noted["inputs"].get(name) != sha256]
        return " and ".join(words)

    def fingerprint(self, stage: str) -> str:
        """The name that records and checkpoints have for the stage's settings and inputs: the recorded one as long as nothing changed."""
        if self.changed(stage):
            return _hash(self.settings(stage), self.inputs(stage))
        return self.provenance["stages"][stage]["fingerprint"]

    def is_trained(self, stage: str) -> bool:
        """Whether the folder holds a training of the stage, finished or not."""
        return (self.folder / stage / "checkpoint.pt").exists()

    def refuse_changes(self, stored: Config) -> None:
        """Raise UserError where a setting differs from `stored` and a training that depends on it is in the folder."""
        trained = [s for s in ("pretrain", "srgan") if self.is_trained(s)]
        for name in FIELDS:
            old, new = getattr(stored, name), getattr(self.config, name)
            depends = [s for s in trained if name in self.settings(s)]
            if old != new and (depends or (name == "profile" and trained)):
                raise UserError(f"{self.folder} was made with {name}={old!r}, not {new!r}; choose another folder with run_dir (--run-dir)")

    # -------------------------------------------------------------------------------------------- stages
    @contextlib.contextmanager
    def lock(self):
        """Hold the folder for this process; the notebooks of a runner that holds it pass through."""
        if os.environ.get("SRLIB_LOCKED") == str(self.folder):
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "run.lock").acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder} is in use by another process; wait for it, or choose another folder with run_dir (--run-dir)"
            ) from None
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); choose another folder with run_dir (--run-dir)") from None
        with lock:
            yield

    @contextlib.contextmanager
    def stage(self, name: str):
        """Lock, note what the stage is made from, and note its end; gives the fingerprint.

        Raises UserError where a training in the folder was made from something else.
        """
        with self.lock():
            before = self.provenance["stages"].get(name, {})
            fingerprint = self.fingerprint(name)
            if self.is_trained(name) and before and (why := self.changed(name)):
                raise UserError(
                    f"{self.folder / name} was trained with {why}; "
                    f"--from {'03' if name == 'pretrain' else '04'} trains it again, or choose another folder with run_dir (--run-dir)"
                )
            if self.is_trained(name) and before.get("finished"):  # nothing will be trained: leave the record of when it was
                yield fingerprint
                return
            self.record(
                "stages",
                name,
                fingerprint=fingerprint,
                settings=self.settings(name),
                inputs=self.inputs(name),
                started=timestamp(),
                finished=None,
                device=device_used(self.config),
                git=made_by()["git"],
            )
            start = time.monotonic()
            yield fingerprint
            self.record("stages", name, finished=timestamp(), seconds=round(time.monotonic() - start, 1))

    # -------------------------------------------------------------------------------------------- data
    def find_images(self) -> Path:
        """The folder of the images, found by the setting `data`; phantoms are made where they are missing."""
        from ..data import sources

        if self.config.data != "phantom":
            return sources.locate(self.config.data).absolute()
        if self.config.phantoms == 0:
            raise UserError("data='phantom' needs phantoms > 0 (quick has 120)")
        return sources.make_phantoms(self.config)

    def refuse_scans(self) -> None:
        """Raise UserError where the run would write into a folder of scans: its pictures would be taken for scans, or the scans be left out as a run's."""
        from ..data.reading import EXTENSIONS, INSTRUMENTS

        if self.config.data == "phantom":
            return
        try:
            root, folder = self.find_images().resolve(), self.folder.resolve()
        except UserError:  # it is said where the images are needed
            return
        inside = root in folder.parents and folder.is_dir() and not (folder / "config.json").exists()
        if folder == root or (inside and any(f.suffix.lower() in EXTENSIONS + INSTRUMENTS for f in folder.iterdir())):
            raise UserError(f"{folder} holds scans; choose another folder with run_dir (--run-dir)")

    def make_manifest(self) -> pd.DataFrame:
        """Find or make the images, split them by patient, write manifest.csv (and skipped.csv); the table.

        Raises UserError where a training in the folder was made from other images.
        """
        from ..data import manifest
        from ..data.reading import subfolder

        c = self.config
        root = self.find_images()
        hr, lr, paired = subfolder(root, "hr"), subfolder(root, "lr"), c.degradation == "paired"
        both = bool(hr and lr)
        if both != paired:
            raise UserError(
                f"{root} holds {lr.name}/ and {hr.name}/; take -p degradation paired for these pairs, or --data {hr} to make LR from HR"
                if both
                else f"degradation='paired' needs the folders lr/ and hr/ in {root}"
            )
        options = c.patient_pattern, c.val_share, c.test_share, c.max_images, c.scale if paired else 0, c.bits
        table = manifest.build_manifest(root, c.channels, *options)
        manifest.check_split(table)
        text = table.to_csv(index=False)
        file = self.folder / "manifest.csv"
        if file.exists() and read_text(file) != text and self.is_trained("pretrain"):
            raise UserError(f"the images in {root} changed since {self.folder} was trained; choose another folder with run_dir (--run-dir)")
        write(file, text)
        skipped = pd.DataFrame(table.attrs["skipped"], columns=["path", "reason"])
        write(self.folder / "skipped.csv", skipped.to_csv(index=False))
        self.record("data", "images", root=str(root), kind="phantom" if c.data == "phantom" else "files", count=len(table))
        if doubtful := table.attrs["doubtful"]:
            print(f"warning: {len(doubtful)} image(s) may have fewer bits than their files say: {': '.join(doubtful[0])}")
        return table

    @property
    def manifest(self) -> pd.DataFrame:
        return read_table(self.folder / "manifest.csv")

    @property
    def root(self) -> Path:
        """The folder that the manifest's paths start from."""
        try:
            root = Path(self.provenance["data"]["images"]["root"])
        except (KeyError, TypeError):
            raise damaged(self.folder / "provenance.json", "it does not say where the images are") from None
        if not root.is_dir():
            raise UserError(f"{root}, where this run's images were, is gone; run 01_explore_data with another run_dir")
        return root

    @property
    def is_phantom(self) -> bool:
        return self.config.data == "phantom"

    def read(self, path: str | Path, channels: int = 0) -> np.ndarray:
        """An image of the run by its path in the manifest, as the settings read it; `channels`: another number than theirs."""
        from ..data.reading import read_image

        return read_image(self.root / path, channels or self.config.channels, self.config.bits)

    def images(self, split: str, min_side: int = 0) -> list[Path]:
        """Paths of a split's images of at least `min_side` pixels a side, of 'train' with `train_on_val` those of validation, too; UserError
        where none is left."""
        table, splits = self.manifest, [split] + ["val"] * (split == "train" and self.config.train_on_val)
        table = table[table.split.isin(splits) & (table[["height", "width"]] >= min_side).all(axis=1)]
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
            write(self.figures / f"{name}.png", content)
        display(Image(data=content))

    @property
    def figures(self) -> Path:
        path = self.folder / "figures"
        with writing(path):
            path.mkdir(exist_ok=True)
        return path
