"""The statistics of an evaluation, from metrics.csv alone: means by patient, bootstrap intervals, paired tests.

Patients are the unit: two scans of one eye are not two independent observations. All functions take the table that `evaluate_run`
writes (a row for each image, method and region) and give tables, so that a reader can redo them from the file.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

FACTS = ("image", "patient", "label", "method", "region", "height", "width", "size")  # columns of metrics.csv that are not measures
MEASURES = {  # column of metrics.csv: (what it is, what is better)
    "psnr": ("PSNR (dB)", "higher"),
    "gain_db": ("PSNR less bicubic's (dB)", "higher"),
    "ssim": ("SSIM", "higher"),
    "ms_ssim": ("MS-SSIM", "higher"),
    "high_power_db": ("power above LR Nyquist, against HR (dB)", "near 0"),
    "axial_power_db": ("the same along depth (dB)", "near 0"),
    "lateral_power_db": ("the same across (dB)", "near 0"),
    **{f"band{k}_db": (f"power in band {k} above LR Nyquist, against HR (dB)", "near 0") for k in range(1, 7)},
    "stripe_db": ("stripe index (dB)", "about 1"),
    "checkerboard": ("checkerboard (HR: 1)", "near 1"),
    "consistency": ("LR consistency (dB)", "above 38"),
    "judge": ("feature distance (judge)", "lower"),
    "lpips": ("LPIPS, AlexNet, whole image", "lower"),
    "speckle": ("speckle contrast less HR's", "near 0"),
    "epi": ("edge preservation (HR: 1)", "near 1"),
    "cnr_db": ("CNR less HR's (dB)", "near 0"),
    "enl_db": ("ENL over HR's (dB)", "near 0"),
    "boundary_px": ("shift of layer boundaries (pixels)", "near 0"),
    "lesion_contrast": ("lesion contrast (HR: 1)", "near 1"),
}
QUESTIONS = (  # (method, against): asked of a measure together, so corrected together
    ("srresnet", "bicubic"),
    ("srresnet", "linear"),
    ("srgan", "bicubic"),
    ("srgan", "srresnet"),
    ("srgan", "noise"),
)
FEW = 12  # patients; below, an interval over patients is a rough guide
RESAMPLES = 10_000


def measures(table: pd.DataFrame) -> list[str]:
    """The columns that hold measures."""
    return [c for c in table.columns if c not in FACTS]


def by_patient(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Means within a patient: a row for each (method, patient), a column for each measure; `gain_db` is PSNR less bicubic's."""
    rows = table[table.region == region]
    means = rows.groupby(["method", "patient"])[measures(table)].mean()
    if "bicubic" in means.index:
        means.insert(1, "gain_db", means.psnr - means.psnr.xs("bicubic").reindex(means.index.get_level_values("patient")).to_numpy())
    return means


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean, 10,000 resamples, seeded: (low, high). Missing values are left out; nan for fewer than two."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return np.nan, np.nan
    rng, batch = np.random.default_rng(0), 1000  # (scipy's bootstrap takes its seed by another name in older versions)
    means = [values[rng.integers(0, len(values), (batch, len(values)))].mean(1) for _ in range(RESAMPLES // batch)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Mean over patients of the means within them, a row for each method in the table's order, and for each measure M the 95 %
    bootstrap interval over patients, `M_low` and `M_high`, and `M_n`, the number of patients that have it."""
    means, order = by_patient(table, region), list(dict.fromkeys(table.method))
    rows = {}
    for method in order:
        row = rows[method] = {}
        for measure, values in means.xs(method).items():
            low, high = interval(values)
            row |= {measure: values.mean(), f"{measure}_low": low, f"{measure}_high": high, f"{measure}_n": values.count()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").round(4)


def with_intervals(summary: pd.DataFrame) -> pd.DataFrame:
    """`summarise`'s table as text for readers: 'mean [low, high]', a row for each measure, a column for each method; measures that
    no image has are left out, and where fewer patients have one than have PSNR, it says how many."""
    shown = [c for c in summary if f"{c}_low" in summary and summary[c].notna().any()]

    def text(measure, row):
        mean, low, high, n = (row[f"{measure}{end}"] for end in ("", "_low", "_high", "_n"))
        digits = 3 if abs(summary[measure]).max() < 3 and measure != "gain_db" else 2
        # a no-break space within the brackets
        said = f"{mean:.{digits}f}" + (f" [{low:.{digits}f},\u00a0{high:.{digits}f}]" if low < high else "")
        return said + (f" (n = {n:.0f})" if n < row["psnr_n"] else "")

    return pd.DataFrame({method: [text(m, row) for m in shown] for method, row in summary.iterrows()}, index=shown)


def parts(table: pd.DataFrame, by: str, shown=("gain_db", "ssim", "ms_ssim")) -> pd.DataFrame:
    """`with_intervals` of some measures for each value of `by`: 'region', 'label' (class) or 'size' (acquisition), the last two in the
    valid region; rows are (value, images of patients, measure)."""
    table = table.assign(size=table.width.astype(str) + " x " + table.height.astype(str))
    values = table[by].unique() if by == "region" else sorted(table[by].unique())
    found = {}
    for value in values:
        part = table.loc[table[by] == value, [c for c in table if c in (*FACTS, "psnr", *shown)]]  # intervals cost time
        key = f"{value} ({part.image.nunique()} of {part.patient.nunique()} patients)"
        found[key] = with_intervals(summarise(part, value if by == "region" else "valid")).reindex(shown).dropna()
    return pd.concat(found, names=[by, "measure"])


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected by Holm's step-down procedure (Holm 1979): the k-th smallest of m times m - k + 1, never decreasing, at most 1."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected[np.argsort(order)]


def compare(table: pd.DataFrame, measure: str, region: str = "valid") -> pd.DataFrame:
    """The QUESTIONS (a method less another, patient by patient) that the table can answer: mean difference, its 95 % bootstrap interval,
    the number of patients, the paired Wilcoxon signed-rank test (two-sided) and its p corrected by Holm over the questions."""
    values, rows = by_patient(table, region)[measure].unstack("method"), []
    for method, against in QUESTIONS:
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


def caution(table: pd.DataFrame) -> str:
    """What a reader must know of how far the intervals of one run reach, in words."""
    patients = table.patient.nunique()
    said = f"{table.image.nunique()} images of {patients} patients; intervals: 95 %, bootstrap over patients"
    if patients < FEW:
        said += f"; only {patients} patients, so the intervals are a rough guide"
        if len(QUESTIONS) * 2 / 2**patients > 0.05:
            said += ", and no corrected Wilcoxon test can reach p = .05"
    return said + "; one training, so what another seed would change is not in them."


def between(means: pd.DataFrame, measure: str, method: str, reference: str) -> pd.DataFrame:
    """Does a change of settings show beyond chance? Each group of runs less the group `reference`, in one measure of one method.

    `means`: a row for each run, method and patient (columns group, seed, method, patient and the measures: `by_patient` of several runs).
    Two kinds of noise are held apart. `low`, `high`: the 95 % bootstrap interval over patients of the paired difference (seeds averaged).
    `seeds_margin`: how far the means of two such groups lie apart by another choice of seeds alone, in 95 of 100 cases (t distribution,
    variance between seeds pooled over the groups; nan with one seed a group). `verdict` says which of them the difference exceeds.
    Patients that a run lacks are left out of all.
    """
    rows = means[means.method == method]
    values = rows.pivot_table(index="patient", columns=["group", "seed"], values=measure).dropna()
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
        patients, seeds = not low <= 0 <= high, abs(gap.mean()) > margin
        verdict = "beyond both" if patients and seeds else "not beyond patients" if not patients else "not beyond seeds"
        if np.isnan(margin):
            verdict = "one seed: unknown" if patients else verdict
        found.append(
            {"group": group, "difference": gap.mean(), "low": low, "high": high, "patients": len(gap), "seeds": int(count[group]),
             "seeds_margin": margin, "verdict": verdict}
        )  # fmt: skip
    columns = ["group", "difference", "low", "high", "patients", "seeds", "seeds_margin", "verdict"]
    return pd.DataFrame(found, columns=columns).set_index("group")
