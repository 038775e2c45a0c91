"""Training crops: an endless stream of places in the scans, in memory or on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .reading import read_given_pair, read_image


class Crops(torch.utils.data.Dataset):
    """HR crops for training: item k is a pure function of (seed, k). uint8 tensors (C, crop, crop).

    `paths` are read once and kept while they fit into `cache_bytes`. A crop with more than half fill is drawn again (up to 8 times); the
    crop is flipped left to right at random. Every image must be at least as large as the crop. `bits`: as in `read_image`. With `paired`, a
    scale, an item is (lr, hr): the crop and what stands there in the LR image (`lr_partner`).
    """

    def __init__(
        self, paths, crop: int, count: int, channels: int = 1, seed: int = 0, paired: int = 0, bits: int = 0, cache_bytes: int = 4 << 30
    ):
        self.paths, self.crop, self.count, self.seed, self.paired = [Path(p) for p in paths], crop, count, seed, paired
        self.channels, self.bits, self.room = channels, bits, cache_bytes
        self.cache: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return self.count

    def images(self, index: int) -> list[np.ndarray]:
        """[hr] or, paired, [hr, lr] of one of the paths, from memory where it is there."""
        if index in self.cache:
            return self.cache[index]
        path = self.paths[index]
        if self.paired:
            images = list(read_given_pair(path, self.paired, self.channels, self.bits))[::-1]
        else:
            images = [read_image(path, self.channels, self.bits)]
        size = sum(image.nbytes for image in images)
        if self.room >= size:
            self.cache[index] = images
            self.room -= size
        return images

    def place(self, k: int) -> tuple[int, int, int, bool]:
        """Where crop k lies: index of the image, top, left, and whether it is flipped."""
        if not 0 <= k < self.count:
            raise IndexError(k)
        rng, step = np.random.default_rng([self.seed, k]), self.paired or 1
        for _ in range(8):
            index = int(rng.integers(len(self.paths)))
            hr = self.images(index)[0]
            top, left = (int(rng.integers(n - self.crop + 1)) // step * step for n in hr.shape[:2])
            patch = hr[top : top + self.crop, left : left + self.crop]
            if (patch >= 250).mean() < 0.5:
                break
        return index, top, left, rng.random() < 0.5

    def cut(self, images: list[np.ndarray] | list[torch.Tensor], top: int, left: int, flip: bool):
        """The crop at a place of the images (H, W) or (H, W, 3), on the device of tensors."""
        crops = []
        for image, factor in zip(images, (1, self.paired), strict=False):
            patch = image[top // factor : (top + self.crop) // factor, left // factor : (left + self.crop) // factor]
            patch = torch.from_numpy(np.array(patch)) if isinstance(patch, np.ndarray) else patch
            patch = patch.flip(1) if flip else patch
            crops.append(patch.reshape(*patch.shape[:2], -1).permute(2, 0, 1))
        return tuple(crops[::-1]) if self.paired else crops[0]

    def __getitem__(self, k: int) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        index, *where = self.place(k)
        return self.cut(self.images(index), *where)


class _Turns:
    """The numbers of the crops in each batch from `first` on, or of the `part` of it that one of several processes trains on."""

    def __init__(self, crops: Crops, batch: int, first: int, part: slice):
        self.starts, self.batch, self.part = range(first * batch, len(crops) // batch * batch, batch), batch, part

    def __iter__(self) -> Iterator[range]:
        return (range(start, start + self.batch)[self.part] for start in self.starts)


def batches(crops: Crops, batch: int, first: int = 0, workers: int = 0, part: slice = slice(None)) -> Iterator:
    """Batches (batch, C, crop, crop) in [0, 1], from batch number `first` on, in the order of k, or a `part` of each; of paired
    crops [lr, hr]."""
    turns, own = _Turns(crops, batch, first, part), torch.Generator()  # the loader would draw from the global generator
    for images in torch.utils.data.DataLoader(crops, batch_sampler=turns, num_workers=workers, generator=own):
        yield [part.float() / 255 for part in images] if crops.paired else images.float() / 255


def held_batches(crops: Crops, batch: int, first: int, device: torch.device, room: int, part: slice = slice(None)) -> Iterator:
    """The same batches as `batches`, cut on the device from uint8 scans that stay there while they fit into `room` bytes."""
    held: dict[int, list[torch.Tensor]] = {}
    for numbers in _Turns(crops, batch, first, part):
        patches = []
        for k in numbers:
            index, *where = crops.place(k)
            images = held.get(index)
            if images is None:
                images = [torch.from_numpy(np.array(image)).to(device) for image in crops.images(index)]
                size = sum(image.nbytes for image in images)
                if size <= room:
                    held[index], room = images, room - size
            patches.append(crops.cut(images, *where))
        if crops.paired:
            yield [torch.stack(part).float() / 255 for part in zip(*patches, strict=True)]
        else:
            yield torch.stack(patches).float() / 255
