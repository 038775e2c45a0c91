"""Pictures of images, and the style of every figure (curves: `plots`). Functions take plain arrays and return a matplotlib Figure."""

import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_gradient_magnitude

from ..evaluation.methods import colour_of, named
from ..metrics import luma
from ..metrics.regions import valid_region, whole_squares

STYLE = {
    "savefig.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
plt.style.use("default")  # whatever the user's matplotlibrc says
plt.rcParams.update(STYLE)
PHANTOM = "phantom: not a result on OCT"
TITLE, NOTE = 17, 15  # sizes of the letters on `tiles`: on a phone they are shown at half of it
HEAD = FOOT = 24  # with them every drawn pixel lies on the grid of JPEG, 8 x 8: a fifth fewer bytes


def finish(fig: plt.Figure, phantom: bool = False) -> plt.Figure:
    """Mark the figure where it shows phantoms, and take it from pyplot, which would show it too. Returns it, for display."""
    if phantom:
        fig.suptitle(PHANTOM, fontsize=12, color="#a04000", x=0.01, ha="left")
    plt.close(fig)
    return fig


def png(picture: plt.Figure | Image.Image, phantom: bool = False) -> bytes:
    """A figure, or a Pillow image, as a PNG, marked where it shows phantoms."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        if phantom:
            page = Image.new("RGB", (picture.width, picture.height + HEAD), "white")
            page.paste(picture)
            ImageDraw.Draw(page).text((2, picture.height + 2), PHANTOM, fill="#a04000", font_size=TITLE)
            picture = page
        picture.save(buffer, "PNG")
    else:
        finish(picture, phantom).savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(ax, image: np.ndarray, title: str = "", **kwargs):
    # matplotlib's default is nearest at whole factors and smooth below: shrunk without that, texture looks too strong
    kwargs = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "antialiased"} | kwargs
    shown = ax.imshow(image, **kwargs)
    ax.set_axis_off()
    ax.set_title(title.replace("$", r"\$"))  # a file's name is no formula
    return shown


def grid(images, titles, columns: int = 4, width: float = 2.9) -> plt.Figure:
    """Images in a grid, each at its own aspect, titles above."""
    images = list(images)
    rows = -(-len(images) // columns)
    ratio = max(i.shape[0] / i.shape[1] for i in images)
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, (width * ratio + 0.5) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        _draw(ax, image, title)
    return fig


def valid(hr: np.ndarray, region: np.ndarray, name: str = "valid region") -> plt.Figure:
    """An image with what is outside the region in orange, beside the region's mean grey level by depth."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.9), width_ratios=[1.3, 1])
    tint = np.array(Image.fromarray(hr).convert("RGB"))
    tint[~region] = (230, 120, 20)
    _draw(axes[0], tint, f"{name}: {region.mean():.0%} of the pixels")
    grey = hr if hr.ndim == 2 else hr.mean(2)
    mean = np.ma.masked_array(grey, ~region).mean(1)
    axes[1].plot(mean, np.arange(len(mean)), color=colour_of("hr"), lw=1.2)
    axes[1].set(xlabel="mean grey level", ylabel="row (depth, pixels)", ylim=(len(mean), 0), title="Grey level by depth")
    return fig


def tiles(squares: list[tuple[np.ndarray, str, str]], columns: int = 3) -> Image.Image:
    """Squares of one size in rows of `columns`, each (uint8 image, title, note under it), every pixel drawn as 4 x 4. Show it unscaled: texture is
    judged at whole factors only."""
    height, width = (4 * n for n in squares[0][0].shape[:2])
    gap, foot = 8, FOOT if any(note for _, _, note in squares) else 0
    step = height + HEAD + foot + gap
    page = Image.new("RGB", (min(columns, len(squares)) * (width + gap) - gap, -(-len(squares) // columns) * step - gap), "white")
    pen = ImageDraw.Draw(page)
    for k, (square, title, note) in enumerate(squares):
        left, top = k % columns * (width + gap), k // columns * step
        pen.text((left + 2, top + 2), title, fill="#222222", font_size=TITLE)
        page.paste(Image.fromarray(square).resize((width, height), Image.Resampling.NEAREST).convert("RGB"), (left, top + HEAD))
        pen.text((left + 2, top + HEAD + height + 2), note, fill="#555555", font_size=NOTE)
    return page


def comparison(images: dict[str, np.ndarray], measures: dict[str, str], title: str = "", side: int = 64) -> Image.Image:
    """The HR image with a frame, then the framed square of each image ('hr' among them) at four times its size, three in a row (of seven and more,
    four), and under it the text in `measures`."""
    hr = images["hr"]
    side = min(side, *hr.shape[:2])
    top, left = corners(hr, side)["layer"]
    squares = [(image[top : top + side, left : left + side], named(name), measures.get(name, "")) for name, image in images.items()]
    page = tiles([squares[0], *squares], {3: 2}.get(len(squares), 3 + (len(squares) > 6)))  # the first place is for the overview
    size = 4 * side
    overview = Image.fromarray(hr).convert("RGB")
    scale = size / max(overview.size)
    overview = overview.resize((round(overview.width * scale), round(overview.height * scale)), Image.Resampling.LANCZOS)
    frame = [round(v * scale) for v in (left, top, left + side, top + side)]
    ImageDraw.Draw(overview).rectangle(frame, outline="#FFB000", width=2)
    page.paste("white", (0, 0, size, size + HEAD + FOOT * any(measures.values())))
    page.paste(overview, (0, HEAD + (size - overview.height) // 2))
    ImageDraw.Draw(page).text((2, 2), f"HR, {title}" if title else "HR", fill="#222222", font_size=TITLE)
    return page


def corners(hr: np.ndarray, side: int = 64) -> dict[str, tuple[int, int]]:
    """Top and left of three squares of an HR image, apart from fill: 'layer' (the most edges), 'tissue' (bright, the fewest edges) and
    'vitreous' (the darkest)."""
    y, valid = luma(hr), valid_region(hr)
    edges = gaussian_gradient_magnitude(np.where(valid, y, y[valid].mean() if valid.any() else 0), 3)
    squares = whole_squares(valid, side, max(1, side // 4))
    rows = [((s[0].start, s[1].start), y[s].mean(), edges[s].mean()) for s in squares] or [((0, 0), 0.0, 0.0)]
    bright = np.quantile([mean for _, mean, _ in rows], 0.8)
    return {
        "layer": max(rows, key=lambda row: row[2])[0],
        "tissue": min((row for row in rows if row[1] >= bright), key=lambda row: row[2])[0],
        "vitreous": min(rows, key=lambda row: row[1])[0],
    }


def closeups(images: dict[str, np.ndarray], side: int = 64) -> Image.Image:
    """Texture as it is to be judged: the three `corners` of HR in a row, a row for each image ('hr' among them), as `tiles`; 'vitreous' three times
    as bright."""
    places, squares = corners(images["hr"], min(side, *images["hr"].shape[:2])), []
    for name, image in images.items():
        for place, (top, left) in places.items():
            square = image[top : top + side, left : left + side].astype(float) * (3 if place == "vitreous" else 1)
            squares.append((square.clip(0, 255).astype(np.uint8), f"{named(name)}, {place}" + " x3" * (place == "vitreous"), ""))
    return tiles(squares)


def maps(values: dict[str, np.ndarray], label: str, limit: float = 40) -> plt.Figure:
    """Maps (H, W) of what differs in each image, on one colour scale from 0 to `limit`, with the mean of each in its title."""
    ratio = max(v.shape[0] / v.shape[1] for v in values.values())
    fig, axes = plt.subplots(1, len(values), figsize=(3.1 * len(values) + 0.6, 3.1 * ratio + 0.5), squeeze=False)
    for ax, (name, value) in zip(axes[0], values.items(), strict=True):
        shown = _draw(ax, value, f"{named(name)}: mean {value.mean():.1f}", cmap="magma", vmax=limit)
    fig.colorbar(shown, ax=axes[0].tolist(), label=label, shrink=0.85)
    return fig
