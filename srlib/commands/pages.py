"""`pictures`: put a phantom run's figures into the notebooks (as attachments) and the README, and publish its report as Markdown and its executed
notebooks."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
from PIL import Image

from ..config import UserError
from ..evaluation import statistics
from ..files import HOME, REPOSITORY, read_table, read_text, write
from ..series.opening import open_run
from ..series.run_folder import NOTEBOOKS, Run
from . import absolute, parser, report

WIDTH = 1000  # pixels, wide enough for a reader's column
EXECUTED = REPOSITORY / "notebooks" / "executed"
SHOWN = (
    "comparison_1",
    "texture_closeups",
    "draws",
    "spectra",
    "measures",
    "srgan_curves",
)  # in RESULTS.md; the rest stand in the executed notebooks
MARK = "<!-- below: written by `pictures` -->"  # in RESULTS.md; what stands above it stays
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


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
            small = _jpeg(made[0].read_bytes(), 800, 72)  # all six go into a Kaggle kernel of 1 MB, beside srlib
            first["attachments"] = {target.name: {"image/jpeg": base64.b64encode(small).decode()}}
            written.append(target)
        write(path, nbformat.writes(notebook) + "\n")
    return [*written, *_publish(run), *_executed(run)]


def _small(figure: Path, stem: str) -> Path:
    """The figure as a JPEG in notebooks/pictures/."""
    target = REPOSITORY / "notebooks" / "pictures" / f"{stem}.jpg"
    write(target, _jpeg(figure.read_bytes(), WIDTH))
    return target


def _jpeg(png: bytes, width: int = 10_000, quality: int = 82) -> bytes:
    """A picture as JPEG, at most `width` pixels wide."""
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _executed(run: Run) -> list[Path]:
    """The present notebooks with the outputs of the run in notebooks/executed/: pictures as JPEG, without this machine's paths. Raises UserError where
    the run's code cells are not the present ones (its text may be older)."""
    written = []
    for name, _, _ in NOTEBOOKS.values():
        notebook = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
        executed = nbformat.read(run.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        code = [c for c in executed.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
        own = [c for c in notebook.cells if c.cell_type == "code"]
        if [c.source for c in code] != [c.source for c in own]:
            raise UserError(f"{run.folder}/notebooks/{name}.ipynb is not of the present notebook; --from 01 makes it anew")
        for cell, ran in zip(own, code, strict=True):
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
            for output in cell.outputs:
                _for_the_page(output)
        written.append(EXECUTED / f"{name}.ipynb")
        write(written[-1], nbformat.writes(notebook) + "\n")
    return written


def _for_the_page(output) -> None:
    """Turn an output's pictures into JPEG and its absolute paths into relative ones, in place."""
    if "text" in output:
        output.text = re.sub(r"^.*\r", "", output.text, flags=re.M).replace(f"{HOME}/", "")  # of a progress bar its last state
    data = output.get("data", {})
    if "image/png" in data:
        data["image/jpeg"] = base64.b64encode(_jpeg(base64.b64decode(data.pop("image/png")))).decode()
        data["text/plain"] = "a figure"
    for kind in ("text/html", "text/markdown", "text/plain"):
        if kind in data:
            data[kind] = PNG.sub(_embedded_jpeg, data[kind]).replace(f"{HOME}/", "")


def _embedded_jpeg(match: re.Match) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(base64.b64decode(match[1]))).decode()


def _publish(run: Run) -> list[Path]:
    """The run's report as the last part of notebooks/RESULTS.md, which GitHub shows: what was found, the tables, the pictures."""
    out = run.folder / "evaluation"
    table, unpaired, drawn = (read_table(out / f"{name}.csv") for name in ("metrics", "unpaired", "draws"))
    summary = statistics.summarise(table)
    numbers = statistics.titled(statistics.with_intervals(summary))
    leading = statistics.titled(statistics.with_intervals(summary).reindex(report.LEADING).dropna()).T
    config, made = run.config, run.provenance["made_by"]
    text = [
        "## Phantoms, one run",
        f"Profile {config.profile}, x{config.scale}, {config.pretrain_steps:,} pretraining steps, {config.gan_steps:,} adversarial steps, seed {config.seed}; "
        f"torch {made.get('versions', {}).get('torch', '')}, {made.get('cores', '')} CPU cores. **Not a result on OCT.**",
        f"{statistics.verdict(table, unpaired)} {statistics.caution(table)}",
        report.markdown(leading.rename_axis("method").reset_index()),
        "<details><summary>all measures, tests, draws, patches</summary>",
        report.markdown(numbers.rename_axis("measure").reset_index()),
        "Texture error, patient by patient (paired Wilcoxon signed-rank tests, Holm's correction over the table's rows):",
        report.markdown(statistics.readable_tests(table, "texture_error_db")),
        report.markdown(statistics.readable_draws(drawn).reset_index()),
        report.markdown(statistics.readable_unpaired(unpaired).rename_axis("patches of SR against patches of HR").reset_index()),
        "</details>",
    ]
    written = []
    text.append("Every picture stands in the [executed notebooks](executed/05_evaluate.ipynb); these are the ones to begin with.")
    for picture, caption in report.pictures(run.folder):
        if picture.stem in SHOWN:
            written.append(_small(picture, picture.stem))
            text.append(f"![phantom](pictures/{written[-1].name})\n\n*Phantom. {caption}*")
    page = REPOSITORY / "notebooks" / "RESULTS.md"
    write(page, read_text(page).partition(MARK)[0] + MARK + "\n\n" + "\n\n".join(text) + "\n")
    return [*written, page]


def main(argv: list[str]) -> None:
    words = parser("pages", "Put a phantom run's figures and results into the notebooks and the pages.")
    words.add_argument("run_dir", metavar="RUN")
    for file in update_pictures(absolute(words.parse_args(argv).run_dir)):
        print(file)
