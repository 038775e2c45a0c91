"""The report of a run: index.html with table and pictures inside, and the executed notebooks as HTML beside it. No network."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import FIELDS, UserError
from ..evaluation import statistics
from ..evaluation.drawn import DRAWS
from ..evaluation.methods import named
from ..files import file_hash, read_json, read_table, write
from ..series.run_folder import NOTEBOOKS, read_config

CSS = """
:root { --ink: #1c2024; --soft: #5b6570; --line: #dfe3e8; --paper: #ffffff; --plate: #ffffff; --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a2abb5; --line: #3a4149; --paper: #17191c; --plate: #f4f4f4; --accent: #ff9d5c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 0 auto; padding: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0.2em 0; } h2 { font-size: 1.2rem; margin: 2em 0 0.5em; } h3 { font-size: 1rem; margin: 1.5em 0 0.5em; }
p.lead { font-size: 1.1rem; } p.note { color: var(--soft); } p.phantom { color: var(--accent); font-weight: 600; }
nav a { margin-right: 1em; display: inline-block; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; overflow-wrap: normal; }
td small { white-space: nowrap; color: var(--soft); } th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: var(--plate); border-radius: 4px; }
figcaption { color: var(--soft); font-size: 0.9rem; } a { color: var(--accent); } summary { cursor: pointer; color: var(--accent); }
"""
LEADING = ("gain_db", "ssim", "texture_error_db", "stripe_db", "consistency")

CAPTIONS = {  # figure file stem (without a trailing number): caption, in the order of the report
    "comparison": "{label}: the framed square of a test scan at four times its size. SRGAN should have HR's grain, at other places than HR.",
    "measures": "PSNR gain against texture error, with 95 % intervals over patients: up and to the left is better.",
    "texture_closeups": "Texture at four times its size, at a layer, in plain tissue and in the vitreous: SRResNet, the Gaussian texture, SRGAN and HR.",
    "draws": "The mean of eight draws of SRGAN, two of them, and HR: the draws differ where LR says nothing, and their mean is smooth.",
    "spectra": "SR's power over HR's by spatial frequency, mean over test scans: 0 is as much as HR has. Right of the first dotted line LR knows nothing.",
    "texture": "Texture and speckle in the retina, as distances to HR: zero is as HR.",
    "ranks": "HR's rank among eight draws of SRGAN: correct draws have equal shares (dashed).",
    "calibration": "The error of the mean against the error that the spread predicts: on the dashed line the prediction is right, above it too sure.",
    "uncertainty": "The spread of eight draws, large where SRGAN makes up what LR does not say, beside the error of their mean: the same places should be bright.",
    "strengths": "The texture at strength 0, 0.5 and 1, and HR.",
    "profile": "Grey levels through the layers, along the line: SRResNet and SRGAN should be as steep as HR.",
    "errors": "Where each method differs from HR. Most of SRGAN's error is speckle that LR does not determine.",
    "added": "What the networks added to bicubic: SRResNet along the layers, SRGAN grain everywhere.",
    "worst": "{label}: the scan on which SRGAN has the largest texture error.",
    "training": "The same crop of a validation scan over the steps of both stages.",
    "pretrain_curves": "Pretraining: the loss on training crops, and the gain over bicubic on validation scans.",
    "srgan_curves": "The adversarial training from step 0 on, and its health on the validation scans.",
    "split": "Patients of each class in each split.",
    "classes": "Two scans of each class.",
}


def pictures(folder: Path) -> list[tuple[Path, str]]:
    """The figures of a run that the report shows, in its order, each with its caption."""
    found, file = [], folder / "evaluation" / "metrics.csv"
    labels = sorted(read_table(file).label.unique()) if file.exists() else []
    for stem, caption in CAPTIONS.items():
        numbered = [(re.fullmatch(rf"{stem}_?(\d*)", picture.stem), picture) for picture in sorted((folder / "figures").glob(f"{stem}*"))]
        for number, picture in sorted((int(m[1] or 0), p) for m, p in numbered if m):
            label = labels[number - 1] if 0 < number <= len(labels) else "a scan"
            found.append((picture, caption.format(label=label)))
    return found


def leading_table(summary: pd.DataFrame) -> str:
    """`statistics.summarise`'s table as HTML: a row for each method, a column for each of the LEADING measures with what is better."""
    shown = statistics.with_intervals(summary).reindex(LEADING).dropna()
    heads = [f"{statistics.MEASURES[m][0]}<br><small>{statistics.MEASURES[m][1]}</small>" for m in shown.index]
    return _html(shown.set_axis(heads).rename(columns=named).T, "method")


def all_measures(summary: pd.DataFrame) -> str:
    """`statistics.summarise`'s table as HTML: a row for each measure with its unit, a column for each method, intervals in brackets."""
    shown = statistics.with_intervals(summary)
    better = [statistics.MEASURES[name][1] for name in shown.index]
    return _html(statistics.titled(shown).assign(better=better), "measure")


def _html(table: pd.DataFrame, corner: str) -> str:
    table = table.replace(r" (\[.*)$", r"<br><small>\1</small>", regex=True)
    return f"<div class=wide>{table.to_html(border=0, escape=False).replace('<th></th>', f'<th>{corner}</th>', 1)}</div>"


def readable_tests(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`statistics.compare` as text for readers."""
    found = statistics.compare(table, measure).assign(method=lambda t: t.method.map(named), against=lambda t: t.against.map(named))
    for column in ("difference", "low", "high"):
        found[column] = found[column].map("{:+.3f}".format)
    for column in ("p", "p_holm"):
        found[column] = found[column].map(lambda p: "below .001" if p < 0.001 else f"{p:.3f}")
    return found.rename(columns={"low": "95 % from", "high": "to", "p_holm": "p (Holm)"})


def readable_draws(drawn: pd.DataFrame) -> pd.DataFrame:
    """draws.csv (`evaluation.drawn`) as text for readers: the mean over patients, its interval where there are enough of them (`statistics.FEW`), and
    what draws of the true posterior have."""
    n = DRAWS
    rows = {
        "gain_draw_db": ("PSNR gain of one draw over bicubic (dB)", "3 dB below SRResNet's"),
        "gain_mean_db": (f"PSNR gain of the mean of {n} draws (dB)", "0.5 dB below SRResNet's"),
        "gain_srresnet_db": ("PSNR gain of SRResNet (dB)", ""),
        "regain_db": (f"regain: the mean of {n} over one (dB)", f"{10 * np.log10(2 / (1 + 1 / n)):.1f}"),
        "srgan_spread": ("error that the spread predicts (grey levels)", "the next row"),
        "srgan_error": ("real error of the mean", ""),
        "srresnet_spread": ("SRResNet's spread over eight flips and turns (grey levels)", "the next row"),
        "srresnet_error": ("real error of its mean over these", ""),
    } | {c: (f"HR's rank, {c[5:]}: distance from equal", "0") for c in drawn if c.startswith("rank_")}
    means = drawn[list(rows)].where(np.isfinite).groupby(drawn.patient).mean()  # a blank image has no PSNR
    low, high = statistics.intervals(means.to_numpy())
    enough = len(means) >= statistics.FEW
    text = [f"{m:.2f}" + f" [{a:.2f},\u00a0{b:.2f}]" * enough for m, a, b in zip(means.mean(), low, high, strict=True)]
    named_rows = pd.Index([what for what, _ in rows.values()], name=f"{len(drawn)} images of {len(means)} patients")
    return pd.DataFrame({"SRGAN": text, "correct draws": [right for _, right in rows.values()]}, index=named_rows)


def readable_unpaired(unpaired: pd.DataFrame) -> pd.DataFrame:
    """unpaired.csv (`evaluation.patches`) as text for readers: a row for each measure, a column for HR and each method."""
    titles = {"told_apart": "told from HR by a fresh classifier (0.5: cannot)", "kid": "KID"}
    rows = {}
    for row in unpaired.itertuples():
        title = titles[row.measure] + (f", features of {row.network}" if row.measure == "kid" else "")
        rows.setdefault(title, {})[named(row.method)] = f"{row.value:.3f} [{row.low:.3f},\u00a0{row.high:.3f}]"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _figure(picture: Path, caption: str) -> str:
    source = f"data:image/{picture.suffix[1:]};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    return f'<figure><img alt="{html.escape(caption)}" src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def build_report(folder: Path) -> Path:
    """Write `folder`/index.html from what the run folder holds, and notebooks/*.html; returns its path."""
    folder = Path(folder)
    config = read_config(folder / "config.json")
    provenance = read_json(folder / "provenance.json")
    parts = [f"<h1>SRGAN for OCT: {html.escape(folder.name)}</h1>"]
    metrics_file = folder / "evaluation" / "metrics.csv"
    table = read_table(metrics_file) if metrics_file.exists() else None
    tables = {name: metrics_file.with_name(f"{name}.csv") for name in ("draws", "unpaired")}
    tables = {name: read_table(file) for name, file in tables.items() if file.exists()}
    if table is not None:
        parts.append(f"<p class=lead>{html.escape(statistics.verdict(table, tables.get('unpaired')))}</p>")
    if config.data == "phantom":
        parts.append("<p class=phantom>Made from phantoms (synthetic B-scans): not a result on OCT.</p>")
    trained = f"{config.pretrain_steps:,} MSE steps, {config.gan_steps:,} adversarial steps, seed {config.seed}, content loss {config.content_features}"
    made = f"networks from {config.networks}, not trained here" if config.networks else trained
    said = f"Profile {config.profile}, x{config.scale}, {made}. Research only: super-resolved detail is synthetic."
    parts.append(f"<p class=note>{html.escape(said)}</p>")
    heads = ("Result", "Tests", "Draws", "Patches") if table is not None else ()
    parts.append("<nav>" + "".join(f'<a href="#{h.lower()}">{h}</a>' for h in (*heads, "Pictures", "Notebooks", "Settings")) + "</nav>")
    shown = [_figure(*picture) for picture in pictures(folder)]
    parts += shown[:1]
    if table is not None:
        summary = statistics.summarise(table)
        note = f"Valid region, mean by patient. {statistics.caution(table)}"
        parts += ["<h2 id=result>Result</h2>", leading_table(summary), f"<p class=note>{html.escape(note)}</p>"]
        parts.append(f"<details><summary>all measures</summary>{all_measures(summary)}</details>")
        parts.append(
            "<h2 id=tests>Tests</h2><p class=note>Paired Wilcoxon signed-rank tests; p (Holm) is corrected for all rows of its table.</p>"
        )
        for measure in ("psnr", "texture_error_db"):
            text = readable_tests(table, measure).to_html(border=0, index=False)
            parts.append(f"<h3>{statistics.MEASURES[measure][0]}, patient by patient</h3><div class=wide>{text}</div>")
        for head, name, title, readable in (
            ("draws", "draws", f"{DRAWS} draws of SRGAN: is HR one more of them?", readable_draws),
            ("patches", "unpaired", "Patches of SR against patches of HR", readable_unpaired),
        ):
            if name in tables:
                parts.append(f"<h2 id={head}>{title}</h2>{_html(readable(tables[name]), '')}")
    parts += ["<h2 id=pictures>Pictures</h2>", *shown[1:]]
    parts.append("<h2 id=notebooks>Notebooks</h2><ul>")
    for number, (name, _, _) in NOTEBOOKS.items():
        source = folder / "notebooks" / f"{name}.ipynb"
        if source.exists():
            notebook_html(source)
            seconds = provenance.get("notebooks", {}).get(number, {}).get("seconds")
            took = f" ({seconds:.0f} s)" if seconds else ""
            parts.append(f'<li><a href="notebooks/{name}.html">{name}</a>{took}</li>')
    parts.append("</ul><h2 id=settings>Settings and provenance</h2>")
    made, seconds = provenance.get("made_by", {}), [n.get("seconds", 0) for n in provenance.get("notebooks", {}).values()]
    manifest = folder / "manifest.csv"
    lines = {key: made.get(key, "") for key in ("created", "git", "python", "system", "cores")} | made.get("versions", {})
    lines |= {
        "seed": config.seed,
        "images": provenance.get("data", {}).get("images", {}).get("count", ""),
        "SHA-256 of the manifest, which has that of each image": file_hash(manifest) if manifest.exists() else "",
        "all notebooks together": f"{sum(seconds):.0f} s",
    }
    facts = "; ".join(f"{k} {v}" for k, v in lines.items() if v != "")
    hidden = ("pretrain", "srgan") if config.networks else ()
    counted = {k: v for k, v in vars(config).items() if FIELDS[k].metadata.get("stage") not in hidden}
    settings = "".join(f"<tr><td>{k}<td>{html.escape(str(v))}" for k, v in counted.items())
    parts.append(
        f"<p class=note>{html.escape(facts)}</p><details><summary>all settings</summary><div class=wide><table>{settings}</table></div></details>"
    )
    page = f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1"><title>{html.escape(folder.name)}</title><style>{CSS}</style><body>{"".join(parts)}</body></html>\n'
    out = folder / "index.html"
    write(out, page)
    return out


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
