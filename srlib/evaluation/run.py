"""The evaluation of a run, top to bottom: methods built, each test image measured, samples and patches held against HR, files written."""

from __future__ import annotations

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_gradient_magnitude
from tqdm import tqdm

from .. import metrics
from ..config import Config, UserError
from ..data.reading import jpeg_tables, png_names, read_image, read_pair
from ..data.sources import phantom_tables, phantom_truth
from ..degrade import crop_to_multiple, held_by
from ..device import FASTEST, pick_device
from ..files import read_table, write, write_image
from ..metrics import unpaired
from ..metrics.regions import retina, valid_region
from ..models.features import feature_extractor, lpips
from ..sampler import statistics
from ..trained import load_generator
from ..training.stage import training_pairs
from ..upscaling import upscale
from .gaussian import GaussianTexture
from .methods import METHODS, LinearFilter, Networks, TestImage
from .protocol import BORDER, Protocol
from .statistics import SAMPLES, interval

MEASURED = 2  # methods that are measured at once: most measures use one core
FITTED = 12  # validation images that the Gaussian texture is fitted on
CROPS = 256  # training crops that the linear filter is fitted on
STEEPEST = 0.9  # pixels whose gradient is above this quantile are edges
FEATURES = "vgg19:relu4_4"  # of the KID: their mean over the positions of a patch, 512 numbers


def evaluate_run(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Measure every method on the test split (`max_test_images` of it), one image at a time. Writes into `folder`/evaluation:

    - metrics.csv, a row for each image, method and region (returned);
    - samples.csv, a row for each image that SRGAN is sampled on (`measure_samples`), and ranks.csv: region, rank, share, the mean over them;
    - unpaired.csv, patches against HR's (`Patches`); sr/<method>/<path>.png (`png_names`).
    """
    chosen = choose(manifest[manifest.split == "test"], config.max_test_images)
    sampled, names = {*choose(chosen, config.sample_images).path}, png_names(chosen.path)
    networks, out = load_networks(config, root, manifest, folder), folder / "evaluation"
    distance = lpips().to(networks.device) if config.lpips else None
    methods = [name for name, method in METHODS.items() if method.notebook == "05"]
    patches = Patches(name for name in methods if METHODS[name].texture)
    rows, samples, ranks = [], [], []
    for item in tqdm(chosen.itertuples(), total=len(chosen), desc="evaluate", unit="image", mininterval=1.0, ncols=100, file=sys.stdout):
        lr, hr = read_pair(root / item.path, config)
        if metrics.too_small(hr.shape, BORDER):
            raise UserError(f"{item.path}: {hr.shape[1]} x {hr.shape[0]} pixels are too small to be measured; leave it out")
        truth, jpeg = None, jpeg_tables(root / item.path)
        if config.data == "phantom":
            truth, jpeg = phantom_truth(item.path, config), phantom_tables()
        image, protocol = TestImage(lr, item.path, networks), Protocol(lr, hr, config.reduction, truth, distance, networks.device)
        facts = {"image": item.path, "patient": item.patient, "label": item.label}
        if item.path in sampled:
            row, shares = measure_samples(image, hr, truth)
            samples.append(facts | row)
            ranks += [(region, rank, share) for region in shares for rank, share in enumerate(shares[region])]
        images = {method: image[method] for method in methods}
        with ThreadPoolExecutor(MEASURED) as pool:
            for method, measured in zip(methods, pool.map(protocol.measure, images.values()), strict=True):
                size = {"height": len(hr), "width": hr.shape[1]}
                rows += [facts | {"method": method} | values | size for values in measured]
                write_image(out / "sr" / method / names[item.path], Image.fromarray(images[method]), compress_level=1)
        patches.add(images | {"hr": hr}, valid_region(hr), item.patient, image.seed % 2**32, jpeg)
    table = pd.DataFrame(rows).round(6)
    shares = pd.DataFrame(ranks, columns=["region", "rank", "share"]).groupby(["region", "rank"], sort=False).mean().reset_index()
    compared = patches.measure(config.classifier_steps, config.seed, networks.device)
    for name, each in {"metrics": table, "samples": pd.DataFrame(samples), "ranks": shares, "unpaired": compared}.items():
        write(out / f"{name}.csv", each.round(6).to_csv(index=False))
    return table


def choose(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` images (0: all): one of each patient first, the classes in turn."""
    if not limit or len(rows) <= limit:
        return rows
    turn = rows.groupby("patient").cumcount()
    nth = rows.assign(turn=turn).sort_values(["turn", "path"]).groupby("label").cumcount()
    order = rows.assign(turn=turn, nth=nth).sort_values(["nth", "label", "turn", "path"]).index
    return rows.loc[order[:limit]].sort_index()


def load_networks(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> Networks:
    """The networks of the run, the linear filter fitted on training crops (smaller ones where no scan has the settings' size), and the Gaussian
    texture fitted on FITTED validation images."""
    device = pick_device(config.device)
    srresnet, srgan = (load_generator(folder / f"{name}.pt", device) for name in ("srresnet", "srgan"))
    train = manifest[manifest.split == "train"]
    sides, fits = train[["height", "width"]].min(axis=1), config
    if not (sides >= config.crop).any():  # only where nothing was trained on them
        fits = dataclasses.replace(config, crop=int(sides.min()) // config.scale * config.scale)
        print(f"evaluate: no training scan has {config.crop} pixels a side; linear is fitted on crops of {fits.crop}")
    paths = [root / path for path in train.path[sides >= fits.crop]]
    crops = training_pairs(paths, fits, torch.device("cpu"), -(-CROPS // config.batch), config.seed)
    linear = LinearFilter(config.scale).fit(crops(0))
    pairs = (read_pair(root / path, config) for path in choose(manifest[manifest.split == "val"], FITTED).path)
    gaussian = GaussianTexture(config.scale, held_by(config)).fit((upscale(lr, srresnet), lr, hr) for lr, hr in pairs)
    return Networks(config.scale, device, srresnet, srgan, linear, gaussian)


# ------------------------------------------------------------------------------------------- samples of SRGAN
def measure_samples(image: TestImage, hr: np.ndarray, truth=None) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Of SAMPLES samples of SRGAN: a row of samples.csv, and the shares of HR's ranks in each region (`rank_regions`).

    The row: psnr and gain_db (over bicubic) of the first sample, of the mean of all and of SRResNet, in the valid region; `against_hr`; rank_REGION
    (`statistics.rank_distance`)."""
    images, valid = image.samples(SAMPLES), valid_region(hr)
    mean = np.mean([sample.astype(np.float64) for sample in images], 0)
    compared = {"sample": images[0], "mean": mean, "srresnet": image["srresnet"]}
    psnr = {name: metrics.psnr(sr, hr, region=valid) for name, sr in compared.items()}
    bicubic = metrics.psnr(image["bicubic"], hr, region=valid)
    row = {f"psnr_{name}": value for name, value in psnr.items()}
    row |= {f"gain_{name}_db": value - bicubic for name, value in psnr.items()}
    row |= against_hr(images, hr, valid)
    shares = {}
    for name, region in rank_regions(image["srresnet"], valid, truth).items():
        counts = statistics.ranks(images, hr, region, image.seed % 2**32)
        row[f"rank_{name}"] = statistics.rank_distance(counts)
        shares[name] = counts / counts.sum() if counts.any() else np.full(len(counts), np.nan)
    return row, shares


def against_hr(images: list[np.ndarray], hr: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Of several samples, in the valid region: regain_db; srgan_spread, the error that they predict for their mean (root mean square, grey
    levels), and srgan_error, the real one."""
    mean = np.mean([image.astype(np.float64) for image in images], 0)
    errors = {"srgan_spread": statistics.predicted_error(images), "srgan_error": metrics.luma(mean) - metrics.luma(hr)}
    errors = {name: np.sqrt(np.mean(error[valid] ** 2)) if valid.any() else np.nan for name, error in errors.items()}
    return {"regain_db": statistics.regain(images, hr, region=valid)} | errors


def rank_regions(image: np.ndarray, valid: np.ndarray, truth=None) -> dict[str, np.ndarray]:
    """Where HR's rank is counted, bool (H, W): of a grey image tissue and vitreous, of colour the whole valid region, and edges. `image` is
    SRResNet's, which knows LR alone: places chosen by HR's own texture would make the ranks of right samples unequal."""
    steep = gaussian_gradient_magnitude(metrics.luma(image), 2)
    edges = valid & (steep > np.quantile(steep[valid], STEEPEST)) if valid.any() else valid
    if image.ndim == 2 or (image == image[..., :1]).all():
        tissue, vitreous = retina(image, truth)
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
        """A row for each method and measure: value, low, high (95 %, bootstrap over patients), network, patients. Measures: c2st and
        c2st_raw (accuracy of a fresh classifier of detail and of raw patches after `steps`; left out for 0), kid, and for the method 'hr' the kid
        of one half of the patients against the other."""
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
        for name in list(patches)[1:] if steps else ():
            for measure, detail in (("c2st", True), ("c2st_raw", False)):
                accuracy = [*unpaired.c2st(patches[name], patches["hr"], patients, steps, seed, device, detail).values()]
                rows.append((name, measure, np.mean(accuracy), *interval(accuracy), "fresh"))
        table = pd.DataFrame(rows, columns=["method", "measure", "value", "low", "high", "network"])
        return table.assign(patients=len(names)).round(6)


@torch.inference_mode()
def _features(patches: np.ndarray, network: torch.nn.Module, device) -> np.ndarray:
    parts = np.array_split(patches, -(-len(patches) // 64))
    maps = (network((torch.from_numpy(part)[:, None].float() / 255).to(device)) for part in parts)
    return np.concatenate([part.mean((2, 3)).cpu().double().numpy() for part in maps])  # (MPS has no float64)


# ------------------------------------------------------------------------------------------- what was written, for the notebooks
def evaluated_images(folder: Path, root: Path, path: str, config: Config, methods=tuple(METHODS)) -> dict[str, np.ndarray]:
    """The SR images that `evaluate_run` wrote for one test image, and 'hr'; uint8, all of HR's size."""
    measured = read_table(folder / "evaluation" / "metrics.csv").image
    name = png_names({path, *measured})[path]
    files = {method: folder / "evaluation" / "sr" / method / name for method in methods}
    if missing := next((file for file in files.values() if not file.exists()), None):
        raise UserError(f"{missing} is missing; --from 05 measures the run again")
    images = {method: read_image(file, config.channels) for method, file in files.items()}
    return images | {"hr": crop_to_multiple(read_image(root / path, config.channels, config.bits), config.scale)}


def captions(table: pd.DataFrame, path: str) -> dict[str, str]:
    """Method to "PSNR, texture error" of one image, for the line under its picture."""
    rows = table[(table.image == path) & (table.region == "valid")]
    return {row.method: f"PSNR {row.psnr:.1f} dB, texture error {row.texture_error_db:.1f} dB" for row in rows.itertuples()}
