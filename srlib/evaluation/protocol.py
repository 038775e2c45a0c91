"""The protocol of the series: how one SR image is measured against HR, in every measure and region."""

from __future__ import annotations

import numpy as np
import torch

from .. import metrics
from ..degrade import to_tensor
from ..metrics import regions
from ..metrics.regions import valid_region

BANDS = {"all": "band", "depth": "depth", "across": "across"}  # how the columns of a direction begin
BOUNDARIES = ("RNFL", "EZ", "RPE")  # phantoms: what begins at the boundaries whose shift is measured; the RNFL's is the inner surface


class Protocol:
    """One HR image, prepared once, against which any number of SR images are measured.

    `network` is the judge; `truth` what a phantom was drawn from, else None; `bscan`: whether a grey image shows a retina;
    `perceptual`: of `features.PERCEPTUAL`, those that are wanted, by name.
    """

    def __init__(
        self,
        lr: np.ndarray,
        hr: np.ndarray,
        reduction: tuple,
        border: int,
        network: torch.nn.Module,
        device,
        truth=None,
        bscan=True,
        perceptual=None,
    ):
        self.lr, self.hr, self.reduction, self.border = lr, hr, reduction, border
        self.perceptual = perceptual or {}
        self.scale, self.truth = reduction[0], truth
        self.network, self.device = network, device
        valid = valid_region(hr)
        self.regions = {"whole": None, "valid": None if valid.all() else valid}
        self.vitreous = np.zeros(valid.shape, bool)
        if bscan and (hr.ndim == 2 or (hr == hr[..., :1]).all()):  # colour photographs have no retina
            self.regions["retina"], self.vitreous = regions.retina(hr, truth)
        self.hr_maps = self._maps(hr)
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
    def _maps(self, image):
        return self.network(to_tensor(image).to(self.device))

    @torch.inference_mode()
    def _distance(self, network, sr: np.ndarray) -> float:
        """Of the whole image less its border; nan under 64 pixels a side, where AlexNet has nothing left."""
        inner = np.s_[self.border : sr.shape[0] - self.border, self.border : sr.shape[1] - self.border]
        pair = [to_tensor(image[inner]).expand(-1, 3, -1, -1).clamp(0, 1).to(self.device) for image in (sr, self.hr)]
        return network(*pair).item() if min(pair[0].shape[-2:]) >= 64 else float("nan")

    def measure(self, sr: np.ndarray) -> list[dict]:
        """A dict for each region with every measure; the regions agree where there is no fill. ValueError for another size."""
        if sr.shape != self.hr.shape:
            raise ValueError(
                f"SR is {sr.shape[1]} x {sr.shape[0]} pixels and HR {self.hr.shape[1]} x {self.hr.shape[0]}; is the scale right?"
            )
        hr, rows, image = self.hr, [], self._of_the_image(sr)
        ssim, ms_ssim = (self._by_region(measure, sr, hr, self.border) for measure in (metrics.ssim, metrics.ms_ssim))
        judge = self._by_region(metrics.feature_distance, self._maps(sr), self.hr_maps)
        speckle = self._by_region(metrics.speckle_contrast, sr)
        for name, region in self.regions.items():
            if name == "valid" and region is None:
                rows.append(dict(rows[0], region=name))
                continue
            power, hr_power = metrics.spectrum(sr, region), self.hr_power[name]
            powers = {part: metrics.band_power_db(power, hr_power, self.scale, part) for part in metrics.DIRECTIONS}
            rows.append(
                {
                    "region": name,
                    "psnr": metrics.psnr(sr, hr, self.border, region),
                    "ssim": ssim[name],
                    "ms_ssim": ms_ssim[name],
                    "texture_error_db": float(np.abs(powers["all"]).mean()),
                    **{f"{BANDS[part]}{k}_db": v for part, values in powers.items() for k, v in enumerate(values, 1)},
                    "stripe_db": metrics.stripe_index(power, hr_power, self.scale),
                    "checkerboard": metrics.checkerboard(power, hr_power, self.scale),
                    "consistency": image["consistency"],
                    "judge": judge[name],
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
        found |= {name: self._distance(network, sr) for name, network in self.perceptual.items()}
        if self.truth is not None:
            shifts = [regions.boundary_shift(sr, self.hr, self.truth.surfaces[s][: sr.shape[1]]) for s in BOUNDARIES]
            found["boundary_px"] = float(np.mean(shifts))
            found["lesion_contrast"] = regions.lesion_contrast(sr, self.hr, self.truth.lesions)
        return found
