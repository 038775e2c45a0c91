"""Curves of spectra and of trainings. The style is that of `panels`."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..evaluation.methods import colour_of, named
from ..metrics import bands
from ..training import diagnostics

# colour and dashes of the loss's terms: told apart in grey and by colour-blind readers
TERMS = {"adversarial": ("#222222", "-"), "content": ("#E69F00", "--"), "pixel": ("#6A3D9A", "-."), "penalty": ("#8C564B", ":")}


def spectra(curves: dict[str, tuple[np.ndarray, np.ndarray]], scale: int) -> plt.Figure:
    """SR over HR in dB by spatial frequency (`metrics.against_hr`). 0 is HR's power; the bands above LR's Nyquist frequency are marked, and
    'rounding', below which rounding to 8 bit decides."""
    fig, ax = plt.subplots(figsize=(7.2, 4.8))
    for low, _ in bands(scale):
        ax.axvline(low, color="#999999", ls=":", lw=0.8)
    ax.axhline(0, color=colour_of("hr"), lw=1.2)
    for name, (f, db) in curves.items():
        if name == "rounding":
            ax.fill_between(f, -80, db, color="#dddddd", zorder=0, label="rounding to 8 bit")
        else:
            ax.plot(f, db, label=named(name), color=colour_of(name), lw=1.6)
    ax.text(0.5 / scale + 0.004, 0.97, "LR's Nyquist", transform=ax.get_xaxis_transform(), color="#444444", va="top")
    ax.set(xlabel="cycles per HR pixel", ylabel="power, SR over HR (dB)", xlim=(0, 0.5), ylim=(-32, 12))
    ax.grid(axis="x", visible=False)
    fig.legend(loc="outside lower center", ncols=4)
    return fig


def pretrain_curves(history: pd.DataFrame) -> plt.Figure:
    """The error on training crops as a PSNR, and the validation gain, over the steps."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    axes[0].plot(history.step, -10 * np.log10(history.loss / 4), color=colour_of("srresnet"))  # MSE on [-1, 1]: a range of 2
    axes[0].set(xlabel="step", ylabel="PSNR of the mean error (dB)", xlim=(0, None), title="Training crops, since the last validation")
    _gain(axes[1], history, colour_of("srresnet"))
    return fig


def _gain(ax, history, colour):
    ax.plot(history.step, history.gain_db, color=colour)
    ax.axhline(0, color=colour_of("bicubic"), ls="--", lw=1)
    ax.annotate("bicubic", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                ha="right", color=colour_of("bicubic"))  # fmt: skip
    ax.set(xlabel="step", ylabel="PSNR gain over bicubic (dB)", title="Validation, valid region")


def adversarial_curves(history: pd.DataFrame) -> plt.Figure:
    """An adversarial training, SRGAN's or the sampler's, and its health: D's logits, loss terms, gain, power by band, stripes, warnings in words."""
    colour = colour_of("sampler" if "penalty" in history else "srgan")
    fig, axes = plt.subplots(3, 2, figsize=(9, 9.6))
    axes, last, steps = axes.ravel(), axes[2, 1], history.step
    for ax in axes[:5]:
        ax.set_xlim(0, steps.iloc[-1])
    axes[0].plot(steps, history.d_hr, label="D(HR)", color=colour_of("hr"))
    axes[0].plot(steps, history.d_sr, label="D(SR)", color=colour)
    axes[0].set(xlabel="step", ylabel="mean logit", title="Discriminator: the gap is what it knows")
    axes[0].legend()
    for term, (line, dashes) in TERMS.items():
        if term in history and history[term].abs().max() > 0:
            axes[1].plot(steps, history[term], label=term if term != "penalty" else "D's penalty", color=line, ls=dashes)
    scale = "linear" if "pixel" in history else "log"  # the sampler's pixel term may fall below 0; SRGAN's terms are far apart
    axes[1].set(xlabel="step", ylabel="weighted term", title="Loss terms", yscale=scale)
    axes[1].legend()
    _gain(axes[2], history, colour)
    powers = [c for c in history if c.startswith("band")]
    for k, band in enumerate(powers):
        name = f"band {k + 1}" + {0: " (coarsest)", len(powers) - 1: " (finest)"}.get(k, "")
        axes[3].plot(steps, history[band], label=name, color=plt.get_cmap("viridis")(0.85 * k / max(len(powers) - 1, 1)))
    axes[3].axhline(0, color=colour_of("hr"), lw=0.8, ls=":")
    axes[3].set(xlabel="step", ylabel="SR against HR (dB)", title="Power above LR's Nyquist, by band")
    low, high = axes[3].get_ylim()
    axes[3].set_ylim(low - 0.14 * len(powers) * (high - low), high)  # room for the legend
    axes[3].legend(ncols=2, loc="lower center")
    axes[4].plot(steps, history.stripe_db, color=colour)
    axes[4].set(xlabel="step", ylabel="dB", ylim=(0, None), title="Stripe index: 1 to 2 has none")
    end = history.iloc[-1]
    notes = list(diagnostics.adversarial_warnings(history).values()) or ["Nothing to warn of."]
    notes.append(f"The discriminator is right with probability {end.d_right:.2f} (0.5: it cannot tell).")
    notes.append(f"Adversarial share of the loss: {end.adversarial_share:.1%}.")
    if np.isfinite(end.consistency_db):
        notes.append(f"Data consistency: {end.consistency_db:.0f} dB.")
    last.axis("off")
    last.set_title("Health at the last step", loc="left")
    last.text(0, 0.97, "\n\n".join(textwrap.fill(sentence, 50) for sentence in notes), va="top", fontsize=10, transform=last.transAxes)
    return fig
