"""Every measure of the series, defined once. Images are uint8 arrays (H, W) or (H, W, 3); colour is measured on luma.

Protocol: `border` pixels are cut from each side (4, as in the paper); then the mean is taken over a region (a bool array, True
where it counts). The peak is 255, whatever the image holds. Where `region` may be a list (None: everywhere), the answer is a list too, and
what is the same for all regions is computed once.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter, uniform_filter
from skimage.metrics import structural_similarity

from .degrade import downsample, from_display, to_tensor

SSIM_PAD = 5  # the Gaussian window of 11 pixels (sigma 1.5) reaches this far
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from fine to coarse


def luma(image: np.ndarray) -> np.ndarray:
    """float64 (H, W), for levels 0 to 255: grey as it is; colour as Y of ITU-R 601 (16 to 235), which the Set5 protocol measures.

    (So a grey scan in a colour run has a PSNR 1.32 dB higher than in a grey run: compare gains, not levels.)
    """
    return image.astype(np.float64) if image.ndim == 2 else image @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def _pair(sr, hr, border, region):
    if sr.shape != hr.shape:
        raise ValueError(f"SR is {sr.shape} and HR {hr.shape}; they must have the same size")
    height, width = hr.shape[:2]
    if min(height, width) < 2 * border + 2 * SSIM_PAD + 1:
        raise ValueError(f"an image of {width} x {height} pixels is too small to measure with a border of {border}")
    return *(luma(image)[border : height - border, border : width - border] for image in (sr, hr)), _within(region, hr, border)


def _within(region, hr, border):
    height, width = hr.shape[:2]
    region = np.ones((height, width), bool) if region is None else region
    return region[border : height - border, border : width - border]


def _each(measure, region):
    return [measure(r) for r in region] if isinstance(region, list) else measure(region)


def psnr(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | None = None) -> float:
    """10 log10(255^2 / MSE) in dB; inf for equal images, nan for an empty region. Raises ValueError for sizes that differ."""
    a, b, where = _pair(sr, hr, border, region)
    if not where.any():
        return float("nan")
    mse = np.mean((a - b)[where] ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | list | None = None) -> float | list[float]:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, K = .01 and .03, by scikit-image.

    Without a region it equals `structural_similarity` of the cut images; with one, the mean of its map there. `region` may be a list.
    """
    a, b, _ = _pair(sr, hr, border, None)
    _, full = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    inner = np.s_[SSIM_PAD:-SSIM_PAD, SSIM_PAD:-SSIM_PAD]

    def mean(region):
        where = _within(region, hr, border)[inner]
        return float(full[inner][where].mean()) if where.any() else float("nan")

    return _each(mean, region)


def ms_ssim(sr: np.ndarray, hr: np.ndarray, border: int = 4, region: np.ndarray | list | None = None) -> float | list[float]:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003): SSIM's contrast and structure at five scales, each half the
    size of the one before (mean of 2 x 2), its luminance at the last; the product of the means, raised to MS_WEIGHTS.

    nan where a side is below 176 pixels within the border (the window of 11 would not fit the last scale), or the region is empty there.
    `region` may be a list.
    """
    a, b, _ = _pair(sr, hr, border, None)
    terms = []
    if min(a.shape) >= (2 * SSIM_PAD + 1) * 2 ** (len(MS_WEIGHTS) - 1):
        for _ in MS_WEIGHTS:
            terms.append(_ssim_terms(a, b))
            a, b = _halved(a), _halved(b)

    def mean(region):
        if not terms:
            return float("nan")
        result, where = 1.0, _within(region, hr, border).astype(float)
        for k, ((luminance, structure), weight) in enumerate(zip(terms, MS_WEIGHTS, strict=True)):
            inside = where == 1
            inside[:SSIM_PAD], inside[-SSIM_PAD:], inside[:, :SSIM_PAD], inside[:, -SSIM_PAD:] = False, False, False, False
            if not inside.any():
                return float("nan")
            last = k == len(MS_WEIGHTS) - 1
            result *= max((luminance * structure if last else structure)[inside].mean(), 0) ** weight
            where = _halved(where)
        return float(result)

    return _each(mean, region)


def _halved(x):
    x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _ssim_terms(a, b) -> tuple[np.ndarray, np.ndarray]:
    """SSIM's luminance, and its contrast times structure, at each pixel."""

    def smooth(x):
        return gaussian_filter(x, 1.5, truncate=3.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, both = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * both + c2) / (var_a + var_b + c2)


def spectrum(image: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """|FFT|^2 of the luma less its mean, under a Hann window that falls to 0 within 16 pixels of what is outside the region."""
    y = luma(image)
    window = np.outer(np.hanning(y.shape[0]), np.hanning(y.shape[1]))
    if region is not None and not region.all():
        window = window * np.sin(np.pi / 2 * np.clip(distance_transform_edt(region) / 16, 0, 1)) ** 2
    total = window.sum()
    mean = (y * window).sum() / total if total else 0
    return np.abs(np.fft.fft2((y - mean) * window)) ** 2


def _frequencies(shape) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]


def _along(shape, direction: str) -> np.ndarray:
    fy, fx = _frequencies(shape)
    return {"radial": np.hypot(fy, fx), "axial": np.abs(fy) + 0 * fx, "lateral": np.abs(fx) + 0 * fy}[direction]


def psd(image: np.ndarray, region: np.ndarray | None = None, direction: str = "radial", bins: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """(frequency in cycles a pixel, mean power in dB): the `spectrum` averaged over rings, or 'axial' (depth) or 'lateral' over strips;
    at most `bins` of them, none empty."""
    power = spectrum(image, region)
    bins = min(bins, min(power.shape) // 2)
    edges = np.linspace(0, 0.5, bins + 1)
    which = np.digitize(_along(power.shape, direction).ravel(), edges) - 1
    inside = which < bins
    total = np.bincount(which[inside], power.ravel()[inside], bins) / np.maximum(np.bincount(which[inside], minlength=bins), 1)
    return (edges[1:] + edges[:-1]) / 2, 10 * np.log10(total + 1e-6)


def high_power(power: np.ndarray, scale: int = 4, direction: str = "radial") -> float:
    """The part of a `spectrum` above the LR Nyquist frequency, 1 / (2 scale) cycles a pixel: what LR cannot tell. `direction`:
    'radial' counts the frequency in any direction, 'axial' its part along depth, 'lateral' across."""
    return float(power[_along(power.shape, direction) > 0.5 / scale].sum())


def high_power_db(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4, direction: str = "radial") -> float:
    """Power above the LR Nyquist frequency, SR against HR, in dB: 0 as much, below blurred, above invented."""
    hr = high_power(hr_power, scale, direction)
    return float(10 * np.log10(max(high_power(sr_power, scale, direction), 1e-12) / hr)) if hr else float("nan")


def bands(scale: int = 4) -> list[tuple[float, float]]:
    """The bands above the LR Nyquist frequency f0 = 1 / (2 scale): (low, high] in cycles a pixel, from f0 to 1/2, each about half an octave;
    x4 has four, x2 two, x8 six, x3 three."""
    count = round(2 * np.log2(scale))
    edges = [0.5 * scale ** (k / count - 1) for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def _above_nyquist(shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fy, fx and max(|fy|, |fx|): what LR can hold is a square of the plane of frequencies."""
    fy, fx = _frequencies(shape)
    return fy, fx, np.maximum(np.abs(fy), np.abs(fx))


def _db(sr: float, hr: float) -> float:
    return float(10 * np.log10(max(sr, 1e-12) / hr)) if hr else float("nan")


def band_power_db(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4, direction: str = "all") -> list[float]:
    """Power of SR against HR in each of the `bands`, dB: 0 as much, below blurred, above too grainy. Powers are `spectrum`s.

    A frequency belongs to the band of max(|fx|, |fy|). `direction`: 'depth' takes the part with |fx| <= f0 / 2, 'across' with |fy| <= f0 / 2.
    """
    fy, fx, f = _above_nyquist(hr_power.shape)
    narrow = 0.25 / scale
    part = {"all": f > 0, "depth": (np.abs(fx) <= narrow) & (f > 0), "across": (np.abs(fy) <= narrow) & (f > 0)}[direction]
    where = [part & (f > low) & (f <= high) for low, high in bands(scale)]
    return [_db(sr_power[w].sum(), hr_power[w].sum()) for w in where]


def stripe_index(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """How much one direction stands out of SR's texture, dB: in each of the `bands` SR over HR in twelve sectors of 15 degrees (the axes in
    the middle of one), the largest less the median; mean over the bands. Stripes of any direction raise it; another draw of the same
    texture has about 1, as chance decides. nan where HR has no power in a sector."""
    fy, fx, f = _above_nyquist(hr_power.shape)
    sector = np.floor(np.rad2deg(np.arctan2(fy, fx)) / 15 + 0.5).astype(int) % 12
    found = []
    for low, high in bands(scale):
        inside = (f > low) & (f <= high)
        sr, hr = (np.bincount(sector[inside], power[inside], 12) for power in (sr_power, hr_power))
        ratios = [_db(a, b) for a, b in zip(sr, hr, strict=True)]
        found.append(np.max(ratios) - np.median(ratios))
    return float(np.mean(found))


def checkerboard(sr_power: np.ndarray, hr_power: np.ndarray, scale: int = 4) -> float:
    """How much of the power above the LR Nyquist sits at the grid frequencies, relative to the same share of HR (1: as HR).

    Grid frequencies: within 1.5 bins of fx, fy in multiples of 1/scale (x4: 0, 1/4, 1/2) cycles a pixel, not both 0: the marks of
    sub-pixel convolution. Above 5 they are visible.
    """
    fy, fx = _frequencies(sr_power.shape)
    high = np.hypot(fy, fx) > 0.5 / scale

    def near(f):
        bins = np.min([np.abs(np.abs(f) - g) for g in np.arange(scale // 2 + 1) / scale], 0) * f.size
        return bins <= 1.5

    grid = high & near(fy) & near(fx)

    def share(power):
        return power[grid].sum() / max(power[high].sum(), 1e-12)

    reference = share(hr_power)
    return float(share(sr_power) / reference) if reference else float("nan")


def linear(image: np.ndarray) -> np.ndarray:
    """Linear intensity behind the grey levels of a B-scan (of three channels: their mean): the display's logarithm undone
    (`degrade.from_display`), float64 (H, W)."""
    grey = image.astype(np.float64) if image.ndim == 2 else image.mean(2)
    return from_display(torch.from_numpy(grey / 255)).numpy()


def speckle_contrast(image: np.ndarray, region: np.ndarray | list | None = None, window: int = 9) -> float | list[float]:
    """Standard deviation over mean of the linear intensity within windows of `window` pixels, mean over those centred in the region.
    Fully developed speckle of one look has 1, an average of N looks 1 / sqrt(N). nan for an empty region. `region` may be a list."""
    intensity = linear(image)
    level = uniform_filter(intensity, window)
    spread = np.sqrt(np.maximum(uniform_filter(intensity**2, window) - level**2, 0))
    contrast = spread / np.maximum(level, 1e-12)

    def mean(region):
        inside = contrast if region is None else contrast[region]
        return float(inside.mean()) if inside.size else float("nan")

    return _each(mean, region)


def edge_preservation(sr: np.ndarray, hr: np.ndarray, region: np.ndarray | None = None) -> float:
    """Edge preservation index, sum |d SR| / sum |d HR| over the region, d the difference between neighbouring rows (across the
    layers): 1 as HR, below blurred, above noisier. nan where HR has no edge."""
    a, b = (np.abs(np.diff(luma(image), axis=0)) for image in (sr, hr))
    where = np.ones(a.shape, bool) if region is None else region[1:] & region[:-1]
    total = b[where].sum()
    return float(a[where].sum() / total) if total else float("nan")


def cnr(image: np.ndarray, signal: np.ndarray, background: np.ndarray) -> float:
    """Contrast-to-noise ratio in dB on grey levels, 10 log10(|mean_s - mean_b| / sqrt(var_s + var_b)); `signal` and `background` are
    bool arrays. nan where one is empty. It rewards blur: read its distance to HR's."""
    y = luma(image)
    if not signal.any() or not background.any():
        return float("nan")
    noise = np.sqrt(y[signal].var() + y[background].var())
    return float(10 * np.log10(max(abs(y[signal].mean() - y[background].mean()), 1e-12) / max(noise, 1e-12)))


def enl(image: np.ndarray, background: np.ndarray) -> float:
    """Equivalent number of looks of the linear intensity in the background, mean^2 / variance. nan where it is empty or flat. It
    rewards blur: read its ratio to HR's."""
    values = linear(image)[background]
    return float(values.mean() ** 2 / values.var()) if values.size and values.min() < values.max() else float("nan")


def consistency(sr: np.ndarray, lr: np.ndarray, scale: int = 4, kind: str = "bicubic", amount: float = 0.0) -> float:
    """PSNR in dB between LR and SR brought down again (`degrade.downsample`): does SR still say what LR said?

    80 where they are equal or nearly so. With kind "speckle" SR is brought down without new speckle, which no method could
    foresee: then LR's own noise bounds it.
    """
    again = downsample(to_tensor(sr), scale, "bicubic" if kind == "speckle" else kind, amount)
    mse = torch.mean((again - to_tensor(lr)) ** 2).item()
    return float(-10 * np.log10(max(mse, 1e-8)))


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

    return _each(mean, region)


def _local_statistics(maps: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    unit = maps / (maps.norm(dim=1, keepdim=True) + 1e-8)
    mean = F.avg_pool2d(unit, side, side // 2)
    return mean, (F.avg_pool2d(unit**2, side, side // 2) - mean**2).clamp(min=0).sqrt()
