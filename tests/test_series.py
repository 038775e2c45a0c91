"""The notebooks as files, and the series run end to end through papermill with smoke settings."""

import html
import json
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from running import said, srlib

from srlib.files import REPOSITORY
from srlib.models import networks
from srlib.notebook import plain_code
from srlib.sampler import network as texture
from srlib.series.run_folder import NOTEBOOKS

HOME_PATH = re.compile(rf"/(?:home|root|tmp|Users)/\w|{re.escape(str(REPOSITORY))}")
NOTEBOOK_FILES = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def parameters(notebook) -> dict:
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    names: dict = {}
    exec(cells[0].source, {}, names)
    return names


# --------------------------------------------------------------------------------------------- notebooks as files
def test_the_six_notebooks_are_there():
    assert [p.stem for p in NOTEBOOK_FILES] == [name for name, _, _ in NOTEBOOKS.values()]


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda p: p.stem)
def test_notebook_file(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert parameters(notebook) == {"profile": "quick", "run_dir": "", "data": "", "overrides": {}}
    assert 20 <= len(notebook.cells) <= 45 and all(len(c.source.splitlines()) <= 25 for c in code)
    assert "papermill" not in notebook.metadata
    links = re.findall(r"\]\((\w+\.ipynb)\)", "".join(c.source for c in notebook.cells))
    assert links and all((path.parent / link).exists() for link in links)
    first = notebook.cells[0]
    assert "attachments" in first and path.stat().st_size < 1_000_000


@pytest.mark.skip(reason="executed copies are made anew once the notebooks' content stands")
@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda p: p.stem)
def test_executed_copy_is_of_the_present_notebook(path):
    """What a visitor reads without running anything; `pictures RUN` makes it."""
    source, copy = (nbformat.read(p, as_version=4) for p in (path, path.parent / "executed" / path.name))
    assert [c.source for c in copy.cells] == [c.source for c in source.cells], "run the series and `pictures` again"
    outputs = [o for c in copy.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/jpeg" in o.get("data", {}) for o in outputs) and not any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o.output_type == "error" for o in outputs) and not HOME_PATH.search(json.dumps(copy))


@pytest.mark.skip(reason="executed copies are made anew once the notebooks' content stands")
def test_executed_copies_print_the_present_code():
    """What `source` has printed in them is srlib's code of today."""
    rooms, printed = (networks, texture), []
    for path in NOTEBOOK_FILES:
        for cell in nbformat.read(path.parent / "executed" / path.name, as_version=4).cells:
            for name in re.findall(r"\bsource\((\w+)\)", cell.source):
                (thing,) = [getattr(room, name) for room in rooms if hasattr(room, name)]
                shown = [html.unescape(re.sub(r"<[^>]*>", "", output.get("data", {}).get("text/html", ""))) for output in cell.outputs]
                assert any(plain_code(thing) in text for text in shown), f"{path.name} prints an older {name}"
                printed.append(name)
    assert {"ResidualBlock", "Generator", "TextureHead", "SamplerDiscriminator"} <= {*printed}


def test_executed_copies_are_small():
    assert sum(p.stat().st_size for p in (REPOSITORY / "notebooks" / "executed").iterdir()) < 6_000_000


def test_ruff():
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# --------------------------------------------------------------------------------------------- the whole series
@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = srlib("run", "--profile", "smoke", "--run-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_smoke_run_makes_everything(smoke_run):
    folder, said = smoke_run
    for made in (
        "config.json",
        "provenance.json",
        "manifest.csv",
        "srresnet.pt",
        "srgan.pt",
        "pretrain/history.csv",
        "srgan/checkpoint.pt",
    ):
        assert (folder / made).exists(), made
    table = pd.read_csv(folder / "evaluation/metrics.csv")
    assert list(table.method.unique()) == ["nearest", "bicubic", "linear", "srresnet", "srgan", "noise"]
    assert list(table.columns[:7]) == ["image", "patient", "label", "method", "region", "psnr", "ssim"]
    assert table.psnr.between(10, 60).all() and set(table.region) == {"whole", "valid", "retina"}
    assert table[["texture_error_db", "depth1_db", "speckle", "epi", "boundary_px"]].notna().all().all()
    for name, _, _ in NOTEBOOKS.values():
        executed = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]
        assert not any(o.output_type == "error" for o in outputs)
        assert any("image/png" in o.get("data", {}) for o in outputs), f"{name} shows no picture"
    sr = list((folder / "evaluation/sr/srgan").rglob("*.png"))
    assert len(sr) == table.image.nunique()
    assert f"report: {folder}/index.html" in said
    assert all(f"[{n}/06]" in said for n in NOTEBOOKS)


def test_plain_steps_have_srlibs_numbers(smoke_run):
    """What notebooks 03 and 04 write out in plain code, beside what the training functions give on the same batch."""
    folder, _ = smoke_run

    def printed(name):
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        return "".join(o.text for o in outputs if o.output_type == "stream"), [
            o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})
        ]

    text, _ = printed("03_pretrain_generator")
    first, second = map(float, re.findall(r"MSE ([\d.]+)", text))
    assert [first, second] == pytest.approx([float(v) for v in re.search(r"srlib's: ([\d.]+), ([\d.]+)", text).groups()], rel=1e-3)
    assert second < first
    text, tables = printed("04_train_srgan")
    pairs = re.findall(r"[DG]'s loss ([\d.]+), srlib's ([\d.]+)", text)
    assert len(pairs) == 2 and all(float(mine) == pytest.approx(float(ours), rel=1e-2) for mine, ours in pairs)
    (table,) = (t for t in tables if "Game.step" in t)
    values = [float(v) for v in re.findall(r"<td>([\d.e-]+)</td>", table)]
    assert len(values) == 10 and all(values) and values[:5] == pytest.approx(values[5:], rel=2e-2)


def test_report_needs_no_network(smoke_run):
    folder, _ = smoke_run
    pages = [folder / "index.html", *(folder / "notebooks").glob("*.html")]
    assert len(pages) == 7
    for page in pages:
        text = page.read_text()
        assert not re.search(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css)|<script[^>]+src=["']http|@import\s+url\(["']?http""", text), (
            page
        )
        assert not re.search(r"&lt;(IPython\.|Figure size|PIL\.|[\w.]+ object at )", text), f"{page} shows an object as text"
    index = pages[0].read_text()
    assert "phantom" in index and "SRResNet" in index and index.count("data:image/png;base64,") >= 6


def test_finished_notebooks_are_skipped_and_the_table_repeats(smoke_run):
    folder, _ = smoke_run
    table = (folder / "evaluation/metrics.csv").read_bytes()
    again = srlib("run", "--profile", "smoke", "--run-dir", folder)
    assert again.returncode == 0 and again.stdout.count("finished earlier, skipped") == 6
    once_more = srlib("run", "--profile", "smoke", "--run-dir", folder, "--only", "05")
    assert once_more.returncode == 0 and "[05/06]" in once_more.stdout and "[04/06]" not in once_more.stdout
    assert (folder / "evaluation/metrics.csv").read_bytes() == table


def test_a_run_refuses_what_contradicts_it(smoke_run):
    folder, _ = smoke_run
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    for extra, words in (
        (("-p", "gan_steps", "9"), r"gan_steps=6, not 9.*--run-dir"),
        (("-p", "scale", "2"), r"scale=4, not 2.*--run-dir"),
        (("--profile", "quick"), r"profile='smoke', not 'quick'"),
        (("-p", "gan_step", "9"), r"did you mean 'gan_steps'"),
        (("--only", "04", "-p", "width", "4"), r"width is 8 in .* belongs to 03_pretrain_generator"),
    ):
        failed = srlib("run", "--profile", "smoke", "--run-dir", folder, *extra)
        assert failed.returncode == 1 and re.search(words, failed.stderr), failed.stderr
        assert len(said(failed)) == 1
    assert {p: p.read_bytes() for p in folder.rglob("*.pt")} == before


def test_one_seed_repeats_to_the_byte(smoke_run, tmp_path):
    """Training again from nothing with the same seed and number of threads gives the same bytes."""
    folder, _ = smoke_run
    done = srlib("run", "--profile", "smoke", "--run-dir", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/evaluation/metrics.csv").read_bytes() == (folder / "evaluation/metrics.csv").read_bytes()


# --------------------------------------------------------------------------------------------- other data
@pytest.mark.slow
def test_colour_photographs_at_another_scale(tmp_path):
    """Where SRGAN was first used: colour, here scikit-image's photographs, x3."""
    from PIL import Image
    from skimage import data

    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        photo = getattr(data, name)()
        for k, part in enumerate((photo[:150, :192], photo[150:300, :192], photo[:150, 192:384])):
            Image.fromarray(part).save(tmp_path / "photos" / f"photo-{name}{k}.png")
    settings = dict(channels=3, scale=3, crop=48, pretrain_steps=12, gan_steps=4, patient_pattern=r"photo-(\w+)\.png")
    extra = [word for name, value in settings.items() for word in ("-p", name, value)]
    done = srlib("run", "--profile", "smoke", "--data", tmp_path / "photos", "--run-dir", tmp_path / "run", *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "run/evaluation/metrics.csv")
    assert table.psnr.between(10, 60).all()
    gap = table[(table.method == "noise") & (table.region == "whole")].band1_db.abs().mean()
    assert gap < 4  # the Gaussian texture has HR's power in colour, too


@pytest.mark.slow
def test_real_scans_with_vgg(real_scans, vgg_file, tmp_path):
    """The series on real scans with the paper's content loss, a few steps of each."""
    settings = {"max_images": 60, "pretrain_steps": 40, "gan_steps": 4, "validate_every": 20, "content_features": "vgg19:relu5_4"}
    extra = [word for name, value in settings.items() for word in ("-p", name, value)]
    done = srlib(
        "run", "--data", real_scans, "--run-dir", tmp_path / "oct", *extra, "-p", "feature_weights", vgg_file, "-p", "max_test_images", 4
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "oct/evaluation/metrics.csv")
    assert table.image.nunique() == 4 and table.psnr.notna().all()
