"""Run every method over the test split, one image at a time, and measure: evaluation/metrics.csv, summary.json, SR images."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from .. import metrics
from ..config import Config, UserError, load_config
from ..data import find_images, read_image, read_pair, valid_region
from ..degrade import crop_to_multiple, to_image, to_tensor, upsample
from ..features import judge, lpips
from ..inference import draws, load_generator, upscale
from ..models import LinearFilter
from ..protocol import Protocol
from ..reading import png_name
from ..sources import phantom_truth
from ..statistics import summarise
from ..training import pick_device, training_pairs
from .run_folder import Run

METHODS = ("nearest", "bicubic", "linear", "srresnet", "srgan", "noise")
DRAWS = 8


def choose(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` images (0: all): one of each patient first, the classes in turn."""
    if not limit or len(rows) <= limit:
        return rows
    turn = rows.groupby("patient").cumcount()
    in_class = rows.assign(turn=turn).sort_values(["turn", "path"]).groupby("label").cumcount()
    order = rows.assign(turn=turn, nth=in_class).sort_values(["nth", "label", "turn", "path"]).index
    return rows.loc[order[:limit]].sort_index()


def fit_linear(paths, config: Config, crops: int = 256) -> LinearFilter:
    """The least-squares filter, fitted on the first `crops` training crops."""
    return LinearFilter(config.scale).fit(training_pairs(paths, config, torch.device("cpu"), -(-crops // config.batch), config.seed)(0))


def texture(image: np.ndarray, name: str, scale: int) -> np.ndarray:
    """Noise above the LR Nyquist frequency, modulated by the local contrast (std under a Gaussian of 4 pixels) of `image`.

    Seeded by `name`; float (H, W), or (H, W, 3) with the same noise in each channel.
    """
    y = metrics.luma(image)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal(y.shape))
    fy, fx = np.fft.fftfreq(y.shape[0])[:, None], np.fft.fftfreq(y.shape[1])[None]
    noise = np.fft.ifft2(noise * (np.hypot(fy, fx) > 0.5 / scale)).real
    contrast = np.sqrt(np.maximum(gaussian_filter(y**2, 4) - gaussian_filter(y, 4) ** 2, 0))
    result = noise * contrast
    return result if image.ndim == 2 else result[..., None].repeat(3, 2)


def fit_noise(pairs, scale: int) -> float:
    """The factor that lifts the power of SR + factor * texture above the LR Nyquist to HR's; `pairs`: (name, sr, hr)."""
    missing, added = 0.0, 0.0
    for name, sr, hr in pairs:
        region = valid_region(hr)
        hr_power, sr_power, noise_power = (
            metrics.high_power(metrics.spectrum(image, region), scale) for image in (hr, sr, texture(sr, name, scale) + 128)
        )
        missing += max(hr_power - sr_power, 0)
        added += noise_power
    return float(np.sqrt(missing / added)) if added else 0.0


def evaluate_run(config: Config, root: Path, manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Measure every method on the test split (`max_test_images` of it). Writes `folder`/evaluation/metrics.csv, summary.json and
    sr/<method>/<path>.png; returns the table, a row for each image, method and region."""
    device, scale = pick_device(config.device), config.scale
    networks = {n: load_generator(folder / f"{n}.pt", device) for n in ("srresnet", "srgan")}
    part = {s: manifest[manifest.split == s] for s in ("train", "val", "test")}
    train = part["train"][(part["train"][["height", "width"]] >= config.crop).all(axis=1)]
    linear = fit_linear([root / p for p in train.path], config)
    tuning = []
    for path in choose(part["val"], 6).path:
        lr, hr = read_pair(root / path, config)
        tuning.append((path, upscale(lr, networks["srresnet"]), hr))
    strength = fit_noise(tuning, scale)
    options = dict(bscan=config.retina, lpips=lpips().to(device) if config.lpips else None)
    network = judge().to(device)

    def methods(lr, hr, name):
        x = to_tensor(lr)
        yield "nearest", np.repeat(np.repeat(lr, scale, 0), scale, 1)
        yield "bicubic", to_image(upsample(x, scale))
        yield "linear", to_image(linear(x))
        srresnet = upscale(lr, networks["srresnet"])
        yield "srresnet", srresnet
        yield "srgan", upscale(lr, networks["srgan"])
        noisy = srresnet + strength * texture(srresnet, name, scale)
        yield "noise", np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    rows = []
    chosen = choose(part["test"], config.max_test_images)
    for item in tqdm(chosen.itertuples(), total=len(chosen), desc="evaluate", unit="image", mininterval=1.0, ncols=100, file=sys.stdout):
        lr, hr = read_pair(root / item.path, config)
        truth = phantom_truth(item.path, config) if config.data == "phantom" else None
        protocol = Protocol(lr, hr, config.reduction, config.border, network, device, truth, **options)
        for method, sr in methods(lr, hr, item.path):
            target = folder / "evaluation" / "sr" / method / png_name(item.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sr).save(target, compress_level=1)
            facts = {"image": item.path, "patient": item.patient, "label": item.label, "method": method}
            size = {"height": len(hr), "width": hr.shape[1]}
            rows += [facts | measured | size for measured in protocol.measure(sr)]
    table = pd.DataFrame(rows).round(6)
    table.to_csv(folder / "evaluation" / "metrics.csv", index=False)
    summary = summarise(table)
    facts = {"images": len(chosen), "patients": int(chosen.patient.nunique()), "noise_factor": round(strength, 6)}
    text = json.dumps(facts | {"means_by_patient": json.loads(summary.reset_index().to_json(orient="records"))}, indent=1)
    (folder / "evaluation" / "summary.json").write_text(text + "\n")
    return table


def evaluate_draws(config: Config, root: Path, paths, folder: Path) -> pd.DataFrame:
    """DRAWS draws of SRGAN on a few test images: writes `folder`/evaluation/draws.csv, a row for each image: psnr and gain_db (over bicubic) of the first
    draw, of the mean of all, and of SRResNet; regain_db, the mean's less the first's; spread, the standard deviation over draws
    (grey levels), and error, the root mean square of the mean's difference to HR; all in the valid region. Draws from the true posterior
    regain 10 log10(2 / (1 + 1/8)) = 2.5 dB. Of an SRGAN that does not draw, regain and spread are 0."""
    networks = {n: load_generator(folder / f"{n}.pt", pick_device(config.device)) for n in ("srresnet", "srgan")}
    rows = []
    for path in paths:
        lr, hr = read_pair(root / path, config)
        region = valid_region(hr)
        images = draws(lr, networks["srgan"], range(DRAWS))
        mean = np.mean([image.astype(np.float64) for image in images], 0)
        kinds = {"draw": images[0], "mean": mean, "srresnet": upscale(lr, networks["srresnet"])}
        found = {f"psnr_{name}": metrics.psnr(image, hr, config.border, region) for name, image in kinds.items()}
        start = metrics.psnr(to_image(upsample(to_tensor(lr), config.scale)), hr, config.border, region)
        found |= {f"gain_{name}_db": found[f"psnr_{name}"] - start for name in kinds}
        spread = np.mean(np.var([metrics.luma(image) for image in images], 0)[region]) ** 0.5
        error = np.mean((metrics.luma(mean) - metrics.luma(hr))[region] ** 2) ** 0.5
        rows.append({"image": path, **found, "regain_db": found["psnr_mean"] - found["psnr_draw"], "spread": spread, "error": error})
    table = pd.DataFrame(rows).round(6)
    table.to_csv(folder / "evaluation" / "draws.csv", index=False)
    return table


def evaluate_folders(
    sr_dir: str | Path, hr_dir: str | Path, scale: int = 4, border: int = 4, channels: int = 1, bscan: bool = True, with_lpips: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Judge anybody's SR images under the series' protocol: each image of `sr_dir` against the HR image with the same stem.

    HR is cropped to a multiple of the scale; LR, for the consistency, is made from it. Returns the table (regions whole, valid
    and, of grey images where `bscan`, retina) and a line for each image that could not be measured. Raises UserError where none could.
    """
    hr_paths: dict[str, list[Path]] = {}
    for path in find_images(hr_dir):
        hr_paths.setdefault(path.stem, []).append(path)
    config, rows, failed = load_config("quick", scale=scale, channels=channels), [], []
    network, perceptual = judge(), lpips() if with_lpips else None
    for path in tqdm(find_images(sr_dir), desc="evaluate", unit="image", ncols=100):
        found = hr_paths.get(path.stem, [])
        if len(found) != 1:
            failed.append(f"{path}: {'no' if not found else len(found)} HR image named {path.stem} in {hr_dir}; one is needed")
            continue
        try:
            lr, hr = read_pair(found[0], config)
            sr = read_image(path, channels)
            measured = Protocol(lr, hr, config.reduction, border, network, "cpu", None, bscan, perceptual).measure(sr)
        except ValueError as error:  # UserError among them
            failed.append(f"{path}: {error}")
            continue
        rows += [{"image": path.stem, "method": Path(sr_dir).name} | m for m in measured]
    if not rows:
        raise UserError(f"nothing could be measured; the first reason: {failed[0]}")
    return pd.DataFrame(rows).round(6), failed


def evaluated_images(folder: Path, root: Path, path: str, config: Config, methods=METHODS) -> dict[str, np.ndarray]:
    """The SR images that `evaluate_run` wrote for one test image, and 'hr'; uint8, all of HR's size."""
    images = {m: read_image(folder / "evaluation" / "sr" / m / png_name(path), config.channels) for m in methods}
    return images | {"hr": crop_to_multiple(read_image(root / path, config.channels), config.scale)}


def captions(table: pd.DataFrame, path: str, region: str = "valid") -> dict[str, str]:
    """Method to 'PSNR / SSIM / judge' of one image, for the line under its picture."""
    rows = table[(table.image == path) & (table.region == region)]
    return {r.method: f"{r.psnr:.2f} dB, SSIM {r.ssim:.3f}\njudge {r.judge:.3f}" for r in rows.itertuples()}


def mean_spectra(
    folder: Path, root: Path, paths, config: Config, methods, direction: str = "radial"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Spectra (`metrics.psd`) of the methods and HR, averaged in dB over the given test images."""
    sums: dict[str, list] = {}
    for path in paths:
        images = evaluated_images(folder, root, path, config, methods)
        region = valid_region(images["hr"])
        for name, image in images.items():
            sums.setdefault(name, []).append(metrics.psd(image, None if region.all() else region, direction))
    return {name: (curves[0][0], np.mean([db for _, db in curves], 0)) for name, curves in sums.items()}


def evaluate_cross(trained: dict[Path, Config], tests: list[Config]) -> pd.DataFrame:
    """Networks of several runs (folder to settings), each tested on LR made in every way of `tests`, on the test images of the first run.

    A row for each run, test and image: method, trained and tested (the degradations), seed, image, patient, psnr (valid region), gain_db
    over bicubic of the same LR, judge."""
    first = Run(*next(iter(trained.items())))
    device, rows = pick_device(first.config.device), []
    network = judge().to(device)
    networks = {(folder, m): load_generator(folder / f"{m}.pt", device) for folder in trained for m in ("srresnet", "srgan")}
    chosen = choose(first.manifest[first.manifest.split == "test"], first.config.max_test_images)
    bar = tqdm(total=len(tests) * len(chosen), desc="cross", unit="image", mininterval=1.0, ncols=100, file=sys.stdout)
    for config in tests:
        for item in chosen.itertuples():
            lr, hr = read_pair(first.root / item.path, config)
            region = valid_region(hr)
            start = metrics.psnr(to_image(upsample(to_tensor(lr), config.scale)), hr, config.border, region)
            with torch.inference_mode():
                hr_maps = network(to_tensor(hr).to(device))
            for (folder, method), generator in networks.items():
                sr, own = upscale(lr, generator), trained[folder]
                with torch.inference_mode():
                    distance = metrics.feature_distance(network(to_tensor(sr).to(device)), hr_maps, region)
                psnr = metrics.psnr(sr, hr, config.border, region)
                facts = {"method": method, "trained": own.degradation, "tested": config.degradation, "seed": own.seed}
                rows.append(facts | {"image": item.path, "patient": item.patient, "psnr": psnr, "gain_db": psnr - start, "judge": distance})
            bar.update()
    return pd.DataFrame(rows).round(6)
