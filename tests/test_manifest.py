"""The split: every split has patients, and those of earlier runs stay where they are."""

import hashlib
import itertools
import json

import pandas as pd
import pytest

from srlib.data.manifest import SPLITS, deal

KERMANY = {f"{label}{k}": label for label, count in {"CNV": 79, "DME": 70, "DRUSEN": 12, "NORMAL": 353}.items() for k in range(count)}


def patients(count, classes=4):
    return {f"p{k}": f"class{k % classes}" for k in range(count)}


def test_each_split_has_a_patient():
    shares = ((0.1, 0.2), (0.3, 0.1), (0.1, 0.1), (0.45, 0.1), (0.05, 0.05), (0.01, 0.44), (0.3, 0.3), (0.44, 0.44))
    for count, classes, share in itertools.product(range(3, 30), (1, 2, 3), shares):
        dealt = deal(pd.Series(patients(count, classes)), *share)
        assert set(dealt.values()) == set(SPLITS) and dealt.keys() == patients(count).keys()


@pytest.mark.parametrize(
    "shares, digest", [((0.1, 0.2), "20af2b235f5224c4"), ((0.15, 0.15), "64a7673258962efa"), ((0.3, 0.1), "53f5734f220919a5")]
)
def test_patients_of_earlier_runs_do_not_move(shares, digest):
    """Kermany's layout (four classes of very unequal size) and the phantoms' (equal ones)."""
    dealt = [deal(pd.Series(label_of), *shares) for label_of in (KERMANY, patients(8), patients(40), patients(120))]
    assert hashlib.sha256(json.dumps(dealt).encode()).hexdigest()[:16] == digest
