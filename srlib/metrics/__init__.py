"""Every measure of the series, defined once. Images are uint8 arrays (H, W) or (H, W, 3); colour is measured on luma.

`pixels`: fidelity. `spectra`: texture by fineness and direction. `unpaired`: patches of SR against patches
of HR. `speckle`: what a reader of OCT measures. They know nothing of files and runs.
"""

from .pixels import consistency, luma, psnr, ssim, too_small
from .speckle import cnr, edge_preservation, enl, speckle_contrast
from .spectra import DIRECTIONS, against_hr, band_power_db, bands, checkerboard, psd, rounding_floor, spectrum, stripe_index
