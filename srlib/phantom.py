"""Synthetic retinal B-scans: layers with a foveal pit, speckle, log display, vessels with shadows, and four classes.

A phantom is drawn in three steps, as an OCT makes an image: geometry (layer surfaces in um), reflectivity (linear), then
speckle, noise floor and the display's logarithm. It is a stand-in for scans that cannot be shipped, never a result on OCT.

Layer thicknesses: PMC6042244. Display transform: eyepy (Heidelberg). Speckle: the average of many looks at a fully developed
field is a gamma variate; one correlated Gaussian field, mapped by Wilson and Hilferty's cube, draws it in one pass.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d, rotate

PATHOLOGIES = ("normal", "drusen", "dme", "cnv")
AXIAL_UM, LATERAL_UM = 3.87, 11.5  # one pixel
FLOOR = 8.1e-4  # mean of the noise in linear intensity
FLOOR_LOOKS = 14.5  # gamma shape of the noise

# layer: thickness at the fovea and 1.5 mm away (um), grey level on the display
LAYERS = {
    "RNFL": (11, 32, 112),
    "GCL": (12, 48, 96),
    "IPL": (18, 41, 97),
    "INL": (15, 38, 77),
    "OPL": (23, 31, 86),
    "ONL": (88, 66, 57),
    "ELM": (8, 8, 88),
    "IS": (20, 18, 72),
    "EZ": (18, 16, 138),
    "OS": (22, 20, 98),
    "RPE": (19, 18, 200),
    "CC": (16, 16, 122),
}


def to_display(intensity: np.ndarray) -> np.ndarray:
    """Linear intensity to grey in [0, 1] (eyepy's transform)."""
    return np.clip((np.log(np.maximum(intensity, 0) + 2.44e-4) + 8.3) / 8.285, 0, 1)


def from_display(grey: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] to linear intensity; the inverse of `to_display`."""
    return np.maximum(np.exp(8.285 * grey - 8.3) - 2.44e-4, 0)


def bscan(
    seed: int,
    height: int = 496,
    width: int = 512,
    pathology: str = "normal",
    position_mm: float = 0.0,
    rotation: float = 0.0,
    jpeg_quality: int | None = 75,
) -> np.ndarray:
    """One B-scan as a uint8 array (height, width); the same arguments give the same bytes.

    `seed` fixes the eye and its speckle, `position_mm` moves the cut away from the fovea, `pathology` is one of PATHOLOGIES.
    `rotation` turns it by so many degrees and fills the corners with white, `jpeg_quality` passes it through JPEG, both as in Kermany's
    set (0, None: not). Raises ValueError for an unknown pathology.
    """
    if pathology not in PATHOLOGIES:
        raise ValueError(f"pathology must be one of {PATHOLOGIES}, not {pathology!r}")
    eye = np.random.default_rng([seed, PATHOLOGIES.index(pathology)])
    scan = np.random.default_rng([seed, PATHOLOGIES.index(pathology), round(1000 * position_mm)])
    surfaces, lesions = _geometry(eye, scan, height, width, pathology, position_mm)
    grey = _paint(eye, scan, surfaces, lesions, height, width)
    image = _speckle(scan, grey)
    if rotation:
        image = rotate(image, rotation, reshape=False, order=1, cval=255)
    if jpeg_quality is not None:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=jpeg_quality)
        image = np.asarray(Image.open(buffer))
    return image


def _wave(rng: np.random.Generator, n: int, sigma: float, amplitude: float) -> np.ndarray:
    """A smooth random curve of n points with standard deviation `amplitude`."""
    noise = gaussian_filter1d(rng.standard_normal(n + int(8 * sigma)), sigma, mode="wrap")[:n]
    return amplitude * (noise - noise.mean()) * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _geometry(eye, scan, height, width, pathology, position_mm):
    """Surfaces in pixels, from the ILM down, (n, width), and lesions as (kind, x, y, rx, ry)."""
    x = (np.arange(width) - width / 2) * LATERAL_UM / 1000 - eye.normal(0, 0.25)  # mm from the fovea
    pit = np.exp(-(x**2 + position_mm**2) / 0.45**2)
    spread = 1 + eye.normal(0, 0.05)
    thick = []
    for name, (fovea, around, _) in LAYERS.items():
        far = around
        if name == "RNFL":  # thickens towards the optic nerve
            far = around * (1 + 0.35 * np.tanh(x * eye.choice([-1, 1]) / 1.5))
        t = (far + (fovea - far) * pit) * spread * (1 + _wave(scan, width, 60, 0.03))
        thick.append(np.maximum(t, 2))
    base = (0.56 + eye.uniform(-0.1, 0.1)) * height * AXIAL_UM  # depth of the RPE's lower edge, um
    base = base + eye.normal(0, 32) * x - eye.normal(9, 7) * x**2 + _wave(eye, width, 90, 5)
    lift = np.zeros(width)
    lesions: list[tuple[str, float, float, float, float]] = []
    swelling = np.zeros(width)
    px = np.arange(width)
    if pathology == "drusen":
        for _ in range(eye.integers(5, 14)):
            centre, half = eye.uniform(0.06, 0.94) * width, eye.uniform(60, 260) / LATERAL_UM
            lift = np.maximum(lift, eye.uniform(25, 85) * np.exp(-(((px - centre) / half) ** 2)))
    elif pathology == "cnv":
        centre, half = eye.uniform(0.3, 0.7) * width, eye.uniform(500, 1000) / LATERAL_UM
        lift = eye.uniform(110, 240) * np.exp(-(((px - centre) / half) ** 2)) * (1 + _wave(eye, width, 12, 0.10))
        fluid = centre + eye.choice([-1, 1]) * half * eye.uniform(0.8, 1.3)
        lesions.append(("subretinal", fluid, 0.0, eye.uniform(500, 900) / LATERAL_UM, eye.uniform(50, 130)))
    elif pathology == "dme":
        centre = eye.uniform(0.35, 0.65) * width
        swelling = eye.uniform(60, 170) * np.exp(-(((px - centre) / eye.uniform(90, 170)) ** 2))
        for _ in range(eye.integers(4, 13)):
            lesions.append(
                (
                    "cyst",
                    centre + eye.normal(0, 75),
                    eye.uniform(0.30, 0.62),
                    eye.uniform(60, 230) / LATERAL_UM,
                    eye.uniform(35, 120) / AXIAL_UM,
                )
            )
    names = list(LAYERS)
    for name, share in (("INL", 0.35), ("OPL", 0.3), ("ONL", 0.35)):
        thick[names.index(name)] = thick[names.index(name)] + share * swelling
    if pathology == "cnv":  # fluid lifts the retina off the RPE
        _, cx, _, rx, ry = lesions[0]
        fluid_height = ry * np.clip(1 - ((px - cx) / rx) ** 2, 0, None) ** 0.7
    else:
        fluid_height = np.zeros(width)
    lift = gaussian_filter1d(lift, 2)
    depth = [base - lift]  # lower edge of the RPE
    upper = names[: names.index("RPE") + 1]
    for k, name in enumerate(reversed(upper)):
        if name == "OS":
            depth.append(depth[-1] - fluid_height)
        # the retina above gives way: the lift is smoothed and half absorbed before it reaches the inner surface
        softened = gaussian_filter1d(lift, 2 + 2.2 * k) * (1 - 0.5 * k / len(upper))
        before = lift if k == 0 else gaussian_filter1d(lift, 2 + 2.2 * (k - 1)) * (1 - 0.5 * (k - 1) / len(upper))
        depth.append(np.minimum(depth[-1] - thick[names.index(name)] + (before - softened), depth[-1] - 4))
    edges = np.stack(depth[::-1])  # ILM ... OS top, (fluid), RPE top, RPE bottom
    cc_bottom = base + thick[names.index("CC")]
    return np.vstack([edges, base[None], cc_bottom[None]]) / AXIAL_UM, lesions


def _paint(eye, scan, surfaces, lesions, height, width) -> np.ndarray:
    """Grey level without speckle, (height, width) in levels 0..255: layers, choroid, lesions, vessels and their shadows."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    grey = np.zeros((height, width), np.float32)
    names = list(LAYERS)
    values = [LAYERS[n][2] for n in names[: names.index("RPE")]]
    # surfaces: 11 upper edges, the fluid's lower edge (= RPE top), RPE bottom, Bruch's membrane, CC bottom
    levels = [*values, 22.0, LAYERS["RPE"][2], 92.0, LAYERS["CC"][2]]
    gain = 1 + eye.normal(0, 0.04)
    edge_blur = 0.7
    for level, top, bottom in zip(levels, surfaces[:-1], surfaces[1:], strict=True):
        inside = (
            1 / (1 + np.exp(-np.clip((rows - top) / edge_blur, -30, 30))) / (1 + np.exp(-np.clip((bottom - rows) / edge_blur, -30, 30)))
        )
        grey += inside * level * gain * (1 + _wave(scan, width, 25, 0.02))
    texture = gaussian_filter(scan.standard_normal((height, width)).astype(np.float32), (1.5, 8))
    grey *= 1 + 0.03 * texture / texture.std()
    below = (rows - surfaces[-1]) * AXIAL_UM  # um under the choriocapillaris
    vessels = gaussian_filter(eye.standard_normal((height, width)).astype(np.float32), (7, 5))
    vessels = 1 / (1 + np.exp(-4 * (vessels / vessels.std() - 0.35)))
    depth_um = eye.uniform(230, 340) + _wave(eye, width, 60, 25)
    choroid = np.interp(below, [0, 60, 200, 330, 600], [112, 78, 54, 38, 22]) * gain
    choroid -= 26 * vessels * np.clip(below / 50, 0, 1) * np.clip((depth_um - below) / 60, 0, 1)
    grey = np.where(below > 0, np.maximum(choroid, 0), grey)
    grey = _lesions(eye, grey, surfaces, lesions, rows)
    shadow = np.ones(width, np.float32)
    columns = np.arange(width)
    for _ in range(eye.integers(4, 9)):
        centre, half = eye.uniform(0, width), eye.uniform(30, 75) / LATERAL_UM
        if abs(centre - width / 2) < 0.06 * width:
            continue  # the fovea has no vessels
        shadow *= 1 - eye.uniform(0.2, 0.5) * np.exp(-(((columns - centre) / half) ** 2))
        middle = surfaces[1][int(np.clip(centre, 0, width - 1))]
        ring = ((columns - centre) / half) ** 2 + ((rows - middle) / (half * LATERAL_UM / AXIAL_UM * 0.55)) ** 2
        grey += 22 * np.exp(-(ring**2)) * (grey > 20)
    under = 1 / (1 + np.exp(-(rows - surfaces[2]) / 3))
    fade = from_display(np.clip(grey, 0, 255) / 255) * (1 - under * (1 - shadow))
    return fade.astype(np.float32)


def _lesions(eye, grey, surfaces, lesions, rows):
    """Cysts (dark, sharp), hyperreflective foci, and the murky material of a lesion between the RPE and Bruch's membrane."""
    columns = np.arange(grey.shape[1])
    for kind, cx, where, rx, ry in lesions:
        if kind != "cyst":
            continue
        at = int(np.clip(cx, 0, grey.shape[1] - 1))
        cy = surfaces[0][at] + where * (surfaces[6][at] - surfaces[0][at]) + 0.1 * (surfaces[6][at] - surfaces[0][at])
        ring = np.sqrt(((columns - cx) / rx) ** 2 + ((rows - cy) / ry) ** 2)
        inner, outer = surfaces[1] + 4, surfaces[6] - 3
        mask = 1 / (1 + np.exp(np.clip((ring - 1) * min(rx, ry) / 0.8, -30, 30)))
        mask = mask * ((rows > inner) & (rows < outer))
        grey = grey * (1 - mask) + 26 * mask
    if lesions:
        for _ in range(eye.integers(4, 14)):
            cx, f = eye.uniform(0, grey.shape[1] - 1), eye.uniform(0.2, 0.9)
            cy = surfaces[1][int(cx)] * (1 - f) + surfaces[6][int(cx)] * f
            spot = ((columns - cx) / 1.6) ** 2 + ((rows - cy) / 2.6) ** 2
            grey = grey + 95 * np.exp(-spot)
    return grey


def _speckle(scan, reflectivity: np.ndarray) -> np.ndarray:
    """Add the noise floor, draw speckle, subtract most of the floor, take the logarithm: uint8 (height, width)."""
    shape = reflectivity.shape

    def field(axial: float, lateral: float) -> np.ndarray:
        z = gaussian_filter(scan.standard_normal(shape).astype(np.float32), (axial, lateral), truncate=3, mode="wrap")
        return z / z.std()

    def gamma(z: np.ndarray, looks) -> np.ndarray:
        return np.maximum(1 - 1 / (9 * looks) + z / (3 * np.sqrt(looks)), 0) ** 3

    signal = np.maximum(reflectivity - 0.42 * FLOOR, 0)  # what the table's grey levels hold beyond the floor left in
    tissue = gamma(field(1.1, 0.85), 34.0)
    noise = gamma(field(0.9, 0.65), FLOOR_LOOKS)
    intensity = signal * tissue + FLOOR * noise - 0.58 * FLOOR
    return np.round(255 * to_display(intensity)).astype(np.uint8)
