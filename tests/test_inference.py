"""Images in, images out; and the command line as a user types it."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from running import one_line, pixels, reduced, save

from srlib import metrics, upscaling
from srlib.__main__ import main
from srlib.commands.upscale import upscale_files
from srlib.config import UserError
from srlib.data.phantom import bscan
from srlib.degrade import to_image, to_tensor, upsample
from srlib.files import REPOSITORY
from srlib.models import Generator
from srlib.sampler.network import Sampler
from srlib.trained import load_generator, save_weights
from srlib.upscaling import samples, upscale

pytestmark = pytest.mark.usefixtures("no_vgg")


def make(width=8, blocks=2, std=0.02):
    torch.manual_seed(0)
    net = Generator(4, 1, width, blocks, global_skip=True).eval()
    torch.nn.init.normal_(net.tail.weight, std=std)
    return net


def awake(net):
    """A sampler whose head makes something."""
    torch.nn.init.normal_(net.head.tail.weight, std=0.2)
    return net.eval()


@pytest.fixture
def generator():
    return make()


@pytest.fixture
def sampler(generator):
    torch.manual_seed(1)
    return awake(Sampler(generator, 8))


@pytest.fixture
def weights_file(generator, tmp_path):
    save_weights(tmp_path / "srgan.pt", generator)
    return str(tmp_path / "srgan.pt")


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


# --------------------------------------------------------------------------------------------- images
def test_weights_shapes_and_types(generator, weights_file):
    image = bscan(1, 64, 96)
    sr = upscale(image, generator)
    assert sr.dtype == np.uint8 and sr.shape == (256, 384)
    assert (upscale(image, load_generator(weights_file)) == sr).all()
    assert (upscale(np.repeat(image[..., None], 3, 2), generator) == sr[..., None]).all()
    assert upscale(image, Generator(2, 3, 8, 1).eval()).shape == (128, 192)
    untrained = Generator(4, 1, 8, 1, global_skip=True).eval()
    assert (upscale(image, untrained) == to_image(upsample(to_tensor(image)))).all()


@pytest.mark.parametrize(("blocks", "shape", "tile"), [(2, (150, 170), 64), (16, (120, 330), 190)])
def test_tiles_agree_with_the_whole(monkeypatch, blocks, shape, tile):
    """Of the paper's 16 blocks, too, which reach further than what is cut off at a tile's edge."""
    net, image = make(blocks=blocks, std=0.03), bscan(2, *shape)
    monkeypatch.setattr(upscaling, "TILE", 400)
    whole = upscale(image, net).astype(int)
    assert np.abs(whole - to_image(upsample(to_tensor(image)))).mean() > 2
    monkeypatch.setattr(upscaling, "TILE", tile)
    assert np.abs(upscale(image, net).astype(int) - whole).max() <= 1


@pytest.mark.slow
def test_a_large_image_in_bounded_memory():
    """4096 x 4096 from the paper's generator stays under 2 GB, torch itself included."""
    code = (
        "import resource, numpy as np; from srlib.models import Generator; from srlib.upscaling import upscale\n"
        "sr = upscale(np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8), Generator(4, 1, 64, 16).eval())\n"
        "print(sr.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    side, kilobytes = map(int, said.stdout.split())
    assert side == 4096 and kilobytes * 1024 < 2e9


def test_load_generator_refuses_other_files(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no weights"):
        load_generator(tmp_path / "x.pt")
    torch.save({"settings": {"scale": 4, "depth": 3}, "weights": {}}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="do not fit"):
        load_generator(tmp_path / "y.pt")


# --------------------------------------------------------------------------------------------- files
def test_upscale_command(weights_file, tmp_path, capsys):
    scans, weights = tmp_path / "in", ("--weights", weights_file)
    save(scans / "a.png", bscan(1, 48, 64))
    save(scans / "b é.jpeg", bscan(2, 48, 64))
    run("upscale", scans, tmp_path / "out", *weights)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b é.png"]
    assert pixels(tmp_path / "out" / "a.png").shape == (192, 256)
    (scans / "broken.png").write_bytes(b"no")
    capsys.readouterr()
    run("upscale", scans, tmp_path / "out2", *weights, status=1)
    said = capsys.readouterr()
    assert "broken.png" in said.err and "2 image(s) written, 1 failed" in said.out
    run("upscale", scans / "a.png", tmp_path / "one.png", *weights)
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "out/a.png")).all()
    for source, file in (("missing", weights_file), (tmp_path, tmp_path / "none.pt")):
        run("upscale", source, tmp_path / "o", "--weights", file, status=1)
        assert "no such file" in one_line(capsys)


@pytest.mark.parametrize("again", [(), ("--again",)])
def test_sources_are_never_overwritten(weights_file, sampler, tmp_path, capsys, again):
    scan = tmp_path / "in" / "a.png"
    save(scan, bscan(1, 40, 56))
    before = scan.read_bytes()
    for path in (scan, scan.parent):
        run("upscale", path, path, "--weights", weights_file, *again, status=1)
        assert "would be overwritten" in capsys.readouterr().err and scan.read_bytes() == before
    save(tmp_path / "in" / "a_sample1.png", bscan(1, 40, 56))
    with pytest.raises(UserError, match="would be overwritten"):
        upscale_files(scan.parent, scan.parent, sampler, samples=2, again=bool(again))


def test_files_with_one_stem_are_not_overwritten(sampler, tmp_path):
    for k, name in enumerate(("same.png", "same.jpg", "v#1.png", "other.png")):
        save(tmp_path / "in" / name, bscan(k, 24, 32))
    save(tmp_path / "in" / "v.tif", bscan(4, 24, 32), bscan(5, 24, 32))
    names = ["other.png", "same.jpg.png", "same.png.png", "v#1.png.png", "v#2.png", "v.tif#1.png"]
    for count, expected in ((1, names), (2, [f"{name[:-4]}_sample{k}.png" for name in names for k in (1, 2)])):
        written, _, failed, _ = upscale_files(tmp_path / "in", tmp_path / "out", sampler, samples=count)
        assert sorted(p.name for p in written) == expected and not failed


def test_a_volume_is_upscaled_slice_by_slice(generator, tmp_path):
    pages = [bscan(k, 48, 64) for k in range(3)]
    save(tmp_path / "eye.tif", *pages)
    written, _, failed, _ = upscale_files(tmp_path / "eye.tif", tmp_path / "out", generator)
    assert [p.name for p in written] == ["eye#1.png", "eye#2.png", "eye#3.png"] and not failed
    assert (pixels(written[2]) == upscale(pages[2], generator)).all()
    with pytest.raises(UserError, match="3 slices; give a folder"):
        upscale_files(tmp_path / "eye.tif", tmp_path / "one.png", generator)


def test_sixteen_bit_stays_sixteen_bit(generator, weights_file, tmp_path):
    """The levels between two of 8 bit are kept; the file says what it is."""
    deep = bscan(1, 48, 64).astype(np.uint16) * 257
    deep[:, ::2] = np.minimum(deep[:, ::2].astype(int) + 100, 65535)
    save(tmp_path / "deep.tiff", deep)
    run("upscale", tmp_path / "deep.tiff", tmp_path / "out", "--weights", weights_file)
    with Image.open(tmp_path / "out/deep.png") as image:
        values = np.asarray(image)
        assert "synthetic detail, research only" in image.info.pop("Description")
        assert image.info == {"Software": "srlib", "Source": "deep.tiff", "Values": "0 to 65535", "Made by": "srgan.pt"}
    assert values.dtype == np.uint16 and values.shape == (192, 256) and len(np.unique(values % 257)) > 50
    assert np.abs(values / 257 - upscale((deep // 257).astype(np.uint8), generator)).max() < 2


def test_evaluate_command(tmp_path, capsys):
    sr, hr, table = tmp_path / "sr", tmp_path / "hr", tmp_path / "m.csv"
    for k in range(2):
        image = bscan(k, 96, 112)
        save(hr / f"{k}.png", image)
        save(sr / f"{k}.png", np.clip(image.astype(int) + 5, 0, 255).astype(np.uint8))
    save(sr / "extra.png", image)
    run("evaluate", sr, hr, "--steps", "0", "--out", table, status=1)
    assert "extra.png: no HR image has this path" in capsys.readouterr().err
    rows = pd.read_csv(table)
    assert len(rows) == 6 and set(rows.region) == {"whole", "valid", "retina"}
    assert rows.psnr.min() == pytest.approx(10 * np.log10(255**2 / 25), abs=0.05)
    run("evaluate", sr, hr, "--steps", "0", "--out", hr / "0.png", status=1)
    assert "the table is a CSV file" in capsys.readouterr().err


def test_evaluate_measures_samples(tmp_path, capsys):
    """What `upscale --samples --spread` writes: the first is SR, all of them are samples; their spread is no image."""
    for k in range(3):
        hr, rng = bscan(k, 96, 112), np.random.default_rng(k)
        save(tmp_path / "hr" / f"{k}.png", hr)
        for n in range(1, 11):
            save(tmp_path / "sr" / f"{k}_sample{n}.png", (hr + rng.normal(0, 10, hr.shape)).clip(0, 255).astype(np.uint8))
        save(tmp_path / "sr" / f"{k}_spread.png", hr // 20)
    run("evaluate", tmp_path / "sr", tmp_path / "hr", "--steps", "5")
    said = capsys.readouterr().out
    assert "3 image(s) measured, 0 not" in said and "fresh classifier" in said
    assert float(re.search(r"the mean of 10 over one \(dB\) +(\S+)", said)[1]) > 6  # no posterior: HR is their mean


# --------------------------------------------------------------------------------------------- samples
def test_a_sample_is_that_of_its_seed_and_image(sampler):
    image, other = bscan(1, 40, 56), bscan(2, 40, 56)
    first, second = samples(image, sampler, [3, 4])
    assert (first == upscale(image, sampler, seed=3)).all() and (second == upscale(image, sampler, seed=4)).all()
    assert first.dtype == np.uint8 and first.shape == (160, 224) and (first != second).mean() > 0.5
    texture = [upscale(i, sampler).astype(int) - upscale(i, sampler, strength=0) for i in (image, other)]
    assert abs(np.corrcoef(*(t.ravel() for t in texture))[0, 1]) < 0.1  # another scan, another noise


def test_the_trunk_is_computed_once_for_all_samples(sampler, generator, monkeypatch):
    calls, prepare, image = [], Sampler.prepare, bscan(1, 40, 56)
    monkeypatch.setattr(Sampler, "prepare", lambda self, *known: calls.append(1) or prepare(self, *known))
    together = samples(image, sampler, range(3))
    assert len(calls) == 1
    monkeypatch.setattr(upscaling, "AT_ONCE", 1)  # what does not fit at once is the same
    assert all((a == b).all() for a, b in zip(together, samples(image, sampler, range(3)), strict=True)) and len(calls) == 4
    sr = samples(image, generator, range(4))  # without noise: one SR for all
    assert len(sr) == 4 and all(image is sr[0] for image in sr)


def test_samples_show_no_seam(sampler, monkeypatch):
    """Noise belongs to the image, not to the tile: cut into tiles, the sample is the same."""
    image = bscan(2, 70, 150)
    whole = samples(image, sampler, [0, 1])
    monkeypatch.setattr(upscaling, "TILE", 64)
    tiled = samples(image, sampler, [0, 1])
    assert len(upscaling._spans(150, 64)) > 1 and np.std(whole, 0).mean() > 1
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(whole, tiled, strict=True)) <= 1


@pytest.mark.parametrize("tile", [320, 64])
def test_strength_0_is_the_projected_srresnet(sampler, generator, monkeypatch, tile):
    monkeypatch.setattr(upscaling, "TILE", tile)
    image = bscan(2, 100, 90)
    base = upscale(image, generator, consistent="bicubic")
    assert (upscale(image, sampler, strength=0) == base).all()
    half, one = (upscale(image, sampler, strength=a) - base * 1.0 for a in (0.5, 1))
    assert np.abs(2 * half - one)[np.abs(one) < 20].mean() < 2


def test_every_sample_is_consistent_with_lr(sampler, generator):
    """Of random blocks, too; under the reduction that is named, where it has a projection."""
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (80, 120), dtype=np.uint8), np.ones((2, 2), np.uint8))
    scan, *_ = images = [reduced(hr) for hr in (bscan(1, 160, 240), blocks)]
    for image in images:
        for strength in (0.5, 1, 2):
            assert all(metrics.consistency(sr, image) > 55 for sr in samples(image, sampler, range(3), strength))
        assert metrics.consistency(upscale(image, generator, consistent="bicubic"), image) > 55
    assert metrics.consistency(upscale(scan, generator), scan) < 45
    for kind in ("area", "nearest", "bicubic-matlab", "gaussian", "gaussian:2"):
        for net in (generator, sampler):
            assert metrics.consistency(upscale(scan, net, consistent=kind), scan, 4, kind) > 45, kind
    for kind in ("frame", "paired"):
        with pytest.raises(UserError, match=f"{kind}', which has no projection; there is one for bicubic, "):
            upscale(scan, generator, consistent=kind)
    unprojected = Sampler(generator, 8, "").eval()  # of frame or given pairs
    assert upscaling.consistent_kind(unprojected) == "" and (upscale(scan, unprojected) == upscale(scan, generator)).all()


def test_samples_of_colour_and_of_16_bit(sampler, tmp_path):
    grey = bscan(1, 40, 60)
    sr = upscale(np.repeat(grey[..., None], 3, 2), sampler)
    assert (sr == sr[..., :1]).all()  # speckle is grey
    colour = np.stack([grey, grey[::-1], np.random.default_rng(0).integers(40, 216, grey.shape, dtype=np.uint8)], 2)
    sr = upscale(colour, sampler)
    assert sr.shape == (160, 240, 3) and all(metrics.consistency(sr[..., c], colour[..., c]) > 55 for c in range(3))
    save(tmp_path / "c.png", colour)
    upscale_files(tmp_path / "c.png", tmp_path / "sr", sampler, samples=2, spread=True)
    assert pixels(tmp_path / "sr" / "c_spread.png").shape == (160, 240)
    sr = upscale(np.minimum(grey.astype(int) * 257 + 100, 65535).astype(np.uint16), sampler)
    assert sr.dtype == np.uint16 and len(np.unique(sr % 257)) > 100
    assert metrics.consistency(np.round(sr / 257).astype(np.uint8), grey) > 50
    sr = upscale(grey, awake(Sampler(Generator(4, 3, 8, 1, global_skip=True), 8)))
    assert sr.shape == (160, 240) and metrics.consistency(sr, grey) > 55


@pytest.fixture
def srgan(sampler, tmp_path):
    """(weights file of a sampler, an LR scan beside it)."""
    save_weights(tmp_path / "srgan.pt", sampler)
    return tmp_path / "srgan.pt", save(tmp_path / "eye.png", bscan(1, 40, 56))


def test_samples_command(srgan, tmp_path, capsys):
    weights, scan = srgan
    generator, out = load_generator(weights), tmp_path / "out"

    def said(file, *options):
        run("upscale", scan, file, "--weights", weights, *options)
        return capsys.readouterr().out

    assert "1 image(s) written, 0 failed; by srgan.pt, consistent with LR under bicubic" in said(out, "--seed", "5")
    said(out, "--seed", "5", "--samples", "3", "--spread")
    names = ["eye.png", *(f"eye_sample{k}.png" for k in (1, 2, 3)), "eye_spread.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert (out / "eye_sample1.png").read_bytes() == (out / "eye.png").read_bytes()
    sampled = [pixels(out / f"eye_sample{k}.png") for k in (1, 2, 3)]
    assert (sampled[2] == upscale(pixels(scan), generator, seed=7)).all()
    assert np.abs(pixels(out / "eye_spread.png") - np.std(sampled, 0)).max() <= 0.51
    info = [Image.open(out / name).info for name in names]
    assert "seed 5, strength 1, consistent with LR under bicubic" in info[1]["Made by"] and "seed 7," in info[3]["Made by"]
    assert "standard deviation of 3 samples" in info[4]["Description"] and "seeds 5 to 7" in info[4]["Made by"]
    before = (out / "eye_sample2.png").read_bytes()
    options = ("--seed", "5", "--samples", "4", "--spread", "--strength", "0.5")
    assert "1 image(s) written, 4 made earlier (--again overwrites), 0 failed" in said(out, *options)
    assert (out / "eye_sample2.png").read_bytes() == before
    assert "5 image(s) written, 0 failed" in said(out, *options, "--again")
    assert (out / "eye_sample2.png").read_bytes() != before
    said(tmp_path / "sr.png", "--samples", "2")
    assert {p.name for p in tmp_path.glob("sr*.png")} == {"sr_sample1.png", "sr_sample2.png"}


def test_consistent_command(srgan, generator, tmp_path, capsys):
    """Of a plain network: the reduction is the run's, where its folder says it, or the one that is named, else bicubic."""
    save_weights(tmp_path / "plain" / "srresnet.pt", generator)
    scan, sr, config = srgan[1], tmp_path / "sr.png", tmp_path / "plain/config.json"
    command = ["upscale", scan, sr, "--again", "--weights", tmp_path / "plain/srresnet.pt"]
    run(*command)
    assert "by srresnet.pt\n" in capsys.readouterr().out
    for text, options, kind in (
        ("{}", [], "bicubic"),
        ("{}", ["nearest"], "nearest"),
        ('{"degradation": "gaussian:2"}', [], "gaussian:2"),
        ('{"degradation": "gaussian:2"}', ["gaussian"], "gaussian:2"),
    ):
        config.write_text(text)
        run(*command, "--consistent", *options)
        assert f"1 image(s) written, 0 failed; by srresnet.pt, consistent with LR under {kind}\n" in capsys.readouterr().out
        assert metrics.consistency(pixels(sr), pixels(scan), 4, kind) > 45
    config.write_text('{"degradation": "frame:8"}')
    cannot = "SR cannot be made consistent with LR of kind "
    for options, words in (([], f"{cannot}'frame:8'"), (["paired"], f"{cannot}'paired'"), (["x"], "'x'")):
        run(*command, "--consistent", *options, status=1)
        assert words in one_line(capsys)


def test_what_cannot_be_sampled_is_one_sentence(srgan, generator, tmp_path, capsys):
    save_weights(tmp_path / "plain.pt", generator)
    for name, options, words in (
        ("srgan.pt", ["--seed", "-1"], "seed cannot be -1"),
        ("srgan.pt", ["--samples", "0"], "samples cannot be 0"),
        ("srgan.pt", ["--strength", "-1"], "strength cannot be -1"),
        ("srgan.pt", ["--strength", "nan"], "strength cannot be nan"),
        ("srgan.pt", ["--spread"], "--samples 2 or more"),
        ("plain.pt", ["--seed", "1"], "plain.pt samples no texture; leave out"),
        ("plain.pt", ["--samples", "2"], "plain.pt samples no texture; leave out"),
    ):
        run("upscale", srgan[1], tmp_path / "o", "--weights", tmp_path / name, *options, status=1)
        assert words in one_line(capsys) and not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="samples no texture"):
        upscale(bscan(1, 40, 56), generator, strength=0.5)
