"""How networks do on the LR of a real fast scan: LR made of one frame, and of the average of many, both against the average.

    python -m notebooks.experiments.real_lr PAIRS NAME=WEIGHTS [NAME=WEIGHTS ...]

PAIRS holds single/NAME.png, one frame, and average/NAME.png, the registered mean of repeated frames of the same place. The two are moved onto each other by whole
pixels; an eye whose layers do not fit then (correlation of the smoothed images below FIT) is left out and named. On the first FITTED eyes the linear filter is fitted, one for each kind of LR (the
noise of the reduction `frame` was measured on them); the table is of the others. Bicubic and a Gaussian blur of it stand beside the networks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from srlib import metrics
from srlib.commands import choose, domain, in_one_line
from srlib.commands.report import markdown
from srlib.config import UserError
from srlib.data.reading import read_image
from srlib.degrade import downsample, to_image, to_tensor, upsample
from srlib.device import pick_device
from srlib.evaluation.methods import LinearFilter
from srlib.evaluation.statistics import interval
from srlib.files import write
from srlib.models.features import lpips
from srlib.upscaling import upscale

SCALE, BORDER, FIT, FITTED, FARTHEST = (
    4,
    20,
    0.95,
    6,
    (12, 60),
)  # FARTHEST: pixels in depth and across that are tried
BLUR = (2, 10)  # sigma in depth and across
OCTAVES = [
    (2.0**-k, 2.0 ** (1 - k)) for k in (6, 5, 4, 3)
]  # cycles a pixel: three below LR's Nyquist frequency and the one above


def overlap(frame: np.ndarray, average: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The parts of both that show the same place, sides multiples of SCALE, and the correlation of their smoothed layers."""
    a, b = (gaussian_filter(image.astype(float), (2, 4)) for image in (frame, average))
    height, width = a.shape
    fa, fb = (np.fft.rfft2(image - image.mean(), (2 * height, 2 * width)) for image in (a, b))
    likeness = np.fft.irfft2(fa * fb.conj())
    dy, dx = np.meshgrid(*(np.arange(-n, n + 1) for n in FARTHEST), indexing="ij")
    best = likeness[dy, dx].argmax()
    dy, dx = int(dy.flat[best]), int(dx.flat[best])

    def cut(image, dy, dx):
        part = image[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
        return part[: part.shape[0] // SCALE * SCALE, : part.shape[1] // SCALE * SCALE]

    fit = np.corrcoef(cut(a, dy, dx).ravel(), cut(b, -dy, -dx).ravel())[0, 1]
    return cut(frame, dy, dx), cut(average, -dy, -dx), float(fit)


def octaves(sr: np.ndarray, hr: np.ndarray) -> list[float]:
    """Power of SR over HR's in OCTAVES, dB."""
    fy, fx = (np.abs(np.fft.fftfreq(n)) for n in hr.shape)
    f = np.maximum(fy[:, None], fx[None])
    powers = [metrics.spectrum(image) for image in (sr, hr)]
    inside = [(f > low) & (f <= high) for low, high in OCTAVES]
    return [float(10 * np.log10(powers[0][w].sum() / powers[1][w].sum())) for w in inside]


def measure(sr: np.ndarray, average: np.ndarray, distance) -> dict[str, float]:
    inner = np.s_[BORDER:-BORDER, BORDER:-BORDER]
    pair = [to_tensor(image[inner]).expand(-1, 3, -1, -1) for image in (sr, average)]
    bands = metrics.band_power_db(metrics.spectrum(sr), metrics.spectrum(average), SCALE)
    row = {
        "psnr": metrics.psnr(sr, average, BORDER),
        "ssim": metrics.ssim(sr, average, BORDER),
        "lpips": distance(*pair, normalize=True).item(),
    }
    return (
        row
        | {f"band{k}_db": p for k, p in enumerate(bands, 1)}
        | {f"octave{k}_db": p for k, p in enumerate(octaves(sr, average))}
    )


def main() -> None:
    words = argparse.ArgumentParser(
        prog="python -m notebooks.experiments.real_lr", description=__doc__.splitlines()[0]
    )
    words.add_argument("pairs", type=Path, metavar="PAIRS")
    words.add_argument("networks", nargs="*", metavar="NAME=WEIGHTS")
    words.add_argument("--out", type=Path, default=Path("runs/real_lr.csv"), metavar="FILE.csv")
    args = words.parse_args()
    distance, eyes, left = lpips(), {}, []
    networks = {
        name: choose(file, device=pick_device())
        for name, file in (pair.split("=", 1) for pair in args.networks)
    }
    for file in sorted((args.pairs / "average").glob("*.png")):
        frame, average, fit = overlap(read_image(args.pairs / "single" / file.name), read_image(file))
        if fit < FIT:
            left.append(f"{file.stem} ({fit:.2f})")
        else:
            reduced = {
                name: to_image(downsample(to_tensor(image), SCALE))
                for name, image in (("average", average), ("one frame", frame))
            }
            eyes[file.stem] = average, reduced
    if len(eyes) < FITTED + 2:
        raise UserError(
            f"{args.pairs}: holds {len(eyes)} pairs that fit; name a folder with single/ and average/, {FITTED + 2} eyes or more"
        )
    rows, known = [], list(eyes.values())[:FITTED]
    for source in ("average", "one frame"):
        linear = LinearFilter(SCALE).fit(
            (to_tensor(lr[source]), to_tensor(average)) for average, lr in known
        )
        for eye, (average, lr) in list(eyes.items())[FITTED:]:
            lr = lr[source]
            bicubic = to_image(upsample(to_tensor(lr), SCALE))
            made = {
                "bicubic": bicubic,
                "bicubic, blurred": gaussian_filter(bicubic, BLUR),
                "linear": to_image(linear(to_tensor(lr))),
            }
            made |= {name: upscale(lr, network) for name, (network, *_) in networks.items()}
            for name, sr in made.items():
                learnt = networks[name][2] if name in networks else None
                warned = float(bool(domain.warning(lr, learnt))) if learnt else np.nan
                rows.append(
                    {"eye": eye, "lr": source, "method": name, "warned": warned}
                    | measure(sr, average, distance)
                )
            print(source, eye, flush=True)
    table, shown = pd.DataFrame(rows), []
    write(args.out, table.to_csv(index=False))
    for (source, name), part in table.groupby(["lr", "method"], sort=False):
        text = {"LR of": source, "method": name}
        for column, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3)):
            low, high = interval(part[column].to_numpy())
            text[column] = f"{part[column].mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        for kind in ("band", "octave"):
            text[kind] = ", ".join(f"{power:+.1f}" for power in part.filter(regex=f"^{kind}").mean())
        asked = part.warned.notna().all()
        shown.append(text | {"warned": f"{part.warned.sum():.0f} of {len(part)}" if asked else "–"})
    print(markdown(pd.DataFrame(shown)), f"left out: {', '.join(left) or 'none'}", sep="\n\n")


if __name__ == "__main__":
    sys.exit(in_one_line(main))
