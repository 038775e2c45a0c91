"""The notebooks for Google Colab: what is built, and that they run where there is no clone: srlib installed from a wheel, a working folder like /content."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from srlib.__main__ import main
from srlib.config import UserError
from srlib.files import NOTEBOOK_FOLDER, REPOSITORY
from srlib.kaggle import colab, dataset

ADDRESS = "https://github.com/someone/srgan-oct"


def test_without_an_address_there_are_no_badges(capsys):
    """A dead badge is worse than none."""
    assert colab.ADDRESS or (main(["colab"]) == 1 and "the repository's address is not set; set ADDRESS" in capsys.readouterr().err)
    for wrong in ("https://example.org/x", "https://github.com/OWNER/NAME", "https://github.com/a/..", "https://github.com/a"):
        with pytest.raises(UserError, match="is no address on GitHub"):
            colab.build(wrong)
    pages = [REPOSITORY / "README.md", *NOTEBOOK_FOLDER.rglob("*.md"), *NOTEBOOK_FOLDER.rglob("*.ipynb")]
    assert not colab.ADDRESS or f"git clone {colab.ADDRESS}" in pages[0].read_text(encoding="utf-8")
    assert colab.ADDRESS or not any("colab-badge" in page.read_text(encoding="utf-8") for page in pages)


def test_what_is_built(tmp_path):
    series, short = colab.build(ADDRESS, tmp_path)
    for file in (series, short):
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        first, install = notebook.cells[:2]
        assert colab.badge(ADDRESS, file.name) in first.source and "attachment:result.jpg" in first.source
        assert f"/blob/main/notebooks/colab/{file.name})" in first.source
        assert f"git+{ADDRESS}" in install.source and 'find_spec("srlib") is None' in install.source
        text = "\n".join(c.source for c in notebook.cells)
        assert not re.findall(r".*(?:run_all|kaggle\.com/code|/kaggle/|\]\(\w+\.ipynb|sys\.path\.append).*", text)
    text = "\n".join(c.source for c in nbformat.read(series, as_version=4).cells)
    assert re.findall(r'open_run\("(\d\d)"', text) == ["01", "02", "03", "04", "05", "06"] and "set `data` at the top to" in text
    text = "\n".join(c.source for c in nbformat.read(short, as_version=4).cells)
    assert "pretrain_steps = 2400\n" in text and "T4" not in text  # quick's
    copied = [file.read_bytes() for file in colab.build(f"{ADDRESS}.git/", tmp_path)]  # as GitHub's button gives it
    assert copied == [file.read_bytes() for file in colab.build(ADDRESS, tmp_path)]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["series", "short"])
def test_it_runs_without_a_clone(tmp_path, which):
    """`smoke`, as nobody waits for `quick` here; the first cell installs srlib. The wheel has in srlib what the data set for Kaggle has."""
    site, content = tmp_path / "site", tmp_path / "content"
    site.mkdir()
    content.mkdir()
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(copied(tmp_path / "clone")),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.removeprefix("srlib/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("srlib/")}
    assert names == set(dataset.content())
    file = colab.build(ADDRESS, tmp_path / "built")[which]
    text = file.read_text(encoding="utf-8")
    found = f'\\"srgan-oct @ git+{ADDRESS}\\"'
    assert found in text
    (tmp_path / file.name).write_text(text.replace(found, f"--no-deps --no-index --target {site} {wheel}"), encoding="utf-8")
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "LD_LIBRARY_PATH") if k in os.environ}
    dead = "http://127.0.0.1:9"
    around = kept | {"HOME": str(tmp_path), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "2", "http_proxy": dead, "https_proxy": dead}
    little = (
        ["-y", "{profile: smoke}"]
        if which == 0
        else ["-y", "{pretrain_steps: 20, gan_steps: 5, width: 8, overrides: {phantoms: 8, blocks: 2, batch: 2}}"]
    )
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(tmp_path / file.name),
        str(tmp_path / "done.ipynb"),
        "-k",
        "python3",
        "--no-progress-bar",
        *little,
    ]
    done = subprocess.run(command, cwd=content, env=around, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (site / "srlib").is_dir() and (content / "runs").is_dir()
    assert str(REPOSITORY) not in (tmp_path / "done.ipynb").read_text(encoding="utf-8")


def copied(target: Path) -> Path:
    """What the wheel is built from, elsewhere: building leaves folders behind."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((REPOSITORY / name).read_bytes())
    return target
