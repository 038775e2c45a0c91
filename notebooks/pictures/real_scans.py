"""Pictures of real scans in notebooks 01, 02 and 05: `python notebooks/pictures/real_scans.py OCT2017 PAIRS`, in an active environment, from the repository.

Test scans of Kermany's set (CC BY 4.0), cropped, and the released networks' SR of them. Chosen by class and by SRGAN's LPIPS: its largest, and one near the median of each
other class. Of PAIRS (as `notebooks.experiments.real_lr` has them) spectra alone.
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from diagrams import attach
from PIL import Image

sys.path.append(str(Path(__file__).parents[2]))
from notebooks.experiments.real_lr import FIT, overlap
from srlib import metrics
from srlib.data.reading import read_image
from srlib.degrade import crop_to_multiple, downsample, to_image, to_tensor, upsample
from srlib.figures import panels
from srlib.trained import load_generator
from srlib.upscaling import upscale

CLASSES = ("NORMAL-139386-5", "DRUSEN-3276918-63", "DME-5497895-58", "CNV-6053140-24")
FOUR = {
    "NORMAL-139386-5": "0.19",
    "CNV-7314763-21": "0.19",
    "DRUSEN-8819395-1": "0.19",
    "DME-7700504-5": "0.38",
}


def found(scans: Path, stem: str):
    return crop_to_multiple(read_image(next(scans.rglob(f"{stem}.jpeg"))), 4)


def classes(scans: Path) -> Image.Image:
    """One scan of each class, the middle of its retina, half its size."""
    page = Image.new("RGB", (4 * 258 - 2, 200 + panels.HEAD), "white")
    for k, stem in enumerate(CLASSES):
        hr = found(scans, stem)
        bright = to_image(upsample(downsample(to_tensor(hr), 8), 8)).astype(float)
        rows = bright.mean(1)
        middle = int((rows * range(len(rows))).sum() / rows.sum())
        top, left = min(max(0, middle - 200), hr.shape[0] - 400), (hr.shape[1] - 512) // 2
        square = Image.fromarray(hr[top : top + 400, left : left + 512]).resize(
            (256, 200), Image.Resampling.LANCZOS
        )
        page.paste(square.convert("RGB"), (258 * k, panels.HEAD))
        panels.ImageDraw.Draw(page).text(
            (258 * k + 2, 1), stem.partition("-")[0], fill="#222222", font_size=panels.TITLE
        )
    return page


def four(scans: Path) -> Image.Image:
    """The square with the most edges of each scan, every pixel as 4 x 4: bicubic, SRResNet, SRGAN, HR."""
    networks, squares, side = (
        {name: load_generator(name) for name in ("srresnet-paper", "srgan")},
        [],
        48,
    )
    for stem, lpips in FOUR.items():
        hr = found(scans, stem)
        lr = to_image(downsample(to_tensor(hr), 4))
        images = (
            {"bicubic": to_image(upsample(to_tensor(lr), 4))}
            | {name: upscale(lr, net) for name, net in networks.items()}
            | {"HR": hr}
        )
        top, left = panels.corners(hr, side)["layer"]
        for name, image in images.items():
            title = {
                "bicubic": f"{stem.partition('-')[0]}{' (worst)' * (lpips == max(FOUR.values()))}: bicubic",
                "srresnet-paper": "SRResNet",
                "srgan": f"SRGAN, LPIPS {lpips}",
            }.get(name, name)
            squares.append((image[top : top + side, left : left + side], title, ""))
    return panels.tiles(squares, 4)


def spectra(pairs: Path) -> plt.Figure:
    """Power of LR of a single frame against that of LR of the average of many, each eye and their mean."""
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    curves = []
    for file in sorted((pairs / "average").glob("*.png")):
        frame, average, fit = overlap(read_image(pairs / "single" / file.name), read_image(file))
        if fit >= FIT:
            lr = (to_image(downsample(to_tensor(image), 4)) for image in (frame, average))
            (f, power), (_, other) = (metrics.psd(metrics.spectrum(image), bins=40) for image in lr)
            curves.append(10 * np.log10(power / other))
            ax.plot(f, curves[-1], color="#bbbbbb", lw=0.8, label="an eye" if len(curves) == 1 else None)
    ax.plot(f, np.mean(curves, 0), color="#222222", label=f"mean of {len(curves)}")
    ax.axhline(0, color="#999999", lw=0.8)
    ax.set(
        xlabel="cycles per LR pixel",
        ylabel="LR of one frame against\nLR of the average (dB)",
        xlim=(0, 0.5),
    )
    ax.legend()
    return fig


def main(scans: Path, pairs: Path) -> None:
    files, small = {}, io.BytesIO()
    Image.open(io.BytesIO(panels.png(spectra(pairs)))).convert("RGB").quantize(48).save(
        small, "PNG", optimize=True
    )
    files["real_lr.png"] = small.getvalue()
    for name, picture in (("real_classes", classes(scans)), ("real_four", four(scans))):
        buffer = io.BytesIO()
        picture.convert("L").save(buffer, "JPEG", quality=72, optimize=True)
        files[f"{name}.jpg"] = buffer.getvalue()
    attach(files)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
