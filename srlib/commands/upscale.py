"""The upscale command: image files in, PNG files out that say what they are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .. import upscaling
from ..config import UserError
from ..data.reading import EXTENSIONS, few_values, find_images, png_names, read_image, read_scan, slices
from ..device import memory_ran_out, pick_device
from ..files import write_image
from ..sampler.network import Sampler
from ..trained import choose
from . import domain, given, parser

WARNING = "synthetic detail, research only, not for diagnosis"
LARGEST = 100_000_000  # pixels of an SR image


def upscale_files(
    source: str | Path,
    out: str | Path,
    generator: torch.nn.Module,
    name: str = "this network",
    known: dict | None = None,
    *,
    again: bool = False,
    seed: int = 0,
    draws: int = 1,
    strength: float = 1.0,
    spread: bool = False,
    consistent: tuple[str, float] | None = None,
    bits: int = 0,
) -> tuple[list[Path], list[Path], list[str], list[str]]:
    """Super-resolve an image or a folder of images into `out`: a folder gets `<folders>/<stem>.png` for each, the tree below `source` kept,
    `<stem>#<k>.png` for slice k of a volume; of images that would share a name each keeps its extension, as in `<stem>.tif.png`; for one
    image, a name that ends in .png is taken as the file. Grey of more than 8 bit becomes 16 bit with the source's range of values.

    `seed`, `strength` and `consistent` as in `upscaling.draws`, `bits` as in `read_scan`. With `draws` above 1 there are `<stem>_draw1.png`,
    `<stem>_draw2.png`, ... in the place of `<stem>.png`, draw k with the seed `seed` + k - 1, and with `spread` `<stem>_spread.png`: their
    standard deviation at each pixel, in grey levels of the image's type, rounded (of colour: mean over channels).

    Each file says in its metadata that its detail is synthetic, the name of its source and what it was made by; with `known`, the domain of
    the training set, also in what the source is unlike that. Returns (written, made earlier, failed, warned): a file that exists is left
    unless `again`; `failed` and `warned` have a line for an image each. Raises UserError where a source would be overwritten, for an `out`
    that names a file of another kind, and for what the network cannot do.
    """
    drawing, scale, seeds = isinstance(generator, Sampler), generator.settings["scale"], range(seed, seed + draws)
    if draws < 1:
        raise UserError(f"draws cannot be {draws}; it is 1 or more")
    if spread and draws == 1:
        raise UserError("the spread is that of several draws; give --draws 2 or more with --spread")
    if not drawing and (seed, draws, strength) != (0, 1, 1):
        raise UserError(f"{name} {upscaling.NO_TEXTURE}")
    upscaling.check(generator, seeds, strength)
    reduction = in_words(generator, consistent)

    def label(what: str, chance: str) -> dict[str, str]:
        made_by = [name, *([chance, f"strength {strength:g}"] if drawing else []), reduction]
        return {"Description": f"{what}: {WARNING}", "Made by": ", ".join(filter(None, made_by))}

    labels = {  # by the ending of the file's name
        f"_draw{k}" if draws > 1 else "": label(f"x{scale} super-resolution", f"seed {seed + k - 1}") for k in range(1, draws + 1)
    }
    if spread:
        what = f"standard deviation of {draws} draws of x{scale} super-resolution at each pixel, in grey levels"
        labels["_spread"] = label(what, f"seeds {seed} to {seed + draws - 1}")
    targets, failed = _plan(Path(source), Path(out), list(labels))
    written, earlier, warned = [], [], []
    for path, files in tqdm(targets.items(), desc="upscale", unit="image", disable=len(targets) == 1):
        try:
            missing = [file for file in files if again or not file.exists()]
            earlier += [file for file in files if file not in missing]
            if not missing:
                continue
            scan = read_scan(path, generator.settings["channels"], bits=bits, deep=True)
            height, width = (n * scale for n in scan.image.shape[:2])
            if height * width > LARGEST:
                raise UserError(f"{path}: would become {width} x {height} pixels, more than the limit of {LARGEST:,}; cut it into parts")
            texts = {"Software": "srlib", "Source": path.name.encode(errors="backslashreplace").decode()}
            if scan.image.dtype == np.uint16:
                texts["Values"] = f"0 to {scan.white}"  # as `read_scan` takes it
            if doubt := few_values(scan):
                warned.append(f"{path}: {doubt}")
            if known and (unlike := domain.warning(read_image(path, 3, bits=bits), known)):
                warned.append(f"{path}: unlike the scans that the network was trained on: {unlike}")
                texts["Domain warning"] = f"unlike the training scans: {unlike}"
            images = upscaling.draws(scan.image, generator, seeds, strength, consistent)
            if spread:
                images.append(np.round(upscaling.spread(images)).astype(scan.image.dtype))
            for file, image, said in zip(files, images, labels.values(), strict=True):
                if file in missing:
                    _save(file, image, scan.white, texts | said)
                    written.append(file)
        except UserError as error:
            failed.append(str(error))
        except OSError as error:  # such as a name that is too long
            failed.append(f"{path}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            failed.append(f"{path}: memory ran out; cut it into parts, or close other programs")
    return written, earlier, failed, warned


def in_words(generator: torch.nn.Module, consistent: tuple[str, float] | None) -> str:
    """What `upscaling.agreement` finds, for readers; '' for none."""
    kind, amount = upscaling.agreement(generator, consistent) or ("", 0.0)
    return f"consistent with LR under {kind}" + (f" {amount:g}" if amount else "") if kind else ""


def _plan(source: Path, out: Path, endings: list[str]) -> tuple[dict[Path, list[Path]], list[str]]:
    """({image or slice: the files that are made of it, one for each ending}, a line for each file that cannot be read)."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    folder, suffix = source.is_dir(), out.suffix.lower()
    single = not folder and suffix == ".png"
    if not (single or out.is_dir()) and (suffix in EXTENSIONS if folder else suffix):
        raise UserError(
            f"{out}: SR images are PNG files; give a folder that is there or whose name has no ending, or for one image NAME.png"
        )
    left_out: list = []
    paths = find_images(source, left_out) if folder else [source]
    for path, reason in left_out:
        print(f"left out: {path} {reason}")
    if folder and out.resolve() != source.resolve():  # what an earlier call wrote is no source
        paths = [path for path in paths if out.resolve() not in path.resolve().parents]
    parts, failed = [], []
    for path in paths:
        try:
            parts += slices(path)
        except UserError as error:
            failed.append(str(error))
    if single and len(parts) > 1:
        raise UserError(f"{source}: holds {len(parts)} slices; give a folder for OUT, not {out.name}")
    names = png_names(part.relative_to(source if folder else source.parent) for part in parts)
    targets = {}
    for part, name in zip(parts, names.values(), strict=True):
        file = out if single else out / name
        targets[part] = [file.with_name(f"{file.stem}{ending}{file.suffix}") for ending in endings]
    made = {file.resolve() for files in targets.values() for file in files}
    if clash := next((path for path in paths if path.resolve() in made), None):
        raise UserError(f"{clash} would be overwritten by its own result; give another folder for OUT")
    return targets, failed


def _save(file: Path, sr: np.ndarray, white: int, texts: dict[str, str]) -> None:
    """A PNG with `texts`, whole or not at all; deep SR with values from 0 to `white`."""
    if sr.dtype == np.uint16:
        sr = np.round(sr * (white / 65535)).astype(np.uint16)
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    write_image(file, Image.fromarray(sr), pnginfo=info)


def main(argv: list[str]) -> int:
    words = parser("upscale", "Super-resolve an image or a folder of images.")
    words.add_argument("source", type=given, metavar="IN", help="an image, or a folder of images")
    words.add_argument("out", type=given, metavar="OUT", help="folder for <folders>/<stem>.png, or a .png file for one image")
    words.add_argument(
        "--weights", default="srgan", help="srgan (default) or srresnet, the released ones; srgan.pt or srresnet.pt of a run; or its folder"
    )
    words.add_argument("--seed", type=int, default=0, metavar="S", help="SRGAN draws its texture: another seed, another draw (default: 0)")
    words.add_argument(
        "--draws", type=int, default=1, metavar="N", help="several draws, <stem>_draw1.png, ...; draw k has the seed S + k - 1"
    )
    words.add_argument("--strength", type=float, default=1.0, metavar="A", help="factor of the texture: 0 is SRResNet's image (default: 1)")
    words.add_argument(
        "--spread", action="store_true", help="also <stem>_spread.png: the draws' standard deviation at each pixel, in grey levels, rounded"
    )
    words.add_argument(
        "--consistent",
        nargs="?",
        const="",
        metavar="KIND",
        help="change SR as little as it takes to reduce to LR, as a draw does anyway; KIND: how LR was made (default: as in training)",
    )
    words.add_argument(
        "--scale", type=int, default=0, metavar="N", help="which of the released scales, where there are several (default: 4)"
    )
    words.add_argument("--bits", type=int, default=0, metavar="N", help="of deep grey images, as 12 in files of 16 (default: the file's)")
    words.add_argument("--again", action="store_true", help="write files anew that are there already")
    args = words.parse_args(argv)
    generator, name, known, learnt = choose(args.weights, args.scale, pick_device())
    consistent = None if args.consistent is None else learnt if args.consistent in ("", learnt[0]) else (args.consistent, 0.0)
    options = dict(seed=args.seed, draws=args.draws, strength=args.strength, spread=args.spread, consistent=consistent)
    written, earlier, failed, warned = upscale_files(
        args.source, args.out, generator, name, known, again=args.again, bits=args.bits, **options
    )
    for line in warned:
        print(f"warning: {line}", file=sys.stderr)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    for path in written[:5]:
        print(path)
    made = f", {len(earlier)} made earlier (--again overwrites)" if earlier else ""
    doubts = f", {len(warned)} warning(s)" if warned else ""
    by = ", ".join(filter(None, [name, in_words(generator, consistent)]))
    print(f"{len(written)} image(s) written{made}, {len(failed)} failed{doubts}; by {by}")
    return 1 if failed or not written + earlier else 0
