"""Distance in the features of a network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .pixels import each


def feature_distance(sr_maps, hr_maps, region: np.ndarray | list | None = None, window: int = 16) -> float | list[float]:
    """Distance between two lists of feature maps (1, C, h, w) in the look of their texture; 0 for equal images, lower is nearer.

    Each position's channels are scaled to length 1, as in LPIPS (Zhang et al. 2018). Then what is compared is, for each channel, the
    mean and the standard deviation within windows of `window` HR pixels (half overlapping), as in DISTS (Ding et al. 2020):
    squared differences are summed over channels and both statistics, averaged over the windows that lie in the region (weighted by
    their share of it), and added over the maps. Position by position, another draw of the same speckle would be as far from HR as a
    blurred image is; by its statistics it is near, which is what an observer says. The first map must have HR's size. `region` may be a list.
    """
    gaps, height = [], hr_maps[0].shape[-2]
    for sr, hr in zip(sr_maps, hr_maps, strict=True):
        side = max(2, window * hr.shape[-2] // height)
        gap = sum((a - b) ** 2 for a, b in zip(_local_statistics(sr, side), _local_statistics(hr, side), strict=True)).sum(1)
        gaps.append((gap, hr.shape[-2:], side))

    def mean(region):
        total = 0.0
        for gap, size, side in gaps:
            weight = torch.ones_like(gap)
            if region is not None:
                weight = F.adaptive_avg_pool2d(torch.from_numpy(region[None].astype(np.float32)).to(gap.device), size)
                weight = F.avg_pool2d(weight, side, side // 2)
            total += ((gap * weight).sum() / weight.sum()).item()  # nan for an empty region
        return total

    return each(mean, region)


def _local_statistics(maps: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    unit = maps / (maps.norm(dim=1, keepdim=True) + 1e-8)
    mean = F.avg_pool2d(unit, side, side // 2)
    return mean, (F.avg_pool2d(unit**2, side, side // 2) - mean**2).clamp(min=0).sqrt()
