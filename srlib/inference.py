"""Images in, super-resolved images out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from . import domain, released
from .checkpoint import load_weights
from .config import UserError
from .models import blend, build
from .reading import MAX_PIXELS, find_images, pixel_size, png_name, read_image, slices

TILE, OVERLAP = 320, 48  # LR pixels
WARNING = "synthetic detail, research only, not for diagnosis"


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> torch.nn.Module:
    """A generator in eval mode, float32, from `srresnet.pt` or `srgan.pt` of a run; the names 'srresnet' and 'srgan' mean the released ones.
    Raises UserError for a file that is not one."""
    if path in released.NAMES:
        entry, folder = released.find()
        path = released.checked(entry, str(path), folder)
    stored = load_weights(path)
    try:
        generator = build(stored["settings"])
        generator.load_state_dict(stored["weights"])
    except KeyError as error:
        raise UserError(f"{path} holds a generator {error}, which is not in models.GENERATORS; register it before loading") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its weights do not fit a generator of this version ({str(error).splitlines()[0]})") from None
    return generator.to(device, memory_format=torch.channels_last).eval()  # 1.5 times faster on a CPU


def choose(
    weights: str | Path = "srgan", alpha: float | None = None, scale: int = 0, device: str | torch.device = "cpu"
) -> tuple[torch.nn.Module, str, dict | None]:
    """(generator, what to call it, the domain that it was released for or None), as `upscale` takes them.

    `weights`: 'srresnet' or 'srgan' (the released ones, of `scale` where there are several), a file, or a folder (its SRGAN): a run or
    what `release` wrote. `alpha`: the mean of the two networks' weights instead, SRResNet's at 0, SRGAN's at 1 (`models.blend`). Raises
    UserError for weights that are not there, damaged, of another scale, or of two shapes.
    """
    named, folder, entry = str(weights) in released.NAMES, Path(weights), None
    name = str(weights) if named else "srgan"
    if named or folder.is_dir():
        files, entry = released.pair(None if named else folder, scale)
    elif alpha is not None:
        raise UserError(f"alpha lies between two networks, and {weights} is one; give the folder of a run with --weights, or leave it out")
    else:
        files = {name: folder}
    if alpha is None:
        generator, said = load_generator(files[name], device), files[name].name
    else:
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha cannot be {alpha}; it goes from 0 (SRResNet) to 1 (SRGAN)")
        try:
            generator = blend(*(load_generator(files[n], device) for n in released.NAMES), alpha)
        except ValueError as error:
            raise UserError(f"{files['srgan'].parent}: {error}") from None
        said = f"{' to '.join(files[n].name for n in released.NAMES)}, alpha {alpha:g}"
    if scale and generator.settings["scale"] != scale:
        raise UserError(f"{weights} enlarges x{generator.settings['scale']}, not x{scale}; leave --scale out or name other weights")
    return generator, said + (" (trained on phantoms)" if entry and entry["phantom"] else ""), entry and entry["domain"]


@torch.inference_mode()
def upscale_tensor(lr: torch.Tensor, generator: torch.nn.Module, scale: int) -> torch.Tensor:
    """(1, C, h, w) to (1, C, h * scale, w * scale), in overlapping tiles where LR is larger than a tile; float32."""
    height, width = lr.shape[-2:]
    if max(height, width) <= TILE:
        return generator(lr)
    total = torch.zeros(*lr.shape[:2], height * scale, width * scale)
    weight = torch.zeros(1, 1, height * scale, width * scale)
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            sr = generator(lr[..., top:bottom, left:right]).cpu()
            feather = _ramp(top, bottom, height, scale)[:, None] * _ramp(left, right, width, scale)[None, :]
            where = np.s_[..., top * scale : bottom * scale, left * scale : right * scale]
            total[where] += sr * feather
            weight[where] += feather
    return total / weight


def _spans(size: int) -> list[tuple[int, int]]:
    """First and end of the fewest spans of at most TILE pixels that cover `size`, all of one length, overlapping by OVERLAP or more."""
    count = max(1, -(-(size - OVERLAP) // (TILE - OVERLAP)))
    length = -(-(size + (count - 1) * OVERLAP) // count)
    return [(start, start + length) for k in range(count) for start in [k * (size - length) // max(count - 1, 1)]]


def _ramp(start: int, end: int, size: int, scale: int) -> torch.Tensor:
    """Weights along a tile from LR pixel `start` to `end`, at SR size: next to nothing within a quarter of the overlap of an inner edge,
    which the padding spoils, then rising to 1 over half the overlap; no ramp at the image's own border."""
    at = (torch.arange((end - start) * scale) + 0.5) / scale
    low = at if start else torch.full_like(at, OVERLAP)
    high = at.flip(0) if end < size else torch.full_like(at, OVERLAP)
    return (torch.minimum(low, high) / (OVERLAP / 2) - 0.5).clamp(1e-6, 1)


@torch.inference_mode()
def _apply(image: np.ndarray, generator: torch.nn.Module) -> np.ndarray:
    """SR in the image's own levels, float32, not rounded."""
    settings, top = generator.settings, np.iinfo(image.dtype).max
    lr = torch.from_numpy(image.astype(np.float32) / top).reshape(1, *image.shape[:2], -1).permute(0, 3, 1, 2)
    lr = lr.to(next(generator.parameters()).device)
    if lr.shape[1] == settings["channels"]:
        sr = upscale_tensor(lr, generator, settings["scale"])
    elif settings["channels"] == 1:
        sr = torch.cat([upscale_tensor(lr[:, c : c + 1], generator, settings["scale"]) for c in range(lr.shape[1])], 1)
    else:
        sr = upscale_tensor(lr.expand(-1, 3, -1, -1), generator, settings["scale"]).mean(1, keepdim=True)
    sr = sr[0].permute(1, 2, 0).cpu().numpy() * top
    return sr[..., 0] if image.ndim == 2 else sr


def _levels(values: np.ndarray, dtype) -> np.ndarray:
    return np.clip(np.round(values), 0, np.iinfo(dtype).max).astype(dtype)


def upscale(image: np.ndarray, generator: torch.nn.Module) -> np.ndarray:
    """uint8 or uint16, (H, W) or (H, W, 3), to the same type at `scale` times the size. A grey generator takes colour channel by
    channel, a colour generator takes grey as three equal channels and gives their mean."""
    return _levels(_apply(image, generator), image.dtype)


def self_ensemble(image: np.ndarray, generator: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """(SR, spread): the mean of SR over the eight turns and flips of the image (Timofte et al. 2016, "x8"), and their standard deviation
    in levels of the image's type, float32 (of colour: mean over channels). Where the spread is large, the network is unsure."""
    mean, squares = 0.0, 0.0  # running, after Welford: eight maps of a large image would not fit
    for k in range(8):
        turns, flip = divmod(k, 2)
        view = np.rot90(image[:, ::-1] if flip else image, turns)
        sr = np.rot90(_apply(np.ascontiguousarray(view), generator), -turns)
        gap = (sr[:, ::-1] if flip else sr) - mean
        mean = mean + gap / (k + 1)
        squares = squares + gap**2 * (k / (k + 1))
    spread = np.sqrt(squares / 8)
    return _levels(mean, image.dtype), spread if spread.ndim == 2 else spread.mean(2)


def upscale_files(
    source: str | Path, out: str | Path, generator: torch.nn.Module, name: str = "", ensemble: bool = False, known: dict | None = None
) -> tuple[list[Path], list[Path], list[str], list[str]]:
    """Super-resolve an image or a folder of images into `out`: a folder gets `<stem>.png` for each, `<stem>#<k>.png` for slice k
    of a volume; for one image, a name that ends in .png is taken as the file. 16-bit grey stays 16 bit. `ensemble`: x8 self-ensemble.

    Each file says in its metadata that its detail is synthetic, what it was made from and by (`name`), and its pixel size, the
    source's divided by the scale. With `known`, the domain of the training set, it says in what the source is unlike that, too. Returns
    (written, there already, failed, warned): a file whose metadata show that it was made from the same source in the same way is left;
    `failed` has a line for each source that could not be read, would be too large, or whose name is taken, `warned` one for each that is
    unlike the training set. Raises UserError where a source would be overwritten.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    inside = source.is_dir() and out.resolve() != source.resolve()  # what an earlier call wrote is no source
    paths = [p for p in find_images(source) if not (inside and out.resolve() in p.resolve().parents)] if source.is_dir() else [source]
    single = not source.is_dir() and out.suffix.lower() == ".png"
    written, there, failed, warned, taken, scale = [], [], [], [], {}, generator.settings["scale"]
    parts: list[Path] = []
    for path in paths:
        try:
            parts += slices(path)
        except UserError as error:
            failed.append(str(error))
    if single and len(parts) > 1:
        raise UserError(f"{source}: holds {len(parts)} slices; give a folder for OUT, not {out.name}")
    targets = {(out if single else out / png_name(path).name).resolve() for path in parts}
    if clash := next((path for path in paths if path.resolve() in targets), None):
        raise UserError(f"{clash} would be overwritten by its own result; give another folder for OUT")
    by = f"{name} {_fingerprint(generator)}" + (" x8" if ensemble else "")
    for path in tqdm(parts, desc="upscale", unit="image", disable=len(parts) == 1):
        target = out if single else out / png_name(path).name
        if target in taken:
            failed.append(f"{path}: {target.name} was already written from {taken[target]}; rename one of them")
            continue
        try:
            image, size = read_image(path, generator.settings["channels"], deep=True), pixel_size(path)
            height, width = (n * scale for n in image.shape[:2])
            if height * width > MAX_PIXELS:
                raise UserError(f"{path}: would become {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}; cut it into parts")
            unlike = domain.warning(read_image(path, 3), known) if known else ""
        except UserError as error:
            failed.append(str(error))
            continue
        taken[target] = path
        readable = path.name.encode(errors="backslashreplace").decode()
        facts = {"Source": f"{readable} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}", "Made by": by.strip()}
        if known:
            facts["Domain"] = f"WARNING, unlike the training scans: {unlike}" if unlike else "like the training scans"
        if unlike:
            warned.append(f"{path}: unlike the scans that the network was trained on: {unlike}")
        if _made_earlier(target, facts):
            there.append(target)
            continue
        sr = self_ensemble(image, generator)[0] if ensemble else upscale(image, generator)
        _save(target, sr, facts, size, scale)
        written.append(target)
    return written, there, failed, warned


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


def _save(target: Path, sr: np.ndarray, facts: dict[str, str], size, scale: int) -> None:
    """Write a PNG whole or not at all."""
    text, options = PngInfo(), {}
    for key, value in {"Description": f"x{scale} super-resolution: {WARNING}", "Software": "srlib", **facts}.items():
        text.add_text(key, value)
    if size:
        text.add_text("Pixel size (um)", " x ".join(f"{s / scale:.4g}" for s in size))
        options["dpi"] = tuple(25_400 / s * scale for s in size)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    Image.fromarray(sr).save(part, "PNG", pnginfo=text, **options)
    part.replace(target)
