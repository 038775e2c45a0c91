"""The evaluation of the sampler, top to bottom: it and its rivals measured as notebook 05 measures the others, then samples and patches against HR."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_gradient_magnitude

from .. import metrics
from ..config import Config
from ..data.reading import jpeg_tables, read_pair
from ..data.sources import phantom_tables
from ..degrade import held_by
from ..device import FASTEST, pick_device
from ..evaluation.methods import METHODS, TestImage
from ..evaluation.run import choose, load_networks, measured_images, write_table
from ..evaluation.statistics import SAMPLES, interval
from ..metrics import unpaired
from ..metrics.regions import retina, valid_region
from ..models.features import feature_extractor
from ..upscaling import upscale
from . import statistics
from .gaussian import GaussianTexture

FITTED = 60  # training scans that the Gaussian texture is fitted on, patients first
BLIND = 200  # steps in which a classifier of raw patches learns next to nothing: .51 after 60 where that of detail has .998
STEEPEST = 0.9  # pixels whose gradient is above this quantile are edges
FEATURES = "vgg19:relu4_4"  # of the KID: their mean over the positions of a patch, 512 numbers


def evaluate_sampler(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Measure the sampler, SRGAN projected and the Gaussian texture as `evaluation.run.evaluate_run` does the others, and write `folder`/sampler/:

    - metrics.csv, a row for each image, method and region (returned);
    - samples.csv, a row for each image that is sampled (`measure_samples`), and ranks.csv: region, rank, share, the mean over them;
    - unpaired.csv, patches against HR's (`Patches`).
    """
    networks, out = load_networks(config, folder, ("srresnet", "srgan", "sampler")), folder / "sampler"
    networks["gaussian"] = fit_texture(config, root, manifest, networks["srresnet"])
    if held_by(config):
        networks["srgan_projected"] = networks["srgan"]
    sampled = {*choose(choose(manifest[manifest.split == "test"], config.max_test_images), config.sample_images).path}
    shown = [name for name, method in METHODS.items() if method.texture and method.needs in networks]
    patches, rows, samples, ranks = Patches(shown), [], [], []
    for item, hr, image, measured in measured_images("07", config, root, manifest, folder, networks, ("srresnet", "srgan")):
        rows += measured
        if item.path in sampled:
            row, shares = measure_samples(image, hr)
            samples.append({"image": item.path, "patient": item.patient, "label": item.label} | row)
            ranks += [(region, rank, share) for region in shares for rank, share in enumerate(shares[region])]
        jpeg = phantom_tables() if config.data == "phantom" else jpeg_tables(root / item.path)
        patches.add({name: image[name] for name in shown} | {"hr": hr}, valid_region(hr), item.patient, image.seed % 2**32, jpeg)
    shares = pd.DataFrame(ranks, columns=["region", "rank", "share"]).groupby(["region", "rank"], sort=False).mean().reset_index()
    write_table(samples, out / "samples.csv")
    write_table(shares, out / "ranks.csv")
    write_table(patches.measure(config.classifier_steps, config.seed, pick_device(config.device)), out / "unpaired.csv")
    return write_table(rows, out / "metrics.csv")


def fit_texture(config: Config, root: Path, manifest: pd.DataFrame, srresnet: torch.nn.Module) -> GaussianTexture:
    """The Gaussian texture on the images of `srresnet`, fitted on FITTED training scans."""
    train = choose(manifest[manifest.split == "train"], FITTED).path
    pairs = (read_pair(root / path, config) for path in train)
    return GaussianTexture(config.scale, held_by(config)).fit((upscale(lr, srresnet), lr, hr) for lr, hr in pairs)


def measure_samples(image: TestImage, hr: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Of SAMPLES samples of the sampler: a row of samples.csv, and the shares of HR's ranks in each region (`rank_regions`).

    The row: gain_NAME_db (PSNR over bicubic's, valid region) of the first sample, of the mean of all and of SRResNet; `against_hr`; rank_REGION
    (`statistics.rank_distance`)."""
    images, valid = image.samples(SAMPLES), valid_region(hr)
    bicubic = metrics.psnr(image["bicubic"], hr, region=valid)
    compared = {"sample": images[0], "mean": np.mean(images, 0), "srresnet": image["srresnet"]}
    row = {f"gain_{name}_db": metrics.psnr(sr, hr, region=valid) - bicubic for name, sr in compared.items()}
    row |= against_hr(images, hr, valid)
    shares = {}
    for name, region in rank_regions(image["srresnet"], valid).items():
        counts = statistics.ranks(images, hr, region, image.seed % 2**32)
        row[f"rank_{name}"] = statistics.rank_distance(counts)
        shares[name] = counts / counts.sum() if counts.any() else np.full(len(counts), np.nan)
    return row, shares


def against_hr(images: list[np.ndarray], hr: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Of several samples, in the valid region: regain_db, the PSNR of their mean less that of the first (of n samples of the true posterior
    10 log10(2 / (1 + 1/n)), 2.5 dB for eight; of equal images 0); spread, the error that they predict for their mean (root mean square, grey
    levels), and error, the real one."""
    mean = np.mean(images, 0)
    errors = {"spread": statistics.predicted_error(images), "error": metrics.luma(mean) - metrics.luma(hr)}
    errors = {name: np.sqrt(np.mean(error[valid] ** 2)) if valid.any() else np.nan for name, error in errors.items()}
    one, joint = (metrics.psnr(sr, hr, region=valid) for sr in (images[0], mean))
    return {"regain_db": joint - one} | errors


def rank_regions(image: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Where HR's rank is counted, bool (H, W): of a grey image tissue and vitreous, of colour the whole valid region, and edges. `image` is
    SRResNet's, which knows LR alone: places chosen by HR's own texture would make the ranks of right samples unequal."""
    steep = gaussian_gradient_magnitude(metrics.luma(image), 2)
    edges = valid & (steep > np.quantile(steep[valid], STEEPEST)) if valid.any() else valid
    if image.ndim == 2 or (image == image[..., :1]).all():
        tissue, vitreous = retina(image)
        return {"tissue": tissue & valid, "vitreous": vitreous & valid, "edges": edges}
    return {"valid": valid, "edges": edges}


# ------------------------------------------------------------------------------------------- patches
class Patches:
    """Patches of HR and of methods, from the same places of one image after the other."""

    def __init__(self, methods):
        self.patients: list[str] = []
        self.patches: dict[str, list[np.ndarray]] = {name: [] for name in ("hr", *methods)}

    def add(self, images: dict[str, np.ndarray], valid: np.ndarray, patient: str, seed: int, tables: dict | None = None) -> None:
        """`images`: 'hr' and the methods, uint8; `valid`: where patches may lie (H, W); `seed`: of the places; `tables`: those of the JPEG that HR was,
        where it was one, through which the methods' images go, too (`unpaired.through_jpeg`)."""
        corners = unpaired.places(valid, seed)
        self.patients += [patient] * len(corners)
        for name, patches in self.patches.items():
            image = unpaired.through_jpeg(images[name], tables) if tables and name != "hr" else images[name]
            patches.append(unpaired.cut(image, corners))

    def measure(self, steps: int, seed: int = 0, device="cpu") -> pd.DataFrame:
        """A row for each method and measure: value, low, high (95 %, bootstrap over patients), network, patients. Measures: c2st (accuracy of a
        fresh classifier after `steps`; left out for 0), c2st_raw (of one that sees raw patches; left out for fewer steps than BLIND), kid, and for the
        method 'hr' the kid of one half of the patients against the other."""
        patients, rows = np.array(self.patients, object), []
        names = np.unique(patients)
        if len(names) < 2:
            return pd.DataFrame(columns=["method", "measure", "value", "low", "high", "network", "patients"])
        patches = {name: np.concatenate(parts) for name, parts in self.patches.items()}
        network = feature_extractor(FEATURES).to(device, memory_format=FASTEST)
        features = {name: _features(each, network, device) for name, each in patches.items()}
        first = np.isin(patients, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
        pairs = {"hr": (features["hr"][first], features["hr"][~first], patients[first], patients[~first])}
        pairs |= {name: (features[name], features["hr"], patients, patients) for name in patches if name != "hr"}
        for name, pair in pairs.items():
            rows.append((name, "kid", *unpaired.kid(*pair), FEATURES))
        views = {"c2st": True} | ({"c2st_raw": False} if steps >= BLIND else {})
        for name, (measure, detail) in itertools.product(list(patches)[1:], views.items() if steps else ()):
            accuracy = [*unpaired.c2st(patches[name], patches["hr"], patients, steps, seed, device, detail).values()]
            rows.append((name, measure, np.mean(accuracy), *interval(accuracy), "fresh"))
        table = pd.DataFrame(rows, columns=["method", "measure", "value", "low", "high", "network"])
        return table.assign(patients=len(names)).round(6)


@torch.inference_mode()
def _features(patches: np.ndarray, network: torch.nn.Module, device) -> np.ndarray:
    parts = np.array_split(patches, -(-len(patches) // 64))
    maps = (network((torch.from_numpy(part)[:, None].float() / 255).to(device)) for part in parts)
    return np.concatenate([part.mean((2, 3)).cpu().double().numpy() for part in maps])  # (MPS has no float64)
