"""`pictures`: put a phantom run's figures into the notebooks (as attachments) and the README, and publish its report as Markdown."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image

from ..config import UserError
from ..evaluation import statistics
from ..evaluation.methods import named
from ..files import REPOSITORY
from ..series import report
from ..series.opening import open_run
from ..series.run_folder import Run

WIDTH = 1000  # pixels, wide enough for a reader's column


def update_pictures(run_dir: str, profile: str = "quick") -> list[Path]:
    """Take the figures that the notebooks' first cells name, and the report, from a finished phantom run; returns the files written.

    Raises UserError for a run on real scans: their pictures do not belong in the repository.
    """
    run = open_run("06", profile, run_dir)
    if not run.is_phantom:
        raise UserError(f"{run.folder} shows real scans, whose pictures are not for the repository; name a run on phantoms")
    written = []
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0]
        for stem in re.findall(r"attachment:([\w-]+)\.jpg", first.source):
            made = [f for f in (run.figures / f"{stem}.png", run.figures / f"{stem}_1.png") if f.exists()]
            if not made:
                raise UserError(f"{run.figures / stem}.png is missing, which {path.name} begins with; --from 01 makes it")
            target = _small(made[0], stem)
            first["attachments"] = {target.name: {"image/jpeg": base64.b64encode(target.read_bytes()).decode()}}
            written.append(target)
        nbformat.write(notebook, path)
    return [*written, *_publish(run)]


def _small(figure: Path, stem: str) -> Path:
    """The figure as a JPEG (a GIF as it is) in notebooks/pictures/."""
    target = REPOSITORY / "notebooks" / "pictures" / f"{stem}{'.gif' if figure.suffix == '.gif' else '.jpg'}"
    target.parent.mkdir(exist_ok=True)
    if figure.suffix == ".gif":
        target.write_bytes(figure.read_bytes())
        return target
    image = Image.open(figure).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.save(target, quality=82, optimize=True)
    return target


def _publish(run: Run) -> list[Path]:
    """The run's report as notebooks/RESULTS.md, which GitHub shows: the table, the tests, the pictures."""
    table = pd.read_csv(run.folder / "evaluation" / "metrics.csv", dtype={"patient": str})
    numbers = statistics.with_intervals(statistics.summarise(table)).rename(columns=named)
    numbers.index = [statistics.MEASURES[name][0] for name in numbers.index]
    config, made = run.config, run.provenance["made_by"]
    text = [
        f"# Executed results: the phantom run `{run.folder.name}`",
        "Made by `python -m srlib pictures RUN` from the report of a run. **Phantoms are synthetic scans: not a result on OCT.**",
        f"Profile {config.profile}, x{config.scale}, {config.pretrain_steps:,} MSE steps, {config.gan_steps:,} adversarial steps, seed {config.seed}; "
        f"torch {made.get('versions', {}).get('torch', '')}, {made.get('cores', '')} CPU cores.",
        f"Valid region, mean by patient. {statistics.caution(table)}",
        report.markdown(numbers.rename_axis("measure").reset_index()),
        "Texture error, patient by patient (paired Wilcoxon signed-rank tests, Holm's correction over the table's rows):",
        report.markdown(report.readable_tests(table, "texture_error_db")),
    ]
    for name, readable in (("draws", report.readable_draws), ("unpaired", report.readable_unpaired)):
        found = readable(pd.read_csv(run.folder / "evaluation" / f"{name}.csv", dtype={"patient": str}))
        text.append(report.markdown(found.rename_axis(found.index.name or "patches of SR against patches of HR").reset_index()))
    written = []
    for picture, caption in report.pictures(run.folder):
        written.append(_small(picture, picture.stem))
        text.append(f"![{caption}](pictures/{written[-1].name})\n\n*{caption}*")
    page = REPOSITORY / "notebooks" / "RESULTS.md"
    page.write_text("\n\n".join(text) + "\n")
    return [*written, page]
