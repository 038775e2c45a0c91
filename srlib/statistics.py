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
    "checkerboard": ("checkerboard (HR: 1)", "near 1"),
    "consistency": ("LR consistency (dB)", "above 38"),
    "judge": ("feature distance (judge)", "lower"),
    "speckle": ("speckle contrast less HR's", "near 0"),
    "epi": ("edge preservation (HR: 1)", "near 1"),
    "cnr_db": ("CNR less HR's (dB)", "near 0"),
    "enl_db": ("ENL over HR's (dB)", "near 0"),
    "boundary_px": ("shift of layer boundaries (pixels)", "near 0"),
    "lesion_contrast": ("lesion contrast (HR: 1)", "near 1"),
}
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


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of the mean over the last axis, 10,000 resamples, seeded: (low, high). nan for fewer than two values."""
    values = np.asarray(values, float)
    if values.shape[-1] < 2:
        return (np.full(values.shape[:-1], np.nan),) * 2
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="percentile", axis=-1, vectorized=True, batch=1000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def summarise(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Mean over patients of the means within them, a row for each method in the table's order, and for each measure M the 95 %
    bootstrap interval over patients, `M_low` and `M_high`."""
    means, order = by_patient(table, region), list(dict.fromkeys(table.method))
    columns = {}
    for measure in means.columns:
        values = means[measure].unstack().reindex(order)
        low, high = interval(values.dropna(axis=1, how="all").to_numpy())
        columns |= {measure: values.mean(axis=1), f"{measure}_low": low, f"{measure}_high": high}
    return pd.DataFrame(columns, index=pd.Index(order, name="method")).round(4)


def with_intervals(summary: pd.DataFrame) -> pd.DataFrame:
    """`summarise`'s table as text for readers: 'mean [low, high]', a row for each measure, a column for each method."""
    shown = [c for c in summary if f"{c}_low" in summary]

    def text(measure, row):
        mean, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
        digits = 3 if abs(summary[measure]).max() < 3 and measure != "gain_db" else 2
        return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low < high else "")

    return pd.DataFrame({method: [text(m, row) for m in shown] for method, row in summary.iterrows()}, index=shown)


def gain_by(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """PSNR less bicubic's, mean by patient, for each value of `by`: 'region', 'label' (class), or 'size' (acquisition), the last two in the
    valid region; with the number of images and patients."""
    rows = table.assign(size=table.width.astype(str) + " x " + table.height.astype(str))
    rows = rows if by == "region" else rows[rows.region == "valid"]
    found = {}
    for value, part in rows.groupby(by, sort=by != "region"):
        gains = by_patient(part.assign(region="valid")).gain_db.groupby("method").mean().reindex(dict.fromkeys(table.method))
        found[value] = {"images": part.image.nunique(), "patients": part.patient.nunique()} | gains.drop("bicubic").to_dict()
    return pd.DataFrame(found).T.rename_axis(by).astype({"images": int, "patients": int})


def holm(p: np.ndarray) -> np.ndarray:
    """p values corrected by Holm's step-down procedure (Holm 1979): the k-th smallest of m times m - k + 1, never decreasing, at most 1."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected[np.argsort(order)]


def compare(table: pd.DataFrame, measure: str, references=("bicubic", "srresnet"), region: str = "valid") -> pd.DataFrame:
    """Each method less each reference, patient by patient: mean difference, its 95 % bootstrap interval, the paired Wilcoxon
    signed-rank test (two-sided) and its p corrected by Holm over all rows of the table."""
    values = by_patient(table, region)[measure].unstack("method")
    rows = []
    for reference in (r for r in references if r in values):
        for method in (m for m in dict.fromkeys(table.method) if m not in references[: references.index(reference) + 1]):
            gap = (values[method] - values[reference]).dropna().to_numpy()
            low, high = interval(gap)
            p = stats.wilcoxon(gap).pvalue if np.any(gap != 0) else 1.0
            rows.append({"method": method, "against": reference, "difference": gap.mean(), "low": low, "high": high, "p": p})
    found = pd.DataFrame(rows).set_index(["method", "against"])
    found["p_holm"] = holm(found.p)
    return found


def caution(table: pd.DataFrame) -> str:
    """What a reader must know of how far the intervals of one run reach, in words."""
    patients = table.patient.nunique()
    said = f"{table.image.nunique()} images of {patients} patients; intervals: 95 %, bootstrap over patients"
    if patients < FEW:
        said += f"; only {patients} patients, so the intervals are a rough guide"
        if 2 / 2**patients * (2 * table.method.nunique() - 3) > 0.05:  # comparisons with bicubic and SRResNet
            said += ", and no corrected Wilcoxon test can reach p = .05"
    return said + "; one training, so what another seed would change is not in them."
