"""What a user's machine brings along: names that look like no value, another encoding, another kernel called python3, another matplotlib backend,
a clone in a folder with a colon, another shell."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from srlib.evaluation import statistics
from srlib.files import REPOSITORY, read_table

HOUSE = "\u03c3 \u4e2d"  # what CP1252 cannot show


def test_names_stay_names(tmp_path):
    """Patients NA and null, classes None and 0: pandas would take them for missing values and numbers."""
    rows = [
        {"image": f"{label}/{patient}.png", "patient": patient, "label": label, "method": method, "region": "valid", "psnr": 30.0 + k}
        for k, (patient, label) in enumerate((("NA", "None"), ("null", "0"), ("007", "1"), ("nan", "None")))
        for method in ("bicubic", "srgan")
    ]
    pd.DataFrame([*rows, dict(rows[0], psnr=np.nan)]).to_csv(tmp_path / "metrics.csv", index=False)
    table = read_table(tmp_path / "metrics.csv")
    assert list(table.patient.unique()) == ["NA", "null", "007", "nan"] and set(table.label) == {"None", "0", "1"}
    assert table.psnr.dtype == float and table.psnr.isna().sum() == 1
    assert statistics.by_patient(table).loc["srgan"].index.tolist() == ["007", "NA", "nan", "null"]


def test_a_stream_loses_a_character_and_not_the_run(tmp_path):
    said = f"import sys; from srlib.__main__ import main; print({HOUSE!r}) if main(['phantom', 'x.png']) == 0 else 0"
    done = subprocess.run(
        [sys.executable, "-c", said],
        cwd=tmp_path,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0 and (tmp_path / "x.png").exists() and b"?" in done.stdout, done.stderr


def test_a_clone_in_a_folder_with_a_colon(tmp_path):
    """PYTHONPATH cannot hold its path and venv refuses it: an active environment serves, without one there is a sentence. By sh, too, with CDPATH,
    spaces, $ and {} in the path."""
    clone = tmp_path / "a $x {y}: z" / "clone"
    for name in ("srlib", "data/weights"):
        shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all.sh", "environment.yml"):
        shutil.copy(REPOSITORY / name, clone / name)
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin / "python3").chmod(0o755)
    around = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")}
    around |= {"PATH": f"{bin}:{os.environ['PATH']}", "CDPATH": str(tmp_path)}
    for name in ("random", "torch"):  # the user's own, in the folder where the command is given
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")

    def call(*words, **more):
        command = ["sh", str((clone / "run_all.sh").relative_to(tmp_path)), *words]
        return subprocess.run(command, cwd=tmp_path, env=around | more, capture_output=True, text=True)

    done = call("phantom", "x.png")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "colon in its path; rename it" in done.stderr
    for words in (("phantom", "x.png"), ("upscale", "x.png", "y.png", "--weights", "srresnet")):
        done = call(*words, KAGGLE_KERNEL_RUN_TYPE="Batch")  # takes the python that there is
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "y.png").exists()
    more = around | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-m", "srlib", "phantom", "z.png"], cwd=tmp_path, env=more, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_strange_house(tmp_path):
    """A CP1252 locale, MPLBACKEND, TeX in a matplotlibrc, a kernelspec called python3, $ and {} in a folder's name."""
    if not shutil.which("localedef"):
        pytest.skip("needs localedef, which this machine lacks")
    made = subprocess.run(["localedef", "-i", "en_US", "-f", "CP1252", tmp_path / "en_US.CP1252"], capture_output=True)
    if not (tmp_path / "en_US.CP1252").is_dir():
        pytest.skip(f"this machine cannot make a locale: {made.stderr.decode(errors='replace')[:80]}")
    kernel = tmp_path / "jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    around = {"LOCPATH": str(tmp_path), "LC_ALL": "en_US.CP1252", "MPLBACKEND": "Agg", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
              "JUPYTER_PATH": str(tmp_path / "jupyter"), "PYTHONUTF8": "0"}  # fmt: skip
    folder = tmp_path / "a ${run}"
    with open(tmp_path / "log", "wb") as log:
        command = [sys.executable, "-m", "srlib", "run", "--profile", "smoke", "--run-dir", str(folder)]
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | around)
    assert done.returncode == 0, (tmp_path / "log").read_bytes().decode("cp1252")
    notebook = json.loads((folder / "notebooks/01_explore_data.ipynb").read_text(encoding="utf-8"))
    outputs = [o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in data for data in outputs) >= 5 and "SRResNet" in (folder / "index.html").read_text(encoding="utf-8")
