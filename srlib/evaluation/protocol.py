"""The protocol of the series: how one SR image is measured against HR, in every measure and region."""

from __future__ import annotations

import numpy as np
import torch

from .. import metrics
from ..degrade import to_tensor
from ..metrics import regions
from ..metrics.regions import valid_region

BORDER = 4  # pixels cut from each side before PSNR, SSIM and LPIPS, as in the paper
BOUNDARIES = ("RNFL", "EZ", "RPE")  # phantoms: what begins at the boundaries whose shift is measured; the RNFL's is the inner surface


class Protocol:
    """One HR image, prepared once, against which any number of SR images are measured. `truth`: what a phantom was drawn from, else None;
    `lpips`: `features.lpips` on `device`."""

    def __init__(self, lr: np.ndarray, hr: np.ndarray, reduction: tuple, truth=None, lpips: torch.nn.Module | None = None, device="cpu"):
        self.lr, self.hr, self.reduction = lr, hr, reduction
        self.truth, self.lpips, self.device = truth, lpips, device
        valid = valid_region(hr)
        self.regions = {"whole": None} if valid.all() else {"whole": None, "valid": valid}
        self.tissue = self.vitreous = np.zeros(valid.shape, bool)
        if hr.ndim == 2 or (hr == hr[..., :1]).all():  # colour photographs have no retina
            self.tissue, self.vitreous = regions.retina(hr, truth)
            self.regions["retina"] = self.tissue
        self.hr_power = {name: metrics.spectrum(hr, region) for name, region in self.regions.items()}
        self.hr_speckle = metrics.speckle_contrast(hr, [*self.regions.values()])
        self.hr_cnr, self.hr_enl = metrics.cnr(hr, self.tissue, self.vitreous), metrics.enl(hr, self.vitreous)

    def measure(self, sr: np.ndarray) -> list[dict]:
        """A dict for each region with every measure; the regions agree where there is no fill. ValueError for another size."""
        hr, scale, rows, masks = self.hr, self.reduction[0], {}, [*self.regions.values()]
        ssim, speckle = metrics.ssim(sr, hr, BORDER, masks), metrics.speckle_contrast(sr, masks)
        consistency, image = metrics.consistency(sr, self.lr, *self.reduction), self._of_the_image(sr)
        for k, (name, region) in enumerate(self.regions.items()):
            power, hr_power = metrics.spectrum(sr, region), self.hr_power[name]
            powers = {part: metrics.band_power_db(power, hr_power, scale, part) for part in metrics.DIRECTIONS}
            rows[name] = {
                "psnr": metrics.psnr(sr, hr, BORDER, region),
                "ssim": ssim[k],
                "texture_error_db": float(np.abs(powers["all"]).mean()),
                **{f"{part.replace('all', 'band')}{n}_db": v for part, values in powers.items() for n, v in enumerate(values, 1)},
                "stripe_db": metrics.stripe_index(power, hr_power, scale),
                "checkerboard": metrics.checkerboard(power, hr_power, scale),
                "consistency": consistency,
                "speckle": speckle[k] - self.hr_speckle[k],
                "epi": metrics.edge_preservation(sr, hr, region),
                **image,
            }
        rows.setdefault("valid", rows["whole"])
        return [{"region": name} | rows[name] for name in ("whole", "valid", "retina") if name in rows]

    def _of_the_image(self, sr: np.ndarray) -> dict[str, float]:
        """The measures that do not depend on the region."""
        enl = metrics.enl(sr, self.vitreous) / self.hr_enl
        row = {
            "cnr_db": metrics.cnr(sr, self.tissue, self.vitreous) - self.hr_cnr,
            "enl_db": float(10 * np.log10(enl)) if enl > 0 else float("nan"),
        }
        if self.lpips is not None:
            row["lpips"] = self._lpips(sr)
        if self.truth is not None:
            shifts = [regions.boundary_shift(sr, self.hr, self.truth.surfaces[s][: sr.shape[1]]) for s in BOUNDARIES]
            row["boundary_px"] = float(np.mean(shifts))
            row["lesion_contrast"] = regions.lesion_contrast(sr, self.hr, self.truth.lesions)
        return row

    @torch.inference_mode()
    def _lpips(self, sr: np.ndarray) -> float:
        """Of the whole image less its border; nan under 64 pixels a side, where AlexNet has nothing left."""
        inner = np.s_[BORDER:-BORDER, BORDER:-BORDER]
        pair = [to_tensor(image[inner]).expand(-1, 3, -1, -1).to(self.device) for image in (sr, self.hr)]
        return self.lpips(*pair, normalize=True).item() if min(pair[0].shape[-2:]) >= 64 else float("nan")
