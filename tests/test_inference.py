"""Images in, images out; and the command line as a user types it."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srlib import metrics, upscaling
from srlib.__main__ import main
from srlib.commands.evaluate import evaluate_folders
from srlib.commands.upscale import upscale_files
from srlib.config import UserError
from srlib.data.phantom import bscan
from srlib.degrade import downsample, to_image, to_tensor, upsample
from srlib.files import REPOSITORY
from srlib.models import Generator
from srlib.sampler import network as texture
from srlib.sampler.network import Sampler
from srlib.trained import load_generator, save_weights


@pytest.fixture
def generator():
    torch.manual_seed(0)
    net = Generator(4, 1, 8, 2, global_skip=True).eval()
    torch.nn.init.normal_(net.tail.weight, std=0.02)
    return net


@pytest.fixture
def drawing(generator):
    """An SRGAN on it, whose head draws something."""
    torch.manual_seed(1)
    net = Sampler(generator, 8).eval()
    torch.nn.init.normal_(net.head.tail.weight, std=0.2)
    return net


@pytest.fixture
def weights_file(generator, tmp_path):
    save_weights(tmp_path / "srgan.pt", generator)
    return tmp_path / "srgan.pt"


def test_weights_rebuild_the_network(generator, weights_file):
    image = bscan(1, 64, 96)
    assert (upscaling.upscale(image, load_generator(weights_file)) == upscaling.upscale(image, generator)).all()


def test_upscale_shapes_and_types(generator):
    image = bscan(1, 64, 96)
    sr = upscaling.upscale(image, generator)
    assert sr.dtype == np.uint8 and sr.shape == (256, 384)
    colour = np.repeat(image[..., None], 3, 2)
    assert (upscaling.upscale(colour, generator) == sr[..., None]).all()
    assert upscaling.upscale(image, Generator(2, 3, 8, 1).eval()).shape == (128, 192)


def test_untrained_skip_is_bicubic():
    image = bscan(1, 64, 96)
    assert (upscaling.upscale(image, Generator(4, 1, 8, 1, global_skip=True).eval()) == to_image(upsample(to_tensor(image)))).all()


def test_tiles_agree_with_the_whole(generator, monkeypatch):
    image = bscan(2, 150, 170)
    whole = upscaling.upscale(image, generator).astype(int)
    monkeypatch.setattr(upscaling, "TILE", 64)
    tiled = upscaling.upscale(image, generator).astype(int)
    assert np.abs(tiled - whole).max() <= 1


def test_seams_are_blended():
    """Where two tiles overlap by the least, the first one's share falls from 1 to 0 in small steps: no seam to see."""
    size, scale = 2 * upscaling.TILE - upscaling.OVERLAP, 4
    (a, b), (c, d) = upscaling._spans(size)
    assert b - c == upscaling.OVERLAP
    first, second = upscaling._ramp(a, b, size, scale)[c * scale :], upscaling._ramp(c, d, size, scale)[: (b - c) * scale]
    share = first / (first + second)
    assert share[0] > 0.999 and share[-1] < 0.001
    assert share.diff().abs().max() < 2.1 / (upscaling.OVERLAP * scale)


def test_tiles_agree_where_the_network_reaches_further(monkeypatch):
    """The paper's 16 blocks reach further than what is cut off at a tile's edge."""
    torch.manual_seed(1)
    deep = Generator(4, 1, 8, 16, global_skip=True).eval()
    torch.nn.init.normal_(deep.tail.weight, std=0.03)
    image = bscan(2, 120, 330)
    whole = upscaling.upscale(image, deep).astype(int)
    assert np.abs(whole - to_image(upsample(to_tensor(image)))).mean() > 2
    monkeypatch.setattr(upscaling, "TILE", 190)
    assert np.abs(upscaling.upscale(image, deep).astype(int) - whole).max() <= 1


def test_sources_are_never_overwritten(weights_file, tmp_path, capsys):
    scan = tmp_path / "in" / "a.png"
    scan.parent.mkdir()
    Image.fromarray(bscan(1, 48, 64)).save(scan)
    before = scan.read_bytes()
    for out in (scan.parent, scan):
        source = scan if out == scan else scan.parent
        assert main(["upscale", str(source), str(out), "--weights", str(weights_file)]) == 1
        assert "would be overwritten" in capsys.readouterr().err and scan.read_bytes() == before
        assert main(["upscale", str(source), str(out), "--weights", str(weights_file), "--again"]) == 1
        assert "would be overwritten" in capsys.readouterr().err and scan.read_bytes() == before


def test_upscale_command(weights_file, tmp_path, capsys):
    scans = tmp_path / "in"
    scans.mkdir()
    Image.fromarray(bscan(1, 48, 64)).save(scans / "a.png")
    Image.fromarray(bscan(2, 48, 64)).save(scans / "b é.jpeg")
    assert main(["upscale", str(scans), str(tmp_path / "out"), "--weights", str(weights_file)]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b é.png"]
    assert Image.open(tmp_path / "out" / "a.png").size == (256, 192)
    (scans / "broken.png").write_bytes(b"no")
    capsys.readouterr()
    assert main(["upscale", str(scans), str(tmp_path / "out2"), "--weights", str(weights_file)]) == 1
    said = capsys.readouterr()
    assert "broken.png" in said.err and "2 image(s) written, 1 failed" in said.out
    assert main(["upscale", str(scans / "a.png"), str(tmp_path / "one.png"), "--weights", str(weights_file)]) == 0
    assert (tmp_path / "one.png").exists()


def test_upscale_errors_are_one_sentence(tmp_path, weights_file, capsys):
    for source, weights in (("missing", weights_file), (tmp_path, tmp_path / "none.pt")):
        assert main(["upscale", str(source), str(tmp_path / "o"), "--weights", str(weights)]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error and "no such file" in error


def test_two_files_with_one_stem_are_not_overwritten(generator, tmp_path):
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("same.png", "same.jpg", "v#1.png", "other.png")):
        Image.fromarray(bscan(k, 48, 64)).save(tmp_path / "in" / name, quality=95)
    pages = [Image.fromarray(bscan(k, 48, 64)) for k in range(4, 6)]
    pages[0].save(tmp_path / "in/v.tif", save_all=True, append_images=pages[1:])
    written, _, failed, _ = upscale_files(tmp_path / "in", tmp_path / "out", generator)
    names = ["other.png", "same.jpg.png", "same.png.png", "v#1.png.png", "v#2.png", "v.tif#1.png"]
    assert sorted(p.name for p in written) == names and not failed
    (tmp_path / "hr").mkdir()
    for k, name in enumerate(("same.png", "same.jpg", "v#1.png", "other.png")):  # evaluate finds for each what it was made from
        Image.fromarray(bscan(k, 192, 256)).save(tmp_path / "hr" / name)
    pages = [Image.fromarray(bscan(k, 192, 256)) for k in range(4, 6)]
    pages[0].save(tmp_path / "hr/v.tif", save_all=True, append_images=pages[1:])
    found = evaluate_folders(tmp_path / "out", tmp_path / "hr", steps=0)
    assert not found.failed and not found.warned and found.table.image.nunique() == 6


def test_a_volume_is_upscaled_slice_by_slice(generator, tmp_path):
    pages = [Image.fromarray(bscan(k, 48, 64)) for k in range(3)]
    pages[0].save(tmp_path / "eye.tif", save_all=True, append_images=pages[1:])
    written, _, failed, _ = upscale_files(tmp_path / "eye.tif", tmp_path / "out", generator)
    assert [p.name for p in written] == ["eye#1.png", "eye#2.png", "eye#3.png"] and not failed
    assert (np.asarray(Image.open(written[2])) == upscaling.upscale(np.asarray(pages[2]), generator)).all()
    with pytest.raises(UserError, match="3 slices; give a folder"):
        upscale_files(tmp_path / "eye.tif", tmp_path / "one.png", generator)


def test_evaluate_command(tmp_path, capsys):
    (tmp_path / "hr").mkdir()
    (tmp_path / "sr").mkdir()
    for k in range(2):
        hr = bscan(k, 96, 112)
        Image.fromarray(hr).save(tmp_path / "hr" / f"{k}.png")
        Image.fromarray(np.clip(hr.astype(int) + 5, 0, 255).astype(np.uint8)).save(tmp_path / "sr" / f"{k}.png")
    Image.fromarray(hr).save(tmp_path / "sr" / "extra.png")
    assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--steps", "0", "--out", str(tmp_path / "m.csv")]) == 1
    assert "extra.png: no HR image has this path" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "m.csv")
    assert len(table) == 6 and set(table.region) == {"whole", "valid", "retina"}
    assert table.psnr.min() == pytest.approx(10 * np.log10(255**2 / 25), abs=0.05)
    main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--scale", "2", "--steps", "0", "--out", str(tmp_path / "m.csv")])
    assert len(pd.read_csv(tmp_path / "m.csv")) == 6  # an earlier table is overwritten
    assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--steps", "0", "--out", str(tmp_path / "hr/0.png")]) == 1
    assert "the table is a CSV file" in capsys.readouterr().err


def test_evaluate_measures_samples(tmp_path, capsys):
    """What `upscale --samples --spread` writes: the first draw is SR, all of them are draws; their spread is no image."""
    (tmp_path / "hr").mkdir()
    (tmp_path / "sr").mkdir()
    for k in range(3):
        hr, chance = bscan(k, 96, 112), np.random.default_rng(k)
        Image.fromarray(hr).save(tmp_path / "hr" / f"{k}.png")
        for n in range(1, 11):
            noisy = (hr + chance.normal(0, 10, hr.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "sr" / f"{k}_sample{n}.png")
        Image.fromarray(hr // 20).save(tmp_path / "sr" / f"{k}_spread.png")
    assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--steps", "5"]) == 0
    said = capsys.readouterr().out
    assert "3 image(s) measured, 0 not" in said and "the mean of 10 samples over one" in said and "fresh classifier" in said
    assert float(re.search(r"samples over one \(dB\) +(\S+)", said)[1]) > 6  # no posterior: HR is their mean


def test_load_generator_refuses_other_files(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no weights"):
        load_generator(tmp_path / "x.pt")
    torch.save({"settings": {"scale": 4, "depth": 3}, "weights": {}}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="do not fit"):
        load_generator(tmp_path / "y.pt")


def test_spans_cover_and_overlap(monkeypatch):
    for size in (1, 39, 320, 321, 384, 1000, 4096):
        spans = upscaling._spans(size)
        assert spans[0][0] == 0 and spans[-1][1] == size and len({b - a for a, b in spans}) == 1
        assert all(b - a <= upscaling.TILE for a, b in spans)
        assert all(one[1] - two[0] >= upscaling.OVERLAP for one, two in itertools.pairwise(spans))


def test_sixteen_bit_stays_sixteen_bit(generator, weights_file, tmp_path):
    """The levels between two of 8 bit are kept; the file says what it is."""
    deep = bscan(1, 48, 64).astype(np.uint16) * 257
    deep[:, ::2] = np.minimum(deep[:, ::2].astype(int) + 100, 65535)
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    assert main(["upscale", str(tmp_path / "deep.tiff"), str(tmp_path / "out"), "--weights", str(weights_file)]) == 0
    with Image.open(tmp_path / "out/deep.png") as image:
        values = np.asarray(image)
        assert "synthetic detail, research only" in image.info.pop("Description")
        assert image.info == {"Software": "srlib", "Source": "deep.tiff", "Values": "0 to 65535", "Made by": "srgan.pt"}
    assert values.dtype == np.uint16 and values.shape == (192, 256) and len(np.unique(values % 257)) > 50
    assert np.abs(values / 257 - upscaling.upscale((deep // 257).astype(np.uint8), generator)).max() < 2


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


# --------------------------------------------------------------------------------------------- draws
def test_a_sample_is_that_of_its_seed_and_image(drawing):
    image, other = bscan(1, 40, 56), bscan(2, 40, 56)
    first, second = upscaling.samples(image, drawing, [3, 4])
    assert (first == upscaling.upscale(image, drawing, seed=3)).all() and (second == upscaling.upscale(image, drawing, seed=4)).all()
    assert first.dtype == np.uint8 and first.shape == (160, 224) and (first != second).mean() > 0.5
    grain = [upscaling.upscale(i, drawing).astype(int) - upscaling.upscale(i, drawing, strength=0) for i in (image, other)]
    assert abs(np.corrcoef(*(g.ravel() for g in grain))[0, 1]) < 0.1  # another scan, another noise
    with torch.inference_mode():
        assert (to_image(texture.sample(drawing, to_tensor(image), upscaling._noise_seed(image, 3))) == first).all()
    assert upscaling.spread([first, second]).mean() > 1
    assert np.allclose(upscaling.spread([first, second]), np.std([first, second], 0), atol=1e-4)


def test_samples_that_do_not_fit_at_once_are_the_same(drawing, monkeypatch):
    image = bscan(1, 40, 56)
    together = upscaling.samples(image, drawing, range(3))
    monkeypatch.setattr(upscaling, "AT_ONCE", 1)
    assert all((a == b).all() for a, b in zip(together, upscaling.samples(image, drawing, range(3)), strict=True))


def test_the_trunk_is_computed_once_for_all_samples(drawing, generator, monkeypatch):
    calls, prepare = [], Sampler.prepare
    monkeypatch.setattr(Sampler, "prepare", lambda self, lr: calls.append(1) or prepare(self, lr))
    upscaling.samples(bscan(1, 40, 56), drawing, range(4))
    assert len(calls) == 1
    sr = upscaling.samples(bscan(1, 40, 56), generator, range(4))  # without noise: one SR for all
    assert len(sr) == 4 and all(image is sr[0] for image in sr)


def test_samples_show_no_seam(drawing, monkeypatch):
    """Noise belongs to the image, not to the tile: cut into tiles, the draw is the same."""
    image = bscan(2, 150, 170)
    whole = upscaling.samples(image, drawing, [0, 1])
    monkeypatch.setattr(upscaling, "TILE", 64)
    tiled = upscaling.samples(image, drawing, [0, 1])
    assert len(upscaling._spans(150)) > 1 and upscaling.spread(whole).mean() > 1
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(whole, tiled, strict=True)) <= 1


@pytest.mark.parametrize("tile", [320, 64])
def test_strength_0_is_the_projected_srresnet(drawing, generator, monkeypatch, tile):
    monkeypatch.setattr(upscaling, "TILE", tile)
    image = bscan(2, 100, 90)
    assert (upscaling.upscale(image, drawing, strength=0) == upscaling.upscale(image, generator, consistent="bicubic")).all()
    half, one = (
        upscaling.upscale(image, drawing, strength=a) - upscaling.upscale(image, generator, consistent="bicubic") * 1.0 for a in (0.5, 1)
    )
    assert np.abs(2 * half - one)[np.abs(one) < 20].mean() < 2


def test_every_sample_agrees_with_lr(drawing, generator):
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (80, 120), dtype=np.uint8), np.ones((2, 2), np.uint8))
    images = [to_image(downsample(to_tensor(hr))) for hr in (bscan(1, 160, 240), blocks)]
    for image in images:
        for strength in (0.5, 1, 2):
            for sr in upscaling.samples(image, drawing, range(3), strength):
                assert metrics.consistency(sr, image) > 55
        assert metrics.consistency(upscaling.upscale(image, generator, consistent="bicubic"), image) > 55
    assert metrics.consistency(upscaling.upscale(images[0], generator), images[0]) < 45


def test_consistent_under_other_reductions(drawing, generator):
    image = bscan(1, 40, 60)
    for kind in ("area", "axial", "nearest", "bicubic-matlab", "gaussian"):
        for net in (generator, drawing):
            sr = upscaling.upscale(image, net, consistent=kind)
            assert metrics.consistency(sr, image, 4, kind) > 45, kind
    for kind in ("speckle", "paired"):
        with pytest.raises(UserError, match=f"{kind}', which has no projection; there is one for bicubic, "):
            upscaling.upscale(image, generator, consistent=kind)
    unprojected = Sampler(generator, 8, "").eval()  # of speckle or given pairs
    assert upscaling.consistent_kind(unprojected) == ""
    assert (upscaling.upscale(image, unprojected) == upscaling.upscale(image, generator)).all()


def test_samples_of_colour_and_of_16_bit(drawing):
    grey = bscan(1, 40, 60)
    sr = upscaling.upscale(np.repeat(grey[..., None], 3, 2), drawing)
    assert (sr == sr[..., :1]).all()  # grain is grey
    rng = np.random.default_rng(0)
    colour = np.stack([grey, grey[::-1], rng.integers(40, 216, grey.shape, dtype=np.uint8)], 2)
    sr = upscaling.upscale(colour, drawing)
    assert sr.shape == (160, 240, 3) and all(metrics.consistency(sr[..., c], colour[..., c]) > 55 for c in range(3))
    assert upscaling.spread(upscaling.samples(colour, drawing, range(2))).shape == (160, 240)
    deep = np.minimum(grey.astype(int) * 257 + 100, 65535).astype(np.uint16)
    sr = upscaling.upscale(deep, drawing)
    assert sr.dtype == np.uint16 and len(np.unique(sr % 257)) > 100
    assert metrics.consistency(np.round(sr / 257).astype(np.uint8), grey) > 50
    three = Sampler(Generator(4, 3, 8, 1, global_skip=True), 8).eval()
    torch.nn.init.normal_(three.head.tail.weight, std=0.2)
    sr = upscaling.upscale(grey, three)
    assert sr.shape == (160, 240) and metrics.consistency(sr, grey) > 55


def test_what_a_network_cannot_sample(drawing, generator):
    image = bscan(1, 40, 56)
    for net, options, words in (
        (drawing, dict(seed=-1), "seed cannot be -1"),
        (drawing, dict(strength=-0.5), "strength cannot be -0.5"),
        (drawing, dict(strength=float("nan")), "strength cannot be nan"),
        (generator, dict(strength=0.5), "samples no texture"),
    ):
        with pytest.raises(UserError, match=words):
            upscaling.upscale(image, net, **options)


@pytest.fixture
def srgan(drawing, tmp_path):
    """(weights file of a network that draws, an LR scan beside it)."""
    save_weights(tmp_path / "srgan.pt", drawing)
    Image.fromarray(bscan(1, 40, 56)).save(tmp_path / "eye.png")
    return tmp_path / "srgan.pt", tmp_path / "eye.png"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_samples_command(srgan, tmp_path, capsys):
    weights, scan = srgan
    generator = load_generator(weights)

    def run(out, *options):
        assert main(["upscale", str(scan), str(tmp_path / out), "--weights", str(weights), *options]) == 0
        return capsys.readouterr().out

    assert "1 image(s) written, 0 failed; by srgan.pt, consistent with LR under bicubic" in run("out", "--seed", "5")
    assert (pixels(tmp_path / "out/eye.png") == upscaling.upscale(pixels(scan), generator, seed=5)).all()
    run("out", "--seed", "5", "--samples", "3", "--spread")
    names = ["eye.png", *(f"eye_sample{k}.png" for k in (1, 2, 3)), "eye_spread.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out/eye_sample1.png").read_bytes() == (tmp_path / "out/eye.png").read_bytes()
    drawn = [pixels(tmp_path / f"out/eye_sample{k}.png") for k in (1, 2, 3)]
    assert (drawn[2] == upscaling.upscale(pixels(scan), generator, seed=7)).all()
    assert np.abs(pixels(tmp_path / "out/eye_spread.png") - np.std(drawn, 0)).max() <= 0.51
    said = [Image.open(tmp_path / f"out/{name}").info for name in names]
    assert "seed 5, strength 1, consistent with LR under bicubic" in said[1]["Made by"] and "seed 7," in said[3]["Made by"]
    assert "standard deviation of 3 samples" in said[4]["Description"] and "seeds 5 to 7" in said[4]["Made by"]
    before = (tmp_path / "out/eye_sample2.png").read_bytes()
    options = ("--seed", "5", "--samples", "4", "--spread", "--strength", "0.5")
    assert "1 image(s) written, 4 made earlier (--again overwrites), 0 failed" in run("out", *options)
    assert (tmp_path / "out/eye_sample2.png").read_bytes() == before
    assert "5 image(s) written, 0 failed" in run("out", *options, "--again")
    assert (tmp_path / "out/eye_sample2.png").read_bytes() != before
    run("sr.png", "--samples", "2")
    assert {p.name for p in tmp_path.glob("sr*.png")} == {"sr_sample1.png", "sr_sample2.png"}


def test_consistent_command(srgan, generator, tmp_path, capsys):
    """Of a plain network: the reduction is the run's, where its folder says it, or the one that is named, else bicubic."""
    save_weights(tmp_path / "plain" / "srresnet.pt", generator)
    scan = srgan[1]
    command = ["upscale", str(scan), str(tmp_path / "sr.png"), "--again", "--weights", str(tmp_path / "plain/srresnet.pt")]
    for options, kind in (([], None), (["--consistent"], "bicubic"), (["--consistent", "nearest"], "nearest")):
        assert main([*command, *options]) == 0
        said = capsys.readouterr().out
        assert "1 image(s) written, 0 failed" in said and (", consistent" in said) == bool(kind)
        assert not kind or f"by srresnet.pt, consistent with LR under {kind}\n" in said
        assert not kind or metrics.consistency(pixels(tmp_path / "sr.png"), pixels(scan), 4, kind) > 45
    (tmp_path / "plain/config.json").write_text('{"degradation": "gaussian:2"}')
    for options in (["--consistent"], ["--consistent", "gaussian"]):
        assert main([*command, *options]) == 0 and "under gaussian 2\n" in capsys.readouterr().out
    (tmp_path / "plain/config.json").write_text('{"degradation": "speckle", "degradation_amount": 8.0}')
    for options, words in ((["--consistent"], "'speckle'"), (["--consistent", "paired"], "'paired'"), (["--consistent", "x"], "'x'")):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert "cannot be made consistent with LR of kind " + words in error and error.count("\n") == 1


def test_sample_errors_are_one_sentence(srgan, generator, tmp_path, capsys):
    save_weights(tmp_path / "plain.pt", generator)
    for name, options, words in (
        ("srgan.pt", ["--seed", "-1"], "seed cannot be -1"),
        ("srgan.pt", ["--samples", "0"], "samples cannot be 0"),
        ("srgan.pt", ["--strength", "-1"], "strength cannot be -1"),
        ("srgan.pt", ["--spread"], "--samples 2 or more"),
        ("plain.pt", ["--seed", "1"], "plain.pt samples no texture; leave out"),
        ("plain.pt", ["--samples", "2"], "plain.pt samples no texture; leave out"),
        ("plain.pt", ["--strength", "0.5"], "plain.pt samples no texture; leave out"),
    ):
        assert main(["upscale", str(srgan[1]), str(tmp_path / "o"), "--weights", str(tmp_path / name), *options]) == 1
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_samples_are_never_written_over_a_source(srgan, drawing, tmp_path):
    scans = tmp_path / "in"
    scans.mkdir()
    for name in ("a.png", "a_sample1.png"):
        Image.fromarray(bscan(1, 40, 56)).save(scans / name)
    with pytest.raises(UserError, match="would be overwritten"):
        upscale_files(scans, scans, drawing, samples=2)
    Image.fromarray(bscan(1, 40, 56)).save(scans / "a.bmp")
    written, _, failed, _ = upscale_files(scans, tmp_path / "out", drawing, samples=2)
    stems = ["a.bmp_sample1", "a.bmp_sample2", "a.png_sample1", "a.png_sample2", "a_sample1_sample1", "a_sample1_sample2"]
    assert sorted(p.stem for p in written) == stems and not failed
