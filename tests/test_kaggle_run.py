"""The built kernels run as on Kaggle, in an emulated layout: input read-only, srlib attached there, a working folder, no clone, no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from srlib.data.phantom import PATHOLOGIES, bscan
from srlib.files import REPOSITORY
from srlib.kaggle import dataset, kernels

SMOKE = {"data": "kermany", "pretrain_steps": 10, "gan_steps": 5}
OLD, NEW = "kermany2018/oct2017/OCT2017 ", "datasets/paultimothymooney/kermany2018/oct2017/OCT2017 "
RUN = "runs/smoke"


class Kaggle:
    """A machine like Kaggle's, under `root`: it knows nothing of the repository."""

    def __init__(self, root: Path):
        self.root, self.input, self.working = root, root / "input", root / "working"
        for folder in (self.input, self.working, root / "home"):
            folder.mkdir(parents=True)
        dead = "http://127.0.0.1:9"
        kept = {k: os.environ[k] for k in ("PATH", "LANG", "LD_LIBRARY_PATH") if k in os.environ}
        self.environment = kept | {
            "HOME": str(root / "home"), "SRLIB_KAGGLE": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": dead,
            "http_proxy": dead, "https_proxy": dead, "HTTP_PROXY": dead, "HTTPS_PROXY": dead, "OMP_NUM_THREADS": "2",
            "PYTHONDONTWRITEBYTECODE": "1",  # root would write it into the input
        }  # fmt: skip

    def kermany(self, tree: str) -> None:
        """Phantoms named like Kermany's scans, in its odd tree with the trailing space; some patients stand in train and test."""
        for eye in range(8):
            label = PATHOLOGIES[eye % 4].upper()
            for number, split in ((1, "train"), (2, "train" if eye % 3 else "test")):
                path = self.input / tree / split / label / f"{label}-{1000 + eye}-{number}.jpeg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(bscan(eye, 160, 192, PATHOLOGIES[eye % 4], 0.5 * number)).save(path, quality=75)

    def attach(self, at: str) -> None:
        """The data set with srlib."""
        shutil.copytree(dataset.build_dataset("someone", self.root / "built"), self.input / at)

    def mount(self, output: "Kaggle", at: str) -> Path:
        return Path(shutil.copytree(output.working, self.input / at))

    def seal(self) -> dict:
        """Take away the right to write to the input, and note what it holds (root may write where it may not)."""
        for path in sorted(self.input.rglob("*"), reverse=True):
            path.chmod(0o555 if path.is_dir() else 0o444)
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in self.input.rglob("*")}

    def run(self, folder: Path, python: str = sys.executable, **parameters) -> tuple[subprocess.CompletedProcess, Path]:
        """Run a built kernel with papermill in the working folder; the input is the same afterwards."""
        before = self.seal()
        kernel = self.root / f"{folder.name}.ipynb"
        text = (folder / f"{folder.name}.ipynb").read_text()
        kernel.write_text(text.replace("/kaggle/input/", f"{self.input}/"))
        executed = self.root / f"executed-{folder.name}.ipynb"
        extra = ["-y", json.dumps(parameters)] if parameters else []
        command = [python, "-m", "papermill", str(kernel), str(executed), "-k", "python3", "--no-progress-bar", *extra]
        done = subprocess.run(command, cwd=self.working, env=self.environment, capture_output=True, text=True, timeout=900)
        assert self.seal() == before
        return done, executed


@pytest.fixture
def machine(tmp_path):
    counted = iter(range(20))
    assert subprocess.run(
        [sys.executable, "-c", "import srlib"], cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True
    ).returncode

    def make(tree: str = OLD) -> Kaggle:
        new = Kaggle(tmp_path / f"machine{next(counted)}")
        new.kermany(tree)
        new.attach(dataset.SLUG if tree == OLD else f"datasets/someone/{dataset.SLUG}")
        return new

    return make


def printed(executed: Path) -> str:
    cells = nbformat.read(executed, as_version=4).cells
    return "\n".join(o.text for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream")


@pytest.mark.slow
def test_all_in_one_kernel(machine, tmp_path):
    """The whole series on Kermany's tree: everything a run makes, from the attached data set; and after max_hours the next version goes on."""
    (folder,) = kernels.build("someone", profile="smoke", overrides=SMOKE, out=tmp_path / "built")
    first = machine(NEW)
    done, executed = first.run(folder, overrides=SMOKE | {"max_hours": 0.0001})
    assert done.returncode == 0, done.stderr
    run = first.working / RUN
    assert "pretrain: max_hours=0.0001 are over, saved at step 1" in printed(executed) and not (run / "srresnet.pt").exists()
    assert not json.loads((run / "handover.json").read_text())["finished"]

    second = machine()
    second.mount(first, "srgan-for-oct")
    done, executed = second.run(folder, overrides=SMOKE | {"max_hours": 0.0})
    assert done.returncode == 0, done.stderr
    assert "continuing at step 1 of 10" in printed(executed)
    run = second.working / RUN
    table = pd.read_csv(run / "evaluation/metrics.csv")
    assert set(table.method) == {"nearest", "bicubic", "linear", "srresnet", "srgan", "noise"} and table.psnr.between(10, 60).all()
    assert json.loads((run / "handover.json").read_text())["finished"]
    assert str(second.input) in json.loads((run / "provenance.json").read_text())["data"]["images"]["root"]
    assert f"srlib from {second.input}" in printed(executed) and "another version" not in printed(executed)
    assert not list(second.working.glob("srlib")) and str(REPOSITORY) not in executed.read_text()


@pytest.mark.slow
def test_the_short_kernel(machine, tmp_path):
    """From scans to pictures, with little training; and with a module that was copied and edited."""
    (folder,) = kernels.build("someone", "short", out=tmp_path / "built")
    here = machine()
    little = {
        "max_images": 0,
        "width": 8,
        "pretrain_steps": 30,
        "gan_steps": 10,
        "overrides": {"blocks": 2, "batch": 2, "d_width": 4, "texture": 8},
    }
    done, executed = here.run(folder, **little)
    assert done.returncode == 0, done.stderr
    assert "step 27: MSE" in printed(executed) and "step 9: D" in printed(executed)
    shown = nbformat.read(executed, as_version=4).cells
    assert sum("image/png" in o.get("data", {}) for c in shown if c.cell_type == "code" for o in c.outputs) == 3
    assert "mean of 8 draws" in str(shown[-2].outputs[-1])

    edited = here.working / "srlib"
    shutil.copytree(here.input / dataset.SLUG / "srlib", edited)
    (edited / "degrade.py").chmod(0o644)
    with open(edited / "degrade.py", "a") as file:
        file.write("\nprint('this is the copy')\n")
    done, executed = here.run(folder, **little)
    assert done.returncode == 0 and "this is the copy" in printed(executed), done.stderr


@pytest.mark.slow
def test_chain_of_six_kernels(machine, tmp_path):
    """Each kernel gets the former's output, mounted now in the old and now in the new way, and the images' place changes too; the
    training that max_hours ended goes on from its own earlier version; a file that was changed or lost on the way is named."""
    folders = kernels.build("someone", "chain", profile="smoke", overrides=SMOKE, out=tmp_path / "built")
    before = None
    for k, folder in enumerate(folders):
        here = machine((OLD, NEW)[k % 2])
        if before:
            owner = ("", "notebooks/someone/")[k % 2]
            here.mount(before, f"{owner}{folders[k - 1].name}")
        if k == 2:
            done, executed = here.run(folder, overrides=SMOKE | {"max_hours": 0.0001})
            assert done.returncode == 0 and "saved at step 1" in printed(executed), done.stderr
            assert not (here.working / RUN / "srresnet.pt").exists()
            again = machine(NEW)
            again.mount(before, f"notebooks/someone/{folders[1].name}")
            again.mount(here, f"notebooks/someone/{folder.name}")
            here = again
        done, executed = here.run(folder, overrides=SMOKE | {"max_hours": 0.0})
        assert done.returncode == 0, done.stderr
        assert not k or "files taken over from" in printed(executed)
        assert k != 2 or "continuing at step 1 of 10" in printed(executed)
        before = here
    assert (before.working / RUN / "evaluation/metrics.csv").exists()

    for k, harm in enumerate((lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes() + b" "))):
        here = machine()
        mounted = here.mount(before, folders[4].name)
        (mounted / RUN / "srgan.pt").chmod(0o644)
        harm(mounted / RUN / "srgan.pt")
        done, _ = here.run(folders[5])
        assert done.returncode and f"{RUN}/srgan.pt {('is missing', 'was changed')[k]} since" in done.stderr
    done, _ = machine().run(folders[5])
    assert done.returncode and f"the output of someone/{folders[4].name} is not attached" in done.stderr


@pytest.mark.slow
def test_attached_in_other_processes(images, tmp_path):
    """From the data set alone: reading workers, also spawned ones, and two processes under torchrun train as from the repository."""
    attached = dataset.build_dataset("someone", tmp_path)
    code = (
        "import json, sys\n"
        "import torch.multiprocessing\n"
        "from srlib.training import parallel\nfrom srlib.training.pretraining import pretrain_generator\n"
        "from srlib.config import load_config\n"
        "if __name__ == '__main__':\n"
        f"    assert parallel.__file__.startswith({str(attached)!r}), parallel.__file__\n"
        "    torch.multiprocessing.set_start_method('spawn')\n"
        "    images, count = json.loads(sys.argv[1]), 2\n"
        "    config = load_config('smoke', device='cpu', precision='fp32', workers=1, pretrain_steps=5, d_width=4)\n"
        "    one = pretrain_generator(config, *images, 'one', '')\n"
        "    two = parallel.launch('pretrain', 2, config, *images, 'two', '')\n"
        "    print(one.loss.iloc[-1], two.loss.iloc[-1])\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(attached)}
    command = [sys.executable, "script.py", json.dumps(images)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = map(float, done.stdout.split()[-2:])
    assert two == pytest.approx(one, rel=1e-3)
