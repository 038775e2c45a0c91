"""The upscale command: image files in, PNG files out that say what they are."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from ..config import UserError
from ..data.formats import MAX_PIXELS
from ..data.reading import EXTENSIONS, Scan, few_values, find_images, is_upscaled, page_of, png_names, read_image, read_scan, slices
from ..device import memory_ran_out
from ..files import file_hash, write_image
from ..models.texture import TextureGenerator
from . import domain, upscaling

WARNING = "synthetic detail, research only, not for diagnosis"


def upscale_files(
    source: str | Path,
    out: str | Path,
    generator: torch.nn.Module,
    name: str = "this network",
    ensemble: bool = False,
    known: dict | None = None,
    *,
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
    `ensemble`: the mean over the image and its mirror image. `bits`: as in `read_scan`.

    `seed`, `strength` and `consistent` as in `upscaling.draws`. With `draws` above 1 there are `<stem>_draw1.png`, `<stem>_draw2.png`, ...
    in the place of `<stem>.png`, draw k with the seed `seed` + k - 1, and with `spread` `<stem>_spread.png`: their standard deviation at
    each pixel, in grey levels of the image's type, rounded (of colour: mean over channels).

    Each file says in its metadata that its detail is synthetic, what it was made from and by (`name`). With `known`, the domain of the training set, it says in what the source is unlike that, too. Returns
    (written, there already, failed, warned): a file whose metadata show that it was made from the same source in the same way is left;
    `failed` has a line for each source that could not be read, would be too large, whose name is taken or whose result could not be written,
    `warned` one for each that is unlike the training set. Raises UserError where a source would be overwritten, for an `out` that looks like a file of another kind, and
    for what the network cannot do.
    """
    noisy, seeds, scale = isinstance(generator, TextureGenerator), range(seed, seed + draws), generator.settings["scale"]
    if draws < 1:
        raise UserError(f"draws cannot be {draws}; it is 1 or more")
    if spread and draws == 1:
        raise UserError("the spread is that of several draws; give --draws 2 or more with --spread")
    if not noisy and (seed, draws, strength) != (0, 1, 1):
        raise UserError(f"{name} {upscaling.NO_TEXTURE}")
    upscaling.check(generator, seeds, strength, ensemble)

    def made_by(chance: str) -> str:
        how = [chance, f"strength {strength:g}"] * noisy + [upscaling.in_words(generator, consistent)]
        return ", ".join(filter(None, [by, *how]))

    by = f"{name} {_fingerprint(generator)}" + " mirrored" * ensemble
    # of each file that a source becomes: the end of its name, what it shows, what it was made by
    files = [(f"_draw{k - seed + 1}" if draws > 1 else "", f"x{scale} super-resolution", made_by(f"seed {k}")) for k in seeds]
    if spread:
        what = f"standard deviation of {draws} draws of x{scale} super-resolution at each pixel, in grey levels"
        files.append(("_spread", what, made_by(f"seeds {seed} to {seed + draws - 1}")))
    targets, failed = _plan(Path(source), Path(out), [ending for ending, _, _ in files])
    written, there, warned = [], [], []
    for path in tqdm(targets, desc="upscale", unit="image", disable=len(targets) == 1):
        try:
            scan = read_scan(path, generator.settings["channels"], bits, deep=True)
            image = scan.image
            height, width = (n * scale for n in image.shape[:2])
            if height * width > MAX_PIXELS:
                raise UserError(f"{path}: would become {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}; cut it into parts")
            unlike = domain.warning(read_image(path, 3, bits), known) if known else ""
        except (UserError, OSError, MemoryError) as error:
            failed.append(_sentence(path, error))
            continue
        readable = path.name.encode(errors="backslashreplace").decode()
        facts = {"Source": f"{readable} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}", "Source file": _hash_of(path)}
        if known:
            facts["Domain"] = f"WARNING, unlike the training scans: {unlike}" if unlike else "like the training scans"
        if doubt := few_values(scan):
            warned.append(f"{path}: {doubt}")
        if image.dtype == np.uint16:
            facts["Values"] = f"0 to {scan.white}"
        if unlike:
            warned.append(f"{path}: unlike the scans that the network was trained on: {unlike}")
        texts = [facts | {"Description": f"{what}: {WARNING}", "Made by": maker} for _, what, maker in files]
        missing = [k for k, target in enumerate(targets[path]) if not _made_earlier(target, texts[k])]
        there += [target for k, target in enumerate(targets[path]) if k not in missing]
        if not missing:
            continue
        if others := [t for t in (targets[path][k] for k in missing) if _is_another(t, readable, facts["Source file"])]:
            failed.append(f"{path}: {others[0]} is there and was made from something else; give another folder for OUT, or move it away")
            continue
        for k in missing:
            if old := _made_by(targets[path][k], texts[k]["Made by"]):
                print(f"written anew: {targets[path][k]}, which was made by {old}")
        try:
            if ensemble:
                images = [upscaling.self_ensemble(image, generator, consistent)[0]]
            else:
                images = upscaling.draws(image, generator, seeds, strength, consistent)
            if spread:
                images.append(np.round(upscaling.spread(images)).astype(image.dtype))
            for k in missing:
                _save(targets[path][k], _as_source(images[k], scan), texts[k])
                written.append(targets[path][k])
        except (UserError, MemoryError, RuntimeError) as error:  # the disk refuses this one, or it is too large: the others go on
            if not (isinstance(error, UserError) or memory_ran_out(error)):
                raise
            failed.append(_sentence(path, error))
    return written, there, failed, warned


def _sentence(path: Path, error: Exception) -> str:
    """What is said of an image that failed."""
    if isinstance(error, UserError):
        return str(error)
    reason = error.strerror or error if isinstance(error, OSError) else "memory ran out; cut it into parts, or close other programs"
    return f"{path}: {reason}"


def _plan(source: Path, out: Path, endings: list[str]) -> tuple[dict[Path, list[Path]], list[str]]:
    """({image or slice: the files that are made of it}, a line for each file that cannot be read). In a folder, what upscale wrote is left out. UserError where a source is one of them
    or `out` can be neither a .png file nor a folder."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    inside = source.is_dir() and out.resolve() != source.resolve()  # what an earlier call wrote is no source
    left_out: list = []
    paths = (
        [p for p in find_images(source, left_out) if not (inside and out.resolve() in p.resolve().parents)] if source.is_dir() else [source]
    )
    if source.is_dir():
        upscaled = [path for path in paths if is_upscaled(path)]
        left_out += [(path, "was written by upscale") for path in upscaled]
        paths = [path for path in paths if path not in set(upscaled)]
        if upscaled and not paths:
            raise UserError(f"{source} holds only SR images that upscale wrote; give the folder of LR images")
    for path, reason in left_out:
        print(f"left out: {path} {reason}")
    suffix = out.suffix.lower()
    single = not source.is_dir() and suffix == ".png"
    if not (single or out.is_dir()) and (suffix in EXTENSIONS if source.is_dir() else suffix):
        raise UserError(
            f"{out}: SR images are PNG files; give a folder that is there or whose name has no ending, or for one image NAME.png"
        )
    parts, failed = [], []
    for path in paths:
        try:
            parts += slices(path)
        except UserError as error:
            failed.append(str(error))
    if single and len(parts) > 1:
        raise UserError(f"{source}: holds {len(parts)} slices; give a folder for OUT, not {out.name}")
    targets, names = (
        {},
        dict(zip(parts, png_names(part.relative_to(source if source.is_dir() else source.parent) for part in parts).values())),
    )
    for part in parts:
        file = out if single else out / names[part]
        targets[part] = [file.with_name(f"{file.stem}{ending}{file.suffix}") for ending in endings]
    made = {target.resolve() for files in targets.values() for target in files}
    if clash := next((path for path in paths if path.resolve() in made), None):
        raise UserError(f"{clash} would be overwritten by its own result; give another folder for OUT")
    return targets, failed


def _as_source(sr: np.ndarray, scan: Scan) -> np.ndarray:
    """Deep SR in the source's range of values."""
    return sr if sr.dtype == np.uint8 or scan.white == 65535 else np.round(sr * (scan.white / 65535)).astype(np.uint16)


def _fingerprint(generator: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for value in generator.state_dict().values():
        total.update(value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _made_earlier(target: Path, facts: dict[str, str]) -> bool:
    try:
        with Image.open(target) as image:
            same = all(image.info.get(key) == value for key, value in facts.items())
            image.verify()
        return same
    except (OSError, SyntaxError):  # not there, not an image, or cut off
        return False


def _is_another(target: Path, name: str, source: str) -> bool:
    """Whether a file is there that was not made by this command from that source: of its name, and (in files of later versions) of its content or
    from its place, where it was changed since."""
    if not target.exists():
        return False
    try:
        with Image.open(target) as image:
            said = image.info
        same = set(str(said.get("Source file", source)).split(" at ")) & set(source.split(" at "))
        return said.get("Software") != "srlib" or str(said.get("Source", "")).rpartition(" ")[0] != name or not same
    except (OSError, SyntaxError):
        return target.stat().st_size > 0  # not a picture; an empty file is nobody's


def _made_by(target: Path, maker: str) -> str:
    """What made the file that is there, where that is not `maker`; ''."""
    try:
        with Image.open(target) as image:
            old = str(image.info.get("Made by", ""))
    except (OSError, SyntaxError):
        return ""
    return "" if old == maker else old


def _hash_of(path: Path) -> str:
    """What tells a source from another of its name: hashes of its content and of its place."""
    file = page_of(path)[0]
    facts, place = file.stat(), hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:16]
    return f"{_digest(file, facts.st_size, facts.st_mtime_ns)} at {place}"


@functools.lru_cache(maxsize=8)  # a volume's slices come one after another
def _digest(file: Path, *_) -> str:
    return file_hash(file)[:16]


def _save(target: Path, sr: np.ndarray, texts: dict[str, str]) -> None:
    """Write a PNG whole or not at all."""
    text = PngInfo()
    for key, value in {"Software": "srlib", **texts}.items():
        text.add_text(key, value)
    write_image(target, Image.fromarray(sr), pnginfo=text)
