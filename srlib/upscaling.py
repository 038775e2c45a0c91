"""Images in, super-resolved images out: networks that are a function of LR, and networks that sample their texture from noise."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from .config import UserError
from .degrade import KINDS, has_projection, project, to_image, to_tensor
from .sampler.network import ROUNDS, Sampler, normal_noise, scan_statistics

TILE, OVERLAP = 320, 48  # LR pixels
AT_ONCE = 2**26  # pixels of SR that are sampled at once, each with 16 bytes of noise
NO_TEXTURE = "samples no texture; leave out --strength, --samples and --seed, or name a sampler"


@torch.inference_mode()
def samples(
    image: np.ndarray, generator: torch.nn.Module, seeds: Iterable[int], strength: float = 1.0, consistent: str = "", scan=None
) -> list[np.ndarray]:
    """uint8 or uint16, (H, W) or (H, W, 3), to SR of the same type at `scale` times the size, one for each seed, 0 or more.

    A `Sampler` has another texture for each seed, always the same for one seed and one image; any other network has one SR for all seeds.
    `strength` is the factor of the texture: 0 leaves the SR of its trunk, projected. `consistent`: `consistent_kind`. A grey generator takes colour
    channel by channel, with one noise, so that speckle is grey; a colour generator takes grey as three equal channels and gives their mean. `scan`:
    as for `Sampler.prepare`, where `image` is a part of a scan. Raises UserError where `check` or `consistent_kind` do.
    """
    seeds = list(seeds)
    check(generator, seeds, strength)
    kind, scale, device = consistent_kind(generator, consistent), generator.settings["scale"], next(generator.parameters()).device
    lr, levels = to_tensor(image).to(device), getattr(torch, image.dtype.name)
    height, width = (scale * n for n in image.shape[:2])

    def finished(sr: torch.Tensor) -> np.ndarray:
        return to_image(project(sr.to(device), lr, scale, kind, rounds=ROUNDS) if kind else sr, levels)

    if not isinstance(generator, Sampler):
        return [finished(_sr(lr, generator)[0])] * len(seeds)
    images, at_once = [], max(1, AT_ONCE // (height * width))
    for k in range(0, len(seeds), at_once):
        noises = [normal_noise(_noise_seed(image, seed), 1, height, width) for seed in seeds[k : k + at_once]]
        images += [finished(sr) for sr in _sr(lr, generator, noises, strength, scan)]
    return images


def upscale(image: np.ndarray, generator: torch.nn.Module, seed: int = 0, strength: float = 1.0, consistent: str = "", scan=None):
    """One of `samples`: uint8 or uint16, (H, W) or (H, W, 3), to the same type at `scale` times the size."""
    return samples(image, generator, [seed], strength, consistent, scan)[0]


def check(generator: torch.nn.Module, seeds: Iterable[int] = (), strength: float = 1.0) -> None:
    """Raise UserError for a negative seed or strength, and for another strength than 1 of a network without noise."""
    if wrong := [seed for seed in seeds if seed < 0]:
        raise UserError(f"seed cannot be {wrong[0]}; it is 0 or more")
    if not 0 <= strength < math.inf:
        raise UserError(f"strength cannot be {strength:g}; it is 0 (no texture), 1 (as it was learnt) or any other above 0")
    if strength != 1 and not isinstance(generator, Sampler):
        raise UserError(f"this network {NO_TEXTURE}")


def consistent_kind(generator: torch.nn.Module, consistent: str = "") -> str:
    """The kind of reduction with which SR is made consistent: `consistent`, or a `Sampler`'s own; '' for none. Raises UserError for a kind
    that has no projection (frame, given pairs)."""
    kind = consistent or generator.settings.get("kind", "")
    if kind and not has_projection(kind):
        able = ", ".join(filter(has_projection, KINDS))
        raise UserError(f"SR cannot be made consistent with LR of kind {kind!r}, which has no projection; there is one for {able}")
    return kind


# ------------------------------------------------------------------------------------------- noise, tiles
def _noise_seed(image: np.ndarray, seed: int) -> int:
    """Below 2^63, a function of seed and image: two scans of one seed do not share their speckle."""
    content = hashlib.sha256(f"{seed} {image.shape} ".encode() + image.tobytes()).digest()
    return int.from_bytes(content[:8], "big") >> 1


def _sr(lr: torch.Tensor, generator: torch.nn.Module, noises: Sequence[torch.Tensor] = (), strength: float = 1.0, scan=None) -> list:
    """SR (1, C, H, W) of LR, before a projection, for each of the noises; without one, the one SR of a network that has none."""
    channels = generator.settings["channels"]
    if lr.shape[1] == channels:
        return _tiled(lr, generator, noises, strength, scan)
    if channels == 1:
        parts = [_tiled(part, generator, noises, strength, scan) for part in lr.split(1, 1)]
        return [torch.cat(srs, 1) for srs in zip(*parts, strict=True)]
    return [sr.mean(1, keepdim=True) for sr in _tiled(lr.expand(-1, 3, -1, -1), generator, noises, strength, scan)]


def _tiled(
    lr: torch.Tensor, generator: torch.nn.Module, noises: Sequence[torch.Tensor], strength: float, scan=None, tile: int = 0
) -> list[torch.Tensor]:
    """`_sr` of an LR that has the generator's channels, in overlapping tiles, with which the noises are cut. Where a GPU has no room for TILE pixels
    a side, they get half of it."""
    (height, width), scale = lr.shape[-2:], generator.settings["scale"]
    totals = [torch.zeros(*lr.shape[:2], height * scale, width * scale) for _ in noises or [None]]
    weight = torch.zeros(1, 1, height * scale, width * scale)
    if noises:
        scan = (scan_statistics(lr) if scan is None else scan).to(lr.device)
    for (top, bottom), (left, right) in itertools.product(_spans(height, tile or TILE), _spans(width, tile or TILE)):
        part, where = lr[..., top:bottom, left:right], np.s_[..., top * scale : bottom * scale, left * scale : right * scale]
        feather = _ramp(top, bottom, height, scale)[:, None] * _ramp(left, right, width, scale)[None, :]
        weight[where] += feather
        try:
            srs = generator.samples(part, [noise[where].to(lr.device) for noise in noises], strength, scan) if noises else [generator(part)]
        except torch.OutOfMemoryError:
            if tile:
                raise
            torch.cuda.empty_cache()
            return _tiled(lr, generator, noises, strength, scan, TILE // 2)
        for total, sr in zip(totals, srs, strict=True):
            total[where] += sr.cpu() * feather
    return [total / weight for total in totals]


def _spans(size: int, most: int) -> list[tuple[int, int]]:
    """First and end of the fewest spans of at most `most` pixels that cover `size`, all of one length, overlapping by OVERLAP or more."""
    count = max(1, -(-(size - OVERLAP) // (most - OVERLAP)))
    length = -(-(size + (count - 1) * OVERLAP) // count)
    return [(start, start + length) for k in range(count) for start in [k * (size - length) // max(count - 1, 1)]]


def _ramp(start: int, end: int, size: int, scale: int) -> torch.Tensor:
    """Weights along a tile from LR pixel `start` to `end`, at SR size: next to nothing within a quarter of the overlap of an inner edge,
    which the padding spoils, then rising to 1 over half the overlap; no ramp at the image's own border."""
    at = (torch.arange((end - start) * scale) + 0.5) / scale
    low = at if start else torch.full_like(at, OVERLAP)
    high = at.flip(0) if end < size else torch.full_like(at, OVERLAP)
    return (torch.minimum(low, high) / (OVERLAP / 2) - 0.5).clamp(1e-6, 1)
