"""Every figure of the series, in one style. Functions take plain arrays and tables and return a matplotlib Figure."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_gradient_magnitude

from . import health
from .metrics import spectrum

COLOURS = {
    "lr": "#888888",
    "nearest": "#999999",
    "bicubic": "#0072B2",
    "linear": "#56B4E9",
    "srresnet": "#009E73",
    "srgan": "#D55E00",
    "noise": "#CC79A7",
    "hr": "#000000",
}
NAMES = {
    "lr": "LR",
    "nearest": "LR (nearest)",
    "bicubic": "bicubic",
    "linear": "linear",
    "srresnet": "SRResNet",
    "srgan": "SRGAN",
    "noise": "SRResNet + noise",
    "hr": "HR",
}
STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.facecolor": "white",
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",
}
plt.rcParams.update(STYLE)


def finish(fig: plt.Figure, path: str | Path | None = None, phantom: bool = False) -> plt.Figure:
    """Mark the figure where it shows phantoms, and write it as PNG where `path` is given. Returns it, for display."""
    if phantom:
        fig.suptitle("phantom: not a result on OCT", fontsize=8, color="#a04000", x=0.995, ha="right")
    if path:
        fig.savefig(path)
    plt.close(fig)  # the returned figure is shown once, by the notebook
    return fig


def _draw(ax, image: np.ndarray, title: str = "", **kwargs):
    kwargs = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"} | kwargs
    shown = ax.imshow(image, **kwargs)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title(title)
    return shown


def live(curves):
    """A `show(history)` callback that redraws `curves(history)` in JupyterLab while a training runs; elsewhere it does nothing."""
    if "JPY_SESSION_NAME" not in os.environ:
        return lambda history: None
    from IPython.display import display

    handle = display(display_id=True)

    def show(history: pd.DataFrame) -> None:
        if len(history) > 1:
            handle.update(finish(curves(history)))

    return show


def grid(images, titles, columns: int = 4, width: float = 2.9) -> plt.Figure:
    """Images in a grid, each at its own aspect, titles above."""
    images = list(images)
    rows = -(-len(images) // columns)
    ratio = max(i.shape[0] / i.shape[1] for i in images)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, (width * ratio + 0.45) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        _draw(ax, image, title)
    return fig


def anatomy(phantom) -> plt.Figure:
    """A drawn phantom (`phantom.draw`) with its truth: the surfaces, each named where it begins, and the lesions in colour."""
    fig, ax = plt.subplots(figsize=(10, 5.2))
    height, width = phantom.image.shape
    rows = np.stack(list(phantom.surfaces.values()))
    top, bottom = max(0, int(rows.min()) - 40), min(height, int(rows.max()) + 70)
    _draw(ax, phantom.image[top:bottom], extent=(0, width, bottom, top), aspect="auto")
    shown = [name for name, row in phantom.surfaces.items() if name not in ("fluid", "below RPE")]
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(shown)))
    places = np.linspace(top + 14, bottom - 10, len(shown))
    for name, colour, place in zip(shown, colours, places, strict=True):
        row = phantom.surfaces[name]
        ax.plot(np.arange(width), row, color=colour, lw=1.1)
        ax.annotate(name, (width - 1, row[-1]), (width + 22, place), fontsize=9, va="center", annotation_clip=False)
        ax.plot([width - 1, width + 20], [row[-1], place], color=colour, lw=1.1, clip_on=False)
    for kind, colour in zip(phantom.lesions, ("#56B4E9", "#E69F00", "#CC79A7", "#F0E442"), strict=False):
        ax.contourf(np.arange(width), np.arange(height), phantom.lesions[kind], levels=[0.5, 1], colors=[colour], alpha=0.45)
        ax.plot([], [], color=colour, lw=6, label=kind)
    ax.set(xlim=(0, width), ylim=(bottom, top))
    if phantom.lesions:
        ax.legend(loc="lower left", frameon=True)
    return fig


def histograms(values: dict[str, np.ndarray]) -> plt.Figure:
    """Grey-level histograms (counts of 256 levels), one line each, as shares on a logarithmic axis."""
    fig, ax = plt.subplots(figsize=(7, 3.2))
    for name, counts in values.items():
        ax.plot(np.arange(256), np.maximum(counts / counts.sum(), 1e-7), label=name, lw=1.4)
    ax.set(xlabel="grey level", ylabel="share of pixels", yscale="log", xlim=(0, 255), title="Grey levels by class")
    ax.legend()
    return fig


def split_bars(table: pd.DataFrame) -> plt.Figure:
    """Images and patients of each class in each split."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.0))
    for ax, what in zip(axes, ("images", "patients"), strict=True):
        groups = table.groupby(["label", "split"])
        counts = (groups.size() if what == "images" else groups.patient.nunique()).unstack(fill_value=0)
        counts = counts.reindex(columns=["train", "val", "test"], fill_value=0)
        counts.plot.barh(stacked=True, ax=ax, color=["#0072B2", "#E69F00", "#D55E00"], legend=what == "patients", width=0.7)
        ax.set(xlabel=what, ylabel="")
        ax.grid(axis="y", visible=False)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def valid(hr: np.ndarray, region: np.ndarray) -> plt.Figure:
    """An image with what is not valid in orange, beside its mean grey level by depth."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.9), width_ratios=[1.3, 1])
    tint = np.repeat(hr[..., None] if hr.ndim == 2 else hr, 3 if hr.ndim == 2 else 1, 2).astype(float)
    tint[~region] = (230, 120, 20)
    _draw(axes[0], tint.astype(np.uint8), f"valid region: {region.mean():.0%} of the pixels")
    grey = hr if hr.ndim == 2 else hr.mean(2)
    mean = np.ma.masked_array(grey, ~region).mean(1)
    axes[1].plot(mean, np.arange(len(mean)), color=COLOURS["hr"], lw=1.2)
    axes[1].set(xlabel="mean grey level", ylabel="row (depth, pixels)", ylim=(len(mean), 0), title="Grey level by depth")
    return fig


def radial(image: np.ndarray, region: np.ndarray | None = None, bins: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """(frequency in cycles a pixel, mean power in dB) of a `metrics.spectrum`, averaged over rings."""
    power = spectrum(image, region)
    f = np.hypot(np.fft.fftfreq(power.shape[0])[:, None], np.fft.fftfreq(power.shape[1])[None])
    edges = np.linspace(0, 0.5, bins + 1)
    which = np.digitize(f.ravel(), edges) - 1
    inside = which < bins
    total = np.bincount(which[inside], power.ravel()[inside], bins) / np.maximum(np.bincount(which[inside], minlength=bins), 1)
    return (edges[1:] + edges[:-1]) / 2, 10 * np.log10(total + 1e-6)


def spectra(curves: dict[str, tuple[np.ndarray, np.ndarray]], scale: int) -> plt.Figure:
    """Radial spectra (`radial`) of several images or methods, with the LR Nyquist frequency marked."""
    fig, ax = plt.subplots(figsize=(7.4, 3.6))
    for name, (f, db) in curves.items():
        ax.plot(f, db, label=NAMES.get(name, name), color=COLOURS.get(name), lw=2.2 if name == "hr" else 1.5)
    ax.axvline(0.5 / scale, color="#666666", ls="--", lw=1)
    ax.text(0.5 / scale + 0.004, 0.03, "LR Nyquist", transform=ax.get_xaxis_transform(), fontsize=8, color="#444444")
    ax.set(xlabel="spatial frequency (cycles per HR pixel)", ylabel="power (dB)", xlim=(0, 0.5), title="Radial power spectrum")
    ax.legend(loc="upper right", ncol=2)
    return fig


def reductions(lr: dict[str, np.ndarray], notes: dict[str, str], scale: int, side: int = 40) -> plt.Figure:
    """The same square of one scan's LR images, one for each kind of reduction, and their radial spectra against that of 'bicubic'.

    `lr`: kind to uint8 LR image, all of one size, 'bicubic' among them; `notes`: kind to the text under it. `side` in LR pixels.
    """
    side = min(side, *lr["bicubic"].shape[:2])
    top, left = _zoom_box(lr["bicubic"], side)
    columns = -(-len(lr) // 2)
    fig = plt.figure(figsize=(2.35 * columns, 8.6))
    places = fig.add_gridspec(3, columns, height_ratios=[1, 1, 1.15])
    _, reference = radial(lr["bicubic"], bins=40)
    ax = fig.add_subplot(places[2, :])
    for k, (kind, image) in enumerate(lr.items()):
        square = fig.add_subplot(places[k // columns, k % columns])
        _draw(square, image[top : top + side, left : left + side], kind)
        square.set_xlabel(notes.get(kind, ""), fontsize=8.5)
        f, db = radial(image, bins=40)
        ax.plot(f, db - reference, label=kind, lw=2.2 if kind == "bicubic" else 1.5, color="#000000" if kind == "bicubic" else f"C{k}")
    ax.set(
        xlabel="spatial frequency (cycles per LR pixel)",
        ylabel="power against bicubic (dB)",
        xlim=(0, 0.5),
        title="What is left of the LR spectrum",
    )
    ax.legend(loc="lower left", ncol=2)
    return fig


def pretrain_curves(history: pd.DataFrame) -> plt.Figure:
    """MSE and validation gain over the steps."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.0))
    axes[0].plot(history.step, history.loss, color=COLOURS["srresnet"])
    axes[0].set(xlabel="step", ylabel="MSE, image in [-1, 1]", yscale="log", title="Training loss")
    _gain(axes[1], history, COLOURS["srresnet"])
    return fig


def _gain(ax, history, colour):
    ax.plot(history.step, history.gain_db, color=colour)
    ax.axhline(0, color=COLOURS["bicubic"], ls="--", lw=1)
    ax.annotate("bicubic", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                ha="right", fontsize=8, color=COLOURS["bicubic"])  # fmt: skip
    ax.set(xlabel="step", ylabel="PSNR less bicubic's (dB)", title="Validation, valid region")


def srgan_curves(history: pd.DataFrame) -> plt.Figure:
    """The game and its health: D's probabilities, shares of the loss terms, gradients, gain, LR consistency, warnings in words."""
    fig, axes = plt.subplots(2, 3, figsize=(12, 6.0))
    axes, last = axes.ravel(), axes[1, 2]
    axes[0].plot(history.step, history.d_hr, label="D(HR)", color=COLOURS["hr"])
    axes[0].plot(history.step, history.d_sr, label="D(SR)", color=COLOURS["srgan"])
    axes[0].axhline(0.5, color="#999999", lw=0.8, ls=":")
    axes[0].set(xlabel="step", ylabel="mean probability of 'real'", ylim=(-0.02, 1.02), title="Discriminator")
    axes[0].legend(loc="center right")
    terms = [t for t in ("content", "adversarial", "pixel", "grid") if history.get(f"{t}_share", pd.Series([0.0])).max() > 0]
    axes[1].stackplot(history.step, *(history[f"{t}_share"] for t in terms), labels=terms, alpha=0.85,
                      colors=["#009E73", "#D55E00", "#0072B2", "#999999"])  # fmt: skip
    axes[1].set(xlabel="step", ylabel="share of the generator's loss", ylim=(0, 1), title="Loss terms")
    axes[1].legend(loc="lower left", frameon=True)
    _gain(axes[2], history, COLOURS["srgan"])
    axes[3].plot(history.step, history.g_norm, label="generator", color=COLOURS["srgan"])
    axes[3].plot(history.step, history.d_norm, label="discriminator", color=COLOURS["hr"])
    axes[3].set(xlabel="step", ylabel="norm", yscale="log", title="Gradients")
    axes[3].legend()
    axes[4].plot(history.step, history.consistency_db, color=COLOURS["srgan"])
    axes[4].axhline(health.LEFT_LR, color="#999999", lw=0.8, ls=":")
    axes[4].set(xlabel="step", ylabel="PSNR against LR (dB)", title="LR consistency: SR brought down again")
    said = list(health.warnings(history).values()) or ["Nothing to warn of."]
    said.append(f"The discriminator learnt from {history.d_learnt.iloc[-1]:.0%} of the last steps.")
    last.axis("off")
    last.set_title("Health at the last step", loc="left")
    last.text(0, 0.97, "\n\n".join(textwrap.fill(sentence, 46) for sentence in said), va="top", fontsize=9.5, transform=last.transAxes)
    return fig


def _zoom_box(hr: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square with the most edges that are not those of fill."""
    y = (hr if hr.ndim == 2 else hr.mean(2)).astype(float)
    y[y >= 250] = 0
    edges = gaussian_gradient_magnitude(y, 2)
    best, where = -1.0, (0, 0)
    for top in range(0, hr.shape[0] - side + 1, side // 4):
        for left in range(0, hr.shape[1] - side + 1, side // 4):
            score = edges[top : top + side, left : left + side].mean()
            if score > best:
                best, where = score, (top, left)
    return where


def comparison(images: dict[str, np.ndarray], measures: dict[str, str], title: str = "", side: int = 112) -> plt.Figure:
    """The HR image with a frame, then the framed square of each image side by side, its measures underneath.

    `images`: name to uint8 array of HR's size, 'hr' among them; `measures`: name to the text under it.
    """
    hr = images["hr"]
    side = min(side, *hr.shape[:2])
    top, left = _zoom_box(hr, side)
    columns = len(images)
    ratio = hr.shape[0] / hr.shape[1]
    fig, axes = plt.subplots(1, columns + 1, figsize=(2.35 * columns + 2.35 / ratio, 3.1), width_ratios=[1 / ratio, *[1] * columns])
    _draw(axes[0], hr, title)
    axes[0].add_patch(Rectangle((left, top), side, side, fill=False, ec="#FFB000", lw=1.6))
    for ax, (name, image) in zip(axes[1:], images.items(), strict=True):
        _draw(ax, image[top : top + side, left : left + side], NAMES.get(name, name))
        ax.set_xlabel(measures.get(name, ""), fontsize=8.5)
    return fig


def error_maps(images: dict[str, np.ndarray], limit: int = 40) -> plt.Figure:
    """|SR - HR| in grey levels for each method, one colour scale."""
    hr = images["hr"].astype(int)
    names = [n for n in images if n != "hr"]
    ratio = hr.shape[0] / hr.shape[1]
    fig, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names) + 0.6, 3.1 * ratio + 0.5), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        gap = np.abs(images[name].astype(int) - hr)
        shown = _draw(
            ax, gap if gap.ndim == 2 else gap.mean(2), f"{NAMES.get(name, name)}: mean {gap.mean():.1f}", cmap="magma", vmax=limit
        )
    fig.colorbar(shown, ax=axes[0].tolist(), label="|SR - HR| (grey levels)", shrink=0.85)
    return fig


def method_points(table: pd.DataFrame, x: str, y: str, labels: dict[str, str]) -> plt.Figure:
    """Each method as a point in the plane of two measures (a summary with methods as index); runs in one colour a method."""
    fig, ax = plt.subplots(figsize=(6.2, 3.9))
    for method, row in table.iterrows():
        ax.scatter(row[x], row[y], s=60, color=COLOURS.get(method, "#444444"), zorder=3)
        ax.annotate(NAMES.get(method, method), (row[x], row[y]), xytext=(6, 4), textcoords="offset points", fontsize=8.5)
    ax.margins(0.16)
    ax.set(xlabel=labels[x], ylabel=labels[y])
    return fig


def bars(table: pd.DataFrame, column: str, label: str) -> plt.Figure:
    """One measure as a bar for each method."""
    fig, ax = plt.subplots(figsize=(6.2, 2.8))
    methods = list(table.index)[::-1]
    ax.barh([NAMES.get(m, m) for m in methods], table[column][methods], color=[COLOURS.get(m, "#444444") for m in methods], height=0.65)
    ax.axvline(0, color="#444444", lw=0.8)
    ax.set(xlabel=label)
    return fig
