"""Training crops: an endless stream of places in the scans, which stay in memory, on the device, while they fit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from .reading import read_given_pair, read_image


class _Kept(dict):
    """What `make` gives for a number, tensors, kept while they fit into `room` bytes together."""

    def __init__(self, make: Callable[[int], list[torch.Tensor]], room: int):
        self.make, self.room = make, room

    def __missing__(self, index: int) -> list[torch.Tensor]:
        images = self.make(index)
        size = sum(image.nbytes for image in images)
        if size <= self.room:
            self[index], self.room = images, self.room - size
        return images


class Crops:
    """HR crops for training: item k is a pure function of (seed, k). uint8 tensors (C, crop, crop) on `device`.

    `paths` are read once and kept while they fit into `cache_bytes` of memory, with `device_bytes` also into so many of the device's. A crop with
    more than half fill is drawn again (up to 8 times); the crop is flipped left to right at random. Every image must be at least as large as
    the crop. `bits`: as in `read_image`. With `paired`, a scale, an item is (lr, hr): the crop and what stands there in the LR image (`lr_partner`).
    """

    def __init__(
        self, paths, crop: int, count: int, channels: int = 1, seed: int = 0, paired: int = 0, bits: int = 0, cache_bytes: int = 4 << 30,
        device: str | torch.device = "cpu", device_bytes: int = 0,
    ):  # fmt: skip
        self.paths, self.crop, self.count, self.seed, self.paired = [Path(p) for p in paths], crop, count, seed, paired
        self.channels, self.bits, self.device = channels, bits, torch.device(device)
        self.images = _Kept(self._read, cache_bytes)
        self.facts: dict[int, tuple] = {}
        self.placed = _Kept(self._place, device_bytes) if device_bytes else self.images

    def __len__(self) -> int:
        return self.count

    def _read(self, index: int) -> list[torch.Tensor]:
        """[hr] or, paired, [hr, lr]: (H, W) or (H, W, 3)."""
        path = self.paths[index]
        if self.paired:
            images = read_given_pair(path, self.paired, self.channels, self.bits)[::-1]
        else:
            images = [read_image(path, self.channels, self.bits)]
        return [torch.from_numpy(np.array(image)) for image in images]

    def _place(self, index: int) -> list[torch.Tensor]:
        return [image.to(self.device) for image in self.images[index]]

    def _facts(self, index: int) -> tuple[tuple[int, int], np.ndarray | None]:
        """(height, width) of an image and where it is 250 or more, packed bits (H, W or 3 W), None where no crop can be half of that: kept, so that a
        scan which the device holds is not decoded again for each crop."""
        if index not in self.facts:
            hr = self.images[index][0].numpy()
            bright = (hr >= 250).reshape(len(hr), -1)
            enough = bright.sum() >= self.channels * self.crop**2 / 2
            self.facts[index] = hr.shape[:2], np.packbits(bright, axis=1) if enough else None
        return self.facts[index]

    def place(self, k: int) -> tuple[int, int, int, bool]:
        """Where crop k lies: index of the image, top, left, and whether it is flipped."""
        if not 0 <= k < self.count:
            raise IndexError(k)
        rng, step = np.random.default_rng([self.seed, k]), self.paired or 1
        for _ in range(8):
            index = int(rng.integers(len(self.paths)))
            size, bright = self._facts(index)
            top, left = (int(rng.integers(n - self.crop + 1)) // step * step for n in size)
            across = slice(left * self.channels, (left + self.crop) * self.channels)
            if bright is None or np.unpackbits(bright[top : top + self.crop], axis=1)[:, across].mean() < 0.5:
                break
        return index, top, left, rng.random() < 0.5

    def __getitem__(self, k: int) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        (index, top, left, flip), crops = self.place(k), []
        for image, factor in zip(self.placed[index], (1, self.paired), strict=False):
            patch = image[top // factor : (top + self.crop) // factor, left // factor : (left + self.crop) // factor]
            patch = patch.flip(1) if flip else patch
            crops.append(patch.reshape(*patch.shape[:2], -1).permute(2, 0, 1))
        return tuple(crops[::-1]) if self.paired else crops[0]


def batches(crops: Crops, batch: int, first: int = 0, part: slice = slice(None)) -> Iterator:
    """Batches (batch, C, crop, crop) in [0, 1], from batch number `first` on, in the order of k, or the `part` of each that one of several
    processes trains on; of paired crops [lr, hr]."""
    for start in range(first * batch, len(crops) // batch * batch, batch):
        items = [crops[k] for k in range(start, start + batch)[part]]
        yield [torch.stack(side).float() / 255 for side in zip(*items, strict=True)] if crops.paired else torch.stack(items).float() / 255
