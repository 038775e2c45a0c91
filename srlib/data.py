"""Finding, reading and splitting images, the valid region, and the stream of training crops."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from . import phantom
from .config import Config, UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 100_000_000  # refuse a larger image before it is decoded
MIN_SIDE = 32
REPOSITORY = Path(__file__).resolve().parent.parent
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLEHUB = Path.home() / ".cache/kagglehub/datasets/paultimothymooney/kermany2018"
KERMANY_HELP = (
    "get it from https://data.mendeley.com/datasets/rscbjbr9sj or Kaggle's paultimothymooney/kermany2018, "
    "then pass the folder that holds train/ and test/ with --data"
)


# ------------------------------------------------------------------------------------------------ finding and reading
def find_images(root: str | Path) -> list[Path]:
    """The image files under `root` (by extension), sorted by path; hidden files and linked folders are left out.

    Raises UserError where `root` is no folder or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images (PNG, JPEG, TIFF) with --data")
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__MACOSX")))
        found += [Path(folder, f) for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
    if not found:
        raise UserError(f"{root} holds no image ({', '.join(EXTENSIONS)}); give another folder with --data")
    return sorted(found)


def read_image(path: str | Path, channels: int = 1) -> np.ndarray:
    """An image file as uint8, (H, W) for `channels=1` or (H, W, 3) for 3.

    Colour becomes grey by ITU-R 601 luma, grey becomes colour by copying; 16-bit values are divided by 257 and rounded;
    EXIF rotation is applied. Raises UserError, naming the file, for one that cannot be read whole.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width} x {image.height} pixels is more than the limit of {MAX_PIXELS:,}")
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{path}: holds {image.n_frames} images; save each slice as a file of its own")
            image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                raise UserError(f"{path}: holds floating-point values of unknown range; save it as 8 or 16 bit")
            if image.mode.startswith("I"):
                return _from_deep(np.asarray(image), path, channels)
            return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image, whatever its name says") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def _from_deep(values: np.ndarray, path: Path, channels: int) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: values from {values.min()} to {values.max()} are not 16-bit; convert it to 8 or 16 bit")
    grey = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    return grey if channels == 1 else np.repeat(grey[..., None], 3, 2)


def locate(data: str) -> Path:
    """The folder that the setting `data` means: a path (a relative one from the repository), or 'kermany', looked for in data/, Kaggle's mounts and kagglehub's cache.

    Raises UserError with what to do where it is not there. (Phantoms are made by `make_phantoms`.)
    """
    if data != "kermany":
        return REPOSITORY / Path(data).expanduser()
    roots = [REPOSITORY / "data", KAGGLE_INPUT, *KAGGLE_INPUT.glob("*"), *KAGGLE_INPUT.glob("datasets/*/*"), KAGGLEHUB]
    for root in roots:
        for inner in ("OCT2017", "OCT2017 ", "oct2017/OCT2017 ", "oct2017/OCT2017"):  # Kaggle's copy has a trailing space
            for folder in (root / inner, *root.glob(f"*/{inner}"), *root.glob(f"versions/*/{inner}")):
                if (folder / "train").is_dir():
                    return folder
    try:
        import kagglehub

        return next(Path(kagglehub.dataset_download("paultimothymooney/kermany2018")).glob("oct2017/OCT2017*"))
    except ImportError:
        reason = "kagglehub is not installed"
    except Exception as error:  # no network, no account, another tree
        reason = f"kagglehub could not get it ({type(error).__name__})"
    raise UserError(f"Kermany's OCT2017 was not found in {REPOSITORY / 'data'} or on Kaggle's mounts, and {reason}; {KERMANY_HELP}")


def make_phantoms(config) -> Path:
    """Write the phantoms of `config` once, as files named like Kermany's, and return their folder (data/phantoms/<hash>)."""
    key = ("phantoms", "phantom_height", "phantom_width", "data_seed")
    source = hashlib.sha256(Path(phantom.__file__).read_bytes()).hexdigest()
    text = repr([(k, getattr(config, k)) for k in key] + [source])
    folder = data_home() / "phantoms" / hashlib.sha256(text.encode()).hexdigest()[:12]
    if (folder / "complete").exists():
        return folder
    for eye in range(config.phantoms):
        pathology = phantom.PATHOLOGIES[eye % len(phantom.PATHOLOGIES)]
        label = pathology.upper()
        for number, position in ((1, 0.0), (2, 0.6)):
            path = folder / label / f"{label}-{900000 + 1000 * config.data_seed + eye}-{number}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                image = phantom.bscan(1000 * config.data_seed + eye, config.phantom_height, config.phantom_width, pathology, position)
                part = path.with_suffix(f".{os.getpid()}.part")
                Image.fromarray(image).save(part, "PNG")
                part.replace(path)
    (folder / "complete").write_text(text + "\n")
    return folder


def data_home() -> Path:
    """Where data/ is: beside srlib, or in Kaggle's working folder."""
    working = Path("/kaggle/working")
    return working / "data" if working.is_dir() and not os.access(REPOSITORY, os.W_OK) else REPOSITORY / "data"


# ------------------------------------------------------------------------------------------------ manifest and split
def build_manifest(
    root: str | Path,
    channels: int = 1,
    patient_pattern: str = Config.patient_pattern,
    val_share: float = 0.1,
    test_share: float = 0.2,
    max_images: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an image: path (relative to `root`), sha256, height, width, label, patient, split (train, val, test).

    The label is the folder's name. Images belong together where they share a patient (the pattern's group in the relative path, across
    classes and folders; without a match the file alone) or a SHA-256; such a group stands in one split. `max_images` takes whole
    patients at random before anything is read. `.attrs["skipped"]` lists files that cannot be used, with the reason;
    `.attrs["unnamed"]` counts those without a match. Raises UserError where fewer than three groups are left.
    """
    root = Path(root)
    paths, named = find_images(root), 0
    patients = {}
    for path in paths:
        relative = path.relative_to(root).as_posix()
        match = re.search(patient_pattern, relative)
        named += match is not None
        patients[relative] = match.group(1) if match else relative
    if max_images:
        sizes = pd.Series(patients).value_counts()
        order = np.random.default_rng(seed).permutation(sorted(sizes.index))
        kept = set(order[np.cumsum(sizes[order]) <= max(max_images, sizes[order[0]])])
        patients = {relative: patient for relative, patient in patients.items() if patient in kept}
    rows, skipped = [], []
    for relative, patient in patients.items():
        path = root / relative
        try:
            image = read_image(path, channels)
        except UserError as error:
            skipped.append((relative, str(error).removeprefix(f"{path}: ")))
            continue
        if min(image.shape[:2]) < MIN_SIDE:
            skipped.append((relative, f"{image.shape[1]} x {image.shape[0]} pixels is too small"))
            continue
        if image.min() == image.max():
            skipped.append((relative, "every pixel has the same value"))
            continue
        rows.append(
            {
                "path": relative,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "height": image.shape[0],
                "width": image.shape[1],
                "label": path.parent.name if path.parent != root else "image",
                "patient": patient,
            }
        )
    if not rows:
        raise UserError(f"{root}: none of the {len(skipped)} image files can be read; the first: {' '.join(skipped[0])}")
    table = pd.DataFrame(rows)
    group = _groups(table)
    if group.nunique() < 3:
        raise UserError(f"{root}: {group.nunique()} patient(s) cannot be split into train, val and test; at least 3 are needed")
    table["split"] = group.map(_split(table, group, val_share, test_share, seed))
    table.attrs.update(skipped=skipped, unnamed=len(paths) - named)
    return table


def _groups(table: pd.DataFrame) -> pd.Series:
    """For each row the smallest patient that it is linked to through shared patients and shared hashes."""
    group = table["patient"].astype(str)
    while True:
        merged = group.groupby(table["sha256"]).transform("min")
        merged = merged.groupby(table["patient"]).transform("min").groupby(group).transform("min")
        if merged.equals(group):
            return group
        group = merged


def _split(table, group, val_share, test_share, seed) -> dict[str, str]:
    """Group to split, by class as far as the shares allow; each split gets at least one group."""
    rng = np.random.default_rng([seed, 1])
    label_of = table["label"].groupby(group).first()
    result, owed = {}, np.zeros(3)
    shares = np.array([1 - val_share - test_share, val_share, test_share])
    for label in sorted(label_of.unique()):
        for name in rng.permutation(sorted(label_of.index[label_of == label])):
            owed += shares
            pick = int(np.argmax(owed))
            owed[pick] -= 1
            result[name] = ("train", "val", "test")[pick]
    for k, split in enumerate(("val", "test", "train")):
        if split not in result.values():
            result[sorted(result)[k]] = split
    return result


def check_split(manifest: pd.DataFrame) -> None:
    """Raise UserError where a patient or a hash stands in two splits."""
    for column in ("patient", "sha256"):
        counts = manifest.groupby(column)["split"].nunique()
        if (counts > 1).any():
            raise UserError(f"{column} {counts.idxmax()} stands in more than one split; make the manifest again (notebook 01)")


# ------------------------------------------------------------------------------------------------ valid region and crops
def valid_region(hr: np.ndarray, level: int = 250, smallest: int = 200, margin: int = 8) -> np.ndarray:
    """True where the image is scan, False where it is fill. `hr`: uint8 (H, W) or (H, W, 3); returns bool (H, W).

    Fill: connected pixels >= `level` (all channels) that touch the image border and exceed `smallest` pixels, widened by
    `margin` pixels. Bright tissue inside the image is never fill.
    """
    bright = (hr if hr.ndim == 2 else hr.min(2)) >= level
    parts, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    sizes = np.bincount(parts.ravel())
    fill = np.isin(parts, [k for k in edge if k and sizes[k] > smallest])
    if not fill.any():
        return np.ones(bright.shape, bool)
    return ndimage.distance_transform_edt(~fill) > margin


class Crops(torch.utils.data.Dataset):
    """HR crops for training: item k is a pure function of (seed, k). uint8 tensors (C, crop, crop).

    `paths` are read once and kept while they fit into `cache_bytes`. A crop with more than half fill is drawn again (up to 8
    times); the crop is flipped left to right at random. Every image must be at least as large as the crop.
    """

    def __init__(self, paths, crop: int, count: int, channels: int = 1, seed: int = 0, cache_bytes: int = 4 << 30):
        self.paths, self.crop, self.count, self.channels, self.seed = list(paths), crop, count, channels, seed
        self.cache: dict[int, np.ndarray] = {}
        self.room = cache_bytes

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        if index in self.cache:
            return self.cache[index]
        image = read_image(self.paths[index], self.channels)
        if self.room >= image.nbytes:
            self.cache[index] = image
            self.room -= image.nbytes
        return image

    def __getitem__(self, k: int) -> torch.Tensor:
        if not 0 <= k < self.count:
            raise IndexError(k)
        rng = np.random.default_rng([self.seed, k])
        for _ in range(8):
            image = self.image(int(rng.integers(len(self.paths))))
            top, left = (int(rng.integers(n - self.crop + 1)) for n in image.shape[:2])
            patch = image[top : top + self.crop, left : left + self.crop]
            if (patch >= 250).mean() < 0.5:
                break
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(patch)).reshape(self.crop, self.crop, -1).permute(2, 0, 1)


def batches(crops: Crops, batch: int, first: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    """Batches (batch, C, crop, crop) in [0, 1], from batch number `first` on, in the order of k."""
    indices = range(first * batch, len(crops) // batch * batch)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(crops, indices), batch, num_workers=workers, persistent_workers=False)
    for images in loader:
        yield images.float() / 255
