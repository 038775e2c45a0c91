"""What is measured between steps, on centre crops of validation scans."""

from __future__ import annotations

import numpy as np
import torch

from .. import metrics
from ..config import Config, UserError
from ..data.reading import read_pair
from ..degrade import to_image, to_tensor, upsample
from ..metrics.regions import valid_region
from ..sampler.network import sample


class Validation:
    """What is measured on centre crops of validation scans, in eval mode and float32; of the sampler one sample, with the same noise
    each time."""

    def __init__(self, paths, config: Config, device: torch.device, count: int = 12, side: int = 256):
        self.device, self.reduction, self.pairs, self.holds_lr = device, config.reduction, [], config.holds_lr
        paths = list(paths)
        for path in paths[:: max(1, -(-len(paths) // count))]:
            lr, hr = read_pair(path, config)
            top, left = (max(0, (n - side) // 2) // config.scale for n in hr.shape[:2])
            lr = to_tensor(lr[top : top + side // config.scale, left : left + side // config.scale])
            top, left, height, width = (n * config.scale for n in (top, left, *lr.shape[-2:]))
            hr = hr[top : top + height, left : left + width]
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(lr, config.scale)), hr, region=region)
            power = metrics.spectrum(hr, region)
            if np.isfinite(start) and power.any():  # an empty valid region or a flat square says nothing
                self.pairs.append((hr, lr, region, start, power))
        if not self.pairs:
            raise UserError("no validation image has a valid region to measure; give other images or a larger val_share")

    @torch.inference_mode()
    def __call__(self, generator: torch.nn.Module) -> dict[str, float]:
        """{gain_db (valid region), consistency_db (nan where not even HR `holds_lr`), stripe_db, band1_db, ...}, means over the crops."""
        was_training, rows, scale = generator.training, [], self.reduction[0]
        generator.eval()
        for k, (hr, lr, region, start, power) in enumerate(self.pairs):
            sr = to_image(sample(generator, lr.to(self.device), seed=k))
            same = metrics.consistency(sr, to_image(lr), *self.reduction) if self.holds_lr else np.nan
            sr_power = metrics.spectrum(sr, region)
            stripe, powers = metrics.stripe_index(sr_power, power, scale), metrics.band_power_db(sr_power, power, scale)
            rows.append((metrics.psnr(sr, hr, region=region) - start, same, stripe, *powers))
        generator.train(was_training)
        names = ("gain_db", "consistency_db", "stripe_db", *(f"band{b}_db" for b in range(1, len(rows[0]) - 2)))
        return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))
