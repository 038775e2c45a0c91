"""Synthetic retinal B-scans: layers with a foveal pit, speckle, log display, vessels with shadows, and four classes.

A phantom is drawn in three steps, as an OCT makes an image: geometry (layer surfaces in um), reflectivity (linear), then
speckle, noise floor and the display's logarithm. It is a stand-in for scans that cannot be shipped, never a result on OCT.

Layer thicknesses: PMC6042244, the photoreceptors' bands within their sum. Speckle: the average of many looks at a fully
developed field is a gamma variate; one correlated Gaussian field, mapped by Wilson and Hilferty's cube, draws it in one pass.
The constants were fitted by least squares to statistics of real NORMAL scans (notebook 01 compares them).
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d, rotate
from scipy.special import expit, ndtri

from ..degrade import from_display, to_display

PATHOLOGIES = ("normal", "drusen", "dme", "cnv")
AXIAL_UM, LATERAL_UM = 3.87, 11.5  # one pixel

# layer: thickness at the fovea and 1.5 mm away (um), grey level on the display, looks of its speckle
LAYERS = {
    "RNFL": (12, 32, 118, 9.0),
    "GCL": (12, 48, 100, 11.5),
    "IPL": (18, 41, 100, 10.0),
    "INL": (15, 38, 74, 11.0),
    "OPL": (23, 31, 89, 10.0),
    "ONL": (88, 66, 52, 10.0),
    "ELM": (8, 8, 88, 5.0),
    "IS": (19, 17, 70, 4.0),
    "EZ": (11.3, 10.7, 154, 2.0),
    "OS": (11.6, 11.0, 86, 2.0),
    "IZ": (8.2, 7.8, 155, 2.0),
    "RPE": (20, 19, 235, 2.0),
    "CC": (16, 16, 130, 16.0),
}
BANDS = ("EZ", "OS", "IZ", "RPE")  # bright, and of a more uneven look from eye to eye
SURFACES = (*list(LAYERS)[:-2], "fluid", "RPE", "below RPE", "CC", "choroid")  # what begins at each, from the ILM down
PAINT = {name: layer[2:] for name, layer in LAYERS.items()} | {"fluid": (22, 8.0), "below RPE": (92, 4.0)}  # grey, looks
CHOROID_DEPTH, CHOROID_GREY, CHOROID_LOOKS = (0, 40, 110, 190, 330, 560), (118, 86, 64, 50, 33, 17), 19.0  # um under the CC
EDGE = 0.57  # softness of a surface, pixels
TISSUE_GRAIN, NOISE_GRAIN, TAIL = (1.2, 1.03), (0.82, 0.63), 0.19  # Gaussian widths (axial, lateral), share of white noise
NOISE, NOISE_LOOKS = 9.3e-4, 14.3  # mean of the noise in linear intensity, gamma shape
DEEP_LOOKS, DEEP_DARK = 9.6, 0.14  # 45 pixels into the choroid: so many times the looks, and more of the mean subtracted
DARK = 0.612  # share of the noise's mean that the instrument subtracts
# from eye to eye: the logarithm of the frames averaged, that of the noise, the share subtracted
QUALITY, NOISE_SPREAD, DARK_SPREAD = 0.55, 0.2, 0.045
R3 = np.array([0.8191725133961645, 0.6710436067037893, 0.5497004779019703])  # low-discrepancy steps (Roberts 2018)


class Phantom(NamedTuple):
    """A drawn B-scan with what real scans lack: the truth about its layers and lesions."""

    image: np.ndarray  # uint8 (height, width), before rotation and JPEG
    surfaces: dict[str, np.ndarray]  # SURFACES: name of what begins there to its row in each column, float (width,)
    lesions: dict[str, np.ndarray]  # kind to bool (height, width): drusen, cyst, subretinal fluid, cnv, foci


def bscan(
    seed: int,
    height: int = 496,
    width: int = 512,
    pathology: str = "normal",
    position_mm: float = 0.0,
    rotation: float = 0.0,
    jpeg_quality: int = 75,
) -> np.ndarray:
    """One B-scan as a uint8 array (height, width); the same arguments give the same bytes.

    `seed` fixes the eye and its speckle, `position_mm` moves the cut away from the fovea, `pathology` is one of PATHOLOGIES.
    `rotation` turns it by so many degrees and fills the corners with white, `jpeg_quality` passes it through JPEG, both as in
    Kermany's set (0: not). Raises ValueError for an unknown pathology.
    """
    image = draw(seed, height, width, pathology, position_mm).image
    if rotation:
        image = rotate(image, rotation, reshape=False, order=1, cval=255)
    if jpeg_quality:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=jpeg_quality)
        image = np.asarray(Image.open(buffer))
    return image


def draw(seed: int, height: int = 496, width: int = 512, pathology: str = "normal", position_mm: float = 0.0) -> Phantom:
    """The phantom behind `bscan` (its image before rotation and JPEG), with its layer surfaces and lesion masks."""
    if pathology not in PATHOLOGIES:
        raise ValueError(f"pathology must be one of {PATHOLOGIES}, not {pathology!r}")
    eye = np.random.default_rng([seed, PATHOLOGIES.index(pathology)])
    scan = np.random.default_rng([seed, PATHOLOGIES.index(pathology), 1 + round(1000 * abs(position_mm))])
    surfaces, cysts = _geometry(eye, scan, height, width, pathology, position_mm)
    rows = np.arange(height, dtype=np.float32)[:, None]
    masks = {"subretinal fluid": (rows >= surfaces["fluid"]) & (rows < surfaces["RPE"])}
    if pathology in ("drusen", "cnv"):
        lifted = surfaces["CC"] - surfaces["below RPE"] > 5 / AXIAL_UM
        masks[pathology] = (rows >= surfaces["below RPE"]) & (rows < surfaces["CC"]) & lifted
    grey, looks = _paint(eye, scan, surfaces, rows)
    if pathology in ("dme", "cnv"):
        masks["cyst"], masks["foci"] = _lesions(eye, grey, surfaces, cysts, rows)
    intensity = _light(eye, scan, grey, surfaces, rows)
    image = _speckle(seed, scan, intensity, looks, surfaces, rows)
    return Phantom(image, surfaces, {kind: mask for kind, mask in masks.items() if mask.any()})


def _wave(rng: np.random.Generator, n: int, sigma: float, amplitude: float) -> np.ndarray:
    """A smooth random curve of n points with standard deviation `amplitude`."""
    noise = gaussian_filter1d(rng.standard_normal(n + int(8 * sigma)), sigma, mode="wrap")[:n]
    return amplitude * (noise - noise.mean()) * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _field(rng: np.random.Generator, shape: tuple[int, int], axial: float, lateral: float) -> np.ndarray:
    """A Gaussian random field with standard deviation 1, smooth over so many pixels."""
    field = gaussian_filter(rng.standard_normal(shape).astype(np.float32), (axial, lateral), truncate=3, mode="wrap")
    return field / field.std()


def _geometry(eye, scan, height, width, pathology, position_mm) -> tuple[dict[str, np.ndarray], list[tuple]]:
    """Surfaces in pixels, and cysts as (x, share of the retina's depth, rx, ry) in pixels."""
    x = (np.arange(width) - width / 2) * LATERAL_UM / 1000 - eye.normal(0, 0.25)  # mm from the fovea
    pit = np.exp(-(x**2 + position_mm**2) / 0.45**2)
    spread, thick = 1 + eye.normal(0, 0.05), {}
    for name, (fovea, around, *_) in LAYERS.items():
        if name == "RNFL":  # thickens towards the optic nerve
            around = around * (1 + 0.35 * np.tanh(x * eye.choice([-1, 1]) / 1.5))
        usual = spread * np.exp(eye.normal(0, 0.18 if name in BANDS else 0.1))
        thick[name] = np.maximum((around + (fovea - around) * pit) * usual * (1 + _wave(scan, width, 60, 0.03)), 2)
    base = (0.56 + eye.uniform(-0.1, 0.1)) * height * AXIAL_UM  # depth of Bruch's membrane, um
    near = np.clip(x, -3.5, 3.5)  # wider scans go straight on
    base = base + eye.normal(0, 40) * near - eye.normal(6, 9) * near**2 + _wave(eye, width, 90, 5)
    columns, lift, fluid, swelling, cysts = np.arange(width), np.zeros(width), np.zeros(width), np.zeros(width), []
    if pathology == "drusen":
        for _ in range(eye.integers(5, 14)):
            centre, half = eye.uniform(0.06, 0.94) * width, eye.uniform(60, 260) / LATERAL_UM
            lift = np.maximum(lift, eye.uniform(25, 85) * np.exp(-(((columns - centre) / half) ** 2)))
    elif pathology == "cnv":  # a lesion under the RPE, and beside it fluid that lifts the retina off
        centre, half = eye.uniform(0.3, 0.7) * width, eye.uniform(500, 1000) / LATERAL_UM
        lift = eye.uniform(110, 240) * np.exp(-(((columns - centre) / half) ** 2)) * (1 + _wave(eye, width, 12, 0.10))
        centre, half = centre + eye.choice([-1, 1]) * half * eye.uniform(0.8, 1.3), eye.uniform(500, 900) / LATERAL_UM
        fluid = gaussian_filter1d(eye.uniform(50, 130) * np.clip(1 - ((columns - centre) / half) ** 2, 0, None) ** 0.7, 7)
    elif pathology == "dme":
        centre = eye.uniform(0.35, 0.65) * width
        swelling = eye.uniform(80, 220) * np.exp(-(((columns - centre) / eye.uniform(90, 170)) ** 2))
        for _ in range(eye.integers(7, 20)):
            half, high = eye.uniform(60, 260) / LATERAL_UM, eye.uniform(40, 170) / AXIAL_UM
            cysts.append((centre + eye.normal(0, 65), eye.uniform(0.35, 0.75), half, high))
    for name, share in (("INL", 0.35), ("OPL", 0.3), ("ONL", 0.35)):
        thick[name] = thick[name] + share * swelling
    lift = gaussian_filter1d(lift, 2)
    upper = list(LAYERS)[: list(LAYERS).index("RPE") + 1]
    depth = {"choroid": base + thick["CC"], "CC": base, "below RPE": base - lift}
    edge, before = base - lift, lift
    for k, name in enumerate(reversed(upper)):
        # the retina above gives way: the lift is smoothed and half absorbed before it reaches the inner surface
        softened = gaussian_filter1d(lift, 2 + 2.2 * k) * (1 - 0.5 * k / len(upper))
        edge = np.minimum(edge - thick[name] + (before - softened), edge - 4)
        depth[name], before = edge, softened
        if name == "RPE":
            edge = depth["fluid"] = edge - fluid
    return {name: depth[name] / AXIAL_UM for name in SURFACES}, cysts


def _paint(eye, scan, surfaces, rows) -> tuple[np.ndarray, np.ndarray]:
    """Grey level of layers and choroid without speckle, 0 to 255, and the looks of the speckle, (height, width)."""
    shape = (len(rows), len(surfaces["RPE"]))
    gain, texture = 1 + eye.normal(0, 0.06), 1 + 0.05 * _field(scan, shape, 1.6, 5)
    grey, looks = np.zeros(shape, np.float32), np.full(shape, CHOROID_LOOKS, np.float32)
    for name, top in surfaces.items():
        if name == "choroid":
            level, grain = gain * _choroid(eye, rows, top), CHOROID_LOOKS
        else:
            level, grain = PAINT[name]
            uneven = _wave(scan, shape[1], 25, 0.02) + (_wave(scan, shape[1], 5, 0.03) if name in BANDS else 0)
            level = level * gain * texture * (1 + uneven) * np.exp(eye.normal(0, 0.07 if name in BANDS else 0.03))
        step = expit((rows - top) / EDGE).astype(np.float32)
        grey += step * (level - grey)
        looks += step * (grain - looks)
    return grey, looks


def _choroid(eye, rows, top) -> np.ndarray:
    """Grey level under the surface `top`: bright and lobular at first, then small, then large dark vessels, and the fade."""
    below, shape = (rows - top) * AXIAL_UM, (len(rows), len(top))
    small, large, lobules = _field(eye, shape, 3, 4), _field(eye, shape, 6.5, 9), _field(eye, shape, 2.2, 3)
    deeper = np.clip((below - 60) / 60, 0, 1)
    vessels = expit(3 * (small * (1 - deeper) + large * deeper - 0.3))
    end = eye.uniform(230, 340) + _wave(eye, shape[1], 60, 25)
    grey = np.interp(below, CHOROID_DEPTH, CHOROID_GREY) + 9.5 * lobules * np.clip(1 - below / 160, 0, 1)
    return np.maximum(grey - 27 * vessels * np.clip((below - 20) / 60, 0, 1) * np.clip((end - below) / 60, 0, 1), 0)


def _lesions(eye, grey, surfaces, cysts, rows) -> tuple[np.ndarray, np.ndarray]:
    """Draw cysts (dark, sharp) and hyperreflective foci into `grey`; returns their masks."""
    columns = np.arange(grey.shape[1])
    cyst, foci = np.zeros(grey.shape, bool), np.zeros(grey.shape, bool)
    inner, outer = surfaces["GCL"], surfaces["ELM"]
    for cx, share, rx, ry in cysts:
        at = int(np.clip(cx, 0, grey.shape[1] - 1))
        cy = surfaces["RNFL"][at] + share * (outer[at] - surfaces["RNFL"][at])
        ring = np.sqrt(((columns - cx) / rx) ** 2 + ((rows - cy) / ry) ** 2)
        mask = expit((1 - ring) * min(rx, ry) / 0.8) * ((rows > inner + 4) & (rows < outer - 3))
        grey += mask * (26 - grey)
        cyst |= mask > 0.5
    for _ in range(eye.integers(4, 14)):
        cx, share = eye.uniform(0, grey.shape[1] - 1), eye.uniform(0.2, 0.9)
        cy = inner[int(cx)] * (1 - share) + outer[int(cx)] * share
        spot = ((columns - cx) / 1.6) ** 2 + ((rows - cy) / 2.6) ** 2
        grey += 95 * np.exp(-spot)
        foci |= spot < 1
    return cyst, foci


def _light(eye, scan, grey, surfaces, rows) -> np.ndarray:
    """Linear intensity of `grey`, with vessels in the RNFL, their shadows on all below, and uneven light, (height, width)."""
    width, columns, shadow = grey.shape[1], np.arange(grey.shape[1]), np.ones(grey.shape[1])
    for _ in range(eye.integers(4, 9)):
        centre, half, dark = eye.uniform(0, width), eye.uniform(30, 75) / LATERAL_UM, eye.uniform(0.15, 0.45)
        if abs(centre - width / 2) < 0.06 * width:
            continue  # the fovea has no vessels
        shadow *= 1 - dark * np.exp(-(((columns - centre) / half) ** 2))
        middle = surfaces["GCL"][int(centre)]
        ring = ((columns - centre) / half) ** 2 + ((rows - middle) / (half * LATERAL_UM / AXIAL_UM * 0.55)) ** 2
        grey = grey + 22 * np.exp(-(ring**2)) * (grey > 20)
    shadow *= np.exp(_wave(scan, width, 80, 0.22))
    linear = from_display(torch.from_numpy(np.clip(grey, 0, 255) / 255)).numpy()
    return (linear * (1 - expit((rows - surfaces["IPL"]) / 3) * (1 - shadow))).astype(np.float32)


def _speckle(seed, scan, reflectivity, looks, surfaces, rows) -> np.ndarray:
    """Draw speckle, add the noise floor, subtract most of its mean, take the logarithm: uint8 (height, width).

    Eyes differ in the frames averaged and in their noise. These numbers follow a quasi-random sequence over the seeds, so that a
    few seeds, neighbouring or every fourth (a class), have the spread of many.
    """
    spread = ndtri((seed % 1_000_003 * R3 + 0.5) % 1 * 0.98 + 0.01)
    frames, noise, dark = np.exp(QUALITY * spread[0]), NOISE * np.exp(NOISE_SPREAD * spread[1]), DARK + DARK_SPREAD * spread[2]

    def gamma(grain, looks) -> np.ndarray:
        white = scan.standard_normal(reflectivity.shape).astype(np.float32)
        z = (_field(scan, reflectivity.shape, *grain) + TAIL * white) / np.hypot(1, TAIL)
        return np.maximum(1 - 1 / (9 * looks) + z / (3 * np.sqrt(looks)), 0) ** 3

    signal = np.maximum(reflectivity - (1 - dark) * noise, 0)  # what the grey levels hold beyond the noise left in
    looks = np.maximum(looks * frames, 1.6)
    tissue = gamma(TISSUE_GRAIN, looks) * np.exp(0.5 / looks)  # so that the mean of the logarithm, the grey level, stays
    deep = np.clip((rows - surfaces["choroid"]) / 45, 0, 1)
    floor = gamma(NOISE_GRAIN, frames * NOISE_LOOKS * (1 + (DEEP_LOOKS - 1) * deep))
    intensity = signal * tissue + noise * (floor - dark - DEEP_DARK * deep)
    return np.round(255 * to_display(torch.from_numpy(intensity)).numpy()).astype(np.uint8)
