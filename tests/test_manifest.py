"""The split: every split has patients, and those of earlier runs stay where they are."""

import hashlib
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from running import save

from srlib.data.manifest import SPLITS, build_manifest, deal
from srlib.data.phantom import bscan

KERMANY = {f"{label}{k}": label for label, count in {"CNV": 79, "DME": 70, "DRUSEN": 12, "NORMAL": 353}.items() for k in range(count)}


def dealt(label_of, *shares):
    return deal(pd.Series(label_of), *shares, pd.Series(1, label_of.keys()))


def patients(count, classes=4):
    return {f"p{k}": f"class{k % classes}" for k in range(count)}


def test_each_split_has_a_patient():
    shares = ((0.1, 0.2), (0.3, 0.1), (0.1, 0.1), (0.45, 0.1), (0.05, 0.05), (0.01, 0.44), (0.3, 0.3), (0.44, 0.44))
    for count, classes, share in itertools.product(range(3, 30), (1, 2, 3), shares):
        splits = dealt(patients(count, classes), *share)
        assert set(splits.values()) == set(SPLITS) and splits.keys() == patients(count).keys()


@pytest.mark.parametrize(
    "shares, digest", [((0.1, 0.2), "20af2b235f5224c4"), ((0.15, 0.15), "64a7673258962efa"), ((0.3, 0.1), "53f5734f220919a5")]
)
def test_patients_of_earlier_runs_do_not_move(shares, digest):
    """Kermany's layout (four classes of very unequal size) and the phantoms' (equal ones)."""
    splits = [dealt(label_of, *shares) for label_of in (KERMANY, patients(8), patients(40), patients(120))]
    assert hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16] == digest


def test_joined_patients_count_as_so_many():
    """Seven patients in one group of ten are no val split of 70 %, wherever the group stands."""
    for k in range(4):
        sizes = pd.Series([1, 1, 1, 1], index=list("abcd"))
        sizes.iloc[k] = 7
        assert deal(pd.Series("x", sizes.index), 0.1, 0.2, sizes)["abcd"[k]] == "train"


def test_what_is_no_scan_of_one_patient_is_left_out(tmp_path):
    """A legend in seven of nine patients, a mask beside each scan, masks as a volume; two patients may share a scan, files of nobody any."""
    legend, rows = bscan(99, 64, 80), np.arange(64)[:, None] + np.zeros(80)
    for k in range(9):
        save(tmp_path / f"p-{k}-scan.png", bscan(k % 8, 64, 80))
        save(tmp_path / f"masks/p-{k}-mask.png", (rows > 20 + k).astype(np.uint8) * 255)
        save(tmp_path / f"nobody{k % 3}/x.png", bscan(50, 64, 80))
        if k < 7:
            save(tmp_path / f"p-{k}-legend.png", legend)
    save(tmp_path / "p-1-labels.tif", *(((rows + k) // 8).astype(np.uint8) for k in range(2)))
    table = build_manifest(tmp_path)
    reasons = pd.DataFrame(table.attrs["skipped"], columns=["path", "reason"])
    assert sorted(table.path.str.replace(r"\d", "", regex=True).unique()) == ["nobody/x.png", "p--scan.png"]
    assert (
        reasons.reason.str.contains("is the same picture in 7 patients").sum() == 7 and reasons.reason.str.contains("is a mask").sum() == 11
    )
    joined = table[table.patient.isin(["0", "8"])]
    assert joined.split.nunique() == 1 and table.groupby("split").patient.nunique()["train"] >= 7
