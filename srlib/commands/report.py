"""The report of a run: index.html with table and pictures inside, and the executed notebooks as HTML beside it. No network."""

import base64
import html
import re
from pathlib import Path
from string import Template

import pandas as pd

from ..config import UserError
from ..evaluation import statistics
from ..evaluation.methods import named
from ..files import file_hash, read_json, read_table, read_text, write
from ..series.run_folder import NOTEBOOKS, Run, read_config

PAGE = Path(__file__).with_name("report.html")  # a string.Template
LEADING = ("psnr", "ssim", "lpips", "gain_db", "stripe_db", "consistency")

CAPTIONS = {  # figure file stem: caption, in the order of the report
    "comparison_1": "The framed square of a test scan at four times its size, the one with SRGAN's median LPIPS.",
    "closeups": "Each pixel as 4 x 4, at a layer, in plain tissue and in the vitreous (three times brighter).",
    "measures": "PSNR against LPIPS, with 95 % intervals over patients: up and to the left is better.",
    "spectra": "SR's power over HR's by spatial frequency, mean over test scans: 0 is as much as HR has. Right of the first dotted line LR knows nothing.",
    "rivals": "Texture at four times its size: SRGAN projected onto LR, the Gaussian texture, the sampler and HR.",
    "samples": "The mean of eight samples, two of them, and HR: samples differ where LR says nothing, and their mean is smooth.",
    "ranks": "HR's rank among eight samples: correct samples have equal shares (dashed).",
    "uncertainty": "The spread of eight samples, large where the sampler makes up what LR does not say, beside the error of their mean.",
    "errors": "Where each method differs from HR.",
    "worst_1": "The test scan on which SRGAN has the largest LPIPS.",
    "srgan": "The same places of a validation scan: bicubic, SRResNet, SRGAN and HR.",
    "pretrain_curves": "Pretraining: the loss on training crops, and the gain over bicubic on validation scans.",
    "srgan_curves": "The adversarial training of SRGAN from step 0 on, and its health on the validation scans.",
    "sampler_curves": "The adversarial training of the sampler from step 0 on, and its health.",
    "split": "Patients of each class in each split.",
    "classes": "Two scans of each class.",
}


def pictures(folder: Path) -> list[tuple[Path, str]]:
    """The figures of a run that the report shows, in its order, each with its caption."""
    files = ((folder / "figures" / f"{stem}.png", caption) for stem, caption in CAPTIONS.items())
    return [(file, caption) for file, caption in files if file.exists()]


def build_report(folder: Path) -> Path:
    """Write `folder`/index.html from what the run folder holds, and notebooks/*.html; returns its path."""
    config, provenance = read_config(folder / "config.json"), read_json(folder / "provenance.json")
    files = {name: folder / "sampler" / f"{name}.csv" for name in ("samples", "unpaired")}
    tables = {name: read_table(file) for name, file in files.items() if file.exists()}
    if (folder / "evaluation" / "metrics.csv").exists():
        tables["metrics"] = Run(folder, config).metrics
    verdict = "<p class=phantom>Made from phantoms (synthetic B-scans): not a result on OCT.</p>" if config.data == "phantom" else ""
    if "metrics" in tables:
        verdict = f"<p class=lead>{html.escape(statistics.verdict(tables['metrics'], tables.get('unpaired')))}</p>{verdict}"
    made = f"{config.pretrain_steps:,} MSE and {config.gan_steps:,} SRGAN steps, seed {config.seed}, content loss {config.content_features}"
    begun = provenance["made_by"]
    facts = {key: begun[key] for key in ("created", "git", "python", "system", "cores")} | begun["versions"]
    facts |= {"seed": config.seed, "images": provenance["data"]["images"]["count"]}
    facts["SHA-256 of the manifest, which has that of each image"] = file_hash(folder / "manifest.csv")
    first, *others = [_figure(*picture) for picture in pictures(folder)] or [""]
    measured = "".join(_measured(tables)) if "metrics" in tables else ""
    page = Template(read_text(PAGE)).substitute(
        vars(config),
        name=html.escape(folder.name),
        verdict=verdict,
        made=html.escape(made),
        nav="".join(f'<a href="#{head}">{head.title()}</a>' for head in re.findall(r"<h2 id=(\w+)", measured + read_text(PAGE))),
        first=first,
        measured=measured,
        pictures="\n".join(others),
        notebooks="".join(_notebooks(folder, provenance)),
        facts=html.escape("; ".join(f"{key} {value}" for key, value in facts.items() if value != "")),
        settings="".join(f"<tr><td>{name}<td>{html.escape(str(value))}" for name, value in vars(config).items()),
    )
    write(folder / "index.html", page)
    return folder / "index.html"


def _html(table: pd.DataFrame, corner: str) -> str:
    table = table.replace(r" (\[.*)$", r"<br><small>\1</small>", regex=True)
    return f"<div class=wide>{table.to_html(border=0, escape=False).replace('<th></th>', f'<th>{corner}</th>', 1)}</div>"


def _figure(picture: Path, caption: str) -> str:
    source = f"data:image/{picture.suffix[1:]};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    return f'<figure><img alt="{html.escape(caption)}" src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def _measured(tables: dict[str, pd.DataFrame]):
    """What was measured: the leading measures, all of them, the tests, the samples, the patches."""
    table = tables["metrics"]
    shown = statistics.with_intervals(statistics.summarise(table))
    leading = shown.reindex(LEADING).dropna()
    names = [f"{statistics.MEASURES[m][0]}<br><small>{statistics.MEASURES[m][1]}</small>" for m in leading.index]
    yield f"<h2 id=result>Result</h2>{_html(leading.set_axis(names).rename(columns=named).T, 'method')}"
    yield f"<p class=note>Valid region, mean by patient. {statistics.AIMED} {html.escape(statistics.caution(table))}</p>"
    better = [statistics.MEASURES[name][1] for name in shown.index]
    yield f"<details><summary>all measures</summary>{_html(statistics.titled(shown).assign(better=better), 'measure')}</details>"
    yield "<h2 id=tests>Tests</h2><p class=note>Paired Wilcoxon signed-rank tests; p (Holm) is corrected for all rows of its table.</p>"
    for measure in ("psnr", "lpips"):
        text = statistics.readable_tests(table, measure).to_html(border=0, index=False)
        yield f"<h3>{statistics.MEASURES[measure][0]}, patient by patient</h3><div class=wide>{text}</div>"
    if "samples" in tables:
        text = _html(statistics.readable_samples(tables["samples"]), "")
        yield f"<h2 id=samples>{statistics.SAMPLES} samples of the sampler: is HR one more of them?</h2>{text}"
    if "unpaired" in tables:
        yield f"<h2 id=patches>Patches of SR against patches of HR</h2>{_html(statistics.readable_unpaired(tables['unpaired']), '')}"


def _notebooks(folder: Path, provenance: dict):
    """The executed notebooks, made into HTML, as items of a list."""
    for number, (name, _, _) in NOTEBOOKS.items():
        source = folder / "notebooks" / f"{name}.ipynb"
        if source.exists():
            notebook_html(source)
            seconds = provenance.get("notebooks", {}).get(number, {}).get("seconds")
            yield f'<li><a href="notebooks/{name}.html">{name}</a>{f" ({seconds:.0f} s)" if seconds else ""}</li>'


def notebook_html(source: Path) -> Path:
    """An executed notebook as HTML beside it, without anything from the network."""
    from nbconvert import HTMLExporter
    from nbformat import ValidationError

    try:
        body, _ = HTMLExporter(template_name="lab", embed_images=True).from_filename(str(source))
    except (ValueError, ValidationError) as error:
        raise UserError(f"{source} is damaged ({type(error).__name__}); --only {source.name[:2]} makes it anew") from None
    body = re.sub(r'<script[^>]*\bsrc="https?://[^"]*"[^>]*>\s*</script>', "", body)
    body = re.sub(r"<script[^>]*>[^<]*(?:MathJax|mermaid)[\s\S]*?</script>", "", body)
    out = source.with_suffix(".html")
    write(out, body)
    return out


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
