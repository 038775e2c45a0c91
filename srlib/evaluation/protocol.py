"""The protocol of the series: how one SR image is measured against HR, in every measure and region."""

from __future__ import annotations

import numpy as np
import torch

from .. import metrics
from ..degrade import to_tensor
from ..metrics import regions
from ..metrics.regions import valid_region

BORDER = 4  # pixels cut from each side before PSNR, SSIM and LPIPS, as in the paper
BANDS = {"all": "band", "depth": "depth", "across": "across"}  # how the columns of a direction begin
BOUNDARIES = ("RNFL", "EZ", "RPE")  # phantoms: what begins at the boundaries whose shift is measured; the RNFL's is the inner surface


class Protocol:
    """One HR image, prepared once, against which any number of SR images are measured.

    `truth`: what a phantom was drawn from, else None; `lpips`: `features.lpips` where that is wanted, on `device`.
    """

    def __init__(self, lr: np.ndarray, hr: np.ndarray, reduction: tuple, truth=None, lpips: torch.nn.Module | None = None, device="cpu"):
        self.lr, self.hr, self.reduction = lr, hr, reduction
        self.scale, self.truth = reduction[0], truth
        self.lpips, self.device = lpips, device
        valid = valid_region(hr)
        self.regions = {"whole": None, "valid": None if valid.all() else valid}
        self.vitreous = np.zeros(valid.shape, bool)
        if hr.ndim == 2 or (hr == hr[..., :1]).all():  # colour photographs have no retina
            self.regions["retina"], self.vitreous = regions.retina(hr, truth)
        self.hr_power = {name: metrics.spectrum(hr, region) for name, region in self.regions.items()}
        self.apart = {name: region for name, region in self.regions.items() if name != "valid" or region is not None}
        self.hr_speckle = self._by_region(metrics.speckle_contrast, hr)
        self.hr_cnr, self.hr_enl = metrics.cnr(hr, self._tissue, self.vitreous), metrics.enl(hr, self.vitreous)

    @property
    def _tissue(self):
        return self.regions.get("retina", self.vitreous)

    def _by_region(self, measure, *images) -> dict[str, float]:
        return dict(zip(self.apart, measure(*images, region=[*self.apart.values()]), strict=True))

    @torch.inference_mode()
    def _lpips(self, sr: np.ndarray) -> float:
        """Of the whole image less its border; nan under 64 pixels a side, where AlexNet has nothing left."""
        inner = np.s_[BORDER:-BORDER, BORDER:-BORDER]
        pair = [to_tensor(image[inner]).expand(-1, 3, -1, -1).to(self.device) for image in (sr, self.hr)]
        return self.lpips(*pair, normalize=True).item() if min(pair[0].shape[-2:]) >= 64 else float("nan")

    def measure(self, sr: np.ndarray) -> list[dict]:
        """A dict for each region with every measure; the regions agree where there is no fill. ValueError for another size."""
        if sr.shape != self.hr.shape:
            raise ValueError(
                f"SR is {sr.shape[1]} x {sr.shape[0]} pixels and HR {self.hr.shape[1]} x {self.hr.shape[0]}; is the scale right?"
            )
        hr, rows, image = self.hr, [], self._of_the_image(sr)
        ssim, speckle = self._by_region(metrics.ssim, sr, hr, BORDER), self._by_region(metrics.speckle_contrast, sr)
        for name, region in self.regions.items():
            if name == "valid" and region is None:
                rows.append(dict(rows[0], region=name))
                continue
            power, hr_power = metrics.spectrum(sr, region), self.hr_power[name]
            powers = {part: metrics.band_power_db(power, hr_power, self.scale, part) for part in metrics.DIRECTIONS}
            rows.append(
                {
                    "region": name,
                    "psnr": metrics.psnr(sr, hr, BORDER, region),
                    "ssim": ssim[name],
                    "texture_error_db": float(np.abs(powers["all"]).mean()),
                    **{f"{BANDS[part]}{k}_db": v for part, values in powers.items() for k, v in enumerate(values, 1)},
                    "stripe_db": metrics.stripe_index(power, hr_power, self.scale),
                    "checkerboard": metrics.checkerboard(power, hr_power, self.scale),
                    "consistency": image["consistency"],
                    "speckle": speckle[name] - self.hr_speckle[name],
                    "epi": metrics.edge_preservation(sr, hr, region),
                }
                | image
            )
        return rows

    def _of_the_image(self, sr: np.ndarray) -> dict:
        """The measures that do not depend on the region."""
        enl = metrics.enl(sr, self.vitreous) / self.hr_enl
        found = {
            "consistency": metrics.consistency(sr, self.lr, *self.reduction),
            "cnr_db": metrics.cnr(sr, self._tissue, self.vitreous) - self.hr_cnr,
            "enl_db": float(10 * np.log10(enl)) if enl > 0 else float("nan"),
        }
        if self.lpips is not None:
            found["lpips"] = self._lpips(sr)
        if self.truth is not None:
            shifts = [regions.boundary_shift(sr, self.hr, self.truth.surfaces[s][: sr.shape[1]]) for s in BOUNDARIES]
            found["boundary_px"] = float(np.mean(shifts))
            found["lesion_contrast"] = regions.lesion_contrast(sr, self.hr, self.truth.lesions)
        return found
