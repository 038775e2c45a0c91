"""The statistics against cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from srlib.config import UserError
from srlib.evaluation import statistics


def table(values: dict, patients=("1", "1", "2", "3")):
    """metrics.csv with one measure: method to a value for each image; images of one patient have the same name."""
    rows = [
        {"image": f"i{k}", "patient": patient, "label": "NORMAL", "method": method, "region": "valid", "psnr": value}
        for method, column in values.items()
        for k, (patient, value) in enumerate(zip(patients, column, strict=True))
    ]
    return pd.DataFrame(rows)


def test_patients_count_once():
    summary = statistics.summarise(table({"bicubic": [10, 20, 30, 45], "srgan": [11, 21, 32, 46]}))
    assert summary.psnr["bicubic"] == 30 and summary.gain_db["srgan"] == pytest.approx((1 + 2 + 1) / 3, abs=1e-4)
    assert summary.gain_db_low["srgan"] == 1 and summary.gain_db_high["srgan"] == 2  # three patients: the extremes are within 95 %
    assert list(summary.index) == ["bicubic", "srgan"]
    text = statistics.with_intervals(summary)
    assert text.loc["gain_db", "srgan"] == "1.33 [1.00,\u00a02.00]" and text.loc["gain_db", "bicubic"] == "0.00"


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = statistics.interval(values)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert np.isnan(statistics.interval([3.0])[0])
    assert statistics.interval([np.nan, *values]) == (low, high)
    columns = np.stack([values, np.where(np.arange(400) == 0, values, np.nan)], 1)
    assert statistics.intervals(columns)[:, 0] == pytest.approx([low, high]) and np.isnan(statistics.intervals(columns)[:, 1]).all()


def test_beyond_patients_and_seeds():
    """One patient shows nothing, its interval is nan; two far from 0 do. A reference without the measure is an error in one sentence."""
    runs = pd.DataFrame(
        {"group": group, "seed": seed, "method": "srgan", "patient": patient, "psnr": level + seed / 1000 + patient / 100}
        for group, level in (("base", 20.0), ("other", 30.0))
        for seed in (0, 1)
        for patient in (1, 2)
    )
    one, two = (statistics.between(runs[::step], "psnr", "srgan", "base").loc["other"] for step in (2, 1))
    assert one.patients == 1 and np.isnan(one.low) and one.verdict == "not beyond patients" and one.difference == pytest.approx(10)
    assert two.patients == 2 and two.verdict == "beyond both"
    assert two.seeds_margin == pytest.approx(4.303 * 0.001 / 2**0.5, rel=1e-3)  # Student's t of two degrees of freedom; seeds .001 apart
    assert statistics.between(runs[runs.seed == 0], "psnr", "srgan", "base").verdict["other"] == "one seed: unknown"
    wide = runs.assign(psnr=runs.psnr + 40 * (runs.seed == 1) * (runs.group == "other"))
    assert statistics.between(wide, "psnr", "srgan", "base").verdict["other"] == "not beyond seeds"
    with pytest.raises(UserError, match="no patient has psnr of srgan in every run"):
        statistics.between(runs.assign(psnr=runs.psnr.where(runs.group == "other")), "psnr", "srgan", "base")


def test_too_smooth_and_too_noisy_do_not_cancel():
    """A power has the mean of its absolute value by scan beside it, in the summary and in what readers see; other measures have none."""
    rows = table({"srgan": [10, 10, 10, 10]}).assign(band1_db=[3.0, -1.0, -2.0, 1.0], stripe_db=[1.0, -1, -1, 1])
    summary = statistics.summarise(rows)
    assert summary.band1_db["srgan"] == 0 and summary.band1_db_abs["srgan"] == pytest.approx(5 / 3, abs=1e-4)
    assert "stripe_db_abs" not in summary and "0.0 (1.7)" in statistics.with_intervals(summary).loc["band1_db", "srgan"]
    assert statistics.is_power("band6_db") and not statistics.is_power("stripe_db")


def test_what_is_no_number_is_left_out_and_counted():
    """An image without a region has no PSNR, SR equal to HR an endless one, a blank one no power: none rules a mean, and methods are compared on the
    same images."""
    rows = table({"bicubic": [np.nan, 20, 30, np.inf], "srgan": [np.nan, 21, 31, 40]})
    assert statistics.summarise(rows).psnr.tolist() == [25, 26] and statistics.summarise(rows).psnr_n["bicubic"] == 2
    assert (
        "4 images of 3 patients (1 image(s) left out: nothing to measure; 1 image(s) left out of PSNR: SR equals HR)"
        in statistics.caution(rows)
    )
    rows["texture_error_db"] = [np.nan, np.nan, 1, 2] * 2
    assert statistics.summarise(rows).texture_error_db.tolist() == [1.5, 1.5]
    assert statistics.left_out(rows).endswith("SR equals HR; 1 image(s) left out of power: blank")
    assert not statistics.left_out(table({"bicubic": [1, 2, 3, 4]}))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1, 1])


def test_paired_wilcoxon():
    """Six patients, all differences of one sign: the exact two-sided p is 2 / 2^6; three questions can be asked."""
    base = np.arange(6.0)
    sharp = base + 1 + base / 10
    tests = statistics.compare(table({"bicubic": base, "srresnet": sharp, "srgan": sharp - (-1) ** base * (base + 1)}, "abcdef"), "psnr")
    assert list(zip(tests.method, tests.against, strict=True)) == [("srresnet", "bicubic"), ("srgan", "bicubic"), ("srgan", "srresnet")]
    assert tests.p[0] == pytest.approx(2 / 2**6) and tests.p_holm[0] == pytest.approx(6 / 2**6) and (tests.patients == 6).all()
    assert tests.difference[0] == pytest.approx(1.25) and tests.p_holm[2] > 0.5
    same = statistics.compare(table({"bicubic": base, "srresnet": base}, "abcdef"), "psnr")
    assert same.p[0] == 1 and same.difference[0] == 0


def test_missing_values():
    """A measure that one patient lacks is summarised over the others, and says so; one that nobody has is left out."""
    rows = table({"bicubic": [1, 2, 3, 4], "srgan": [3, 4, 5, 6]}).assign(lesion=[np.nan, np.nan, 1, 2, 3, 3, 5, 6], none=np.nan)
    summary = statistics.summarise(rows)
    assert summary.lesion["bicubic"] == 1.5 and summary.lesion_n["bicubic"] == 2 and summary.lesion_low["bicubic"] == 1
    text = statistics.with_intervals(summary)
    assert "(n = 2)" in text.loc["lesion", "bicubic"] and "n =" not in text.loc["lesion", "srgan"] and "none" not in text.index
    asked = statistics.compare(rows, "lesion")
    assert list(asked.patients) == [2] and asked.difference[0] == 4
    assert statistics.compare(rows, "none").empty


def test_few_patients_are_flagged():
    few = statistics.caution(table({"bicubic": [1, 2, 3, 4], "srgan": [2, 3, 4, 5]}))
    assert "3 patients" in few and "rough guide" in few and "no corrected Wilcoxon test" in few and "one training" in few
    many = statistics.caution(table({"bicubic": range(20)}, [str(k) for k in range(20)]))
    assert "rough" not in many and "corrected" not in many


def test_parts_by_region_class_and_size():
    one = table({"bicubic": [10, 20, 30, 45], "srgan": [11, 21, 32, 46]}).assign(height=8, width=9)
    rows = pd.concat([one.assign(region="whole"), one])
    rows.loc[rows.patient == "3", ["label", "width"]] = "DME", 12
    by_class = statistics.parts(rows, "label")
    assert by_class.loc[("DME (1 of 1 patients)", "PSNR gain over bicubic (dB)"), "SRGAN"] == "1.00"
    assert by_class.loc[("NORMAL (3 of 2 patients)", "PSNR gain over bicubic (dB)"), "SRGAN"] == "1.50 [1.00,\u00a02.00]"
    assert set(statistics.parts(rows, "size").index.get_level_values(0)) == {"12 x 8 (1 of 1 patients)", "9 x 8 (3 of 2 patients)"}
    assert list(statistics.parts(rows, "region").index.get_level_values(0)) == ["whole (4 of 3 patients)", "valid (4 of 3 patients)"]
