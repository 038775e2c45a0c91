"""The notebooks as files, and the series run end to end through papermill with smoke settings."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil  # comes with ipykernel
import pytest
from running import save, srlib
from skimage import data

from srlib.__main__ import main
from srlib.commands.pages import from_below
from srlib.files import REPOSITORY
from srlib.models import networks
from srlib.notebook import plain_code
from srlib.sampler import network as texture
from srlib.series.run_folder import NOTEBOOKS, Run, read_config

HOME_PATH = re.compile(rf"/(?:home|root|tmp|Users)/\w|{re.escape(str(REPOSITORY))}")
MINUTES = {"01": 15, "02": 15, "03": 20, "04": 25, "05": 20, "06": 20, "07": 25}  # at 200 words, 20 lines of code and 2 figures a minute
NOTEBOOK_FILES = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


# --------------------------------------------------------------------------------------------- notebooks as files
def test_the_seven_notebooks_are_there():
    assert [p.stem for p in NOTEBOOK_FILES] == [name for name, _, _ in NOTEBOOKS.values()]
    assert sum(p.stat().st_size for p in (REPOSITORY / "notebooks" / "executed").iterdir()) < 6_000_000


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda p: p.stem)
def test_notebook_file(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    assert notebook.metadata.kernelspec.name == "python3"
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    exec(cell.source, {}, names := {})
    assert names == {"profile": "quick", "run_dir": "", "data": "", "overrides": {}}
    assert 20 <= len(notebook.cells) <= 45 and all(len(c.source.splitlines()) <= 25 for c in code)
    assert "papermill" not in notebook.metadata
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    words = re.sub(r"!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|```.*?```", " ", text, flags=re.S).split()
    figures = len(re.findall("attachment:(?!roadmap)", text)) + sum(c.source.count("run.show(") for c in code)
    lines = [line for c in code for line in c.source.splitlines() if line.strip()]
    assert len(words) / 200 + len(lines) / 20 + figures / 2 <= MINUTES[path.stem[:2]], "longer to read than its title promises"
    links = re.findall(r"\]\((\w+\.ipynb)\)", "".join(c.source for c in notebook.cells))
    assert links and all((path.parent / link).exists() for link in links)
    first = notebook.cells[0]
    assert "attachments" in first and path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda p: p.stem)
def test_executed_copy_is_of_the_present_notebook(path):
    """What a visitor reads without running anything; `pages RUN` makes it."""
    source, copy = (nbformat.read(p, as_version=4) for p in (path, path.parent / "executed" / path.name))
    assert [c.source for c in copy.cells] == [from_below(c.source) for c in source.cells], "run the series and `pages` again"
    shown = outputs(path.parent / "executed" / path.name)
    assert any("image/jpeg" in o.get("data", {}) for o in shown) and not any("image/png" in o.get("data", {}) for o in shown)
    assert not any(o.output_type == "error" for o in shown) and not HOME_PATH.search(json.dumps(copy))


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
    assert {"ResidualBlock", "Generator", "Discriminator", "TextureHead"} <= {*printed}


def test_ruff():
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# --------------------------------------------------------------------------------------------- the whole series
SMOKE = ("run", "--profile", "smoke", "-p", "pretrain_steps", "300")  # long enough to be stopped in


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    done = srlib(*SMOKE, "--run-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def outputs(path):
    """Of a notebook's code cells."""
    return [o for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" for o in c.outputs]


def test_smoke_run_makes_everything(smoke_run):
    folder, said = smoke_run
    files = "config.json provenance.json manifest.csv srresnet.pt srgan.pt sampler.pt pretrain/history.csv srgan/checkpoint.pt"
    for made in (*files.split(), *(f"sampler/{name}.csv" for name in ("history", "metrics", "samples", "ranks", "unpaired"))):
        assert (folder / made).exists(), made
    table = pd.read_csv(folder / "evaluation/metrics.csv")
    assert list(table.method.unique()) == ["bicubic", "linear", "srresnet", "srgan"]
    assert list(pd.read_csv(folder / "sampler/metrics.csv").method.unique()) == ["srgan_projected", "sampler", "gaussian_texture"]
    assert list(table.columns[:7]) == ["image", "patient", "label", "method", "region", "psnr", "ssim"]
    assert table.psnr.between(10, 60).all() and set(table.region) == {"whole", "valid", "retina"}
    assert table[["lpips", "texture_error_db", "band1_db", "checkerboard"]].notna().all().all()
    for name, _, _ in NOTEBOOKS.values():
        shown = outputs(folder / "notebooks" / f"{name}.ipynb")
        assert not any(o.output_type == "error" for o in shown)
        assert any("image/png" in o.get("data", {}) for o in shown), f"{name} shows no picture"
    assert len(list((folder / "evaluation/sr/srgan").rglob("*.png"))) == table.image.nunique()
    assert f"report: {folder}/index.html" in said
    assert all(f"[{n}/07]" in said for n in NOTEBOOKS)


def test_plain_steps_have_srlibs_numbers(smoke_run):
    """What notebooks 03, 04 and 07 write out in plain code, beside what the training functions give on the same batch."""
    folder, _ = smoke_run

    def printed(name):
        shown = outputs(folder / "notebooks" / f"{name}.ipynb")
        text = "".join(o.text for o in shown if o.output_type == "stream")
        return text, [o.data["text/html"] for o in shown if "text/html" in o.get("data", {})]

    text, _ = printed("03_pretrain_generator")
    first, second = map(float, re.findall(r"MSE ([\d.]+)", text))
    assert [first, second] == pytest.approx([float(v) for v in re.search(r"srlib's: ([\d.]+), ([\d.]+)", text).groups()], rel=1e-3)
    assert second < first
    (table,) = (t for t in printed("04_train_srgan")[1] if "plain code" in t)
    values = [float(v) for v in re.findall(r"<td>([\d.e-]+)</td>", table)]
    assert len(values) == 8 and all(values) and values[:4] == pytest.approx(values[4:], rel=1e-2)
    pairs = re.findall(r"(\w+): ([\d.e-]+), srlib's ([\d.e-]+)", printed("07_sample_texture")[0])
    assert [name for name, *_ in pairs] == ["d_loss", "penalty", "adversarial", "content", "pixel"]
    assert all(float(mine) == pytest.approx(float(ours), rel=2e-2) for _, mine, ours in pairs)


def test_report_needs_no_network(smoke_run):
    folder, _ = smoke_run
    pages = [folder / "index.html", *(folder / "notebooks").glob("*.html")]
    assert len(pages) == 8
    for page in pages:
        text = page.read_text()
        assert not re.search(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css)|<script[^>]+src=["']http|@import\s+url\(["']?http""", text), (
            page
        )
        assert not re.search(r"&lt;(IPython\.|Figure size|PIL\.|[\w.]+ object at )", text), f"{page} shows an object as text"
    index = pages[0].read_text()
    assert "phantom" in index and "SRResNet" in index and index.count("data:image/png;base64,") >= 6


def test_finished_notebooks_are_skipped_unless_they_are_asked_for(smoke_run):
    folder, _ = smoke_run
    again = srlib(*SMOKE, "--run-dir", folder)
    assert again.returncode == 0 and again.stdout.count("finished earlier, skipped") == 7
    once_more = srlib("run", "--profile", "smoke", "--run-dir", folder, "--only", "02")
    assert once_more.returncode == 0 and "[02/07]" in once_more.stdout and "[01/07]" not in once_more.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("-p", "gan_steps", "9"), r"gan_steps=6, not 9.*--run-dir"),
        (("-p", "sampler_steps", "9"), r"sampler_steps=6, not 9.*--run-dir"),
        (("-p", "scale", "2"), r"scale=4, not 2.*--run-dir"),
        (("--profile", "quick"), r"profile='smoke', not 'quick'"),
        (("-p", "gan_step", "9"), r"did you mean 'gan_steps'"),
        (("--only", "04", "-p", "width", "4"), r"width is 8 in .* belongs to 03_pretrain_generator"),
    ],
)
def test_a_run_refuses_what_contradicts_it(smoke_run, capsys, extra, words):
    folder, _ = smoke_run
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    assert main([*SMOKE, "--run-dir", str(folder), *extra]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line
    assert {p: p.read_bytes() for p in folder.rglob("*.pt")} == before


def test_stopped_and_continued_to_the_same_bytes(smoke_run, tmp_path):
    """Out of time, then TERM, then Ctrl-C within the pretraining: exit status 130, kernel gone, state saved. The same
    command goes on, and ends as the run that was never stopped: one seed and number of threads give the same bytes."""
    folder = tmp_path / "run"
    words = [*SMOKE, "--run-dir", str(folder)]
    done = srlib(*words, "-p", "max_hours", "1e-9")
    assert done.returncode == 130 and done.stderr == "stopped; the same command continues\n", done.stdout + done.stderr
    assert "pretrain: max_hours=1e-09 are over, saved at step 1; run the same again to continue\n" in done.stdout
    history, rows = folder / "pretrain/history.csv", 1
    for stop in (lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.killpg(pid, signal.SIGINT)):
        command = [sys.executable, "-m", "srlib", *words, "-p", "max_hours", "0"]
        runner = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(pd.read_csv(history)) <= rows and time.monotonic() < deadline:
            time.sleep(0.1)
        kernels = psutil.Process(runner.pid).children(recursive=True)
        assert any("ipykernel_launcher" in " ".join(k.cmdline()) for k in kernels)
        stop(runner.pid)
        out, err = runner.communicate(timeout=90)
        assert runner.returncode == 130, out + err
        assert "the same command continues" in err and not (folder / "srresnet.pt").exists()
        assert not [k for k in kernels if k.is_running() and k.status() != psutil.STATUS_ZOMBIE]
        rows = len(pd.read_csv(history))
    again = srlib(*words, "-p", "max_hours", "0")
    assert again.returncode == 0, again.stderr
    table = pd.read_csv(history)
    assert list(table.step) == list(range(0, 301, 5)) and table.session.max() == 4
    assert "continuing at step" in (folder / "notebooks/03_pretrain_generator.ipynb").read_text()
    for stage in ("evaluation", "sampler"):
        assert (folder / stage / "metrics.csv").read_bytes() == (smoke_run[0] / stage / "metrics.csv").read_bytes()


# --------------------------------------------------------------------------------------------- other data
def run_of(*words, **settings):
    """What the series measures."""
    done = srlib("run", *words, *(word for name, value in settings.items() for word in ("-p", name, value)))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = words[words.index("--run-dir") + 1]
    return Run(folder, read_config(folder / "config.json")).metrics


@pytest.mark.slow
def test_colour_photographs_at_another_scale(tmp_path):
    """Where SRGAN was first used: colour, here scikit-image's photographs, x3."""
    for name in ("astronaut", "coffee", "chelsea"):
        photo = getattr(data, name)()
        for k, part in enumerate((photo[:150, :192], photo[150:300, :192], photo[:150, 192:384])):
            save(tmp_path / "photos" / f"photo-{name}{k}.png", part)
    settings = dict(channels=3, scale=3, crop=48, pretrain_steps=12, gan_steps=4, sampler_steps=4, patient_pattern=r"photo-(\w+)\.png")
    table = run_of("--profile", "smoke", "--data", tmp_path / "photos", "--run-dir", tmp_path / "run", **settings)
    assert table.psnr.between(10, 60).all()
    gap = table[(table.method == "gaussian_texture") & (table.region == "whole")].band1_db.abs().mean()
    assert gap < 4  # the Gaussian texture has HR's power in colour, too


@pytest.mark.slow
def test_real_scans_with_vgg(real_scans, vgg_file, tmp_path):
    """The series on real scans with the paper's content loss."""
    settings = {"max_images": 24, "pretrain_steps": 20, "gan_steps": 4, "sampler_steps": 4, "validate_every": 20, "max_test_images": 4}
    settings |= {"sample_images": 1, "classifier_steps": 10, "content_features": "vgg19:relu5_4", "feature_weights": vgg_file}
    table = run_of("--data", real_scans, "--run-dir", tmp_path / "run", **settings)
    assert table.image.nunique() == 4 and table.psnr.notna().all()
