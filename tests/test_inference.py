"""Images in, images out; and the command line as a user types it."""

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
    assert "broken.png" in said.err and "2 image(s) written, 1 could not be read" in said.out
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
    written, failed = inference.upscale_files(tmp_path / "in", tmp_path / "out", generator)
    assert len(written) == 1 and len(failed) == 1 and "rename" in failed[0]


def test_a_volume_is_upscaled_slice_by_slice(generator, tmp_path):
    pages = [Image.fromarray(bscan(k, 48, 64)) for k in range(3)]
    pages[0].save(tmp_path / "eye.tif", save_all=True, append_images=pages[1:])
    written, failed = inference.upscale_files(tmp_path / "eye.tif", tmp_path / "out", generator)
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
    assert len(table) == 4
    assert table.psnr.min() == pytest.approx(10 * np.log10(255**2 / 25), abs=0.05)
    assert set(table.region) == {"whole", "valid"}


def test_load_generator_refuses_other_files(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no weights"):
        inference.load_generator(tmp_path / "x.pt")
    torch.save({"settings": {"scale": 4, "depth": 3}, "weights": {}}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="do not fit"):
        inference.load_generator(tmp_path / "y.pt")
