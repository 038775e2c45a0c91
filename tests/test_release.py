"""Packaging a finished run, and using what was released as a user does."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import load_from_string
from PIL import Image
from running import one_line, pixels, reduced, save, save_patients
from skimage import data

from srlib import metrics
from srlib.__main__ import main
from srlib.commands import choose, onnx
from srlib.commands.onnx import export_onnx
from srlib.commands.release import release
from srlib.commands.upscale import upscale_files
from srlib.config import UserError, load_config
from srlib.data.manifest import build_manifest
from srlib.data.phantom import bscan
from srlib.data.reading import read_pair
from srlib.degrade import to_image, to_tensor, upsample
from srlib.evaluation.run import choose as choose_images
from srlib.evaluation.run import evaluate_run
from srlib.files import REPOSITORY, WEIGHTS
from srlib.metrics.regions import valid_region
from srlib.models import Generator
from srlib.sampler.evaluation import evaluate_sampler
from srlib.sampler.network import NOISES, Sampler, normal_noise
from srlib.sampler.training import train_sampler
from srlib.series.opening import open_run
from srlib.series.run_folder import Run, read_config
from srlib.trained import BASES, load_generator
from srlib.training.adversarial import train_srgan
from srlib.training.pretraining import pretrain_generator
from srlib.training.stage import first_generator
from srlib.upscaling import upscale

pytestmark = pytest.mark.usefixtures("no_vgg")

TINY = dict(test_share=0.34, pretrain_steps=4, gan_steps=2, sampler_steps=2, validate_every=2, checkpoint_every=2)
TINY |= dict(crop=32, gan_crop=32, content_features="vgg19:relu1_2", classifier_steps=2, sample_images=2)
TRAININGS = {"pretrain": pretrain_generator, "srgan": train_srgan, "sampler": train_sampler}
EVALUATIONS = {"evaluation": evaluate_run, "samples": evaluate_sampler}


def make_run(folder, data="", stages=("pretrain", "srgan", "evaluation", "sampler", "samples"), **settings):
    """A run of a few steps, stage by stage as the notebooks do it."""
    run = open_run("01", "smoke", str(folder), str(data), TINY | settings)
    with run.stage("data"):
        run.make_manifest()
    parts = run.images("train", run.config.crop), run.images("val"), run.folder
    for stage in stages:
        with run.stage(stage) as fingerprint:
            if stage in EVALUATIONS:
                EVALUATIONS[stage](run.config, run.root, run.manifest, run.folder)
            else:
                TRAININGS[stage](run.config, *parts, fingerprint)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On files, twelve phantoms of six patients, so that it counts as one on scans."""
    home = tmp_path_factory.mktemp("release")
    return make_run(home / "run", save_patients(home / "scans", 160, 192))


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    assert {p.name for p in release(str(run), out=str(out), source="Six made-up eyes, CC0")} == {p.name for p in out.iterdir()}
    return out


@pytest.fixture
def installed(packed, tmp_path, monkeypatch):
    """A copy of them as data/weights."""
    shutil.copytree(packed, tmp_path / "weights")
    monkeypatch.setattr("srlib.trained.WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr("srlib.commands.release.WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def scan(tmp_path):
    """LR of an unseen eye."""
    return save(tmp_path / "scan.png", reduced(bscan(50, 160, 192)))


# --------------------------------------------------------------------------------------------- packaging
def test_what_is_packed(run, packed):
    names = {f"{name}-x4.{ending}" for name in ("srresnet", "sampler") for ending in ("pt", "onnx")} | {
        "card-sampler-x4.md",
        "released.json",
    }
    assert {p.name for p in packed.iterdir()} == names
    stored = torch.load(packed / "sampler-x4.pt", weights_only=True)
    assert {k for k, v in stored["weights"].items() if v.dtype != torch.float16} == {"usual"}  # small differences of large numbers
    entry = json.loads((packed / "released.json").read_text())["sampler-x4"]
    assert not entry["phantom"] and entry["reduction"] == "bicubic" and entry["domain"]["width"] == [48, 48]
    image = bscan(1, 40, 48)
    assert isinstance(load_generator(packed / "sampler-x4.pt"), Sampler)
    for name in ("srresnet", "sampler"):
        full, half = load_generator(run / f"{name}.pt"), load_generator(packed / f"{name}-x4.pt")
        assert {p.dtype for p in half.parameters()} == {torch.float32}
        assert np.abs(upscale(image, full).astype(int) - upscale(image, half)).max() <= 1


def test_the_card(run, packed):
    card, table = (packed / "card-sampler-x4.md").read_text(), Run(run, read_config(run / "config.json")).metrics
    head = sum(p.numel() for p in load_generator(run / "sampler.pt").head.parameters())
    gain = pd.read_csv(run / "pretrain/history.csv").gain_db.max()
    for words in (
        *["Research only", "## Where it fails", "95 % interval", "48 x 40 pixels", "By class:", "Made by git ", "pretrain_steps | 4"],
        *["`--strength`", "Six made-up eyes, CC0", "`bicubic` reduction by 4", "4 steps of 4 crops of 32 pixels"],
        *["C2ST: a fresh classifier's accuracy", "Content loss: local-grain."],
        "Samples beside what samples of the true posterior have",
        "--samples 8 --spread",
        "second input `noise`",
        f"It stands on SRResNet: frozen, with a head of {head:,} weights that samples texture from noise",
        "*: the method was trained or chosen on this measure",
        f"best validation gain {gain:+.2f} dB",
    ):
        assert words in card, words
    regain = pd.read_csv(run / "sampler/samples.csv", dtype={"patient": str}).groupby("patient").regain_db.mean().mean()
    assert re.search(rf"\| regain: the mean of 8 over one \(dB\) \| {regain:.2f} ", card)
    patients = table[(table.region == "valid") & (table.method == "sampler")].groupby("patient").psnr.mean()
    assert re.search(rf"PSNR \(dB\) .*{patients.mean():.2f}", card)
    entry = json.loads((packed / "released.json").read_text())["sampler-x4"]
    assert all(entry[n][k] in card for n in ("srresnet", "sampler") for k in ("sha256", "onnx_sha256"))
    assert str(run) not in card and "/tmp" not in card


def test_an_srresnet_that_is_released_alone(run, tmp_path):
    names = {file.name for file in release(str(run), "srresnet-fast", str(tmp_path), "mine")}  # its card is written by hand
    assert names == {"srresnet-fast-x4.pt", "srresnet-fast-x4.onnx", "released.json"}
    assert json.loads((tmp_path / "released.json").read_text())["srresnet-fast-x4"]["domain"]["width"] == [48, 48]


@pytest.mark.parametrize(
    ("spoil", "source", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "mine", "holds no run"),
        (lambda f: None, "", "--source"),
        (lambda f: shutil.copy(f / "srresnet.pt", f / "srgan.pt"), "mine", r"evaluation was made with another srgan\.pt; .*--from 05"),
        (lambda f: change(f / "provenance.json", '"finished": "', '"was": "'), "mine", "data is not finished; .*goes on with it"),
    ],
)
def test_refusals(run, tmp_path, spoil, source, words):
    spoil(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(UserError, match=words) as error:
        release(str(tmp_path / "run"), out=str(tmp_path / "out"), source=source)
    assert "\n" not in str(error.value) and not list((tmp_path / "out").glob("*"))


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("LARGEST", 1000, "bytes in half precision, more than 1,000"), ("ROUNDING", -1, "grey levels in half precision")],
)
def test_weights_that_half_precision_cannot_hold(run, tmp_path, monkeypatch, name, value, words):
    monkeypatch.setattr(f"srlib.commands.release.{name}", value)
    with pytest.raises(UserError, match=words):
        release(str(run), out=str(tmp_path), source="mine")
    assert not list(tmp_path.iterdir())


def test_phantoms_only_when_allowed(tmp_path, scan, capsys):
    """Ledig's SRGAN with the SRResNet that it was trained from: of such a run notebook 07 need not have run."""
    folder, out = make_run(tmp_path / "run", stages=("pretrain", "srgan", "evaluation"), phantoms=4), tmp_path / "out"
    assert main(["release", str(folder), "srgan", "--out", str(out)]) == 1
    assert "--allow-phantom" in capsys.readouterr().err
    assert main(["release", str(folder), "srgan", "--out", str(out), "--allow-phantom"]) == 0
    assert {*json.loads((out / "released.json").read_text())} == {"srgan-x4"} and (out / "srresnet-paper-x4.onnx").exists()
    card = (out / "card-srgan-x4.md").read_text()
    assert "not a result on OCT" in card and "of the same shape, is trained on from it" in card and "Content loss: vgg19:relu1_2." in card
    assert not any(word in card for word in ("--samples", "noise`", "KID |"))
    assert main(["upscale", str(scan), str(tmp_path / "sr.png"), "--weights", str(out / "srgan-x4.pt")]) == 0
    assert "by srgan-x4.pt (trained on phantoms)" in capsys.readouterr().out
    assert main(["upscale", str(scan), str(tmp_path / "sr.png"), "--weights", str(out)]) == 1
    assert "holds no released sampler" in capsys.readouterr().err
    assert main(["release", str(folder), "--out", str(out), "--allow-phantom"]) == 1
    assert "sampler is not finished; " in capsys.readouterr().err
    assert "trained on phantoms" in Image.open(tmp_path / "sr.png").info["Made by"]


# --------------------------------------------------------------------------------------------- use
def test_upscale_takes_the_released_ones(installed, scan, tmp_path, capsys):
    image = pixels(scan)
    pair = [load_generator(installed / f"{name}-x4.pt") for name in ("srresnet", "sampler")]
    projected = ", consistent with LR under bicubic"
    for extra, expected, words in (
        ([], upscale(image, pair[1]), "sampler-x4.pt, seed 0, strength 1" + projected),
        (["--weights", "srresnet", "--scale", "4"], upscale(image, pair[0]), "srresnet-x4.pt"),
        (["--strength", "2.5", "--seed", "3"], upscale(image, pair[1], 3, 2.5), "sampler-x4.pt, seed 3, strength 2.5" + projected),
        (["--weights", "srresnet", "--consistent"], upscale(image, pair[1], strength=0), "srresnet-x4.pt" + projected),
    ):
        assert main(["upscale", str(scan), str(tmp_path / "sr.png"), "--again", *extra]) == 0
        said = capsys.readouterr()
        assert "1 image(s) written, 0 failed; by s" in said.out and not said.err
        with Image.open(tmp_path / "sr.png") as sr:
            assert sr.info["Made by"] == words and sr.info["Source"] == scan.name and "Domain warning" not in sr.info
            assert (np.asarray(sr) == expected).all()
    assert (upscale(image, load_generator("sampler")) == upscale(image, pair[1])).all()


def test_training_goes_on_from_given_weights(run, packed, tmp_path):
    """`-p start FOLDER`: step 0 is the given network, on any scans; the folder keeps it and its hash."""
    scans, settings = str(run.parent / "scans"), {"start": str(packed), "pretrain_lr": 0.0}
    again, given = make_run(tmp_path / "again", scans, ("pretrain",), **settings), load_generator(packed / "srresnet-x4.pt")
    config = open_run("03", "smoke", str(again), scans, TINY | settings).config
    for generator in (first_generator(config, again), load_generator(again / "srresnet.pt")):
        assert all(torch.equal(v, given.state_dict()[k]) for k, v in generator.state_dict().items())
    noted = json.loads((again / "provenance.json").read_text())["networks"]["start"]
    assert noted["sha256"] == hashlib.sha256((packed / "srresnet-x4.pt").read_bytes()).hexdigest()
    for start in (run, run / "srresnet.pt"):
        open_run("01", "smoke", str(tmp_path / start.name), scans, TINY | {"start": str(start)})
        assert (tmp_path / start.name / "start.pt").read_bytes() == (run / "srresnet.pt").read_bytes()
    other_scale = open_run("01", "smoke", str(tmp_path / "x2"), scans, TINY | settings | {"scale": 2})
    half = first_generator(other_scale.config, other_scale.folder).state_dict()  # all but the second of x4's stages
    assert all(torch.equal(v, given.state_dict()[k]) for k, v in half.items()) and len(half) < len(given.state_dict())
    for words, other in (("another shape; set -p width 8,", {"width": 4}), ("no such file", {"start": "/nowhere.pt"})):
        with pytest.raises(UserError, match=words):
            open_run("01", "smoke", str(tmp_path / "new"), scans, TINY | settings | other)


def test_a_run_folder_and_what_does_not_fit(run, installed, scan, tmp_path, capsys):
    command = ["upscale", str(scan), str(tmp_path / "sr.png")]
    assert main([*command, "--weights", str(run), "--strength", "0.5"]) == 0
    assert "by sampler.pt, consistent with LR under bicubic\n" in capsys.readouterr().out
    with Image.open(tmp_path / "sr.png") as sr:
        assert "Domain warning" not in sr.info

    def refused(words, *extra):
        assert main([*command, *extra]) == 1 and words in one_line(capsys)

    refused("sampler for x4 only", "--scale", "2")
    refused("enlarges x4, not x2", "--scale", "2", "--weights", str(run))
    refused("holds no released srgan; choose another, or name weights of a run", "--weights", "srgan")
    content = (installed / "sampler-x4.pt").read_bytes()
    (installed / "sampler-x4.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("sampler-x4.pt is not the released file (SHA-256 differs)")
    (installed / "sampler-x4.pt").unlink()
    refused("sampler-x4.pt: no such file")
    (installed / "released.json").write_text("{")
    refused("released.json cannot be read")
    (installed / "released.json").unlink()
    refused("no released sampler")


def test_careless_inputs_are_warned_of(installed, tmp_path, capsys):
    """No crash, a warning on stderr, in the PNG and in the sum."""
    scans, lr, rng = tmp_path / "in", reduced(bscan(50, 160, 192)), np.random.default_rng(0)
    save(scans / "full size.png", bscan(50, 160, 192))
    save(scans / "photograph.jpg", data.coffee()[:80, :90])
    save(scans / "colour.png", np.stack([lr, 255 - lr, lr], 2))
    save(scans / "noise 16 bit.tiff", rng.integers(0, 65536, (40, 48)).astype(np.uint16))
    save(scans / "pixel.png", lr[:1, :1])
    save(scans / "volume.tif", lr, 255 - lr)
    assert main(["upscale", str(scans), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "7 image(s) written, 0 failed, 6 warning(s); by sampler-x4.pt" in said.out
    assert said.err.count("warning: ") == 6 and "volume.tif#1" not in said.err
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as sr:
            warning = sr.info.get("Domain warning", "")
        assert warning.startswith("unlike the training scans: ") == (path.name != "volume#1.png"), path


def test_an_image_too_large_is_refused_alone(packed, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("srlib.commands.upscale.LARGEST", 1_000_000)
    save(tmp_path / "in" / "b.png", np.zeros((400, 300), np.uint8))
    shutil.copy(scan, tmp_path / "in" / "a.png")
    generator, name, known, learnt = choose(packed)
    assert learnt == "bicubic"
    assert choose(packed / "sampler-x4.pt")[2:] == (known, learnt) and known  # by its name it is the released one, too
    written, _, failed, warned = upscale_files(tmp_path / "in", tmp_path / "out", generator, name, known=known)
    assert len(written) == 1 and "would become 1200 x 1600 pixels" in failed[0] and not warned


def test_run_all_takes_an_active_environment(tmp_path):
    """One that is at the pins; and so from another folder, too."""
    pins = re.findall(r"- ([\w.-]+)==(\S+)", (REPOSITORY / "environment.yml").read_text())
    if any(version(name) != pin for name, pin in pins):
        pytest.skip("run_all.sh would make another environment: this one is not at environment.yml's pins")
    active = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["bash", str(REPOSITORY / "run_all.sh"), "phantom", "scan.png"]
    done = subprocess.run(command, cwd=tmp_path, env=active, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and pixels(tmp_path / "scan.png").shape == (124, 128), done.stderr


# --------------------------------------------------------------------------------------------- ONNX
@pytest.mark.parametrize(
    ("sampler", "settings"),
    [(False, dict(scale=4, batch_norm=False, smooth=True)), (False, dict(scale=3, channels=3)), (True, dict(scale=3, channels=3))],
)
def test_onnx_is_the_same_network(sampler, settings, tmp_path, capfd):
    """At any batch and size; a sampler's takes the noise, too, and gives the sample before its projection. No path is in the file."""
    torch.manual_seed(0)
    generator = Generator(width=8, blocks=2, global_skip=True, **settings).eval()
    torch.nn.init.normal_(generator.tail.weight, std=0.02)
    if sampler:
        generator = Sampler(generator, 8).eval()
        torch.nn.init.normal_(generator.head.tail.weight, std=0.2)
    assert export_onnx(generator, tmp_path / "x.onnx") < 1e-3
    said, content = capfd.readouterr(), (tmp_path / "x.onnx").read_bytes()
    assert "Traceback" not in said.out + said.err
    assert not any(part in content for part in (b".py", b"site-packages", os.fsencode(Path.home()), os.fsencode(REPOSITORY), b"File "))
    session, scale = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]), settings["scale"]
    for batch, height, width in ((1, 31, 53), (2, 124, 17), (1, 5, 7)):
        lr = to_tensor(bscan(1, 160, 64))[..., :height, :width].expand(batch, settings.get("channels", 1), -1, -1)
        noise = torch.randn(batch, NOISES, scale * height, scale * width)
        inputs = {"lr": lr.numpy()} | ({"noise": noise.numpy()} if sampler else {})
        (sr,) = session.run(["sr"], inputs)
        with torch.inference_mode():
            expected = generator.samples(lr, [noise])[0] if sampler else generator(lr)
        assert sr.shape == expected.shape and np.abs(sr - expected.numpy()).max() < 1e-3
        assert np.abs(in_opencv(content, inputs) - sr).max() < 1e-3


def in_opencv(content: bytes, inputs: dict) -> np.ndarray:
    network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
    for name, value in inputs.items():
        network.setInput(value, name)
    return network.forward()


def test_a_wrong_onnx_file_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from torch"):
        export_onnx(Generator(4, 1, 8, 1).eval(), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- what stands in data/weights
RELEASED = sorted(WEIGHTS.glob("card-*.md"))


@pytest.mark.parametrize("card", RELEASED, ids=lambda p: p.stem)
def test_the_files_in_the_repository_are_those_of_the_list_and_the_card(card):
    entry = json.loads((WEIGHTS / "released.json").read_text())[card.stem.removeprefix("card-")]
    text = card.read_text()
    network = card.stem.removeprefix("card-").rpartition("-")[0]
    for name in filter(None, (network, BASES[network])):
        for kind, digest in (("file", "sha256"), ("onnx", "onnx_sha256")):
            content = (WEIGHTS / entry[name][kind]).read_bytes()
            assert len(content) <= 4_000_000 and hashlib.sha256(content).hexdigest() == entry[name][digest]
            assert entry[name][digest] in text
        session, scale = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]), entry["scale"]
        inputs = {"lr": to_tensor(bscan(1, 160, 64))[..., :40, :].numpy()}
        inputs |= {"noise": normal_noise(0, 1, 40 * scale, 64 * scale).numpy()} if name == "sampler" else {}
        assert np.abs(in_opencv(content, inputs) - session.run(["sr"], inputs)[0]).max() < 1e-3
        assert not any(a.name == "antialias" and a.i for node in load_from_string(content).graph.node for a in node.attribute)
    assert not entry["phantom"] and "Research only" in text and "/" + "work" not in text


def test_the_released_networks_on_unseen_real_scans(real_scans):
    """Four test patients of the card's split: SRResNet beats bicubic, the sampler does not contradict LR, and adds power."""
    table = build_manifest(real_scans)
    paths = choose_images(table[table.split == "test"], 4).path
    config, gains, held, power = load_config("quick"), [], [], []
    networks = {name: load_generator(name) for name in ("srresnet", "sampler")}
    for path in paths:
        lr, hr = read_pair(real_scans / path, config)
        sr, region = {n: upscale(lr, g) for n, g in networks.items()}, valid_region(hr)
        bicubic = to_image(upsample(to_tensor(lr), 4))
        gains.append(metrics.psnr(sr["srresnet"], hr, region=region) - metrics.psnr(bicubic, hr, region=region))
        held.append(metrics.consistency(sr["sampler"], lr, *config.reduction))
        truth = metrics.spectrum(hr, region)
        power.append([metrics.band_power_db(metrics.spectrum(image, region), truth)[0] for image in sr.values()])
    srresnet, sampler = np.transpose(power)
    assert min(gains) > 0.1 and np.mean(gains) > 0.5 and min(held) > 40
    assert (sampler > srresnet + 0.5).all() and sampler.mean() > -4  # dB, the first band
