"""Images in, images out; and the command line as a user types it."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from srlib import checkpoint, inference
from srlib.__main__ import main
from srlib.config import UserError
from srlib.degrade import to_image, to_tensor, upsample
from srlib.models import Generator
from srlib.phantom import bscan
from srlib.places import REPOSITORY


@pytest.fixture
def generator():
    torch.manual_seed(0)
    net = Generator(4, 1, 8, 2, global_skip=True).eval()
    torch.nn.init.normal_(net.tail.weight, std=0.02)
    return net


@pytest.fixture
def weights_file(generator, tmp_path):
    checkpoint.save_weights(tmp_path / "srgan.pt", generator)
    return tmp_path / "srgan.pt"


def test_weights_rebuild_the_network(generator, weights_file):
    image = bscan(1, 64, 96)
    assert (inference.upscale(image, inference.load_generator(weights_file)) == inference.upscale(image, generator)).all()


def test_upscale_shapes_and_types(generator):
    image = bscan(1, 64, 96)
    sr = inference.upscale(image, generator)
    assert sr.dtype == np.uint8 and sr.shape == (256, 384)
    colour = np.repeat(image[..., None], 3, 2)
    assert (inference.upscale(colour, generator) == sr[..., None]).all()
    assert inference.upscale(image, Generator(2, 3, 8, 1).eval()).shape == (128, 192)


def test_untrained_skip_is_bicubic():
    image = bscan(1, 64, 96)
    assert (inference.upscale(image, Generator(4, 1, 8, 1, global_skip=True).eval()) == to_image(upsample(to_tensor(image)))).all()


def test_tiles_agree_with_the_whole(generator, monkeypatch):
    image = bscan(2, 150, 170)
    whole = inference.upscale(image, generator).astype(int)
    monkeypatch.setattr(inference, "TILE", 64)
    tiled = inference.upscale(image, generator).astype(int)
    assert np.abs(tiled - whole).max() <= 1


def test_seams_are_blended():
    """Where two tiles overlap by the least, the first one's share falls from 1 to 0 in small steps: no seam to see."""
    size, scale = 2 * inference.TILE - inference.OVERLAP, 4
    (a, b), (c, d) = inference._spans(size)
    assert b - c == inference.OVERLAP
    first, second = inference._ramp(a, b, size, scale)[c * scale :], inference._ramp(c, d, size, scale)[: (b - c) * scale]
    share = first / (first + second)
    assert share[0] > 0.999 and share[-1] < 0.001
    assert share.diff().abs().max() < 2.1 / (inference.OVERLAP * scale)


def test_tiles_agree_where_the_network_reaches_further(monkeypatch):
    """The paper's 16 blocks reach further than what is cut off at a tile's edge."""
    torch.manual_seed(1)
    deep = Generator(4, 1, 8, 16, global_skip=True).eval()
    torch.nn.init.normal_(deep.tail.weight, std=0.03)
    image = bscan(2, 120, 330)
    whole = inference.upscale(image, deep).astype(int)
    assert np.abs(whole - to_image(upsample(to_tensor(image)))).mean() > 2
    monkeypatch.setattr(inference, "TILE", 190)
    assert np.abs(inference.upscale(image, deep).astype(int) - whole).max() <= 1


def test_sources_are_never_overwritten(weights_file, tmp_path, capsys):
    scan = tmp_path / "in" / "a.png"
    scan.parent.mkdir()
    Image.fromarray(bscan(1, 48, 64)).save(scan)
    before = scan.read_bytes()
    for out in (scan.parent, scan):
        source = scan if out == scan else scan.parent
        assert main(["upscale", str(source), str(out), "--weights", str(weights_file)]) == 1
        assert "would be overwritten" in capsys.readouterr().err and scan.read_bytes() == before
    for _ in range(2):  # a folder within the source is left out
        assert main(["upscale", str(scan.parent), str(scan.parent / "sr"), "--weights", str(weights_file)]) == 0
    assert "0 image(s) written, 1 made earlier, 0 failed" in capsys.readouterr().out


def test_resolution_for_print_is_no_pixel_size(tmp_path):
    from srlib.reading import pixel_size

    image = Image.fromarray(bscan(1, 48, 64))
    image.save(tmp_path / "print.jpg", dpi=(96, 96))
    image.save(tmp_path / "scan.png", dpi=(2540, 5080))
    assert pixel_size(tmp_path / "print.jpg") is None and pixel_size(tmp_path / "scan.png") == pytest.approx((10, 5), rel=1e-3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", dpi=(2540, 5080), exif=exif)
    assert pixel_size(tmp_path / "turned.jpg") == pytest.approx((5, 10), rel=1e-3)


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
    for folder in ("x", "y"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(bscan(1, 48, 64)).save(tmp_path / "in" / folder / "same.png")
    written, _, failed, _ = inference.upscale_files(tmp_path / "in", tmp_path / "out", generator)
    assert len(written) == 1 and len(failed) == 1 and "rename" in failed[0]


def test_a_volume_is_upscaled_slice_by_slice(generator, tmp_path):
    pages = [Image.fromarray(bscan(k, 48, 64)) for k in range(3)]
    pages[0].save(tmp_path / "eye.tif", save_all=True, append_images=pages[1:])
    written, _, failed, _ = inference.upscale_files(tmp_path / "eye.tif", tmp_path / "out", generator)
    assert [p.name for p in written] == ["eye#1.png", "eye#2.png", "eye#3.png"] and not failed
    assert (np.asarray(Image.open(written[2])) == inference.upscale(np.asarray(pages[2]), generator)).all()
    with pytest.raises(UserError, match="3 slices; give a folder"):
        inference.upscale_files(tmp_path / "eye.tif", tmp_path / "one.png", generator)


def test_evaluate_command(tmp_path, capsys):
    (tmp_path / "hr").mkdir()
    (tmp_path / "sr").mkdir()
    for k in range(2):
        hr = bscan(k, 96, 112)
        Image.fromarray(hr).save(tmp_path / "hr" / f"{k}.png")
        Image.fromarray(np.clip(hr.astype(int) + 5, 0, 255).astype(np.uint8)).save(tmp_path / "sr" / f"{k}.png")
    Image.fromarray(hr).save(tmp_path / "sr" / "extra.png")
    assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--out", str(tmp_path / "m.csv")]) == 1
    assert "no HR image named extra" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "m.csv")
    assert len(table) == 6 and set(table.region) == {"whole", "valid", "retina"}
    assert table.psnr.min() == pytest.approx(10 * np.log10(255**2 / 25), abs=0.05)
    main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--no-retina", "--out", str(tmp_path / "m.csv")])
    assert set(pd.read_csv(tmp_path / "m.csv").region) == {"whole", "valid"}


def test_load_generator_refuses_other_files(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no weights"):
        inference.load_generator(tmp_path / "x.pt")
    torch.save({"settings": {"scale": 4, "depth": 3}, "weights": {}}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="do not fit"):
        inference.load_generator(tmp_path / "y.pt")


def test_spans_cover_and_overlap(monkeypatch):
    for size in (1, 39, 320, 321, 384, 1000, 4096):
        spans = inference._spans(size)
        assert spans[0][0] == 0 and spans[-1][1] == size and len({b - a for a, b in spans}) == 1
        assert all(b - a <= inference.TILE for a, b in spans)
        assert all(one[1] - two[0] >= inference.OVERLAP for one, two in itertools.pairwise(spans))


def test_sixteen_bit_stays_sixteen_bit(generator, weights_file, tmp_path):
    """The levels between two of 8 bit are kept; the pixel size is divided; the file says what it is."""
    deep = bscan(1, 48, 64).astype(np.uint16) * 257
    deep[:, ::2] = np.minimum(deep[:, ::2].astype(int) + 100, 65535)
    Image.fromarray(deep).save(tmp_path / "deep.tiff", dpi=(2540, 5080))  # 10 x 5 um
    assert main(["upscale", str(tmp_path / "deep.tiff"), str(tmp_path / "out"), "--weights", str(weights_file)]) == 0
    with Image.open(tmp_path / "out/deep.png") as image:
        values = np.asarray(image)
        assert image.info["Pixel size (um)"] == "2.5 x 1.25" and image.info["dpi"] == pytest.approx((10160, 20320), rel=1e-3)
        assert "synthetic detail, research only" in image.info["Description"] and "srgan.pt" in image.info["Made by"]
    assert values.dtype == np.uint16 and values.shape == (192, 256) and len(np.unique(values % 257)) > 50
    assert np.abs(values / 257 - inference.upscale((deep // 257).astype(np.uint8), generator)).max() < 2


def test_self_ensemble(generator):
    """Bicubic answers the same whichever way the image is turned; the mean of eight is between the eight."""
    image = bscan(1, 40, 56)
    mean, spread = inference.self_ensemble(image, Generator(4, 1, 8, 1, global_skip=True).eval())
    assert spread.max() < 0.01 and np.abs(mean.astype(int) - to_image(upsample(to_tensor(image)))).max() <= 1
    mean, spread = inference.self_ensemble(image, generator)
    assert mean.shape == spread.shape == (160, 224) and spread.mean() > 0.1
    turned, _ = inference.self_ensemble(np.rot90(image).copy(), generator)
    assert np.abs(np.rot90(mean).astype(int) - turned).max() <= 1


def test_a_folder_of_mixed_files_is_continued(weights_file, tmp_path, capsys):
    """200 inputs, 40 of them broken: the others are made, the broken ones listed; again, nothing is made twice; a changed one is."""
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for k in range(200):
        if k % 5 == 0:
            (scans / f"broken{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(k))
        elif k % 5 == 1:
            Image.fromarray(np.full((12, 16, 3), k, np.uint8)).save(scans / f"colour{k}.jpg")
        else:
            Image.fromarray(np.full((12, 16), k, np.uint8)).save(scans / f"grey{k}.png")
    command = ["upscale", str(scans), str(out), "--weights", str(weights_file)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "160 image(s) written, 40 failed" in said.out and said.err.count("error: ") == 40
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert len(times) == 160
    cut = (out / "grey2.png").read_bytes()
    (out / "grey2.png").write_bytes(cut[: int(0.9 * len(cut))])  # after its text
    Image.fromarray(np.full((12, 16), 99, np.uint8)).save(scans / "grey3.png")
    assert main(command) == 1
    assert "2 image(s) written, 158 made earlier, 40 failed" in capsys.readouterr().out
    assert {p.name for p in out.iterdir() if p.stat().st_mtime_ns != times[p.name]} == {"grey2.png", "grey3.png"}


def test_blend_is_between():
    from srlib.models import blend

    torch.manual_seed(0)
    one, two = Generator(4, 1, 8, 1).eval(), Generator(4, 1, 8, 1).eval()
    for alpha, expected in ((0, one.tail.weight), (1, two.tail.weight), (0.25, 0.75 * one.tail.weight + 0.25 * two.tail.weight)):
        assert torch.allclose(blend(one, two, alpha).tail.weight, expected)
    with pytest.raises(ValueError, match="two shapes"):
        blend(one, Generator(4, 1, 8, 2), 0.5)


@pytest.mark.slow
def test_a_large_image_in_bounded_memory():
    """4096 x 4096 from the paper's generator stays under 2 GB, torch itself included."""
    code = (
        "import resource, numpy as np; from srlib.models import Generator; from srlib.inference import upscale\n"
        "sr = upscale(np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8), Generator(4, 1, 64, 16).eval())\n"
        "print(sr.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    side, kilobytes = map(int, said.stdout.split())
    assert side == 4096 and kilobytes * 1024 < 2e9
