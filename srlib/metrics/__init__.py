"""Every measure of the series, defined once. Images are uint8 arrays (H, W) or (H, W, 3); colour is measured on luma.

`pixels`: fidelity. `spectra`: texture by fineness. `unpaired`: patches of SR against patches of HR. They know
nothing of files and runs.
"""

from .pixels import consistency, luma, psnr, ssim
from .spectra import against_hr, band_power_db, bands, checkerboard, psd, rounding_floor, spectrum, stripe_index
