"""The Gaussian texture, what a network that samples its texture must beat: noise with HR's power spectrum on SRResNet's image, without a network.
It can have HR's power at each frequency, not HR's shapes. Texture by its spectrum: Galerne et al. 2011 (Random phase textures)."""

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates, uniform_filter

from ..degrade import project, to_image, to_tensor
from ..metrics import luma
from ..metrics.regions import valid_region, whole_squares
from .network import ROUNDS

BLOCK = 64  # side of the blocks, half overlapping, that a spectrum is the mean of (Welch 1967)
BINS = 32, 12  # of the strength: by brightness, by roughness
CORRECTIONS, MOST = 2, 4.0  # how often the filter's power is corrected, and by which factor at most
LEAST = 1e-3  # power in squared grey levels; rounding to 8 bit leaves 80 times as much


class GaussianTexture:
    """Samples SR = project(base + strength * filtered noise, lr), fitted on scans. Before `fit`, texture is 0.

    `base`: SRResNet's image, uint8 (H, W) or (H, W, 3); `kind`: the reduction that SR is consistent with, '' for none (frame, given pairs).
    Strength follows the brightness and roughness of base around each pixel; the filter follows the roughness of the whole scan: averaged scans
    have less fine texture than noisy ones. All channels of a colour image get the same texture."""

    def __init__(self, scale: int = 4, kind: str = "bicubic"):
        self.scale, self.kind = scale, kind
        self.fit([])

    def fit(self, pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Self:
        """`pairs`: (base, lr, hr) of each scan, read once and kept. Scans without a valid block are left out; with none at all, texture is 0.

        The first filter is the spectrum of (hr - base) / strength. Strength, clipping and projection change it, so it is corrected until SR has
        HR's power above the LR Nyquist frequency, the mean of its logarithm over scans: a scan in which HR is strong counts like any other.
        """
        self.strength, self.roughness = np.zeros(BINS), (0.0, 0.0, 0.0)  # in grey levels; least, mean and largest of the scans
        self.power, self.slope = np.zeros((2, BLOCK, BLOCK))  # for a scan of mean roughness; what its logarithm gains by roughness
        scans = [(base, lr, hr, ok) for base, lr, hr in pairs if whole_squares(ok := valid_region(hr), BLOCK, BLOCK // 2)]
        if not scans:
            return self
        self.strength = _strength((_place(base)[:, ok], (_grey(hr) - _grey(base))[ok]) for base, _, hr, ok in scans)
        self.power = np.mean([_welch((_grey(hr) - _grey(base)) / (self._strength_at(base) + LEAST), ok) for base, _, hr, ok in scans], 0)
        rough = np.array([_roughness(base) for base, *_ in scans])
        self.roughness = rough.min(), rough.mean(), rough.max()
        off, f = (rough - rough.mean())[:, None, None], np.abs(np.fft.fftfreq(BLOCK))
        above = np.maximum.outer(f, f) > 0.5 / self.scale
        before, wanted = (np.log([_welch(_grey(scan[k]), scan[3]) + LEAST for scan in scans]) for k in (0, 2))
        for _ in range(CORRECTIONS):
            reached = np.log([_welch(_grey(self.sample(base, lr, k)), ok) + LEAST for k, (base, lr, _, ok) in enumerate(scans)])
            base, hr, sr = (np.exp(power.mean(0)) for power in (before, wanted, reached))
            factor = np.clip((hr - base) / np.maximum(sr - base, LEAST), 1 / MOST, MOST)  # base has its part of the power
            self.power = np.where(above, factor, 1) * self.power
            # A line through the scans' gaps by roughness; the 0.5 keeps it flat where scans are few or alike.
            self.slope = self.slope + above * ((wanted - reached) * off).sum(0) / ((off**2).sum() + 0.5)
        return self

    def sample(self, base: np.ndarray, lr: np.ndarray, seed: int) -> np.ndarray:
        """SR, uint8 of the shape of `base`, a function of the images and the seed (0 or more). It is consistent with LR after rounding, too."""
        least, mean, largest = self.roughness
        power = self.power * np.exp(self.slope * (np.clip(_roughness(base), least, largest) - mean))
        at = np.meshgrid(*(BLOCK * np.fft.fftfreq(n) for n in base.shape[:2]), indexing="ij")
        amplitude = map_coordinates(np.sqrt(power), at, order=1, mode="grid-wrap")
        noise = np.fft.ifft2(amplitude * np.fft.fft2(np.random.default_rng(seed).standard_normal(base.shape[:2]))).real
        sr = to_tensor(base) + torch.from_numpy(noise * self._strength_at(base)).float() / 255
        return to_image(project(sr, to_tensor(lr), self.scale, self.kind, ROUNDS) if self.kind else sr)

    def _strength_at(self, base: np.ndarray) -> np.ndarray:
        return map_coordinates(self.strength, _place(base) - 0.5, order=1, mode="nearest")


def _grey(image: np.ndarray) -> np.ndarray:
    """Float (H, W), 0 to 255: luma without the narrower range that it has for colour, so that a grey texture changes it by as much."""
    return luma(image) if image.ndim == 2 else (luma(image) - 16) * 255 / 219


def _roughness(base: np.ndarray, side: int = 0):
    """Logarithm of squared differences to means of 5 x 5 pixels: of their median without white fill, or a map of their means over `side` pixels."""
    rough = (_grey(base) - uniform_filter(_grey(base), 5)) ** 2
    if side:
        return np.log(np.maximum(uniform_filter(rough, side), 0) + 0.3)
    return np.log(np.median(rough[_grey(base) < 250]) + 0.01) if _grey(base).min() < 250 else 0.0


def _place(base: np.ndarray) -> np.ndarray:
    """Where each pixel stands among the BINS: float (2, H, W). Logarithms of roughness go from -1.2 (flat) to about 5 (strong edges)."""
    return np.clip([_grey(base) / 256 * BINS[0], (_roughness(base, 17) + 1.21) / 6.5 * BINS[1]], 0, np.reshape(BINS, (2, 1, 1)) - 1e-6)


def _strength(samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Root mean square of the residuals in each of the BINS, from (places (2, N), residuals (N)). Bins with few pixels take a neighbour's."""
    sums = np.zeros((2, *BINS))
    for places, residual in samples:
        k = np.ravel_multi_index(places.astype(int), BINS)
        sums += [np.bincount(k, weights, np.prod(BINS)).reshape(BINS) for weights in (None, residual**2)]
    count, total = (gaussian_filter(each, 0.7) for each in sums)
    nearest = distance_transform_edt(count < min(100, count.max()), return_distances=False, return_indices=True)
    return np.sqrt(total / np.maximum(count, LEAST))[tuple(nearest)]


def _welch(image: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """Mean power of the valid blocks, each less its mean and under a Hann window, (BLOCK, BLOCK) by frequency; 1 for white noise of variance 1."""
    blocks = np.array([image[block] for block in whole_squares(ok, BLOCK, BLOCK // 2)])
    window = np.outer(*2 * [np.hanning(BLOCK + 1)[:-1]])
    power = np.abs(np.fft.fft2((blocks - blocks.mean((1, 2), keepdims=True)) * window)) ** 2
    return power.mean(0) / (window**2).sum()
