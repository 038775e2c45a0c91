"""The split by patient: what belongs together, and which split each such group goes to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config import UserError


def linked(table: pd.DataFrame) -> pd.Series:
    """For each row the smallest patient that it is linked to through shared patients, by identifier, path or name inside, and shared hashes,
    of files and of what they show."""
    first, names = pd.factorize(table["patient"].astype(str), sort=True)
    columns = [pd.factorize(table[name])[0] for name in ("sha256", "pixels", "patient", "by_path", "by_name")]
    group = pd.Series(first, table.index)
    while True:
        merged = group
        for column in columns:
            merged = merged.groupby(column).transform("min")
        merged = merged.groupby(group).transform("min")
        if merged.equals(group):
            return pd.Series(names[group], table.index)
        group = merged


def deal(table, group, val_share, test_share, seed, order) -> dict[str, str]:
    """Group to split. Groups are dealt out class by class, in a random order (of a list sorted by `order`), each to the split that lacks most of its
    share. Then each split without a group gets one, so of three groups or more every split has one."""
    rng = np.random.default_rng([seed, 1])
    label_of = table["label"].groupby(group).first()
    result, owed = {}, np.zeros(3)
    shares = np.array([1 - val_share - test_share, val_share, test_share])
    for label in sorted(label_of.unique()):
        for name in rng.permutation(sorted(label_of.index[label_of == label], key=order.get)):
            owed += shares
            pick = int(np.argmax(owed))
            owed[pick] -= 1
            result[name] = ("train", "val", "test")[pick]
    for k, split in enumerate(("val", "test", "train")):  # (in older runs this was all: their patients must not move)
        if split not in result.values():
            result[sorted(result, key=order.get)[k]] = split
    for split in ("val", "test"):  # where its only group was taken for another
        dealt = list(result.values())
        if split not in dealt:
            largest = max(("train", "val", "test"), key=dealt.count)
            result[min((name for name in result if result[name] == largest), key=order.get)] = split
    return result


def fewer_patients(table: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """The manifest with `count` training patients left, the classes in turn; those of a smaller count are among those of a larger one.
    Raises UserError where there are not so many."""
    training, order = table[table.split == "train"], table.attrs.get("order", {})
    first = training.groupby("patient", sort=True).label.first().sort_index(key=lambda names: [order.get(name, name) for name in names])
    if count > len(first):
        raise UserError(f"train_patients={count}, but the training split has {len(first)}; set it to {len(first)} or less, or 0 for all")
    first = first.iloc[np.random.default_rng([seed, 2]).permutation(len(first))]
    order = first.groupby(first).cumcount().sort_values(kind="stable").index
    return table[(table.split != "train") | table.patient.isin(order[:count])].reset_index(drop=True)
