"""The statistics against cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from srlib import statistics


def table(values: dict, patients=("1", "1", "2", "3")):
    """metrics.csv with one measure: method to a value for each image; images of one patient have the same name."""
    rows = [
        {"image": f"i{k}", "patient": patient, "label": "NORMAL", "method": method, "region": "valid", "psnr": value}
        for method, found in values.items()
        for k, (patient, value) in enumerate(zip(patients, found, strict=True))
    ]
    return pd.DataFrame(rows)


def test_patients_count_once():
    found = statistics.summarise(table({"bicubic": [10, 20, 30, 45], "srgan": [11, 21, 32, 46]}))
    assert found.psnr["bicubic"] == 30 and found.gain_db["srgan"] == pytest.approx((1 + 2 + 1) / 3, abs=1e-4)
    assert found.gain_db_low["srgan"] == 1 and found.gain_db_high["srgan"] == 2  # three patients: the extremes are within 95 %
    assert list(found.index) == ["bicubic", "srgan"]


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = statistics.interval(values)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert np.isnan(statistics.interval([3.0])[0])
    both = statistics.interval(np.stack([values, values + 1]))
    assert both[0][1] - both[0][0] == pytest.approx(1)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1, 1])


def test_paired_wilcoxon():
    """Six patients, all differences of one sign: the exact two-sided p is 2 / 2^6; three comparisons in the family."""
    base = np.arange(6.0)
    found = statistics.compare(
        table({"bicubic": base, "srresnet": base + 1 + base / 10, "srgan": base + 1 + base / 10 - (-1) ** base * (base + 1)}, "abcdef"),
        "psnr",
    )
    assert list(found.index) == [("srresnet", "bicubic"), ("srgan", "bicubic"), ("srgan", "srresnet")]
    assert found.p.iloc[0] == pytest.approx(2 / 2**6) and found.p_holm.iloc[0] == pytest.approx(6 / 2**6)
    assert found.difference.iloc[0] == pytest.approx(1.25) and found.p_holm.iloc[2] > 0.5
    same = statistics.compare(table({"bicubic": base, "srresnet": base}, "abcdef"), "psnr")
    assert same.p.iloc[0] == 1 and same.difference.iloc[0] == 0


def test_few_patients_are_flagged():
    few = statistics.caution(table({"bicubic": [1, 2, 3, 4], "srgan": [2, 3, 4, 5]}))
    assert "3 patients" in few and "rough guide" in few and "no corrected Wilcoxon test" in few and "one training" in few
    many = statistics.caution(table({"bicubic": range(20)}, [str(k) for k in range(20)]))
    assert "rough" not in many and "corrected" not in many


def test_gain_by_region_class_and_size():
    found = pd.concat(
        [
            table({"bicubic": [10, 20, 30, 45], "srgan": [11, 21, 32, 46]}).assign(region=r, height=8, width=w)
            for r, w in (("whole", 9), ("valid", 9))
        ]
    )
    found.loc[found.patient == "3", ["label", "width"]] = "DME", 12
    by_class = statistics.gain_by(found, "label")
    assert by_class.srgan.to_dict() == {"DME": 1, "NORMAL": pytest.approx(1.5)} and list(by_class.patients) == [1, 2]
    assert list(statistics.gain_by(found, "size").index) == ["12 x 8", "9 x 8"]
    assert statistics.gain_by(found, "region").srgan["whole"] == pytest.approx(4 / 3)


def test_numbers_for_readers():
    text = statistics.with_intervals(statistics.summarise(table({"bicubic": [10, 20, 30, 45], "srgan": [11, 21, 32, 46]})))
    assert text.loc["gain_db", "srgan"] == "1.33 [1.00, 2.00]" and text.loc["gain_db", "bicubic"] == "0.00"
