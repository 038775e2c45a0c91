"""The statistics of an evaluation, from its tables alone: means by patient, bootstrap intervals, paired tests, and the tables that readers see.

`table` is metrics.csv of notebook 05, of 07, or both joined (`Run.metrics`). Patients are the unit: two scans of one eye are not two independent observations.
"""

import re

import numpy as np
import pandas as pd
from scipy import stats

from ..config import UserError
from ..metrics import bands
from .methods import METHODS, named, questions

SAMPLES = 8  # of the sampler, on an image of samples.csv
FEW = 12  # patients; below, an interval over patients is a rough guide
RESAMPLES = 10_000
FACTS = ("image", "patient", "label", "method", "region", "height", "width", "size")  # columns of metrics.csv that are not measures
MEASURES = {  # column of metrics.csv: (what it is, what is better)
    "psnr": ("PSNR (dB)", "higher"),
    "gain_db": ("PSNR gain over bicubic (dB)", "higher"),
    "ssim": ("SSIM", "higher"),
    "lpips": ("LPIPS (whole image)", "lower"),
    "texture_error_db": ("texture error (dB)", "near 0"),  # mean over the bands of the absolute power
    **{f"band{k}_db": (f"power in band {k}, SR over HR (dB)", "near 0") for k in range(1, 7)},
    "stripe_db": ("stripe index (dB)", "1 to 2"),
    "checkerboard": ("checkerboard (HR: 1)", "near 1"),
    "consistency": ("data consistency (dB)", "above 38"),
}
UNPAIRED = {  # measures of unpaired.csv
    "c2st": "C2ST: a fresh classifier's accuracy (0.5: chance)",
    "c2st_raw": "C2ST on raw patches",
    "kid": "KID",
}
AIMED = "*: the method was trained or chosen on this measure, or has it by construction."


def is_power(measure: str) -> bool:
    """Whether a measure is a power against HR, whose mean absolute value stands beside its mean: a noisy scan drawn too smooth and a smooth one
    drawn too noisy must not cancel."""
    return bool(re.fullmatch(r"band\d_db", measure))


def is_aimed(method: str, measure: str) -> bool:
    """Whether a method was trained or chosen on a measure, or has it by construction."""
    return method in METHODS and bool(re.fullmatch(METHODS[method].aimed, measure))


# ------------------------------------------------------------------------------------------- means, intervals, tests
def by_patient(table: pd.DataFrame, region: str = "valid") -> pd.DataFrame:
    """Means within each patient: rows by (method, patient), a column for each measure; `gain_db` is PSNR minus bicubic's, M_abs the mean
    absolute value of a power M. What is no number (a blank image, an empty region) is left out; an image without PSNR in one method has none in
    all, so that methods are compared on the same images."""
    rows = table[table.region == region]
    values = rows[[c for c in table if c not in FACTS]].astype(float).where(np.isfinite)
    values.loc[rows.image.isin(rows.image[values.psnr.isna()]), "psnr"] = np.nan
    values = values.join(values[[c for c in values if is_power(c)]].abs().add_suffix("_abs"))
    means = values.groupby([rows.method, rows.patient]).mean()
    if "bicubic" in means.index:
        means.insert(1, "gain_db", means.psnr - means.psnr.xs("bicubic").reindex(means.index.get_level_values("patient")).to_numpy())
    return means


def intervals(values: np.ndarray) -> np.ndarray:
    """Percentile bootstrap (95 %) of the mean of each column, 10,000 resamples of the rows, the same for all columns, seeded: (2, columns), low and
    high. Missing values are left out; nan for fewer than two."""
    values = np.asarray(values, float)
    exists, count = np.isfinite(values), len(values)
    enough, limits = exists.sum(0) >= 2, np.full((2, values.shape[1]), np.nan)
    if enough.any():
        weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
        with np.errstate(invalid="ignore"):
            means = (weights @ np.where(exists, values, 0) / (weights @ exists))[:, enough]
        limits[:, enough] = np.nanquantile(means, [0.025, 0.975], axis=0)
    return limits


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
        row = rows[method] = {}
        for measure, low, high in zip(values, *intervals(values.to_numpy()), strict=True):
            row[measure] = values[measure].mean()
            if not measure.endswith("_abs"):
                row |= {f"{measure}_low": low, f"{measure}_high": high, f"{measure}_n": values[measure].count()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").round(4)


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
        gap = (values[method] - values[against]).dropna() if {method, against} <= {*values} else []
        if len(gap):
            p = stats.wilcoxon(gap).pvalue if gap.any() else 1.0
            rows.append((method, against, gap.mean(), *interval(gap), len(gap), p))
    tests = pd.DataFrame(rows, columns=["method", "against", "difference", "low", "high", "patients", "p"])
    return tests.assign(p_holm=holm(tests.p))


def between(means: pd.DataFrame, measure: str, method: str, reference: str) -> pd.DataFrame:
    """Does a change of settings show beyond chance? Each group of runs less the group `reference`, in one measure of one method.

    `means`: of `series.runs.read_runs`. Two kinds of noise are held apart. `low`, `high`: the 95 % bootstrap interval over patients of the paired difference (seeds averaged).
    `seeds_margin`: how far the means of two such groups lie apart by another choice of seeds alone, in 95 of 100 cases (t distribution,
    variance between seeds pooled over the groups; nan with one seed a group). `verdict` says which of them the difference exceeds; with one
    patient there is no interval, so nothing exceeds it. Patients that a run lacks are left out of all.
    """
    rows = means[means.method == method]
    values = rows.pivot_table(index="patient", columns=["group", "seed"], values=measure).dropna()
    if values.empty or reference not in values.columns.get_level_values("group"):
        raise UserError(f"no patient has {measure} of {method} in every run, so nothing can be compared; take runs of the same patients")
    runs, by_group = values.mean().groupby("group"), values.T.groupby("group").mean()
    count, freedom = runs.size(), int((runs.size() - 1).sum())
    deviation = np.sqrt((runs.var(ddof=0) * count).sum() / freedom) if freedom else np.nan
    quantile, table = stats.t.ppf(0.975, freedom) if freedom else np.nan, []
    for group in dict.fromkeys(rows.group):
        if group == reference or group not in by_group.index:
            continue
        gap = by_group.loc[group] - by_group.loc[reference]
        low, high = interval(gap)
        margin = quantile * deviation * np.sqrt(1 / count[group] + 1 / count[reference])
        if not (low > 0 or high < 0):
            verdict = "not beyond patients"
        elif np.isnan(margin):
            verdict = "one seed: unknown"
        else:
            verdict = "beyond both" if abs(gap.mean()) > margin else "not beyond seeds"
        table.append((group, gap.mean(), low, high, len(gap), count[group], margin, verdict))
    columns = ["group", "difference", "low", "high", "patients", "seeds", "seeds_margin", "verdict"]
    return pd.DataFrame(table, columns=columns).set_index("group")


# ------------------------------------------------------------------------------------------- what readers see
def _number(mean: float, low: float, high: float, digits: int = 2, unit: str = "") -> str:
    """'mean [low, high]' with a no-break space within the brackets, the mean alone where there is no interval; `unit`: after the mean."""
    return f"{mean:.{digits}f}{unit}" + (f" [{low:.{digits}f},\u00a0{high:.{digits}f}]" if low < high else "")


def with_intervals(summary: pd.DataFrame) -> pd.DataFrame:
    """`summarise`'s table as text: 'mean [low, high]', of a power 'mean (mean absolute) [low, high]', with * where AIMED says so; a row for each measure,
    a column for each method. Measures that no image has are left out; where fewer patients have one than have PSNR, it says how many."""
    shown = [c for c in summary if f"{c}_low" in summary and summary[c].notna().any()]

    def text(measure, row):
        power, few = is_power(measure), row[f"{measure}_n"] < row["psnr_n"]
        digits = 1 if power else 3 if abs(summary[measure]).max() < 3 and measure != "gain_db" else 2
        absolute = f" ({row[f'{measure}_abs']:.{digits}f})" if power else ""
        number = _number(*row[[measure, f"{measure}_low", f"{measure}_high"]], digits, absolute)
        return number + (f" (n = {row[f'{measure}_n']:.0f})" if few else "") + is_aimed(row.name, measure) * "*"

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
    tables = {}
    for value, part in table.groupby(by, sort=by != "region"):
        part = part[[c for c in part if c in (*FACTS, "psnr", *shown)]]  # intervals cost time
        key = f"{value} ({part.image.nunique()} of {part.patient.nunique()} patients)"
        tables[key] = titled(with_intervals(summarise(part, value if by == "region" else "valid")).reindex(shown).dropna())
    return pd.concat(tables, names=[by, "measure"])


def left_out(table: pd.DataFrame) -> str:
    """How many images have no number in a measure and are left out of its mean, and why, in words; '' where all have one."""
    rows = table[table.region == "valid"]
    empty, equal = {*rows.image[rows.psnr.isna()]}, {*rows.image[rows.psnr == np.inf]}
    flat = {*rows.image[rows.texture_error_db.isna()]} if "texture_error_db" in rows else set()
    reasons = ((empty, "", "nothing to measure"), (equal - empty, " of PSNR", "SR equals HR"), (flat - empty, " of power", "blank"))
    return "; ".join(f"{len(images)} image(s) left out{what}: {why}" for images, what, why in reasons if images)


def caution(table: pd.DataFrame) -> str:
    """What a reader must know of how far the intervals of one run reach, in words."""
    patients, left = table.patient.nunique(), left_out(table)
    text = f"{table.image.nunique()} images of {patients} patients{f' ({left})' if left else ''}; intervals: 95 %, bootstrap over patients"
    if patients < FEW:
        text += f"; only {patients} patients, so the intervals are a rough guide"
        if sum({*pair} <= {*table.method} for pair in questions()) * 2 / 2**patients > 0.05:
            text += ", and no corrected Wilcoxon test can reach p = .05"
    return text + "; one training, so what another seed would change is not in them."


def verdict(table: pd.DataFrame, unpaired: pd.DataFrame | None = None) -> str:
    """What an evaluation found, in some sentences, from `Run.metrics` and unpaired.csv; valid region, means over patients. PSNR and SSIM come first."""
    summary = summarise(table[table.columns.intersection([*FACTS, "psnr", "ssim", "lpips"])])
    gains = summary[["gain_db", "gain_db_low", "gain_db_high"]].drop("bicubic")
    text = "PSNR against bicubic (dB): " + ", ".join(f"{named(method)} {_number(*row)}" for method, row in gains.iterrows()) + ". "
    for measure in ("ssim", "lpips"):
        values = ", ".join(f"{named(method)} {value:.3f}" for method, value in summary[measure].items())
        text += f"{MEASURES[measure][0]} ({MEASURES[measure][1]} is better): {values}. "
    c2st = {} if unpaired is None else unpaired[unpaired.measure == "c2st"].set_index("method").value
    if len(c2st):
        told = ", ".join(f"{named(method)}'s {100 * value:.0f} %{'*' * is_aimed(method, 'c2st')}" for method, value in c2st.items())
        text += f"A fresh classifier tells patches from HR's: {told} of the time; 50 % is guessing."
    return text.strip()


def readable_tests(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`compare` as text for readers."""
    tests = compare(table, measure)
    texts = {c: tests[c].map(named) for c in ("method", "against")}
    texts |= {c: tests[c].map("{:+.3f}".format) for c in ("difference", "low", "high")}
    texts |= {c: tests[c].map(lambda p: "below .001" if p < 0.001 else f"{p:.3f}") for c in ("p", "p_holm")}
    return tests.assign(**texts).rename(columns={"low": "95 % from", "high": "to", "p_holm": "p (Holm)"})


def readable_samples(samples: pd.DataFrame, count: int = SAMPLES) -> pd.DataFrame:
    """samples.csv (`sampler.evaluation.measure_samples`), or those of its columns that there are, as text for readers: the mean over patients, its interval where
    there are enough of them (`FEW`), and what samples of the true posterior have."""
    rows = {
        "gain_sample_db": ("PSNR gain of one sample over bicubic (dB)", "3 dB below SRResNet's"),
        "gain_mean_db": (f"PSNR gain of the mean of {count} samples (dB)", "0.5 dB below SRResNet's"),
        "gain_srresnet_db": ("PSNR gain of SRResNet (dB)", ""),
        "regain_db": (f"regain: the mean of {count} over one (dB)", f"{10 * np.log10(2 / (1 + 1 / count)):.1f}"),
        "spread": ("error that the spread predicts (grey levels)", "the next row"),
        "error": ("real error of the mean", ""),
    } | {c: (f"HR's rank, {c[5:]}: distance from equal", "0") for c in samples if c.startswith("rank_")}
    rows = {column: row for column, row in rows.items() if column in samples}
    means = samples[list(rows)].where(np.isfinite).groupby(samples.patient).mean()  # a blank image has no PSNR
    limits = intervals(means.to_numpy()) if len(means) >= FEW else np.full((2, len(rows)), np.nan)
    titles = pd.Index([title for title, _ in rows.values()], name=f"{len(samples)} images of {len(means)} patients")
    numbers = [_number(*each) for each in zip(means.mean(), *limits, strict=True)]
    return pd.DataFrame({"sampler": numbers, "correct samples": [right for _, right in rows.values()]}, index=titles)


def readable_unpaired(unpaired: pd.DataFrame) -> pd.DataFrame:
    """unpaired.csv (`sampler.evaluation.Patches`) as text for readers: a row for each measure, a column for HR and each method."""
    rows = {}
    for row in unpaired.itertuples():
        title = UNPAIRED[row.measure] + (f", features of {row.network}" if row.measure == "kid" else "")
        rows.setdefault(title, {})[named(row.method)] = _number(row.value, row.low, row.high, 3) + is_aimed(row.method, row.measure) * "*"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")
