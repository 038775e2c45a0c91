"""The statistics of an evaluation, from metrics.csv alone: means by patient, bootstrap intervals, paired tests.

Patients are the unit: two scans of one eye are not two independent observations. All functions take the table that `evaluate_run`
writes (a row for each image, method and region) and give tables, so that a reader can redo them from the file.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy import stats

from ..config import UserError
from ..metrics import bands
from .methods import named, questions

FACTS = ("image", "patient", "label", "method", "region", "height", "width", "size")  # columns of metrics.csv that are not measures
POWERS = {  # how the columns of a direction begin: the direction
    "band": "",
    "depth": " along depth",
    "across": " across",
}
MEASURES = {  # column of metrics.csv: (what it is, what is better)
    "psnr": ("PSNR (dB)", "higher"),
    "gain_db": ("PSNR gain over bicubic (dB)", "higher"),
    "ssim": ("SSIM", "higher"),
    "texture_error_db": ("texture error (dB)", "near 0"),  # mean over the bands of the absolute power
    **{
        f"{start}{k}_db": (f"power in band {k}{direction}, SR over HR (dB)", "near 0")
        for start, direction in POWERS.items()
        for k in range(1, 7)
    },
    "stripe_db": ("stripe index (dB)", "1 to 2"),
    "checkerboard": ("checkerboard (HR: 1)", "near 1"),
    "consistency": ("LR consistency (dB)", "above 38"),
    "lpips": ("LPIPS, AlexNet, whole image", "lower"),
    "speckle": ("speckle contrast minus HR's", "near 0"),
    "epi": ("edge preservation (HR: 1)", "near 1"),
    "cnr_db": ("CNR minus HR's (dB)", "near 0"),
    "enl_db": ("ENL over HR's (dB)", "near 0"),
    "boundary_px": ("shift of layer boundaries (pixels)", "near 0"),
    "lesion_contrast": ("lesion contrast (HR: 1)", "near 1"),
}
FEW = 12  # patients; below, an interval over patients is a rough guide
RESAMPLES = 10_000


def is_power(measure: str) -> bool:
    """Whether a measure is a power against HR, whose mean absolute value stands beside its mean: a noisy scan drawn too smooth and a smooth one
    drawn too noisy must not cancel."""
    return bool(re.fullmatch(rf"({'|'.join(POWERS)})\d_db", measure))


def measures(table: pd.DataFrame) -> list[str]:
    """The columns that hold measures."""
    return [c for c in table.columns if c not in FACTS]


def by_patient(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Means within a patient: a row for each (method, patient), a column for each measure; `gain_db` is PSNR minus bicubic's, M_abs the mean
    absolute value of a power M. What is no number (a blank image, an empty region) is left out; an image without PSNR in one method has none in
    all, so that methods are compared on the same images."""
    rows = table[table.region == region]
    names = rows.image
    rows = rows[["method", "patient"]].join(rows[measures(table)].astype(float).where(np.isfinite))
    rows.loc[names.isin(names[rows.psnr.isna()]), "psnr"] = np.nan
    powers = [c for c in rows if is_power(c)]
    rows = rows.join(rows[powers].abs().add_suffix("_abs"))
    means = rows.groupby(["method", "patient"]).mean()
    if "bicubic" in means.index:
        means.insert(1, "gain_db", means.psnr - means.psnr.xs("bicubic").reindex(means.index.get_level_values("patient")).to_numpy())
    return means


def intervals(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Percentile bootstrap of the mean of each column, 10,000 resamples of the rows, the same for all columns, seeded: (2, columns), low and
    high. Missing values are left out; nan for fewer than two."""
    values = np.asarray(values, float).reshape(len(values), -1)
    there, chance, means = np.isfinite(values), np.random.default_rng(0), []
    filled, count = np.where(there, values, 0), len(values)
    for _ in range(RESAMPLES // 1000 if count else 0):
        drawn = chance.multinomial(count, np.full(count, 1 / count), 1000).astype(float)
        with np.errstate(invalid="ignore"):
            means.append(drawn @ filled / (drawn @ there))
    enough = there.sum(0) >= 2
    found = np.full((2, values.shape[1]), np.nan)
    if enough.any():
        found[:, enough] = np.nanquantile(np.concatenate(means)[:, enough], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """`intervals` of one column, missing values left out first: (low, high)."""
    values = np.asarray(values, float)
    low, high = intervals(values[np.isfinite(values)][:, None])[:, 0]
    return float(low), float(high)


def summarise(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Mean over patients of the means within them, a row for each method in the table's order, and for each measure M the 95 %
    bootstrap interval over patients, `M_low` and `M_high`, and `M_n`, the number of patients that have it; of a power also `M_abs`."""
    means, rows = by_patient(table, region), {}
    for method in dict.fromkeys(table.method):
        values = means.xs(method)
        found = values.mean().to_frame("").assign(_low=0.0, _high=0.0, _n=values.count())
        found[["_low", "_high"]] = intervals(values.to_numpy()).T
        found = found.drop(index=[c for c in values if c.endswith("_abs")])
        rows[method] = {f"{m}{end}": v for m, row in found.iterrows() for end, v in row.items()} | {
            c: values[c].mean() for c in values if c.endswith("_abs")
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").round(4)


def with_intervals(summary: pd.DataFrame) -> pd.DataFrame:
    """`summarise`'s table as text for readers: 'mean [low, high]', of a power 'mean (mean absolute) [low, high]', a row for each measure, a
    column for each method; measures that no image has are left out, and where fewer patients have one than have PSNR, it says how many."""
    shown = [c for c in summary if f"{c}_low" in summary and summary[c].notna().any()]

    def text(measure, row):
        mean, low, high, n = (row[f"{measure}{end}"] for end in ("", "_low", "_high", "_n"))
        digits = 1 if is_power(measure) else 3 if abs(summary[measure]).max() < 3 and measure != "gain_db" else 2
        # a no-break space within the brackets
        said = (
            f"{mean:.{digits}f}"
            + (f" ({row[f'{measure}_abs']:.{digits}f})" if is_power(measure) else "")
            + (f" [{low:.{digits}f},\u00a0{high:.{digits}f}]" if low < high else "")
        )
        return said + (f" (n = {n:.0f})" if n < row["psnr_n"] else "")

    return pd.DataFrame({method: [text(m, row) for m in shown] for method, row in summary.iterrows()}, index=shown)


def titled(numbers: pd.DataFrame, scale: int = 0) -> pd.DataFrame:
    """A table with a row for each measure and a column for each method, both named for readers; a power with the limits of its band where `scale`
    is given."""
    limits = {f"{k}_db": f", {low:.3f} to {high:.3f} cycles per pixel" for k, (low, high) in enumerate(bands(scale) if scale else (), 1)}
    titles = [MEASURES[m][0] + (limits.get(m[-4:], "") if is_power(m) else "") for m in numbers.index]
    return numbers.set_axis(titles).rename(columns=named)


def parts(table: pd.DataFrame, by: str, shown=("gain_db", "ssim")) -> pd.DataFrame:
    """`with_intervals` of some measures, `titled`, for each value of `by`: 'region', 'label' (class) or 'size' (acquisition), the last two in the
    valid region; rows are (value, images of patients, measure)."""
    table = table.assign(size=table.width.astype(str) + " x " + table.height.astype(str))
    values = table[by].unique() if by == "region" else sorted(table[by].unique())
    found = {}
    for value in values:
        part = table.loc[table[by] == value, [c for c in table if c in (*FACTS, "psnr", *shown)]]  # intervals cost time
        key = f"{value} ({part.image.nunique()} of {part.patient.nunique()} patients)"
        found[key] = titled(with_intervals(summarise(part, value if by == "region" else "valid")).reindex(shown).dropna())
    return pd.concat(found, names=[by, "measure"])


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected by Holm's step-down procedure (Holm 1979): the k-th smallest of m times m - k + 1, never decreasing, at most 1."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected[np.argsort(order)]


def compare(table: pd.DataFrame, measure: str, region: str = "valid") -> pd.DataFrame:
    """The `methods.questions` (a method less another, patient by patient) that the table can answer: mean difference, its 95 % bootstrap interval,
    the number of patients, the paired Wilcoxon signed-rank test (two-sided) and its p corrected by Holm over the questions."""
    values, rows = by_patient(table, region)[measure].unstack("method"), []
    for method, against in questions():
        if method not in values or against not in values:
            continue
        gap = (values[method] - values[against]).dropna().to_numpy()
        if not len(gap):
            continue
        low, high = interval(gap)
        p = stats.wilcoxon(gap).pvalue if np.any(gap != 0) else 1.0
        rows.append(
            {"method": method, "against": against, "difference": gap.mean(), "low": low, "high": high, "patients": len(gap), "p": p}
        )
    found = pd.DataFrame(rows, columns=["method", "against", "difference", "low", "high", "patients", "p"])
    found["p_holm"] = holm(found.p)
    return found


def left_out(table: pd.DataFrame, region: str = "valid") -> str:
    """How many images have no number in a measure and are left out of its mean, and why, in words; '' where all have one."""
    rows = table[table.region == region]
    equal, empty = (set(rows.image[found]) for found in (rows.psnr == np.inf, rows.psnr.isna()))
    flat = set(rows.image[rows.texture_error_db.isna()]) - empty if "texture_error_db" in rows else set()
    reasons = {"": (empty, "nothing to measure"), " of PSNR": (equal - empty, "SR equals HR"), " of power": (flat, "blank")}
    return "; ".join(f"{len(images)} image(s) left out{what}: {why}" for what, (images, why) in reasons.items() if images)


def caution(table: pd.DataFrame) -> str:
    """What a reader must know of how far the intervals of one run reach, in words."""
    patients, left = table.patient.nunique(), left_out(table)
    said = f"{table.image.nunique()} images of {patients} patients{f' ({left})' if left else ''}; intervals: 95 %, bootstrap over patients"
    if patients < FEW:
        said += f"; only {patients} patients, so the intervals are a rough guide"
        if len(questions()) * 2 / 2**patients > 0.05:
            said += ", and no corrected Wilcoxon test can reach p = .05"
    return said + "; one training, so what another seed would change is not in them."


def verdict(table: pd.DataFrame, unpaired: pd.DataFrame | None = None) -> str:
    """What an evaluation found, in two or three sentences, from metrics.csv and unpaired.csv; valid region, means over patients."""
    summary = summarise(table[table.columns.intersection([*FACTS, "psnr", "texture_error_db"])])

    def said(method, measure):
        mean, low, high = (summary.loc[method, f"{measure}{end}"] for end in ("", "_low", "_high"))
        return f"{mean:.2f} dB" + (f" [{low:.2f},\u00a0{high:.2f}]" if low < high else "")

    gain, error = summary.gain_db, summary.texture_error_db
    text = f"SRResNet {'gains' if gain.srresnet > 0 else 'loses'} {said('srresnet', 'gain_db')} of PSNR over bicubic. "
    text += f"SRGAN's texture is off by {said('srgan', 'texture_error_db')} (SRResNet's by {error.srresnet:.1f}, a Gaussian texture's by {error.noise:.1f}), "
    text += f"and its PSNR lies {abs(gain.srgan):.2f} dB {'below' if gain.srgan < 0 else 'above'} bicubic's."
    told = {} if unpaired is None else unpaired[unpaired.measure == "told_apart"].set_index("method").value
    if len(told):
        srgan, noise, srresnet = (f"{100 * told[method]:.0f} %" for method in ("srgan", "noise", "srresnet"))
        text += f" A fresh classifier tells SRGAN's patches from HR's {srgan} of the time (Gaussian texture {noise}, SRResNet {srresnet}); 50 % is guessing."
    return text


def between(means: pd.DataFrame, measure: str, method: str, reference: str) -> pd.DataFrame:
    """Does a change of settings show beyond chance? Each group of runs less the group `reference`, in one measure of one method.

    `means`: a row for each run, method and patient (columns group, seed, method, patient and the measures: `by_patient` of several runs).
    Two kinds of noise are held apart. `low`, `high`: the 95 % bootstrap interval over patients of the paired difference (seeds averaged).
    `seeds_margin`: how far the means of two such groups lie apart by another choice of seeds alone, in 95 of 100 cases (t distribution,
    variance between seeds pooled over the groups; nan with one seed a group). `verdict` says which of them the difference exceeds; with one
    patient there is no interval, so nothing exceeds it. Patients that a run lacks are left out of all.
    """
    rows = means[means.method == method]
    values = rows.pivot_table(index="patient", columns=["group", "seed"], values=measure).dropna()
    if values.empty or reference not in values.columns.get_level_values("group"):
        raise UserError(f"no patient has {measure} of {method} in every run, so nothing can be compared; take runs of the same patients")
    runs = values.mean().groupby("group")
    count, freedom = runs.size(), int((runs.size() - 1).sum())
    spread = np.sqrt((runs.var(ddof=0) * count).sum() / freedom) if freedom else np.nan
    by_group, found = values.T.groupby("group").mean().T, []
    for group in dict.fromkeys(rows.group):
        if group == reference or group not in by_group:
            continue
        gap = (by_group[group] - by_group[reference]).to_numpy()
        low, high = interval(gap)
        margin = stats.t.ppf(0.975, freedom) * spread * np.sqrt(1 / count[group] + 1 / count[reference]) if freedom else np.nan
        patients, seeds = low > 0 or high < 0, abs(gap.mean()) > margin
        verdict = "beyond both" if patients and seeds else "not beyond patients" if not patients else "not beyond seeds"
        if np.isnan(margin):
            verdict = "one seed: unknown" if patients else verdict
        found.append(
            {"group": group, "difference": gap.mean(), "low": low, "high": high, "patients": len(gap), "seeds": int(count[group]),
             "seeds_margin": margin, "verdict": verdict}
        )  # fmt: skip
    columns = ["group", "difference", "low", "high", "patients", "seeds", "seeds_margin", "verdict"]
    return pd.DataFrame(found, columns=columns).set_index("group")
