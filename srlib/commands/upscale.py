"""The upscale command: image files in, PNG files out that say what they are."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .. import upscaling
from ..config import UserError, load_config
from ..data.reading import EXTENSIONS, few_values, find_images, png_names, read_image, read_scan, slices
from ..device import pick_device
from ..files import write_image
from ..sampler.network import Sampler
from . import add_weights, choose, domain, given, memory_ran_out, parser

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
    samples: int = 1,
    strength: float = 1.0,
    spread: bool = False,
    consistent: str = "",
    bits: int = 0,
) -> tuple[list[Path], list[Path], list[str], list[str]]:
    """Super-resolve an image or a folder of images into `out`, as the command's help says. Deep grey becomes 16 bit with the source's range.

    `strength` and `consistent` as in `upscaling.samples`, `bits` as in `read_scan`; `known`: the domain of the training set. Returns (written, made
    earlier, failed, warned), the last two with a line for an image each. Raises UserError where a source would be overwritten, for an `out` that
    names a file of another kind, and for what the network cannot do."""
    seeds, scale = range(seed, seed + samples), generator.settings["scale"]
    if not isinstance(generator, Sampler) and (seed, samples, strength) != (0, 1, 1):
        raise UserError(f"{name} {upscaling.NO_TEXTURE}")
    upscaling.check(generator, seeds, strength)
    whats = {f"_sample{k}" if samples > 1 else "": (f"x{scale} super-resolution", f"seed {s}") for k, s in enumerate(seeds, 1)}
    if spread:
        what = f"standard deviation of {samples} samples of x{scale} super-resolution at each pixel, in grey levels"
        whats["_spread"] = what, f"seeds {seed} to {seeds[-1]}"
    labels = {}
    for ending, (what, noise) in whats.items():
        made = made_by(generator, name, consistent, f"{noise}, strength {strength:g}")
        labels[ending] = {"Description": f"{what}: {WARNING}", "Made by": made}
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
            unlike = domain.warning(read_image(path, 3, bits=bits), known) if known else ""
            unlike += "; a single frame of a fast scan? --weights srresnet-fast" if "power" in unlike and "fast" not in name else ""
            warned += [f"{path}: {doubt}" for doubt in (few_values(scan), unlike and f"unlike the training scans: {unlike}") if doubt]
            images = upscaling.samples(scan.image, generator, seeds, strength, consistent)
            if spread:
                deviation = np.std(np.asarray(images, np.float32), 0)
                images.append(np.round(deviation if deviation.ndim == 2 else deviation.mean(2)).astype(scan.image.dtype))
            for file, image, texts in zip(files, images, labels.values(), strict=True):
                if file in missing:
                    _save(file, image, path.name, scan.white, unlike, texts)
                    written.append(file)
        except (UserError, OSError) as error:  # such as a name that is too long
            failed.append(str(error))
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            failed.append(f"{path}: memory ran out; cut it into parts, or close other programs")
    return written, earlier, failed, warned


def made_by(generator: torch.nn.Module, name: str, consistent: str, noise: str = "") -> str:
    """The network, its noise and the reduction with which its SR is consistent, for readers."""
    kind, noise = upscaling.consistent_kind(generator, consistent), noise if isinstance(generator, Sampler) else ""
    return ", ".join(filter(None, (name, noise, kind and f"consistent with LR under {kind}")))


def find_parts(folder: Path) -> tuple[list[Path], list[str]]:
    """(the images and the slices of volumes in a folder, a line for each file that cannot be read)."""
    left_out, parts, failed = [], [], []
    for path in find_images(folder, left_out):
        try:
            parts += slices(path)
        except UserError as error:
            failed.append(str(error))
    for path, reason in left_out:
        print(f"left out: {path} {reason}")
    return parts, failed


def _plan(source: Path, out: Path, endings: list[str]) -> tuple[dict[Path, list[Path]], list[str]]:
    """({image or slice: the files that are made of it, one for each ending}, a line for each file that cannot be read)."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    folder, single = source.is_dir(), out.suffix.lower() == ".png" and not source.is_dir()
    if not (single or out.is_dir()) and (out.suffix.lower() in EXTENSIONS if folder else out.suffix):
        raise UserError(
            f"{out}: SR images are PNG files; give a folder that is there or whose name has no ending, or for one image NAME.png"
        )
    parts, failed = find_parts(source) if folder else (slices(source), [])
    if folder and out.resolve() != source.resolve():  # what an earlier call wrote is no source
        parts = [part for part in parts if out.resolve() not in part.resolve().parents]
    if single and len(parts) > 1:
        raise UserError(f"{source}: holds {len(parts)} slices; give a folder for OUT, not {out.name}")
    names = png_names(part.relative_to(source if folder else source.parent) for part in parts)
    files = {part: out if single else out / name for part, name in zip(parts, names.values(), strict=True)}
    targets = {part: [file.with_name(f"{file.stem}{ending}{file.suffix}") for ending in endings] for part, file in files.items()}
    sources = {part.resolve() for part in parts}
    if clash := next((file for made in targets.values() for file in made if file.resolve() in sources), None):
        raise UserError(f"{clash} would be overwritten by its own result; give another folder for OUT")
    return targets, failed


def _save(file: Path, sr: np.ndarray, source: str, white: int, unlike: str, texts: dict[str, str]) -> None:
    """A PNG with its metadata, whole or not at all; deep SR with values from 0 to `white`."""
    info = PngInfo()
    info.add_text("Software", "srlib")  # first: the manifest looks for it there
    info.add_text("Source", source.encode(errors="backslashreplace").decode())
    if sr.dtype == np.uint16:
        sr = np.round(sr * (white / 65535)).astype(np.uint16)
        info.add_text("Values", f"0 to {white}")  # as `read_scan` takes it
    if unlike:
        info.add_text("Domain warning", f"unlike the training scans: {unlike}")
    for key, value in texts.items():
        info.add_text(key, value)
    write_image(file, Image.fromarray(sr), pnginfo=info)


def main(argv: list[str]) -> int:
    words = parser("upscale", "Super-resolve an image or a folder of images.")
    add = words.add_argument
    add("source", type=given, metavar="IN", help="an image, or a folder of images")
    add("out", type=given, metavar="OUT", help="folder for <folders>/<stem>.png, or a .png file for one image")
    add_weights(words)
    add("--seed", type=int, default=0, metavar="S", help="the sampler: another seed, another sample (default: 0)")
    add("--samples", type=int, default=1, metavar="N", help="several, <stem>_sample1.png, ...; sample k has the seed S + k - 1")
    add("--strength", type=float, default=1.0, metavar="A", help="factor of the texture: 0 is SRResNet's image (default: 1)")
    add("--spread", action="store_true", help="also <stem>_spread.png: the samples' standard deviation at each pixel, in grey levels")
    how = "change SR as little as it takes to reduce to LR, as a sample does anyway; KIND: how LR was made (default: as in training)"
    add("--consistent", nargs="?", const="as trained", default="", metavar="KIND", help=how)
    add("--bits", type=int, default=0, metavar="N", help="of deep grey images, as 12 in files of 16 (default: the file's)")
    add("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="where it is computed (default: a GPU where there is one)")
    add("--again", action="store_true", help="write files anew that are there already")
    args = words.parse_args(argv)
    if args.samples < 1 or (args.spread and args.samples == 1):
        raise UserError(f"samples cannot be {args.samples}; give --samples {1 + args.spread} or more{' with --spread' * args.spread}")
    generator, name, known, learnt = choose(args.weights, args.scale, pick_device(args.device))
    consistent = learnt if args.consistent in ("as trained", learnt.partition(":")[0]) else args.consistent
    if consistent:
        load_config(degradation=consistent)  # says what is wrong with it
    options = {key: getattr(args, key) for key in ("again", "seed", "samples", "strength", "spread", "bits")}
    written, earlier, failed, warned = upscale_files(args.source, args.out, generator, name, known, consistent=consistent, **options)
    for line in [*(f"warning: {line}" for line in warned), *(f"error: {line}" for line in failed)]:
        print(line, file=sys.stderr)
    for path in written[:5]:
        print(path)
    made = f", {len(earlier)} made earlier (--again overwrites)" if earlier else ""
    doubts = f", {len(warned)} warning(s)" if warned else ""
    print(f"{len(written)} image(s) written{made}, {len(failed)} failed{doubts}; by {made_by(generator, name, consistent)}")
    return 1 if failed or not written + earlier else 0
