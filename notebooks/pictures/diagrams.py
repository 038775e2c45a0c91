"""The drawn figures of the notebooks, into the cells that name them as attachments: `python notebooks/pictures/diagrams.py`.

`roadmap_NN` (the seven notebooks, one of them "you are here"), `generator`, `discriminator`, `turn` (one step of the adversarial training).
"""

import base64
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from matplotlib.patches import FancyBboxPatch
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1]
STOPS = {
    "01": "scans",
    "02": "LR",
    "03": "SRResNet",
    "04": "SRGAN",
    "05": "evaluation",
    "06": "experiments",
    "07": "sampler",
}
G, D, VGG, DATA, LOSS, HERE = "#d8f0e6", "#fbe3cf", "#f6e6b4", "#e4e4e4", "#f3d6e3", "#FFB000"


def page(width: float, height: float, units: tuple[float, float]):
    """A figure of so many inches whose axes run from 0 to `units`, y upwards, and equal in both directions."""
    fig = plt.figure(figsize=(width, height), dpi=110)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, units[0]), ylim=(0, units[1]))
    ax.axis("off")
    return fig, ax


def box(
    ax,
    x: float,
    y: float,
    text: str,
    colour: str,
    width: float = 1.5,
    height: float = 0.9,
    size: float = 11,
    **more,
) -> None:
    """A box with its centre at (x, y)."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": colour, "ec": "#555555", "lw": 1} | more
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=size, linespacing=1.25, color="#111111")


def arrow(ax, start: tuple, end: tuple) -> None:
    ax.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1.2, "shrinkA": 0, "shrinkB": 0},
    )


def roadmap(here: str):
    fig, ax = page(8, 1, (14.6, 1.83))
    for k, (number, name) in enumerate(STOPS.items()):
        x = 1.1 + 2.07 * k
        mine = number == here
        box(
            ax,
            x,
            0.82,
            f"{number}\n{name}",
            HERE if mine else "#ffffff",
            1.9,
            1.0,
            10.5,
            ls="-" if number != "07" else "--",
        )
        if k:
            arrow(ax, (x - 1.12, 0.82), (x - 0.95, 0.82))
        if mine:
            ax.text(x, 1.48, "you are here", ha="center", fontsize=10.5, color="#8a5a00")
    ax.text(14.5, 0.07, "beyond the paper", ha="right", fontsize=10, color="#555555")
    return fig


def generator():
    fig, ax = page(8, 3.1, (16, 6.2))
    row = [
        (0.9, "LR", DATA, 1.3), (2.9, "conv 9x9\n64 maps\nPReLU", G, 1.7), (5.6, "residual\nblock\n16 times", G, 1.9),
        (8.0, "conv 3x3\nBN", G, 1.6), (10.9, "conv 3x3, 256\nPixelShuffle\nPReLU, twice", G, 2.3), (13.4, "conv 9x9\n1 map", G, 1.6),
        (15.2, "SR", DATA, 1.2),
    ]  # fmt: skip
    for (x, text, colour, width), after in zip(row, [*row[1:], None], strict=True):
        box(ax, x, 4.3, text, colour, width, 1.5)
        if after:
            arrow(ax, (x + width / 2, 4.3), (after[0] - after[3] / 2, 4.3))
    ax.plot((4.15, 4.15, 9.3), (4.3, 5.45, 5.45), color="#333333", lw=1.2)
    arrow(ax, (9.3, 5.45), (9.3, 4.3))
    ax.text(
        6.7, 5.6, "skip: the blocks correct what comes in", ha="center", fontsize=10, color="#333333"
    )
    for x, text in ((2.9, "LR's size\n24 x 24"), (10.9, "48 x 48,\nthen 96 x 96"), (15.2, "96 x 96")):
        ax.text(x, 3.4, text, ha="center", va="top", fontsize=10, color="#555555")
    ax.text(0.25, 1.25, "a residual block:", fontsize=11, va="center", color="#333333")
    inner = [
        (4.4, "conv 3x3", 1.6),
        (6.2, "BN", 0.9),
        (7.8, "PReLU", 1.3),
        (9.6, "conv 3x3", 1.6),
        (11.4, "BN", 0.9),
        (12.9, "+", 0.6),
    ]
    arrow(ax, (3.1, 1.25), (3.6, 1.25))
    for (x, text, width), after in zip(inner, [*inner[1:], (14.2, "", 0)], strict=True):
        box(ax, x, 1.25, text, G, width, 0.8)
        arrow(ax, (x + width / 2, 1.25), (after[0] - after[2] / 2, 1.25))
    ax.plot((3.3, 3.3, 12.9), (1.25, 0.35, 0.35), color="#333333", lw=1.2)
    arrow(ax, (12.9, 0.35), (12.9, 0.85))
    return fig


def discriminator():
    fig, ax = page(8, 2.1, (16, 4.2))
    sides, maps = (96, 48, 48, 24, 24, 12, 12, 6), (64, 64, 128, 128, 256, 256, 512, 512)
    box(ax, 0.75, 2.35, "SR or\nHR", DATA, 1.1, 1.0)
    for k, (side, count) in enumerate(zip(sides, maps, strict=True)):
        x = 2.1 + 1.28 * k
        box(ax, x, 2.35, f"{count}\nmaps", D, 0.95, 0.7 + 0.016 * side)
        arrow(ax, (x - 0.8, 2.35), (x - 0.475, 2.35))
        ax.text(x, 0.8, f"{side}", ha="center", fontsize=10, color="#555555")
        ax.text(x, 3.65, "stride 2" if k % 2 else "stride 1", ha="center", fontsize=10, color="#555555")
    ax.text(0.2, 0.8, "side:", fontsize=10, color="#555555")
    box(ax, 12.75, 2.35, "dense\n1,024", D, 1.15, 1.0)
    box(ax, 14.75, 2.35, "logit: HR\nif above 0", D, 1.9, 1.0)
    arrow(ax, (11.535, 2.35), (12.17, 2.35))
    arrow(ax, (13.33, 2.35), (13.8, 2.35))
    ax.text(
        6.6,
        0.12,
        "each: conv 3x3, BN (not the first), LeakyReLU 0.2",
        ha="center",
        fontsize=10.5,
        color="#333333",
    )
    return fig


def turn():
    fig, ax = page(8, 3.6, (16, 7.2))
    ax.text(0.2, 6.75, "1. D learns", fontsize=12, weight="bold", color="#9c4a00")
    ax.text(0.2, 3.35, "2. G learns", fontsize=12, weight="bold", color="#0b6b4c")
    box(ax, 1.1, 4.9, "LR", DATA, 1.2)
    box(ax, 3.4, 4.9, "G", G, 1.2)
    box(ax, 5.7, 4.9, "SR", DATA, 1.2)
    box(ax, 5.7, 6.2, "HR", DATA, 1.2)
    box(ax, 8.7, 5.55, "D", D, 1.3, 1.3, ec="#9c4a00", lw=2.2)
    box(ax, 13.3, 5.55, "loss of D:\n-log D(HR) - log(1 - D(SR))", LOSS, 5.0, 1.2)
    for start, end in (
        ((1.7, 4.9), (2.8, 4.9)),
        ((4.0, 4.9), (5.1, 4.9)),
        ((6.3, 4.9), (8.05, 5.3)),
        ((6.3, 6.2), (8.05, 5.8)),
        ((9.35, 5.55), (10.8, 5.55)),
    ):
        arrow(ax, start, end)
    ax.text(4.55, 5.25, "held", fontsize=10, color="#555555", ha="center")
    box(ax, 1.1, 1.5, "LR", DATA, 1.2)
    box(ax, 3.4, 1.5, "G", G, 1.2, ec="#0b6b4c", lw=2.2)
    box(ax, 5.7, 1.5, "SR", DATA, 1.2)
    box(ax, 5.7, 0.5, "HR", DATA, 1.2, 0.75)
    box(ax, 8.7, 2.5, "D, held", D, 1.7)
    box(ax, 8.7, 0.85, "VGG-19, held", VGG, 2.4)
    box(ax, 13.3, 2.5, "adversarial loss, times 0.001:\n-log D(SR)", LOSS, 5.0, 1.2)
    box(ax, 13.3, 0.85, "content loss: squared distance\nof the features of SR and HR", LOSS, 5.0, 1.2)
    for start, end in (
        ((1.7, 1.5), (2.8, 1.5)), ((4.0, 1.5), (5.1, 1.5)), ((6.3, 1.6), (7.85, 2.4)), ((6.3, 1.4), (7.5, 0.95)), ((6.3, 0.5), (7.5, 0.7)),
        ((9.55, 2.5), (10.8, 2.5)), ((9.9, 0.85), (10.8, 0.85)),
    ):  # fmt: skip
        arrow(ax, start, end)
    ax.axhline(3.85, color="#cccccc", lw=1)
    return fig


def attach(files: dict[str, bytes]) -> None:
    """Put each file into the cells of the notebooks that name it as an attachment."""
    for path in sorted(NOTEBOOKS.glob("0*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for name in set(re.findall(r"attachment:([\w.]+)", cell.source)) & set(files):
                kind = "image/png" if name.endswith("png") else "image/jpeg"
                cell.setdefault("attachments", {})[name] = {kind: base64.b64encode(files[name]).decode()}
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def main() -> None:
    drawn = {f"roadmap_{number}": roadmap(number) for number in STOPS}
    drawn |= {"generator": generator(), "discriminator": discriminator(), "turn": turn()}
    files = {}
    for name, fig in drawn.items():
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", facecolor="white")
        small = io.BytesIO()
        Image.open(buffer).convert("RGB").quantize(48).save(small, "PNG", optimize=True)
        files[f"{name}.png"] = small.getvalue()
    attach(files)


if __name__ == "__main__":
    main()
