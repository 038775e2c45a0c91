"""What is measured between steps, on centre crops of validation scans."""

import numpy as np
import torch

from .. import metrics
from ..config import Config, UserError
from ..data.reading import read_pair
from ..degrade import to_image, to_tensor, upsample
from ..metrics.regions import valid_region
from ..sampler.network import scan_statistics
from ..upscaling import upscale


class Validation:
    """What is measured on centre crops of validation scans, in eval mode and float32; of the sampler one sample, the same each time."""

    def __init__(self, paths, config: Config, count: int = 12, side: int = 256):
        self.reduction, self.pairs, self.holds_lr = config.reduction, [], config.holds_lr
        paths = list(paths)
        for path in paths[:: max(1, -(-len(paths) // count))]:
            lr, hr = read_pair(path, config)
            top, left = (max(0, (n - side) // 2) // config.scale for n in hr.shape[:2])
            scan = scan_statistics(to_tensor(lr))
            lr = lr[top : top + side // config.scale, left : left + side // config.scale]
            top, left, height, width = (n * config.scale for n in (top, left, *lr.shape[:2]))
            hr = hr[top : top + height, left : left + width]
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(to_tensor(lr), config.scale)), hr, region=region)
            power = metrics.spectrum(hr, region)
            if np.isfinite(start) and power.any():  # an empty valid region or a flat square says nothing
                self.pairs.append((hr, lr, scan, region, start, power))
        if not self.pairs:
            raise UserError("no validation image has a valid region to measure; give other images or a larger val_share")

    @torch.inference_mode()
    def __call__(self, generator: torch.nn.Module) -> dict[str, float]:
        """{gain_db (valid region), consistency_db (nan where not even HR `holds_lr`), stripe_db, band1_db, ...}, means over the crops."""
        was_training, rows, scale = generator.training, [], self.reduction[0]
        generator.eval()
        for hr, lr, scan, region, start, power in self.pairs:
            sr = upscale(lr, generator, scan=scan)
            same = metrics.consistency(sr, lr, *self.reduction) if self.holds_lr else np.nan
            sr_power = metrics.spectrum(sr, region)
            stripe, powers = metrics.stripe_index(sr_power, power, scale), metrics.band_power_db(sr_power, power, scale)
            rows.append((metrics.psnr(sr, hr, region=region) - start, same, stripe, *powers))
        generator.train(was_training)
        names = ("gain_db", "consistency_db", "stripe_db", *(f"band{b}_db" for b in range(1, len(rows[0]) - 2)))
        return dict(zip(names, np.mean(rows, 0).tolist(), strict=True))
