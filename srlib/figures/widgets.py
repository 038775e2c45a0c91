"""Pictures that move, in a notebook's page: an animation, two images to swipe between, crops to step through. Plain HTML, no script from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..evaluation.methods import named
from ..files import write_image
from .panels import png, zoom_box


def animation(frames: list[tuple[str, np.ndarray]], path: Path, seconds: float = 0.35, most: int = 24) -> str:
    """Write a GIF of at most `most` (title, image) pairs of one size to `path`, each title on a strip above its image; the last stays for two
    seconds. Returns HTML that holds it (IPython's own Image is lost in an exported page)."""
    frames = [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, most).astype(int))]
    pages = []
    for title, image in frames:
        page = Image.new("RGB", (image.shape[1], image.shape[0] + 22), "white")
        page.paste(Image.fromarray(image).convert("RGB"), (0, 22))
        ImageDraw.Draw(page).text((6, 3), title, fill="#222222", font_size=14)
        pages.append(page)
    times = [int(1000 * seconds)] * (len(pages) - 1) + [2000]
    write_image(path, pages[0], save_all=True, append_images=pages[1:], duration=times, loop=0)
    return f'<img alt="the crop over the steps" width="360" src="data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def swipe(left: np.ndarray, right: np.ndarray, names: tuple[str, str]) -> str:
    """HTML with a slider that uncovers `right` over `left` (uint8, one size), pixel for pixel; nothing from the network. Show it beside a static picture:
    it needs a page that runs its line of script."""
    style, width = "width:100%;display:block;image-rendering:pixelated", left.shape[1]
    return (
        f'<div style="max-width:{width}px;font:13px sans-serif"><div style="position:relative">'
        f'<img alt="{names[0]}" src="{_embedded(left)}" style="{style}">'
        f'<img alt="{names[1]}" src="{_embedded(right)}" style="{style};position:absolute;top:0;left:0;clip-path:inset(0 0 0 50%)"></div>'
        '<input type="range" min="0" max="100" value="50" aria-label="swipe" style="width:100%" '
        "oninput=\"this.previousElementSibling.lastElementChild.style.clipPath='inset(0 0 0 '+this.value+'%)'\">"
        f'<div style="display:flex;justify-content:space-between"><span>{names[0]}</span><span>{names[1]}</span></div></div>'
    )


def slider(images: dict[str, np.ndarray], side: int = 128) -> str:
    """HTML with a slider that goes through images (name to uint8 array of HR's size, 'hr' among them), the same square of each at four times its size,
    its name underneath. As for `swipe`: nothing from the network, one line of script."""
    side = min(side, *images["hr"].shape[:2])
    top, left, width = *zoom_box(images["hr"], side), 4 * side
    pages = "".join(
        f'<figure style="margin:0" {"hidden" if number else ""}><img alt="{named(name)}" '
        f'src="{_embedded(image[top : top + side, left : left + side])}" style="width:100%;display:block;image-rendering:pixelated">'
        f"<figcaption>{named(name)}</figcaption></figure>"
        for number, (name, image) in enumerate(images.items())
    )
    return (
        f'<div style="max-width:{width}px;font:13px sans-serif"><div>{pages}</div>'
        f'<input type="range" min="0" max="{len(images) - 1}" value="0" aria-label="image" style="width:100%" '
        'oninput="[...this.previousElementSibling.children].forEach((page,k)=>{page.hidden=k!=this.value})"></div>'
    )


def _embedded(image: np.ndarray) -> str:
    """A uint8 image as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(image))).decode()
