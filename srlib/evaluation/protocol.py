"""The protocol of the series: how one SR image is measured against HR, in every measure and region."""

import numpy as np
import torch

from .. import metrics
from ..degrade import to_tensor
from ..metrics import regions
from ..metrics.regions import valid_region

BORDER = 4  # pixels cut from each side before PSNR, SSIM and LPIPS, as in the paper


class Protocol:
    """One HR image, prepared once, against which any number of SR images are measured. `lpips`: `features.lpips` on `device`."""

    def __init__(self, lr: np.ndarray, hr: np.ndarray, reduction: tuple, lpips: torch.nn.Module | None = None, device="cpu"):
        self.lr, self.hr, self.reduction, self.lpips, self.device = lr, hr, reduction, lpips, device
        valid = valid_region(hr)
        self.regions = {"whole": None} if valid.all() else {"whole": None, "valid": valid}
        if hr.ndim == 2 or (hr == hr[..., :1]).all():  # colour photographs have no retina
            self.regions["retina"], _ = regions.retina(hr)
        self.hr_power = {name: metrics.spectrum(hr, region) for name, region in self.regions.items()}

    def measure(self, sr: np.ndarray) -> list[dict]:
        """A dict for each region with every measure; the regions agree where there is no fill. ValueError for another size."""
        hr, scale, rows = self.hr, self.reduction[0], {}
        ssim, consistency = metrics.ssim(sr, hr, BORDER, [*self.regions.values()]), metrics.consistency(sr, self.lr, *self.reduction)
        image = {} if self.lpips is None else {"lpips": self._lpips(sr)}
        for k, (name, region) in enumerate(self.regions.items()):
            power, hr_power = metrics.spectrum(sr, region), self.hr_power[name]
            powers = metrics.band_power_db(power, hr_power, scale)
            rows[name] = {
                "psnr": metrics.psnr(sr, hr, BORDER, region),
                "ssim": ssim[k],
                "texture_error_db": float(np.abs(powers).mean()),
                **{f"band{n}_db": value for n, value in enumerate(powers, 1)},
                "stripe_db": metrics.stripe_index(power, hr_power, scale),
                "checkerboard": metrics.checkerboard(power, hr_power, scale),
                "consistency": consistency,
                **image,
            }
        rows.setdefault("valid", rows["whole"])
        return [{"region": name} | rows[name] for name in ("whole", "valid", "retina") if name in rows]

    @torch.inference_mode()
    def _lpips(self, sr: np.ndarray) -> float:
        """Of the whole image less its border; nan under 64 pixels a side, where AlexNet has nothing left."""
        inner = np.s_[BORDER:-BORDER, BORDER:-BORDER]
        pair = [to_tensor(image[inner]).expand(-1, 3, -1, -1).to(self.device) for image in (sr, self.hr)]
        return self.lpips(*pair, normalize=True).item() if min(pair[0].shape[-2:]) >= 64 else float("nan")
