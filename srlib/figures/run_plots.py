"""Figures of several runs beside each other: groups of runs (settings) by colour, seeds as points. The style is that of `panels`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ..evaluation.methods import METHODS, colour_of, named
from ..evaluation.statistics import MEASURES, interval
from .panels import LINES

# no colour of a method: there it means the method
PALETTE = (*(colour for colour, _ in LINES), "#C2A5CF", "#1B7837", "#A6761D", "#5E4FA2", "#A5AA99")
NETWORKS = ("srresnet", "srgan")


def _colours(groups) -> dict[str, str]:
    return {group: PALETTE[k % len(PALETTE)] for k, group in enumerate(dict.fromkeys(groups))}


def plane(means: pd.DataFrame, x: str = "texture_error_db", y: str = "gain_db") -> plt.Figure:
    """Every run in the plane of perception (x, lower is better) and distortion (y, higher is better): `series.runs.read_runs`'s means.
    One colour a group of settings, a circle for SRResNet, a triangle for SRGAN, a line from one to the other for each seed; grey: the
    methods without a network, of the first run."""
    fig, ax = plt.subplots(figsize=(8.4, 4.6))
    runs = means.groupby(["run", "method"], sort=False)[[x, y]].mean()
    groups = means.drop_duplicates("run").set_index("run").group
    colours = _colours(groups)
    for run, group in groups.items():
        both = runs.loc[run].loc[list(NETWORKS)]
        ax.plot(both[x], both[y], color=colours[group], lw=0.8, alpha=0.5, zorder=1)
        for method in NETWORKS:
            ax.scatter(*both.loc[method], s=48, marker=METHODS[method].marker, color=colours[group], edgecolor="white", lw=0.6, zorder=3)
    ax.axhline(0, color=colour_of("bicubic"), ls="--", lw=1)
    ax.annotate(
        "bicubic",
        (1, 0),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=colour_of("bicubic"),
    )
    for method in ("linear", "noise"):  # bicubic's own distance would stretch the axis
        at = runs.loc[groups.index[0]].loc[method]
        ax.scatter(*at, s=36, color="#999999", marker="s", zorder=2)
        ax.annotate(named(method), tuple(at), xytext=(6, 5), textcoords="offset points", fontsize=8, color="#666666")
    handles = [Line2D([], [], color=colour, lw=4, label=group) for group, colour in colours.items()]
    handles += [Line2D([], [], color="#555555", marker=METHODS[m].marker, ls="", ms=7, label=named(m)) for m in NETWORKS]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.margins(0.1)
    ax.set(xlabel=MEASURES[x][0] + ": lower has more of HR's grain", ylabel=MEASURES[y][0], title="Up and to the left is better")
    return fig


def group_bars(means: pd.DataFrame, measures=("gain_db", "texture_error_db", "stripe_db")) -> plt.Figure:
    """Both networks of each group of runs: bars of some measures, mean over patients and seeds, with the 95 % bootstrap interval over
    patients; each seed's own mean is a dot."""
    groups = list(dict.fromkeys(means.group))[::-1]
    fig, axes = plt.subplots(1, len(measures), figsize=(2.0 + 3.2 * len(measures), 1.3 + 0.55 * len(groups)), sharey=True, squeeze=False)
    for ax, measure in zip(axes[0], measures, strict=True):
        for offset, method in ((0.2, "srresnet"), (-0.2, "srgan")):
            rows = means[means.method == method]
            for k, group in enumerate(groups):
                part = rows[rows.group == group]
                patients = part.groupby("patient")[measure].mean()
                low, high = interval(patients.to_numpy())
                middle = patients.mean()
                label = named(method) if k == 0 else None
                ax.barh(k + offset, middle, height=0.36, color=colour_of(method), label=label, zorder=1)
                ax.plot([low, high], [k + offset] * 2, color="#222222", lw=1, zorder=2)
                seeds = part.groupby("seed")[measure].mean()
                if len(seeds) > 1:
                    ax.plot(seeds, [k + offset] * len(seeds), "o", ms=3.5, mfc="white", mec="#222222", mew=0.8, zorder=3)
        ax.axvline(0, color="#444444", lw=0.8)
        ax.set(yticks=range(len(groups)), yticklabels=groups, xlabel=MEASURES[measure][0])
        ax.grid(axis="y", visible=False)
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return fig


def learning_curves(histories: dict[str, tuple[str, pd.DataFrame, pd.DataFrame]]) -> plt.Figure:
    """Validation gain over the steps of both trainings; run to (group, history of pretraining, of the adversarial training). One colour a group."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.6), sharey=True)
    colours, named = _colours(group for group, *_ in histories.values()), set()
    for group, *both in histories.values():
        for ax, history in zip(axes, both, strict=True):
            label = group if ax is axes[1] and group not in named else None
            ax.plot(history.step, history.gain_db, color=colours[group], lw=1.3, alpha=0.85, label=label)
        named.add(group)
    for ax, title in zip(axes, ("SRResNet: pretraining", "SRGAN: adversarial training"), strict=True):
        ax.axhline(0, color="#888888", ls="--", lw=1)
        ax.set(xlabel="step", title=title)
    axes[0].set(ylabel="PSNR gain over bicubic (dB), validation")
    fig.legend(loc="outside right center")
    return fig


def differences(table: pd.DataFrame, measure: str, reference: str) -> plt.Figure:
    """`statistics.between`'s table: each group's difference to the reference with its interval over patients, on the band in which another
    choice of seeds alone would leave it."""
    fig, ax = plt.subplots(figsize=(8.4, 1.2 + 0.42 * len(table)))
    for k, (_, row) in enumerate(table.iloc[::-1].iterrows()):
        clear = row.verdict == "beyond both"
        if np.isfinite(row.seeds_margin):
            ax.barh(k, 2 * row.seeds_margin, left=-row.seeds_margin, height=0.7, color="#dddddd", zorder=1)
        ax.plot([row.low, row.high], [k, k], color="#D55E00" if clear else "#555555", lw=1.6, zorder=2)
        ax.plot(row.difference, k, "o", color="#D55E00" if clear else "#555555", ms=5, zorder=3)
    ax.axvline(0, color="#444444", lw=0.8)
    ax.set(yticks=range(len(table)), yticklabels=list(table.index[::-1]), xlabel=f"{MEASURES[measure][0]}: minus {reference}")
    ax.set_title("Grey: seeds alone. Orange: beyond seeds and patients.", loc="left")
    ax.grid(axis="y", visible=False)
    return fig


def cross(table: pd.DataFrame, label: str) -> plt.Figure:
    """A table of (method, trained on) by tested on (`series.cross.cross_table`) as one coloured square of numbers for each method."""
    methods = list(dict.fromkeys(table.index.get_level_values("method")))
    side = 1.6 + 0.75 * len(table.columns)
    fig, axes = plt.subplots(1, len(methods), figsize=(side * len(methods) + 1, 0.8 * side + 0.6), sharey=True, squeeze=False)
    limit = float(np.nanmax(np.abs(table.to_numpy())))
    for ax, method in zip(axes[0], methods, strict=True):
        values = table.loc[method]
        shown = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(values.to_numpy()):
            dark = abs(value) > 0.6 * limit
            ax.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8.5, color="white" if dark else "#222222")
        ax.set(xticks=range(values.shape[1]), yticks=range(len(values)), yticklabels=values.index, title=named(method), xlabel="tested on")
        ax.set_xticks(range(values.shape[1]), values.columns, rotation=30, ha="right")
        ax.grid(False)
    axes[0][0].set_ylabel("trained on")
    fig.colorbar(shown, ax=axes[0].tolist(), label=label, shrink=0.85)
    return fig


def downstream(summary: pd.DataFrame, measures: dict[str, str]) -> plt.Figure:
    """`series.downstream.summarise`'s table: measures (column to label) of each (trained on, tested on), with intervals over patients."""
    pairs = list(summary.index)[::-1]
    names = [f"{named(a)} → {named(b)}" for a, b in pairs]
    fig, axes = plt.subplots(1, len(measures), figsize=(2.2 + 3.0 * len(measures), 3.2), sharey=True, squeeze=False)
    for ax, (measure, label) in zip(axes[0], measures.items(), strict=True):
        for k, pair in enumerate(pairs):
            row, colour = summary.loc[pair], colour_of(pair[1])
            ax.plot([row[f"{measure}_low"], row[f"{measure}_high"]], [k, k], color=colour, lw=1.6)
            ax.plot(row[measure], k, "o", color=colour, ms=6)
        ax.set(yticks=range(len(pairs)), yticklabels=names, xlabel=label)
    axes[0][0].set_title("classifier trained on → tested on", loc="left")
    return fig
