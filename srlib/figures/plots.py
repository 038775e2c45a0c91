"""Curves, points and bars: of images, of tables, and of a training while it runs. The style is that of `panels`."""

from __future__ import annotations

import contextlib
import itertools
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..evaluation.methods import METHODS, colour_of, named
from ..metrics import bands, rank_distance
from ..training import diagnostics
from .panels import LINES, finish

SPLITS = {"train": "#444444", "val": "#888888", "test": "#cccccc"}


def histograms(values: dict[str, np.ndarray]) -> plt.Figure:
    """Grey-level histograms (counts of 256 levels), one line each, as shares on a logarithmic axis."""
    fig, ax = plt.subplots(figsize=(7, 3.2))
    for (name, counts), (colour, dashes) in zip(values.items(), itertools.cycle(LINES)):
        ax.plot(np.arange(256), np.maximum(counts / counts.sum(), 1e-7), label=name, lw=1.4, color=colour, ls=dashes)
    ax.set(xlabel="grey level", ylabel="share of pixels", yscale="log", xlim=(0, 255), title="Grey levels by class")
    ax.legend()
    return fig


def split_bars(table: pd.DataFrame) -> plt.Figure:
    """Patients of each class in each split."""
    fig, ax = plt.subplots(figsize=(7.5, 2.8))
    counts = table.groupby(["label", "split"]).patient.nunique().unstack(fill_value=0)
    counts.reindex(columns=list(SPLITS), fill_value=0).plot.barh(stacked=True, ax=ax, color=list(SPLITS.values()), width=0.7)
    ax.set(xlabel="patients", ylabel="")
    ax.grid(axis="y", visible=False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def spectra(curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], scale: int) -> plt.Figure:
    """SR over HR in dB by spatial frequency (`metrics.against_hr`), a panel for each direction ('all', 'depth', 'across'). 0 is
    HR's power; the bands above LR's Nyquist frequency are marked, and 'rounding', below which rounding to 8 bit decides."""
    titles = {"all": "All directions", "depth": "Along depth", "across": "Across"}
    fig, axes = plt.subplots(1, len(curves), figsize=(4.0 * len(curves), 3.9), sharey=True, squeeze=False)
    for ax, (direction, found) in zip(axes[0], curves.items(), strict=True):
        for low, _ in bands(scale):
            ax.axvline(low, color="#999999", ls=":", lw=0.8)
        ax.axhline(0, color=colour_of("hr"), lw=1.2)
        for name, (f, db) in found.items():
            if name == "rounding":
                ax.fill_between(f, -80, db, color="#dddddd", zorder=0, label="rounding to 8 bit")
            else:
                ax.plot(f, db, label=named(name), color=colour_of(name), lw=1.6)
        ax.text(0.5 / scale + 0.004, 0.97, "LR's Nyquist", transform=ax.get_xaxis_transform(), fontsize=8, color="#444444", va="top")
        ax.set(xlabel="cycles per HR pixel", xlim=(0, 0.5), ylim=(-32, 12), title=titles[direction])
        ax.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("power, SR over HR (dB)")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return fig


def ranks(shares: pd.DataFrame) -> plt.Figure:
    """HR's rank among the draws (`evaluation.drawn`'s ranks.csv): a histogram for each region; dashed: equal shares, as right draws have. The number is
    the distance to equal."""
    regions = list(dict.fromkeys(shares.region))
    fig, axes = plt.subplots(1, len(regions), figsize=(3.1 * len(regions), 2.9), sharey=True, squeeze=False)
    for ax, region in zip(axes[0], regions, strict=True):
        values = shares[shares.region == region].share.to_numpy()
        ax.bar(range(len(values)), values, color=colour_of("srgan"), width=0.85)
        ax.axhline(1 / len(values), color=colour_of("hr"), ls="--", lw=1)
        ax.set(
            xlabel=f"draws below HR, of {len(values) - 1}",
            title=f"{region}: {rank_distance(values):.2f} from equal",
            xticks=range(len(values)),
        )
        ax.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("share of pixels")
    return fig


def calibration(curves: pd.DataFrame) -> plt.Figure:
    """The error of the mean against the error that the spread predicts (`evaluation.drawn`'s calibration.csv), both in grey levels; on the line
    where the prediction is right, above it where it is too sure."""
    fig, ax = plt.subplots(figsize=(4.6, 4.2))
    names = {"srgan": "SRGAN: 8 draws", "srresnet": "SRResNet: 8 flips and turns"}
    for method, part in curves.groupby("method", sort=False):
        ax.plot(part.predicted, part.error, color=colour_of(method), marker=METHODS[method].marker, ms=5, label=names[method])
    limit = 1.05 * curves[["predicted", "error"]].to_numpy().max()
    ax.plot([0, limit], [0, limit], color=colour_of("hr"), ls="--", lw=1)
    ax.set(xlabel="predicted error (grey levels)", ylabel="real error (grey levels)", xlim=(0, limit), ylim=(0, limit))
    ax.legend(loc="lower right")
    return fig


def method_points(table: pd.DataFrame, x: str, y: str, labels: dict[str, str]) -> plt.Figure:
    """Each method as a point in the plane of two measures (`statistics.summarise`'s table), with its 95 % interval over patients where the
    table has one."""
    fig, ax = plt.subplots(figsize=(7.2, 4.4))
    for method, row in table.iterrows():
        colour = colour_of(method) or "#444444"
        if f"{x}_low" in table:
            spread = [[[row[k] - row[f"{k}_low"]], [row[f"{k}_high"] - row[k]]] for k in (x, y)]
            ax.errorbar(row[x], row[y], xerr=spread[0], yerr=spread[1], color=colour, lw=1, alpha=0.5, zorder=2)
        marker = METHODS[method].marker if method in METHODS else "o"
        ax.scatter(row[x], row[y], s=60, color=colour, marker=marker, zorder=3)
        ax.annotate(named(method), (row[x], row[y]), xytext=(7, 5), textcoords="offset points", fontsize=8.5)
    ax.margins(0.12)
    ax.set(xlabel=labels[x], ylabel=labels[y])
    return fig


def bars(table: pd.DataFrame, columns: dict[str, str], goal: float | None = 0.0) -> plt.Figure:
    """Measures (column to label) as bars for each method, side by side, with 95 % intervals where the table has them (`_low`, `_high`), and a
    line where HR stands (`goal`)."""
    methods = list(table.index)[::-1]
    fig, axes = plt.subplots(1, len(columns), figsize=(2.2 + 3.1 * len(columns), 2.9), sharey=True, squeeze=False)
    for ax, (column, label) in zip(axes[0], columns.items(), strict=True):
        values = table[column][methods]
        ax.barh([named(m) for m in methods], values, color=[colour_of(m) or "#444444" for m in methods], height=0.65)
        if f"{column}_low" in table:
            spread = [values - table[f"{column}_low"][methods], table[f"{column}_high"][methods] - values]
            ax.errorbar(values, range(len(methods)), xerr=spread, fmt="none", ecolor="#222222", lw=1)
        if goal is not None:
            ax.axvline(goal, color="#444444", lw=0.8)
        ax.set(xlabel=label)
        ax.grid(axis="y", visible=False)
    return fig


@contextlib.contextmanager
def live(curves):
    """Gives a `show(history)` that redraws `curves(history)` in JupyterLab while a training runs; elsewhere it does nothing. At the end
    the picture goes, for the cell to show the last one as its result; where the training was stopped it stays."""
    if "JPY_SESSION_NAME" not in os.environ:
        yield lambda history: None
        return
    from IPython.display import HTML, display

    handle = display(display_id=True)

    def show(history: pd.DataFrame) -> None:
        if len(history) > 1:
            handle.update(finish(curves(history)))

    yield show
    handle.update(HTML(""))


def pretrain_curves(history: pd.DataFrame) -> plt.Figure:
    """The error on training crops as a PSNR, and the validation gain, over the steps."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.0))
    axes[0].plot(history.step, -10 * np.log10(history.loss / 4), color=colour_of("srresnet"))  # MSE on [-1, 1]: a range of 2
    axes[0].set(xlabel="step", ylabel="PSNR of the mean error (dB)", xlim=(0, None), title="Training crops, since the last validation")
    _gain(axes[1], history, colour_of("srresnet"))
    return fig


def _gain(ax, history, colour):
    ax.plot(history.step, history.gain_db, color=colour)
    ax.axhline(0, color=colour_of("bicubic"), ls="--", lw=1)
    ax.annotate("bicubic", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                ha="right", fontsize=8, color=colour_of("bicubic"))  # fmt: skip
    ax.set(xlabel="step", ylabel="PSNR gain over bicubic (dB)", title="Validation, valid region")


def srgan_curves(history: pd.DataFrame) -> plt.Figure:
    """The adversarial training and its health: D's logits, loss terms, gain, power by band, stripes, and warnings in words. From step 0 on."""
    fig, axes = plt.subplots(2, 3, figsize=(12, 6.0))
    axes, last, steps = axes.ravel(), axes[1, 2], history.step
    for ax in axes[:5]:
        ax.set_xlim(0, steps.iloc[-1])
    axes[0].plot(steps, history.d_hr, label="D(HR)", color=colour_of("hr"))
    axes[0].plot(steps, history.d_sr, label="D(SR)", color=colour_of("srgan"))
    axes[0].set(xlabel="step", ylabel="mean logit", title="Discriminator: the gap is what it knows")
    axes[0].legend()
    for term, (colour, dashes) in zip(("adversarial", "content", "pixel", "penalty"), LINES, strict=False):
        if term in history and history[term].abs().max() > 0:
            axes[1].plot(steps, history[term], label=term if term != "penalty" else "D's penalty", color=colour, ls=dashes)
    axes[1].set(xlabel="step", ylabel="weighted term", title="Loss terms")
    axes[1].legend()
    _gain(axes[2], history, colour_of("srgan"))
    powers = [c for c in history if c.startswith("band")]
    for k, band in enumerate(powers):
        name = f"band {k + 1}" + {0: " (coarsest)", len(powers) - 1: " (finest)"}.get(k, "")
        axes[3].plot(steps, history[band], label=name, color=plt.get_cmap("viridis")(0.85 * k / max(len(powers) - 1, 1)))
    axes[3].axhline(0, color=colour_of("hr"), lw=0.8, ls=":")
    axes[3].set(xlabel="step", ylabel="SR against HR (dB)", title="Power above LR's Nyquist, by band")
    axes[3].legend()
    axes[4].plot(steps, history.stripe_db, color=colour_of("srgan"))
    axes[4].set(xlabel="step", ylabel="dB", ylim=(0, None), title="Stripe index: 1 to 2 has none")
    end = history.iloc[-1]
    said = list(diagnostics.warnings(history).values()) or ["Nothing to warn of."]
    if np.isfinite(end.consistency_db):
        said.append(f"LR consistency: {end.consistency_db:.0f} dB.")
    said.append(f"The discriminator is right with probability {end.d_right:.2f} (0.5: it cannot tell).")
    last.axis("off")
    last.set_title("Health at the last step", loc="left")
    last.text(0, 0.97, "\n\n".join(textwrap.fill(sentence, 46) for sentence in said), va="top", fontsize=9.5, transform=last.transAxes)
    return fig
