"""How time and memory grow with the number of images: links to phantoms, as many as Kermany's set has scans.

    python -m srlib.tools.scale --counts 1000 10000 84495

For each count: the manifest, crops of an epoch, and the peak of memory. An evaluation does not
grow with it: it takes `max_test_images`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..config import load_config
from ..data import manifest, sources
from ..data.crops import Crops

PHANTOMS = 120  # eyes, two scans each


def linked(root: Path, count: int) -> None:
    """`count` links to phantoms, named as Kermany's scans: those of one eye are one patient's."""
    config = load_config("quick", phantoms=PHANTOMS)
    found = sorted(sources.make_phantoms(config).rglob("*.png"))
    for k in range(count):
        file = found[k % len(found)]
        label, patient, _ = file.stem.split("-")
        target = root / label / f"{label}-{patient}-{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)


def measure(count: int) -> dict[str, float]:
    """Seconds of the manifest and of 1,000 crops; peak memory in MB."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "scans"
        linked(root, count)
        facts, start = {"images": count}, time.monotonic()
        table = manifest.build_manifest(root)
        facts["manifest_s"] = round(time.monotonic() - start, 1)
        assert len(table) == count
        crops = Crops([root / path for path in table.path[table.split == "train"]], 96, 1000)
        start = time.monotonic()
        for k in range(1000):
            crops[k]
        facts["crops_1000_s"] = round(time.monotonic() - start, 1)
    status = Path("/proc/self/status")  # the peak of this process alone
    facts["peak_mb"] = int(status.read_text().partition("VmHWM:")[2].split()[0]) // 1024 if status.exists() else float("nan")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m srlib.tools.scale")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 84_495], metavar="N")
    counts = parser.parse_args().counts
    if len(counts) == 1:
        print(measure(counts[0]))
        return
    for count in counts:  # a process each, for its peak
        subprocess.run([sys.executable, "-m", "srlib.tools.scale", "--counts", str(count)], check=True, env=os.environ)


if __name__ == "__main__":
    main()
