"""Where images come from: phantoms that are drawn once, Kermany's set in its usual places, or a folder of the reader's."""

import hashlib
import io
import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from .. import degrade
from ..config import UserError
from ..files import HOME, KAGGLE_INPUT, file_hash, write, write_image
from . import phantom

DATA = HOME / "data"  # beside srlib, in Kaggle's working folder, or, of an installed srlib, in the current one
KAGGLEHUB = Path.home() / ".cache/kagglehub/datasets/paultimothymooney/kermany2018"
EYES, POSITIONS = 900000, {1: 0.0, 2: 0.6}  # phantom files: the first patient's number; scan number to mm from the fovea
JPEG = 75  # the quality at which phantoms have passed through JPEG, as Kermany's scans have
KERMANY_HELP = "get it from https://data.mendeley.com/datasets/rscbjbr9sj, then pass the folder that holds train/ and test/ with --data"


def locate(data: str) -> Path:
    """The folder that the setting `data` means: a path (a relative one from HOME), or 'kermany', looked for in data/, Kaggle's mounts and
    kagglehub's cache. Raises UserError with what to do where it is not there."""
    if data != "kermany":
        return HOME / Path(data).expanduser()
    for root, depth in itertools.product((DATA, KAGGLE_INPUT, KAGGLEHUB), range(5)):
        for folder in sorted(root.glob("*/" * depth + "OCT2017*")):  # Kaggle's copy has a trailing space, and lies deeper
            if (folder / "train").is_dir():
                return folder
    raise UserError(f"Kermany's OCT2017 was not found in {DATA}, on Kaggle's mounts or in kagglehub's cache; {KERMANY_HELP}")


def make_phantoms(config) -> Path:
    """Write the phantoms of `config` once, as files named like Kermany's, and return their folder (data/phantoms/<hash>)."""
    size = config.phantom_height, config.phantom_width
    key = repr((config.phantoms, size, *(file_hash(module.__file__) for module in (phantom, degrade, sys.modules[__name__]))))
    folder = DATA / "phantoms" / hashlib.sha256(key.encode()).hexdigest()[:12]
    if (folder / "complete").exists():
        return folder

    def draw(eye: int) -> None:
        pathology = phantom.PATHOLOGIES[eye % len(phantom.PATHOLOGIES)]
        label = pathology.upper()
        for number, position in POSITIONS.items():
            path = folder / label / f"{label}-{EYES + eye}-{number}.png"
            if not path.exists():
                image = phantom.bscan(eye, *size, pathology, position, jpeg_quality=JPEG)
                write_image(path, Image.fromarray(image))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(draw, range(config.phantoms)))
    write(folder / "complete", key + "\n")
    return folder


def phantom_tables() -> dict[int, list[int]]:
    """The quantisation tables of the JPEG that phantoms have passed through."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", quality=JPEG)
    return dict(Image.open(buffer).quantization)
