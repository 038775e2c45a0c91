"""What a Kaggle kernel leaves for the next one, or for its own next version: the run folder, with the SHA-256 of each file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

from ..config import OutOfTime, UserError
from ..files import HOME, file_hash, mounts, read_json, write, writing
from ..series.run_folder import Run, read_config, run_path

LIST = "handover.json"


def hand_over(run: Run, finished: bool = True) -> None:
    """Write `run.folder`/handover.json: the SHA-256 of each file, and whether the kernel did all that it should."""
    files = sorted(p for p in run.folder.rglob("*") if p.is_file() and p.name not in (LIST, "run.lock"))
    facts = {"finished": finished, "files": {p.relative_to(run.folder).as_posix(): file_hash(p) for p in files}}
    write(run.folder / LIST, json.dumps(facts, indent=1) + "\n")
    print(f"{len(files)} files handed over in {run.folder}" + ("" if finished else "; not finished"))


@contextlib.contextmanager
def ending_in_time(run: Run):
    """Around a training: where `max_hours` ends it, hand over what there is and end the notebook without an error."""
    try:
        yield
    except OutOfTime as error:
        print(error)
        hand_over(run, finished=False)
        sys.exit(0)  # papermill leaves out the cells that follow


def take_over(kernels: list[str], profile: str, run_dir: str = "", needed: bool = True) -> None:
    """Copy the run folder that the first attached one of `kernels` (OWNER/SLUG) handed over to where this kernel can write.

    Every file is checked; the place of the images is found anew where it has changed. Does nothing where the run folder is there
    already. Raises UserError for an output that is not attached (unless it is not `needed`), has no list, or lacks or has changed a file.
    """
    folder = run_path(profile, run_dir)
    if (folder / "config.json").exists():
        print(f"going on in {folder}")
        return
    mount = next((m for kernel in kernels for m in mounts("notebooks", kernel)), None)
    if mount is None:
        if needed:
            raise UserError(f"the output of {kernels[-1]} is not attached; add it under Add Input, Your Work, Notebooks, and run again")
        return
    source = mount / folder.relative_to(HOME)
    if not (source / LIST).exists():
        raise UserError(f"{source / LIST} is missing; run that kernel to its end, with the same profile and run_dir, and attach it again")
    files = read_json(source / LIST)["files"]
    for name, sha256 in files.items():
        if not (source / name).is_file() or file_hash(source / name) != sha256:
            reason = "was changed" if (source / name).is_file() else "is missing"
            raise UserError(f"{source / name} {reason} since the kernel before wrote it; run that kernel again")
    for name in sorted(files, key=lambda name: name == "config.json"):  # the last, as it says that all are there
        with writing(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    print(f"{len(files)} files taken over from {mount}")
    run = Run(folder, read_config(folder / "config.json"))
    images = run.provenance.get("data", {}).get("images")
    if images and not Path(images["root"]).is_dir():
        run.record("data", "images", root=os.fspath(run.find_images()))
