"""The split: every split has patients, and those of runs from before it was mended stay where they are."""

import itertools

import numpy as np
import pandas as pd
import pytest

from srlib.data.manifest import deal

NAMES = ("train", "val", "test")
SHARES = ((0.1, 0.2), (0.3, 0.1), (0.1, 0.1), (0.45, 0.1), (0.05, 0.05), (0.01, 0.44), (0.3, 0.3))


def split_before(label_of, val_share, test_share):
    """As it was: a split that got no patient takes the first, second or third by name, be it the only one of another split."""
    rng = np.random.default_rng([0, 1])
    result, owed = {}, np.zeros(3)
    shares = np.array([1 - val_share - test_share, val_share, test_share])
    for label in sorted(label_of.unique()):
        for name in rng.permutation(sorted(label_of.index[label_of == label])):
            owed += shares
            pick = int(np.argmax(owed))
            owed[pick] -= 1
            result[name] = NAMES[pick]
    for k, split in enumerate(("val", "test", "train")):
        if split not in result.values():
            result[sorted(result)[k]] = split
    return result


def patients(count, classes):
    return pd.Series([f"class{k % classes}" for k in range(count)], [f"p{k}" for k in range(count)])


def test_each_split_has_a_patient():
    """Few patients and every share: what was right stays, what was not is mended by moving one patient of the largest split."""
    mended = 0
    for count, classes, shares in itertools.product(range(3, 30), (1, 2, 3), SHARES):
        label_of = patients(count, classes)
        before, now = split_before(label_of, *shares), deal(label_of, *shares)
        assert set(now.values()) == set(NAMES) and now.keys() == before.keys()
        moved = [name for name in now if now[name] != before[name]]
        if set(before.values()) == set(NAMES):
            assert not moved
        else:
            mended += 1
            largest = max(NAMES, key=list(before.values()).count)
            assert [before[name] for name in moved] == [largest]
    assert mended > 5


@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.15, 0.15), (0.3, 0.1)])
def test_patients_of_earlier_runs_do_not_move(shares):
    """Kermany's layout (four classes of very unequal size) and the phantoms' (equal ones)."""
    sizes = {"CNV": 79, "DME": 70, "DRUSEN": 12, "NORMAL": 353}
    kermany = pd.Series({f"{label}{k}": label for label, count in sizes.items() for k in range(count)})
    for label_of in (kermany, *(patients(count, 4) for count in (8, 40, 120))):
        assert deal(label_of, *shares) == split_before(label_of, *shares)
