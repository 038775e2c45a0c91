"""`pages`: a phantom run's figures into the notebooks (as attachments), its executed notebooks, and its results as Markdown."""

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

PAGES = REPOSITORY / "notebooks"
SHOWN = ("comparison_1", "texture_closeups", "samples", "spectra", "measures", "srgan_curves")  # in RESULTS.md
MARK = "<!-- below: written by `pages` -->"  # in RESULTS.md; what stands above it stays
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def update_pages(run_dir: str, profile: str = "quick") -> list[Path]:
    """Take the figures that the notebooks' first cells name, and the report, from a finished phantom run; returns the files written.

    Raises UserError for a run on real scans (their pictures do not belong in the repository), and where the run's code cells are not the present ones."""
    run = open_run("06", profile, run_dir)
    if not run.is_phantom:
        raise UserError(f"{run.folder} shows real scans, whose pictures are not for the repository; name a run on phantoms")
    written = []
    for name, _, _ in NOTEBOOKS.values():
        notebook = nbformat.read(PAGES / f"{name}.ipynb", as_version=4)
        written += _attach(run, name, notebook)
        write(PAGES / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
        written.append(_executed(run, name, notebook))
    return [*written, *_results(run)]


def _attach(run: Run, name: str, notebook) -> list[Path]:
    """The pictures that the notebook's first cell names, from the run's figures, as its attachments and in notebooks/pictures/."""
    written, first = [], notebook.cells[0]
    for stem in re.findall(r"attachment:([\w-]+)\.jpg", first.source):
        figure = next((f for f in (run.figures / f"{stem}.png", run.figures / f"{stem}_1.png") if f.exists()), None)
        if figure is None:
            raise UserError(f"{run.figures / stem}.png is missing, which {name}.ipynb begins with; --from 01 makes it")
        small = _jpeg(figure.read_bytes(), 800, 72)  # all six go into a Kaggle kernel of 1 MB
        first["attachments"] = {f"{stem}.jpg": {"image/jpeg": base64.b64encode(small).decode()}}
        written.append(_picture(figure, stem))
    return written


def _picture(figure: Path, stem: str) -> Path:
    """The figure as a JPEG in notebooks/pictures/."""
    target = PAGES / "pictures" / f"{stem}.jpg"
    write(target, _jpeg(figure.read_bytes()))
    return target


def _jpeg(png: bytes, width: int = 1000, quality: int = 82) -> bytes:
    """A picture as JPEG, at most `width` pixels wide."""
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _executed(run: Run, name: str, notebook) -> Path:
    """The present notebook with the outputs of the run in notebooks/executed/ (its text may be older): pictures as JPEG, without this machine's paths."""
    executed = nbformat.read(run.folder / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [c for c in executed.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
    own = [c for c in notebook.cells if c.cell_type == "code"]
    if [c.source for c in code] != [c.source for c in own]:
        raise UserError(f"{run.folder}/notebooks/{name}.ipynb is not of the present notebook; --from 01 makes it anew")
    for cell, ran in zip(own, code, strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
        for output in cell.outputs:
            _for_the_page(output)
    target = PAGES / "executed" / f"{name}.ipynb"
    write(target, nbformat.writes(notebook) + "\n")
    return target


def _for_the_page(output) -> None:
    """Turn an output's pictures into JPEG and its absolute paths into relative ones, in place."""
    if "text" in output:
        output.text = re.sub(r"^.*\r", "", output.text, flags=re.M).replace(f"{HOME}/", "")  # of a progress bar its last state
    data = output.get("data", {})
    if "image/png" in data:
        data["image/jpeg"] = base64.b64encode(_jpeg(base64.b64decode(data.pop("image/png")), 10_000)).decode()
        data["text/plain"] = "a figure"
    for kind in ("text/html", "text/markdown", "text/plain"):
        if kind in data:
            data[kind] = PNG.sub(_embedded_jpeg, data[kind]).replace(f"{HOME}/", "")


def _embedded_jpeg(match: re.Match) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(base64.b64decode(match[1]), 10_000)).decode()


def _results(run: Run) -> list[Path]:
    """The run's report as the last part of notebooks/RESULTS.md: what was found, the tables, the pictures."""
    table, unpaired, samples = (read_table(run.folder / "evaluation" / f"{name}.csv") for name in ("metrics", "unpaired", "samples"))
    numbers = statistics.with_intervals(statistics.summarise(table))
    leading = statistics.titled(numbers.reindex(report.LEADING).dropna()).T
    config, made = run.config, run.provenance["made_by"]
    text = [
        "## Phantoms, one run",
        f"Profile {config.profile}, x{config.scale}, {config.pretrain_steps:,} pretraining steps, {config.gan_steps:,} adversarial steps, seed {config.seed}; "
        f"torch {made.get('versions', {}).get('torch', '')}, {made.get('cores', '')} CPU cores. **Not a result on OCT.**",
        f"{statistics.verdict(table, unpaired)} {statistics.caution(table)}",
        report.markdown(leading.rename_axis("method").reset_index()),
        "<details><summary>all measures, tests, samples, patches</summary>",
        report.markdown(statistics.titled(numbers).rename_axis("measure").reset_index()),
        "Texture error, patient by patient (paired Wilcoxon signed-rank tests, Holm's correction over the table's rows):",
        report.markdown(statistics.readable_tests(table, "texture_error_db")),
        report.markdown(statistics.readable_samples(samples).reset_index()),
        report.markdown(statistics.readable_unpaired(unpaired).rename_axis("patches of SR against patches of HR").reset_index()),
        "</details>",
        "Every picture stands in the [executed notebooks](executed/05_evaluate.ipynb); these are the ones to begin with.",
    ]
    shown = [(_picture(figure, figure.stem), caption) for figure, caption in report.pictures(run.folder) if figure.stem in SHOWN]
    text += [f"![phantom](pictures/{picture.name})\n\n*Phantom. {caption}*" for picture, caption in shown]
    page = PAGES / "RESULTS.md"
    write(page, read_text(page).partition(MARK)[0] + MARK + "\n\n" + "\n\n".join(text) + "\n")
    return [*(picture for picture, _ in shown), page]


def main(argv: list[str]) -> None:
    words = parser("pages", "Put a phantom run's figures and results into the notebooks and the pages.")
    words.add_argument("run_dir", metavar="RUN")
    for file in update_pages(absolute(words.parse_args(argv).run_dir)):
        print(file)
