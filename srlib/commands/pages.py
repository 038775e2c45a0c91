"""`pages`: a phantom run's figures into the notebooks (as attachments), its executed notebooks, and its results as Markdown."""

import base64
import io
import re
from pathlib import Path
from string import Template

import nbformat
from PIL import Image

from ..config import UserError
from ..evaluation import statistics
from ..files import HOME, REPOSITORY, read_table, read_text, write
from ..series.opening import open_run
from ..series.run_folder import NOTEBOOKS, Run
from . import absolute, parser, report

PAGES = REPOSITORY / "notebooks"
SHOWN = ("comparison_1", "closeups", "rivals", "samples", "spectra", "measures")  # in PHANTOMS.md
RESULTS = Path(__file__).with_name("results.md")  # a string.Template
MARK = "<!-- below: written by `pages` -->"  # in PHANTOMS.md; what stands above it stays


def update_pages(run_dir: str, profile: str = "quick") -> list[Path]:
    """Take the figures that the notebooks' first cells name, and the report, from a finished phantom run; returns the files written.

    Raises UserError for a run on real scans (their pictures do not belong in the repository), and where the run's code cells are not the present ones."""
    run = open_run("07", profile, run_dir)
    if not run.is_phantom:
        raise UserError(f"{run.folder} shows real scans, whose pictures are not for the repository; name a run on phantoms")
    written = []
    for name, _, _ in NOTEBOOKS.values():
        notebook = nbformat.read(PAGES / f"{name}.ipynb", as_version=4)
        _attach(run, notebook)
        write(PAGES / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
        _take_outputs(run, name, notebook)
        written.append(PAGES / "executed" / f"{name}.ipynb")
        write(written[-1], from_below(nbformat.writes(notebook)) + "\n")
    return [*written, *_results(run)]


def _attach(run: Run, notebook) -> None:
    """The pictures that the notebook's first cell names, from the run's figures, as its attachments."""
    first = notebook.cells[0]
    for stem in re.findall(r"attachment:([\w-]+)\.jpg", first.source):
        numbered = run.folder / "figures" / f"{stem}_1.png"
        figure = numbered if numbered.exists() else numbered.with_name(f"{stem}.png")
        small = _jpeg(figure.read_bytes(), 800, 62)  # all seven go into a Kaggle kernel of 1 MB
        first["attachments"] |= {f"{stem}.jpg": {"image/jpeg": base64.b64encode(small).decode()}}


def from_below(text: str) -> str:
    """A notebook's links to pages, from executed/."""
    return re.sub(r"\]\((?=\.\./|[\w-]+\.md\b)", "](../", text)


def _jpeg(png: bytes, width: int = 1000, quality: int = 82) -> bytes:
    """A picture as JPEG, at most `width` pixels wide."""
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _take_outputs(run: Run, name: str, notebook) -> None:
    """Give the present notebook the outputs of the run (its text may be older): pictures as JPEG, without this machine's paths."""
    executed = nbformat.read(run.folder / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [c for c in executed.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
    own = [c for c in notebook.cells if c.cell_type == "code"]
    if [c.source for c in code] != [c.source for c in own]:
        raise UserError(f"{run.folder}/notebooks/{name}.ipynb is not of the present notebook; --from 01 makes it anew")
    for count, (cell, ran) in enumerate(zip(own, code, strict=True), 1):  # (the run has a cell more, the injected parameters)
        cell.outputs, cell.execution_count = ran.outputs, count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if "text" in output:
                output.text = re.sub(r"^.*\r", "", output.text, flags=re.M).replace(f"{HOME}/", "")  # of a progress bar its last state
            data = output.get("data", {})
            if "image/png" in data:
                small = _jpeg(base64.b64decode(data.pop("image/png")), 10_000)  # whatever its width
                data["image/jpeg"] = base64.b64encode(small).decode()
                data["text/plain"] = "a figure"


def _results(run: Run) -> list[Path]:
    """The run's report as the last part of notebooks/PHANTOMS.md: what was found, the tables, the pictures."""
    table = run.metrics
    unpaired, samples = (read_table(run.folder / "sampler" / f"{name}.csv") for name in ("unpaired", "samples"))
    numbers = statistics.with_intervals(statistics.summarise(table))
    leading = statistics.titled(numbers.reindex(report.LEADING).dropna()).T
    config, made = run.config, run.provenance["made_by"]
    pictures = {PAGES / "pictures" / f"{f.stem}.jpg": (f, caption) for f, caption in report.pictures(run.folder) if f.stem in SHOWN}
    for target, (figure, _) in pictures.items():
        write(target, _jpeg(figure.read_bytes()))
    text = Template(read_text(RESULTS)).substitute(
        vars(config) | {name: f"{getattr(config, name):,}" for name in ("pretrain_steps", "gan_steps", "sampler_steps")},
        torch=made["versions"]["torch"],
        cores=made["cores"],
        verdict=f"{statistics.verdict(table, unpaired)} {statistics.caution(table)}",
        leading=report.markdown(leading.rename_axis("method").reset_index()),
        measures=report.markdown(statistics.titled(numbers).rename_axis("measure").reset_index()),
        tests=report.markdown(statistics.readable_tests(table, "lpips")),
        samples=report.markdown(statistics.readable_samples(samples).reset_index()),
        patches=report.markdown(statistics.readable_unpaired(unpaired).rename_axis("patches of SR against patches of HR").reset_index()),
        pictures="\n\n".join(f"![phantom](pictures/{t.name})\n\n*Phantom. {caption}*" for t, (_, caption) in pictures.items()),
    )
    page = PAGES / "PHANTOMS.md"
    write(page, read_text(page).partition(MARK)[0] + MARK + "\n\n" + text)
    return [*pictures, page]


def main(argv: list[str]) -> None:
    words = parser("pages", "Put a phantom run's figures and results into the notebooks and the pages.")
    words.add_argument("run_dir", metavar="RUN")
    for file in update_pages(absolute(words.parse_args(argv).run_dir)):
        print(file)
