"""`pictures`: put a phantom run's figures into the notebooks (as attachments) and the README (notebooks/pictures/)."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
from PIL import Image

from ..config import UserError
from .run_folder import REPOSITORY, open_run

WIDTH = 1000  # pixels, wide enough for a reader's column


def update_pictures(run_dir: str, profile: str = "quick") -> list[Path]:
    """Take the figures that the notebooks' first cells name from a finished phantom run; returns the pictures written.

    Raises UserError for a run on real scans: their pictures do not belong in the repository.
    """
    run = open_run("06", profile, run_dir)
    if not run.is_phantom:
        raise UserError(f"{run.folder} shows real scans, whose pictures are not for the repository; name a run on phantoms")
    folder = REPOSITORY / "notebooks" / "pictures"
    folder.mkdir(exist_ok=True)
    written = []
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0]
        for stem in re.findall(r"attachment:([\w-]+)\.jpg", first.source):
            figure = next(f for f in (run.figures / f"{stem}.png", run.figures / f"{stem}_1.png") if f.exists())
            target = folder / f"{stem}.jpg"
            image = Image.open(figure).convert("RGB")
            if image.width > WIDTH:
                image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
            image.save(target, quality=82, optimize=True)
            first["attachments"] = {target.name: {"image/jpeg": base64.b64encode(target.read_bytes()).decode()}}
            written.append(target)
        nbformat.write(notebook, path)
    return written
