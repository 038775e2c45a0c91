"""Files that programs and instruments write: TIFF of every writer, twelve bits, Heidelberg's formats, DICOM. The right values are those that were
written, or eyepy's."""

import os
import re
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicTomographyImageStorage,
    RLELossless,
    generate_uid,
)

from srlib.__main__ import main
from srlib.config import UserError, load_config
from srlib.data import inspection
from srlib.data.crops import Crops
from srlib.data.inspection import inspect_files
from srlib.data.manifest import build_manifest
from srlib.data.phantom import bscan
from srlib.data.reading import few_values, find_images, lr_partner, read_image, read_scan, slices
from srlib.data.split import fewer_patients
from srlib.commands.evaluate import evaluate_folders
from srlib.files import REPOSITORY
from srlib.formats import kinds
from srlib.formats.heidelberg import grey
from srlib.formats.instruments import who
from srlib.commands.upscale import upscale_files
from srlib.models import Generator
from srlib.series.run_folder import SALT, Run
from srlib.series.runs import data_hash

SHARED = Path(__file__).parent.parent.parent / "shared/formats"
SCAN = bscan(3, 124, 136)
WIDE = SCAN.astype(np.uint16) * 257
ORIENTED = {1: SCAN, 2: np.fliplr(SCAN), 3: np.rot90(SCAN, 2), 4: np.flipud(SCAN)}  # how a page of each orientation is stored
ORIENTED |= {5: SCAN.T, 6: np.rot90(SCAN), 7: np.rot90(SCAN, 2).T, 8: np.rot90(SCAN, -1)}


def one_directory(path, pages, order="<"):
    """A stack as ImageJ writes large ones: the first slice has a directory, the others lie behind it."""
    n, h, w = pages.shape
    text = f"ImageJ=1.54f\nimages={n}\nslices={n}\nloop=false\n\0".encode()
    tags = [(254, 0), (256, w), (257, h), (258, 8), (259, 1), (262, 1), (270, None), (273, None), (277, 1), (278, h), (279, h * w)]
    after = 8 + 2 + 12 * len(tags) + 4
    at = {270: (2, len(text), after), 273: (4, 1, after + len(text))}
    body = struct.pack(order + "H", len(tags))
    for tag, value in tags:
        kind, count, value = at.get(tag, (4, 1, value))
        body += struct.pack(order + "HHII", tag, kind, count, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    path.write_bytes(head + body + b"\0\0\0\0" + text + pages.tobytes())


def packed(path, values, bits, compression=1, fill_order=1):
    """A TIFF of `bits` bits a value, one after another; compression 8 deflates it."""
    digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    raw = np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()
    raw = zlib.compress(raw) if compression == 8 else raw
    if fill_order == 2:
        raw = np.packbits(np.unpackbits(np.frombuffer(raw, np.uint8).reshape(-1, 1), axis=1, bitorder="little"), axis=1).tobytes()
    h, w = values.shape
    tags = [
        (256, 4, w),
        (257, 4, h),
        (258, 3, bits),
        (259, 3, compression),
        (262, 3, 1),
        (266, 3, fill_order),
        (273, 4, None),
        (277, 3, 1),
        (278, 4, h),
        (279, 4, len(raw)),
    ]
    at = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        body += struct.pack("<HHII", tag, kind, 1, at if value is None else value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0" + raw)


# ------------------------------------------------------------------------------------------------ TIFF
@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_turned_tiff_is_shown_upright(tmp_path, orientation, compression):
    stored = np.ascontiguousarray(ORIENTED[orientation])
    options = {"tiffinfo": {274: orientation}} | ({"compression": compression} if compression else {})
    Image.fromarray(stored).save(tmp_path / "a.tif", **options)
    assert (read_image(tmp_path / "a.tif") == SCAN).all()
    deep = stored.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "deep.tif", deep, extratags=[(274, 3, 1, orientation, True)], metadata=None)
    assert (read_scan(tmp_path / "deep.tif", deep=True).image == WIDE).all()


def test_what_tifffile_writes_is_read(tmp_path):
    colour = np.stack([SCAN, SCAN // 2, SCAN // 3], -1)
    written = {
        "big": dict(data=SCAN, bigtiff=True),
        "tiled": dict(data=SCAN, tile=(64, 64)),
        "strips": dict(data=SCAN, rowsperstrip=7),
        "deflate": dict(data=SCAN, compression="zlib", predictor=True),
        "big-endian": dict(data=WIDE, byteorder=">"),
        "white is zero": dict(data=255 - SCAN, photometric="miniswhite"),
        "white is zero, deep": dict(data=65535 - WIDE, photometric="miniswhite"),
        "int16": dict(data=(SCAN.astype(np.int16))),
        "RGB": dict(data=colour, photometric="rgb"),
        "planes": dict(data=np.moveaxis(colour, -1, 0), photometric="rgb", planarconfig="separate"),
        "RGB16": dict(data=colour.astype(np.uint16) * 257, photometric="rgb"),
        "RGB16, tiles": dict(data=colour.astype(np.uint16) * 257, photometric="rgb", tile=(32, 32), compression="zlib"),
    }
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    for name, options in written.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", **options)
        image = read_image(tmp_path / f"{name}.tif")
        right = luma if "RGB" in name or name == "planes" else np.round(SCAN / 257) if name == "int16" else SCAN
        assert (image == right).all(), name
    assert (read_image(tmp_path / "planes.tif", 3) == colour).all()


def test_white_is_zero_in_compressed_pages_too(tmp_path):
    for values, name in ((255 - SCAN, "a"), (65535 - WIDE, "b")):
        Image.fromarray(values).save(tmp_path / f"{name}.tif", compression="tiff_lzw", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:  # the tag was written
        assert image.tag_v2[262] == 0
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].photometric == 0
    assert (read_image(tmp_path / "b.tif") == SCAN).all()


@pytest.mark.parametrize("order", "<>")
def test_a_stack_with_one_directory_has_all_its_slices(tmp_path, order):
    pages = np.stack([bscan(k, 64, 80) for k in range(5)])
    one_directory(tmp_path / "a.tif", pages, order)
    assert [(read_image(p) == page).all() for p, page in zip(slices(tmp_path / "a.tif"), pages, strict=True)] == [True] * 5
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"a\.tif"):
        [read_image(p) for p in slices(tmp_path / "a.tif")]


def test_hyperstacks_of_imagej_keep_order_and_spacing(tmp_path):
    pages = np.stack([bscan(k, 64, 80) for k in range(6)])
    facts = dict(imagej=True, resolution=(1 / 5.5, 1 / 3.25), metadata={"unit": "micron", "axes": "ZCYX"})
    tifffile.imwrite(tmp_path / "a.tif", pages.reshape(3, 2, 64, 80), **facts)
    names = slices(tmp_path / "a.tif")
    assert len(names) == 6 and all((read_image(p) == page).all() for p, page in zip(names, pages, strict=True))
    assert read_scan(names[2]).facts.pixel_um == pytest.approx((5.5, 3.25), rel=1e-4)


def test_thumbnails_and_pyramids_are_no_slices(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(SCAN, subifds=1)
        file.write(SCAN[::2, ::2], subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as file:
        file.write(SCAN, metadata=None)
        file.write(SCAN[::4, ::4].copy(), subfiletype=1, metadata=None)
    with tifffile.TiffWriter(tmp_path / "first.tif") as file:  # the thumbnail first
        file.write(SCAN[::4, ::4].copy(), subfiletype=1, metadata=None)
        file.write(SCAN, metadata=None)
    for name in ("pyramid", "thumb", "first"):
        assert slices(tmp_path / f"{name}.tif") == [tmp_path / f"{name}.tif"]
        assert (read_image(tmp_path / f"{name}.tif") == SCAN).all()


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (SCAN.astype(np.float16), {}, "floating-point"),
        (SCAN.astype(np.float64), {}, "floating-point"),
        (np.full_like(SCAN, np.nan, np.float32), {}, "floating-point"),
        (SCAN.astype(np.int16) - 100, {}, "below 0"),
        (SCAN.astype(np.uint32) * 1000, {}, "not 16-bit"),
        (np.stack([SCAN] * 5, -1), dict(photometric="minisblack", planarconfig="contig"), "5 values a pixel"),
        (np.stack([SCAN] * 2, -1), dict(photometric="minisblack", planarconfig="contig"), "2 values a pixel"),
        (SCAN.astype(np.complex64), {}, "complex64"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path, data, options, said):
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    with pytest.raises(UserError, match=f"a.tif: holds .*{said}|a.tif: .*{said}"):
        read_image(tmp_path / "a.tif")


def test_transparent_pixels_of_a_tiff_are_white(tmp_path):
    rgba = np.stack([SCAN, SCAN, SCAN, np.full_like(SCAN, 255)], -1)
    rgba[:20, :, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(tmp_path / "a.tif")
    assert (image[:20] == 255).all() and (image[20:] == SCAN[20:]).all()


def test_a_tiff_that_is_cut_off_is_refused(tmp_path):
    for name, options in {"plain": {}, "strips": dict(rowsperstrip=9), "zip": dict(compression="zlib", rowsperstrip=9)}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, SCAN, metadata=None, **options)
        whole = path.read_bytes()
        for part in (0.3, 0.8, 0.99):
            path.write_bytes(whole[: int(part * len(whole))])
            with pytest.raises(UserError, match=rf"{name}\.tif"):
                read_image(path)


def test_a_volume_is_opened_once(tmp_path, monkeypatch):
    pages = np.stack([SCAN[:40, :44]] * 30)
    tifffile.imwrite(tmp_path / "eye-1-1.tif", pages)
    tifffile.imwrite(tmp_path / "lzw.tif", pages)
    opened, original = [], kinds.Tiff.__init__
    monkeypatch.setattr(kinds.Tiff, "__init__", lambda self, path: (opened.append(path), original(self, path))[1])
    for path in (tmp_path / "eye-1-1.tif", tmp_path / "lzw.tif"):
        assert sum((read_image(p) == SCAN[:40, :44]).all() for p in slices(path)) == 30
    assert len(opened) == 2
    written, _, failed, _ = upscale_files(tmp_path / "lzw.tif", tmp_path / "out", Generator(2, width=4, blocks=1))
    assert len(written) == 30 and not failed and len(opened) == 2


# ------------------------------------------------------------------------------------------------ bits
TWELVE = (SCAN.astype(int) * 4095 // 255).astype(np.uint16)
SHOWN = np.round(TWELVE / 4095 * 255).astype(np.uint8)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_unpacked(tmp_path, bits):
    values = SCAN.astype(int) * (2**bits - 1) // 255
    packed(tmp_path / "a.tif", values, bits)
    scan = read_scan(tmp_path / "a.tif", deep=True)
    assert scan.white == 2**bits - 1 and (np.round(scan.image * (scan.white / 65535)) == values).all()
    assert (read_image(tmp_path / "a.tif") == np.round(values * 255 / (2**bits - 1))).all()


def test_twelve_bits_in_sixteen(tmp_path, capsys):
    Image.fromarray(TWELVE).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "stated.tif", TWELVE, extratags=[(281, 3, 1, 4095, True)], metadata=None)
    tifffile.imwrite(tmp_path / "brightest.tif", TWELVE, extratags=[(281, 3, 1, int(TWELVE.max()) - 1, True)], metadata=None)
    assert "12 bits" in few_values(read_scan(tmp_path / "a.png")) and not few_values(read_scan(tmp_path / "a.png", bits=12))
    assert (read_image(tmp_path / "a.png", bits=12) == SHOWN).all() and (read_image(tmp_path / "stated.tif") == SHOWN).all()
    assert read_scan(tmp_path / "brightest.tif").white == 65535  # that tag may hold an image's own maximum, which is no depth
    with pytest.raises(UserError, match=r"a\.png: values from \d+ to \d+ are not of 11 bits"):
        read_image(tmp_path / "a.png", bits=11)
    assert (read_image(tmp_path / "a.png", 3, bits=12) == SHOWN[..., None]).all()


def test_twelve_bits_through_upscale_and_evaluate(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(TWELVE).save(tmp_path / "in/a.png")
    assert main(["upscale", str(tmp_path / "in"), str(tmp_path / "dim"), "--weights", "srresnet"]) == 0
    assert "if they have 12 bits" in capsys.readouterr().err
    assert main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), "--weights", "srresnet", "--bits", "12"]) == 0
    assert "12 bits" not in capsys.readouterr().err
    with Image.open(tmp_path / "out/a.png") as sr:
        values = np.asarray(sr)
        assert values.dtype == np.uint16 and values.max() <= 4095 and sr.info["Values"] == "0 to 4095"
    small = values.reshape(124, 4, 136, 4).mean((1, 3))
    assert np.abs(small - TWELVE).mean() < 40  # the source's own range
    hr = np.kron(TWELVE, np.ones((4, 4), np.uint16))
    (tmp_path / "hr").mkdir()
    Image.fromarray(hr).save(tmp_path / "hr/a.png")
    found = evaluate_folders(tmp_path / "out", tmp_path / "hr", steps=0, bits=12)
    assert not found.warned and found.table.psnr.min() > 15
    dicom(tmp_path / "hr/a.dcm", np.stack([hr]), bits=12)  # this one says itself what it has, and so does what upscale wrote
    (tmp_path / "hr/a.png").rename(tmp_path / "b.png")
    assert evaluate_folders(tmp_path / "out", tmp_path / "hr", steps=0).table.psnr.equals(found.table.psnr)
    (tmp_path / "hr/a.dcm").unlink()
    (tmp_path / "b.png").rename(tmp_path / "hr/a.png")
    assert any("12 bits" in line for line in evaluate_folders(tmp_path / "out", tmp_path / "hr", steps=0).warned)


def test_twelve_bits_in_a_run(tmp_path, capsys):
    for k in range(6):
        values = (bscan(k, 64, 80).astype(int) * 4095 // 255).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"NORMAL-{k}-1.png")
    run = Run(tmp_path / "run", load_config("smoke", data=str(tmp_path)))
    run.folder.mkdir()
    assert len(run.make_manifest()) == 6 and "6 image(s) may have fewer bits" in capsys.readouterr().out
    run = Run(tmp_path / "run2", load_config("smoke", data=str(tmp_path), bits=12))
    run.folder.mkdir()
    table = run.make_manifest()
    assert "warning" not in capsys.readouterr().out
    assert run.read(table.path[0]).max() > 100 and run.read(table.path[0], 3).shape == (64, 80, 3)


# ------------------------------------------------------------------------------------------------ known, but not supported
def test_a_known_format_is_called_by_its_name(tmp_path):
    Image.fromarray(SCAN).save(tmp_path / "a.webp")
    Image.fromarray(SCAN).save(tmp_path / "b.gif")
    (tmp_path / "a.webp").rename(tmp_path / "a.png")
    np.save(tmp_path / "c.npy", SCAN)
    with pytest.raises(UserError, match=r"a\.png: is a WebP file, which is not supported; convert"):
        read_image(tmp_path / "a.png")
    left: list = []
    assert find_images(tmp_path, left) == [tmp_path / "a.png"]
    assert {reason.partition(",")[0] for _, reason in left} == {"holds 1 GIF file", "holds 1 NumPy file"}
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="GIF file, which"):
        find_images(tmp_path)


# ------------------------------------------------------------------------------------------------ Heidelberg
SECRETS = ("SECRET", "Study-01")  # long enough not to stand in a picture by chance


def vol(path, seed=0, who="SECRET^NAME", scans=4, eye="OS"):
    """A .vol of random reflectivity, which is returned."""
    data = np.random.default_rng(seed).gamma(2, 0.02, (scans, 64, 80)).astype(np.float32)
    data[:, :, :8] = np.finfo(np.float32).max
    sizes = struct.pack("<3I3d2I2dId", 80, scans, 64, 0.0115, 0.12, 0.00387, 8, 8, 0.1, 0.1, 30, 0.0)
    names = struct.pack(
        "<4sQiI16s16sI24sdI24sd4I34s",
        eye.encode(),
        10**17,
        3,
        256,
        b"1",
        b"1",
        7 * bool(who),
        who.encode(),
        18_000.0,
        1,
        b"",
        4e4,
        0,
        0,
        0,
        0,
        b"",
    )
    content = b"HSF-OCT-103\0" + sizes + names + bytes(1790 + 64)
    for k in range(scans):
        head = struct.pack("<12sI4d2IfI6f", b"HSF-BS-103", 256, 1.0, 0.1 * k, 2.0, 0.1 * k, 0, 256, 20.0, 0, *[0.0] * 6)
        content += head + bytes(168) + data[k].tobytes()
    path.write_bytes(content)
    return data


def everything(folder):
    """All that was written below a folder, names and content, with the pictures' metadata."""
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder))
        if path.is_file() and path.name != SALT:
            yield path.read_bytes().decode("latin-1")


def test_reflectivity_has_a_stated_transform():
    values = np.array([[0, 1e-3, 0.1, 1, 2, np.nan, -1, np.finfo(np.float32).max]], np.float32)
    from eyepy.core.utils import from_vol_intensity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (grey(values)[0, :5] == from_vol_intensity(values[:, :5].copy())[0]).all()
    assert (grey(values)[0, 5:] == 0).all()
    assert grey(values, "fourth-root")[0].tolist() == [0, 45, 143, 255, 255, 0, 0, 0]


def test_a_vol_is_read_as_eyepy_reads_it(tmp_path):
    import eyepy

    data = vol(tmp_path / "a.vol")
    right = eyepy.import_heyex_vol(tmp_path / "a.vol").data
    assert (np.stack([read_image(p) for p in slices(tmp_path / "a.vol")]) == right).all() and right.max() > 100
    assert (read_image(tmp_path / "a.vol#2", reflectivity="fourth-root") == grey(data[1], "fourth-root")).all()
    facts = read_scan(tmp_path / "a.vol#2").facts
    assert facts.pixel_um == pytest.approx((11.5, 3.87)) and facts.laterality == "OS"
    assert facts.position == "x 1.000 y 0.100 to x 2.000 y 0.100 mm of the fundus image"
    content = (tmp_path / "a.vol").read_bytes()
    for wrong in (content[:100], content[:-5], content[:12] + struct.pack("<I", 10**9) + content[16:]):
        (tmp_path / "a.vol").write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.vol: "):
            slices(tmp_path / "a.vol")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the sample files beside the checkout")
def test_samples_are_read_as_eyepy_reads_them():
    import eyepy

    for path, right in (
        (SHARED / "test_volume.vol", eyepy.import_heyex_vol(SHARED / "test_volume.vol")),
        (SHARED / "heyex_xml/test_dummy.xml", eyepy.import_heyex_xml(SHARED / "heyex_xml")),
    ):
        names = slices(path)
        assert (np.stack([read_image(p) for p in names]) == right.data).all()
        facts = read_scan(names[3]).facts
        assert facts.pixel_um == pytest.approx((1000 * right.scale_x, 1000 * right.scale_y)) and facts.laterality == "OD"


def export(folder, eyes=("R", "L"), encoding="utf-8"):
    """An XML export of one patient, a series for each eye, three B-scans each."""
    folder.mkdir()
    Image.fromarray(SCAN).save(folder / "NIR1.tif")
    series = ""
    for s, eye in enumerate(eyes):
        images = (
            "<Image><ImageType><Type>LOCALIZER</Type></ImageType><ImageData><ExamURL>file:///\\\\d\\NIR1.tif</ExamURL></ImageData></Image>"
        )
        for k in range(3):
            Image.fromarray(bscan(10 * s + k, 64, 80)).save(folder / f"b{s}{k}.tif")
            images += (
                "<Image><ImageType><Type>OCT</Type></ImageType><OphthalmicAcquisitionContext><ScaleX>0.01</ScaleX><ScaleY>0.004</ScaleY>"
                f"</OphthalmicAcquisitionContext><ImageData><ExamURL>file:///\\\\d\\B{s}{k}.TIF</ExamURL></ImageData></Image>"
            )
        series += f"<Series><Laterality>{eye}</Laterality>{images}</Series>"
    text = f"<HEDX><BODY><Patient><LastName>SECRETMüller</LastName><PatientID>SECRET7</PatientID><Study>{series}</Study></Patient></BODY></HEDX>"
    (folder / "export.xml").write_bytes(text.encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_an_export_is_one_volume_of_both_eyes(tmp_path, encoding):
    export(tmp_path / "case", encoding=encoding)
    left: list = []
    assert find_images(tmp_path, left) == [tmp_path / "case/export.xml"]
    assert left == [(tmp_path / "case/NIR1.tif", "belongs to export.xml, but is no B-scan")]
    names = slices(tmp_path / "case/export.xml")
    assert len(names) == 6 and [read_scan(p).facts.laterality for p in names] == ["OD"] * 3 + ["OS"] * 3
    assert (read_image(names[4]) == bscan(11, 64, 80)).all() and read_scan(names[4]).facts.pixel_um == pytest.approx((10, 4))
    (tmp_path / "case/b11.tif").unlink()
    with pytest.raises(UserError, match=r"export\.xml: the image of B-scan 5 is not beside it"):
        read_image(names[4])


def test_an_export_that_is_not_whole_tears_no_eye_apart(tmp_path):
    for name, change in (
        ("cut", lambda p: p.write_bytes(p.read_bytes()[:900])),
        ("renamed", lambda p: (p.parent / "b01.tif").rename(p.parent / "x.tif")),
    ):
        export(tmp_path / name)
        change(tmp_path / name / "export.xml")
        left: list = []
        assert find_images(tmp_path / name, left) == [tmp_path / name / "export.xml"]
        assert sum("may belong to it" in reason for _, reason in left) == (7 if name == "cut" else 1)
    export(tmp_path / "wide")
    file = tmp_path / "wide/export.xml"
    file.write_bytes(file.read_text().replace("\\B1", "\\%421").encode("utf-16"))
    assert find_images(tmp_path / "wide") == [file] and len(slices(file)) == 6
    assert (read_image(f"{file}#5") == bscan(11, 64, 80)).all()


def test_upscale_keeps_what_it_made_of_another_image(tmp_path, capsys):
    network, other = Generator(2, width=4, blocks=1), Generator(2, width=4, blocks=1)
    torch.nn.init.normal_(other.tail.weight, std=0.1)
    for k, folder in enumerate(("P1", "P2")):
        (tmp_path / folder).mkdir()
        Image.fromarray(bscan(k, 64, 80)).save(tmp_path / folder / "000.png")
    (first,), _, _, _ = upscale_files(tmp_path / "P1", tmp_path / "out", network)
    before = first.read_bytes()
    assert (
        "was made from something else" in upscale_files(tmp_path / "P2", tmp_path / "out", network)[2][0] and first.read_bytes() == before
    )
    written, _, _, _ = upscale_files(tmp_path / "P1", tmp_path / "out", other, "another")
    assert written == [first] and re.search(r"written anew: .*000\.png, which was made by this network", capsys.readouterr().out)
    Image.fromarray(bscan(5, 64, 80)).save(tmp_path / "P1/000.png")  # the same source, changed
    assert upscale_files(tmp_path / "P1", tmp_path / "out", other, "another")[0] == [first]


def test_commands_write_over_no_file_of_others(tmp_path, capsys):
    Image.fromarray(SCAN).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert main(["phantom", str(tmp_path / "a.png")]) == 1 and "is there, and is another image" in capsys.readouterr().err
    assert main(["phantom", str(tmp_path / "p.png")]) == main(["phantom", str(tmp_path / "p.png")]) == 0
    for folder in ("sr", "hr"):
        (tmp_path / folder).mkdir()
        Image.fromarray(SCAN).save(tmp_path / folder / "a.png")
    (tmp_path / "notes.csv").write_text("mine\n")
    for out in ("a.png", "notes.csv"):
        assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--steps", "0", "--out", str(tmp_path / out)]) == 1
        assert "is no table that evaluate wrote" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before and (tmp_path / "notes.csv").read_text() == "mine\n"
    for _ in range(2):
        assert main(["evaluate", str(tmp_path / "sr"), str(tmp_path / "hr"), "--steps", "0", "--out", str(tmp_path / "t.csv")]) == 0
    assert "1 image(s) left out of PSNR: SR equals HR\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["upscale", "", "out"], ["upscale", "a.png", ""], ["evaluate", " ", "hr"], ["phantom", ""]])
def test_an_empty_path_is_not_the_current_folder(command, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert "is empty; give a path" in capsys.readouterr().err


def test_upscale_writes_over_nothing_that_it_did_not_make(tmp_path):
    network = Generator(2, width=4, blocks=1)
    (tmp_path / "out").mkdir()
    Image.fromarray(SCAN).save(tmp_path / "a.bmp")
    Image.fromarray(SCAN[:60]).save(tmp_path / "a.jpg")
    Image.fromarray(SCAN).save(tmp_path / "out/a.png")
    before = (tmp_path / "out/a.png").read_bytes()
    _, _, failed, _ = upscale_files(tmp_path / "a.bmp", tmp_path / "out", network)
    assert "is there and was made from something else" in failed[0] and (tmp_path / "out/a.png").read_bytes() == before
    (tmp_path / "out/a.png").unlink()
    assert len(upscale_files(tmp_path / "a.bmp", tmp_path / "out", network)[0]) == 1
    assert "something else" in upscale_files(tmp_path / "a.jpg", tmp_path / "out", network)[2][0]
    assert len(upscale_files(tmp_path / "a.bmp", tmp_path / "out", network, ensemble=True)[0]) == 1  # its own, made in another way


# ------------------------------------------------------------------------------------------------ DICOM
def dicom(path, frames, who="SECRET^NAME", bits=8, photometric="MONOCHROME2", sop=OphthalmicTomographyImageStorage, **fields):
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = sop
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.PatientName, d.PatientID, d.PatientBirthDate = who, f"SECRET-{who}", "19500101"
    d.Modality, d.Laterality = "OPT", "L"
    d.Rows, d.Columns = frames.shape[1:3]
    d.NumberOfFrames, d.SamplesPerPixel, d.PhotometricInterpretation = len(frames), 1 if frames.ndim == 3 else 3, photometric
    if frames.ndim == 4:
        d.PlanarConfiguration = 0
    d.BitsAllocated = 8 * frames.dtype.itemsize
    d.BitsStored, d.HighBit, d.PixelRepresentation = bits, bits - 1, 0
    measures = Dataset()
    measures.PixelSpacing = [0.0039, 0.0117]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    d.SharedFunctionalGroupsSequence = [shared]
    each = []
    for k in range(len(frames)):
        where, own = Dataset(), Dataset()
        where.ReferenceCoordinates = [10.0 * k, 1.0, 10.0 * k, 500.0]
        own.OphthalmicFrameLocationSequence = [where]
        each.append(own)
    d.PerFrameFunctionalGroupsSequence = each
    d.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    for name, value in fields.items():
        setattr(d, name, value)
    d.save_as(path, enforce_file_format=True)


def test_dicom_frames_are_slices(tmp_path):
    frames = np.stack([bscan(k, 64, 80) for k in range(3)])
    dicom(tmp_path / "1.2.840.7", frames)
    assert find_images(tmp_path) == [tmp_path / "1.2.840.7"]
    names = slices(tmp_path / "1.2.840.7")
    assert (np.stack([read_image(p) for p in names]) == frames).all()
    facts = read_scan(names[2]).facts
    assert facts.pixel_um == pytest.approx((11.7, 3.9)) and facts.laterality == "OS"
    assert facts.position == "row 20 column 1 to row 20 column 500 of the fundus image"
    written, _, failed, _ = upscale_files(tmp_path, tmp_path / "out", Generator(2, width=4, blocks=1))
    assert [p.name for p in written] == [f"1.2.840.7#{k}.png" for k in (1, 2, 3)] and not failed
    with Image.open(written[2]) as image:
        assert (
            image.info["Pixel size (um)"] == "5.85 x 1.95" and image.info["Laterality"] == "OS" and "row 20" in image.info["Scan position"]
        )


def test_dicom_depths_and_colours(tmp_path):
    twelve = np.stack([TWELVE])
    dicom(tmp_path / "a.dcm", twelve, bits=12)
    dicom(tmp_path / "b.dcm", 4095 - twelve, bits=12, photometric="MONOCHROME1")
    for name in "ab":
        assert (read_image(tmp_path / f"{name}.dcm") == SHOWN).all() and read_scan(tmp_path / f"{name}.dcm").white == 4095
    colour = np.stack([np.stack([SCAN, SCAN // 2, SCAN // 3], -1)])
    dicom(tmp_path / "c.dcm", colour, photometric="RGB")
    assert (read_image(tmp_path / "c.dcm", 3) == colour[0]).all()


def test_dicom_that_is_a_tiff_too_and_other_codings(tmp_path):
    """pydicom's own files: a preamble that begins as a TIFF, halved colours, deflated, RLE, and a compression that needs more than Pillow."""
    from pydicom.data import get_testdata_file

    for name, right in (("MR_small.dcm", "MR_small_RLE.dcm"), ("SC_ybr_full_422_uncompressed.dcm", ""), ("image_dfl.dcm", "")):
        d = pydicom.dcmread(get_testdata_file(name))
        image = read_image(get_testdata_file(name), d.SamplesPerPixel)
        assert image.shape[:2] == (d.Rows, d.Columns) and (not right or (image == read_image(get_testdata_file(right))).all())
    dicom(tmp_path / "one.dcm", np.stack([SCAN // 64]), bits=2)
    assert (read_image(tmp_path / "one.dcm") == SCAN // 64 * 85).all()
    with pytest.raises(UserError, match=r"MR_small_jpeg_ls_lossless\.dcm: its compression, JPEG-LS .*, cannot be undone here"):
        read_image(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))


def test_dicom_without_a_bscan_is_refused_by_its_kind(tmp_path):
    frames = np.stack([SCAN])
    dicom(tmp_path / "fundus.dcm", frames, sop=OphthalmicPhotography8BitImageStorage)
    with pytest.raises(UserError, match=r"fundus\.dcm: is a fundus photograph"):
        read_image(tmp_path / "fundus.dcm")
    dicom(tmp_path / "many.dcm", frames, NumberOfFrames=2_000_000_000)
    with pytest.raises(UserError, match=r"many\.dcm: is cut off"):
        slices(tmp_path / "many.dcm")
    d = pydicom.dcmread(tmp_path / "fundus.dcm")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(d, name)
    d.save_as(tmp_path / "report.dcm")
    with pytest.raises(UserError, match=r"report\.dcm: is a DICOM file without an image"):
        read_image(tmp_path / "report.dcm")


def test_errors_of_damaged_files_quote_none_of_their_fields(tmp_path):
    frames = np.stack([bscan(k, 64, 80) for k in range(3)])
    dicom(tmp_path / "a.dcm", frames)
    vol(tmp_path / "a.vol")
    rng = np.random.default_rng(0)
    for name in ("a.dcm", "a.vol"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            for at in rng.integers(132, 3000, 6):
                content[at] = int(rng.integers(256))
            (tmp_path / name).write_bytes(content[: int(rng.integers(2000, len(content)))])
            try:
                for part in slices(tmp_path / name):
                    read_scan(part)
            except UserError as error:
                assert "SECRET" not in str(error)


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    vol(tmp_path / "a.vol")
    for name in [n for n in sys.modules if n.partition(".")[0] == "eyepy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "eyepy", None)
    with pytest.raises(UserError, match=r'a\.vol: reading it needs eyepy; pip install "\.\[formats\]"'):
        read_image(tmp_path / "a.vol#1")


# ------------------------------------------------------------------------------------------------ a run on them
@pytest.fixture
def instruments_folder(tmp_path):
    """Three patients' volumes and one's export, and a second volume of the first patient under another name."""
    data = tmp_path / "data"
    data.mkdir()
    for k in range(3):
        vol(data / f"scan{k}.vol", k, f"SECRET^{k}")
    vol(data / "again.vol", 7, "SECRET^0", eye="OD")
    dicom(data / "IM0001", np.stack([bscan(k, 64, 80) for k in range(3)]), "SECRET^9")
    export(data / "case")
    return data


def test_patients_are_hashed_with_the_runs_salt(tmp_path, instruments_folder, capsys):
    tables = []
    for k in range(2):
        run = Run(tmp_path / f"run{k}", load_config("smoke", data=str(instruments_folder)))
        run.folder.mkdir()
        tables.append(run.make_manifest())
        assert run.make_manifest().equals(tables[-1])  # the folder keeps its salt
    one, two = tables
    patient = one.set_index("path").patient
    assert patient["scan0.vol#1"] == patient["again.vol#2"] and patient.nunique() == 5
    assert patient.str.fullmatch("[0-9a-f]{12}").all() and not set(one.patient) & set(two.patient)
    assert (one.split == two.split).all()  # which does not depend on the salt
    assert one.set_index("path").loc["scan0.vol#1", ["pixel_width_um", "pixel_height_um", "laterality"]].tolist() == [11.5, 3.87, "OS"]
    assert one.attrs["skipped"] == [("case/NIR1.tif", "belongs to export.xml, but is no B-scan")]
    read = Run(tmp_path / "run0", run.config).manifest
    assert read.laterality.tolist() == one.laterality.tolist()
    written, _, _, _ = upscale_files(instruments_folder, tmp_path / "out", Generator(2, width=4, blocks=1))
    assert len(written) == len(one)
    capsys.readouterr()
    for folder in ("run0", "run1", "out"):
        for text in everything(tmp_path / folder):
            assert not any(secret in text for secret in SECRETS)


def test_who_a_patient_is(tmp_path):
    """The identifier alone decides; a file that names nobody is its own patient, or its path's; what the path says counts too."""
    for k in range(4):
        vol(tmp_path / f"nobody{k}.vol", k, "")
    frames = np.stack([bscan(k, 64, 80) for k in range(3)])
    for k, name in enumerate(("Doe^John", "DOE^JOHN", "")):
        dicom(tmp_path / f"d{k}.dcm", frames[k : k + 1], name, PatientID="SECRET 5")
    dicom(tmp_path / "anonymous1.dcm", np.stack([bscan(40, 64, 80)]), "", PatientID="ANONYMOUS")
    dicom(tmp_path / "anonymous2.dcm", np.stack([bscan(41, 64, 80)]), "", PatientID="ANONYMOUS")
    for folder in ("P1", "P2", "P3"):
        (tmp_path / folder).mkdir()
        vol(tmp_path / folder / "v.vol", ord(folder[1]), f"SECRET{folder}")
        Image.fromarray(bscan(ord(folder[1]), 64, 80)).save(tmp_path / folder / "x.png")
    table = build_manifest(tmp_path, patient_pattern=r"^(P\d)/", salt=tmp_path / "salt").set_index("path")
    assert table.loc[[f"d{k}.dcm" for k in range(3)]].patient.nunique() == 1
    apart = [f"nobody{k}.vol#1" for k in range(4)] + ["anonymous1.dcm", "anonymous2.dcm"]
    assert table.loc[apart].patient.tolist() == [name.partition("#")[0] for name in apart]
    assert all(table[table.index.str.startswith(folder)].split.nunique() == 1 for folder in ("P1", "P2", "P3"))
    few = [fewer_patients(build_manifest(tmp_path, salt=tmp_path / name), 2).path.tolist() for name in ("salt", "other")]
    assert few[0] == few[1]
    (tmp_path / "salt").write_text("")
    with pytest.raises(UserError, match="salt holds no salt"):
        build_manifest(tmp_path, salt=tmp_path / "salt")


def test_deep_colour_and_pages_with_tags_of_their_own(tmp_path):
    colour = np.stack([TWELVE, TWELVE // 2, TWELVE // 3], -1)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    written, _, _, _ = upscale_files(
        tmp_path / "rgb.tif", tmp_path / "out", Generator(2, channels=3, width=4, blocks=1, global_skip=True), bits=12
    )
    with Image.open(written[0]) as sr:
        assert np.asarray(sr).dtype == np.uint8 and np.asarray(sr).max() > 150
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        file.write(WIDE, metadata=None)
        file.write(
            np.rot90(WIDE, 2).copy(), metadata=None, extratags=[(274, 3, 1, 3, True)], resolution=(1e4 / 5, 1e4 / 4), resolutionunit=3
        )
        file.write(TWELVE, metadata=None, extratags=[(281, 3, 1, 4095, True)])
    assert (read_image(tmp_path / "pages.tif#2") == SCAN).all() and (read_image(tmp_path / "pages.tif#3") == SHOWN).all()
    assert read_scan(tmp_path / "pages.tif#2").facts.pixel_um == pytest.approx((5, 4), rel=1e-3)


def png16(path, values):
    """A PNG of 16 bit, grey and alpha, RGB or RGBA."""
    h, w, samples = values.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {2: 4, 3: 2, 4: 6}[samples], 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    )
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_bits_hold_for_colours_alpha_and_compressed_pages(tmp_path):
    """12 bits by the setting or by MaxSampleValue, whatever the page is packed in."""
    opaque = np.full_like(TWELVE, 4095)
    kinds = {"la": [TWELVE, opaque], "rgb": [TWELVE] * 3, "rgba": [TWELVE] * 3 + [opaque], "rgba16": [TWELVE] * 3 + [opaque * 0 + 65535]}
    for name, planes in kinds.items():
        png16(tmp_path / f"{name}.png", np.stack(planes, -1))
    tifffile.imwrite(tmp_path / "alpha.tif", np.stack(kinds["rgba"], -1), photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "grey_alpha.tif", np.stack(kinds["la"], -1), photometric="minisblack", extrasamples=["unassalpha"])
    cv2.imwrite(str(tmp_path / "lzw.tif"), np.stack(kinds["rgb"], -1), [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    for file in sorted(tmp_path.iterdir()):
        assert (read_image(file, bits=12) == SHOWN).all(), file.name
        assert (read_image(file, 3, bits=12) == SHOWN[..., None]).all(), file.name
    clear = np.where(np.arange(SCAN.shape[1]) < 40, 0, 4095).astype(np.uint16) * np.ones_like(TWELVE)
    png16(tmp_path / "clear.png", np.stack([TWELVE, clear], -1))
    assert (read_image(tmp_path / "clear.png", bits=12) == np.where(clear == 0, 255, SHOWN)).all()
    packed(tmp_path / "deflated.tif", TWELVE, 12, compression=8)
    assert (read_image(tmp_path / "deflated.tif") == SHOWN).all()
    Image.fromarray(TWELVE).save(tmp_path / "stated.tif", compression="tiff_lzw", tiffinfo={281: 0})  # libtiff makes 1 of any value
    with tifffile.TiffFile(tmp_path / "stated.tif", mode="r+b") as file:
        file.filehandle.seek(file.pages[0].tags[281].valueoffset)
        file.filehandle.write(struct.pack("<H", 4095))
    assert read_scan(tmp_path / "stated.tif").white == 4095 and (read_image(tmp_path / "stated.tif") == SHOWN).all()


def test_colours_that_are_multiplied_by_alpha_lie_on_white(tmp_path):
    half = np.full(SCAN.shape, 128, np.uint8)
    for name, planes in (("grey", [SCAN // 2, half]), ("rgb", [SCAN // 2] * 3 + [half])):
        how = "rgb" if name == "rgb" else "minisblack"
        tifffile.imwrite(tmp_path / f"{name}.tif", np.stack(planes, -1), photometric=how, extrasamples=["assocalpha"])
        assert (read_image(tmp_path / f"{name}.tif") == SCAN // 2 + 127).all()
    inverted = np.stack([255 - SCAN, np.full_like(SCAN, 255)], -1)
    tifffile.imwrite(tmp_path / "i.tif", inverted, photometric="miniswhite", extrasamples=["unassalpha"])
    assert (read_image(tmp_path / "i.tif") == SCAN).all()


def test_pages_of_unlike_sizes_keep_their_order(tmp_path):
    pages = [SCAN, SCAN[:80], SCAN[1:], SCAN[2:82]]
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        for page in pages:
            file.write(page, metadata=None)
    assert [read_image(name).tolist() for name in slices(tmp_path / "v.tif")] == [page.tolist() for page in pages]


def test_a_relative_path_means_the_folder_of_its_time(tmp_path, monkeypatch):
    for k in range(2):
        (tmp_path / f"{k}").mkdir()
        tifffile.imwrite(tmp_path / f"{k}/v.tif", np.stack([bscan(k, 64, 80), SCAN[:64, :80]]), photometric="minisblack")
        os.utime(tmp_path / f"{k}/v.tif", (1e9, 1e9))
        monkeypatch.chdir(tmp_path / f"{k}")
        assert (read_image("v.tif#1") == bscan(k, 64, 80)).all()


def test_dicom_values_above_its_depth_are_not_cut(tmp_path):
    dicom(tmp_path / "d.dcm", WIDE[None], bits=12)
    with pytest.raises(UserError, match="are not of 12 bits; set bits to their depth"):
        read_image(tmp_path / "d.dcm")
    assert (read_image(tmp_path / "d.dcm", bits=16) == SCAN).all()


def test_an_image_of_an_export_with_two_pages_is_refused(tmp_path):
    export(tmp_path / "case")
    tifffile.imwrite(tmp_path / "case/b01.tif", np.stack([SCAN, SCAN]), photometric="minisblack")
    with pytest.raises(UserError, match=r"b01\.tif: holds 2 images, but is one B-scan of export\.xml"):
        read_image(tmp_path / "case/export.xml#2")


def test_what_a_manifest_lists_and_does_not_take(tmp_path):
    for k in range(3):
        vol(tmp_path / f"v{k}.vol", k, f"SECRET{k}", scans=2)
    dicom(tmp_path / "looks.tif", np.stack([bscan(9, 64, 80)]))
    dicom(tmp_path / "DICOMDIR", np.stack([bscan(9, 64, 80)]))
    Image.fromarray(SCAN).save(tmp_path / "one\rtwo.png")
    table = build_manifest(tmp_path, salt=tmp_path / "salt")
    assert set(table.path) == {f"v{k}.vol#{n}" for k in range(3) for n in (1, 2)}
    assert sorted(table.attrs["skipped"]) == [
        ("DICOMDIR", "is an index of DICOM files and holds no image"),
        ("looks.tif", "is no picture, whatever its name says; call it looks.dcm"),
        (r"one\rtwo.png", "its name is not valid Unicode or holds a carriage return; rename it"),
    ]


def test_max_images_counts_the_slices_of_volumes(tmp_path):
    for k in range(6):
        vol(tmp_path / f"v{k}.vol", k, f"SECRET{k}", scans=4)
    sizes = {most: len(build_manifest(tmp_path, salt=tmp_path / "salt", max_images=most)) for most in (1, 17, 20, 24)}
    assert sizes == {1: 12, 17: 16, 20: 20, 24: 24}


def test_a_changed_image_of_an_export_is_seen(tmp_path, monkeypatch):
    """By the memory of large folders, by the training's decoded images and by a sweep's hash of its data."""
    monkeypatch.setattr(inspection, "REMEMBER_FROM", 1)
    monkeypatch.setattr(inspection, "data_home", lambda: tmp_path / "home")
    export(tmp_path / "data")
    crops = Crops([tmp_path / "data/export.xml#2"], 48, 4, decoded=tmp_path / "home")

    def seen():
        (found,) = inspect_files(tmp_path / "data", ["export.xml"])
        return found[1][1], crops.images(0)[0].tobytes(), data_hash(str(tmp_path / "data"))

    first = seen()
    crops.cache.clear()
    assert seen() == first
    Image.fromarray(bscan(50, 64, 80)).save(tmp_path / "data/b01.tif")
    crops.cache.clear()
    assert not set(seen()) & set(first)


def test_partners_of_dicom_names_without_extension(tmp_path):
    for folder in ("hr", "lr"):
        (tmp_path / folder).mkdir()
    for hr, lr in (("1.2.840.1", "1.2.840.1.png"), ("1.2.840.2.dcm", "1.2.840.2"), ("1.2.840.3", "1.2.840.3.dcm")):
        (tmp_path / "hr" / hr).touch()
        (tmp_path / "lr" / lr).touch()
        assert lr_partner(tmp_path / "hr" / hr) == tmp_path / "lr" / lr


def test_a_salt_that_is_gone_is_asked_for(tmp_path, instruments_folder, monkeypatch):
    run = Run(tmp_path / "run", load_config("smoke", data=str(instruments_folder)))
    run.folder.mkdir()
    first = run.make_manifest()
    monkeypatch.setattr(Run, "is_trained", lambda self, stage: True)
    salt = (run.folder / SALT).read_text()
    (run.folder / SALT).unlink()
    with pytest.raises(UserError, match=r"patients\.salt, with which the patients' names were hashed, is gone; put it back"):
        run.make_manifest()
    (run.folder / SALT).write_text(salt)
    assert run.make_manifest().equals(first)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_compressed_volume_that_is_cut_off_is_refused(tmp_path, share):
    Image.fromarray(SCAN).save(
        tmp_path / "whole.tif", save_all=True, append_images=[Image.fromarray(SCAN[::-1])] * 5, compression="tiff_lzw"
    )
    content = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: int(len(content) * share)])
    assert len(slices(tmp_path / "whole.tif")) == 6
    with pytest.raises(UserError, match=r"cut\.tif: .*(cut off|cannot be read)"):
        slices(tmp_path / "cut.tif")


def test_bits_in_the_other_order_and_maps_of_8_bit(tmp_path):
    packed(tmp_path / "p.tif", TWELVE, 12, fill_order=2)
    assert (read_image(tmp_path / "p.tif") == SHOWN).all()
    table = np.stack([np.arange(255, -1, -1, dtype=np.uint16)] * 3)  # as if it were 8 bit
    tifffile.imwrite(tmp_path / "map.tif", 255 - SCAN, photometric="palette", colormap=table)
    assert (read_image(tmp_path / "map.tif") == SCAN).all()
    packed(tmp_path / "six.tif", (SCAN >> 2).astype(np.uint16), 6)
    with pytest.raises(UserError, match=r"six\.tif: holds 6 bits a value, NONE and MINISBLACK, which is not supported"):
        read_image(tmp_path / "six.tif")


def test_a_folder_without_permission_is_listed(tmp_path, monkeypatch):
    for name in ("a", "locked"):
        (tmp_path / name).mkdir()
        Image.fromarray(SCAN).save(tmp_path / name / "x.png")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode))  # (root may read everything)
    left: list = []
    assert find_images(tmp_path, left) == [tmp_path / "a/x.png"]
    assert left == [(tmp_path / "locked", "cannot be opened (Permission denied)")]


def test_what_lies_beside_an_export_is_listed(tmp_path):
    export(tmp_path / "case")
    Image.fromarray(SCAN).save(tmp_path / "case/extra.tif")
    left: list = []
    assert find_images(tmp_path, left) == [tmp_path / "case/export.xml"]
    assert (
        tmp_path / "case/extra.tif",
        "lies beside export.xml, which does not name it, and may belong to it; move it, if it does not",
    ) in left
    with pytest.raises(UserError, match=r"1 patient\(s\) \(1 by what is said inside the files\).*2 file\(s\) were left out, the first"):
        build_manifest(tmp_path, salt=tmp_path / "salt")


@pytest.mark.parametrize(
    "name", ["N/A", "REMOVED", "ANONYMOUS^PATIENT", "Anonymized", "***", "00000000", "no name", "nan", "Patient", "x^x"]
)
def test_a_word_for_nobody_is_no_patient(tmp_path, name):
    for k in range(3):
        dicom(tmp_path / f"{k}.dcm", np.stack([bscan(k, 64, 80)]), name, PatientID=name)
    assert build_manifest(tmp_path, salt=tmp_path / "salt").patient.nunique() == 3


def test_a_patient_with_and_without_identifier_stays_in_one_split(tmp_path):
    names = {
        "a0": ("P0", "Doe^Jane"),
        "a1": ("", "DOE^JANE"),
        "b0": ("", "Müller^Jörg"),
        "b1": ("", unicodedata.normalize("NFD", "Müller^Jörg")),
    }
    names |= {f"c{k}": (f"C{k}", "Same^Name") for k in range(4)}  # of one name, and different people all the same
    for k, (file, (identifier, name)) in enumerate(names.items()):
        dicom(tmp_path / f"{file}.dcm", np.stack([bscan(k, 64, 80)]), name, PatientID=identifier, SpecificCharacterSet="ISO_IR 192")
    for seed in range(4):
        table = build_manifest(tmp_path, salt=tmp_path / "salt", seed=seed).set_index("path")
        assert table.split["a0.dcm"] == table.split["a1.dcm"] and table.patient["b0.dcm"] == table.patient["b1.dcm"]
    assert table.patient.nunique() == 7


def test_a_damaged_dicom_is_not_blamed_on_its_compression(tmp_path):
    dicom(tmp_path / "whole.dcm", np.stack([bscan(k, 64, 80) for k in range(3)]))
    data = pydicom.dcmread(tmp_path / "whole.dcm")
    data.compress(RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    content = (tmp_path / "rle.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) * 2 // 3])
    assert (read_image(tmp_path / "rle.dcm#3") == bscan(2, 64, 80)).all()
    with pytest.raises(UserError, match=r"cut\.dcm: (is cut off or damaged at frame 3|pydicom cannot read it)"):
        read_image(tmp_path / "cut.dcm#3")


def test_pictures_have_no_further_columns(tmp_path):
    for k in range(4):
        Image.fromarray(bscan(k, 64, 80)).save(tmp_path / f"NORMAL-{k}-1.png")
    assert list(build_manifest(tmp_path)) == ["path", "sha256", "height", "width", "label", "patient", "split"]


# ------------------------------------------------------------------------------------------------ fuzz
def sound_files(folder: Path) -> None:
    """One file of every kind."""
    pages = np.stack([bscan(k, 64, 80) for k in range(3)])
    Image.fromarray(SCAN).save(folder / "a.png")
    Image.fromarray(TWELVE).save(folder / "deep.png")
    Image.fromarray(SCAN).save(folder / "a.jpg", quality=85)
    Image.fromarray(SCAN).save(folder / "lzw.tif", compression="tiff_lzw")
    tifffile.imwrite(folder / "zip.tif", WIDE, compression="zlib", rowsperstrip=16)
    tifffile.imwrite(folder / "tiles.tif", SCAN, tile=(64, 64), bigtiff=True)
    tifffile.imwrite(folder / "pages.tif", pages, imagej=True)
    one_directory(folder / "stack.tif", pages)
    packed(folder / "packed.tif", TWELVE, 12)
    dicom(folder / "a.dcm", pages)
    dicom(folder / "deep.dcm", np.stack([TWELVE]), bits=12)
    vol(folder / "a.vol")


def damaged(content: bytes, rng) -> bytes:
    """Cut, with flipped bytes, with a number in the header that is too large, or all of them."""
    content = bytearray(content)
    head = min(len(content), 3000)
    for _ in range(int(rng.integers(1, 4))):
        what, at = rng.integers(4), int(rng.integers(4, head - 4))
        if what == 0:
            del content[int(rng.integers(1, len(content))) :]
            head = min(len(content), 3000)
            if head < 12:
                break
        elif what == 1:
            content[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0xFFFF, 10**6, 2**31 - 1, 2**32 - 1])))
        else:
            for at in rng.integers(0, len(content) if what == 2 else head, int(rng.integers(1, 20))):
                content[at] = int(rng.integers(256))
    return bytes(content)


FUZZ = """
import sys, time
from pathlib import Path
from srlib.config import UserError
from srlib.data.inspection import inspect_files
from srlib.files import REPOSITORY
from srlib.commands.upscale import upscale_files
from srlib.models import Generator
root, network, slowest = Path(sys.argv[1]), Generator(2, width=4, blocks=1), 0.0
names = sorted(p.name for p in root.iterdir())
start = time.monotonic()
for name, found in zip(names, inspect_files(root, names)):
    slowest, start = max(slowest, time.monotonic() - start), time.monotonic()
    assert found and all(path.partition("#")[0] == name for path, *_ in found), name
    (root.parent / "listed.txt").open("a").write(name + "\\n")
for name in names:
    start = time.monotonic()
    try:
        written, _, failed, _ = upscale_files(root / name, root.parent / "out" / name, network)
        assert written or failed, name
    except UserError as error:
        assert name in str(error), error
    slowest = max(slowest, time.monotonic() - start)
status = Path("/proc/self/status").read_text()  # getrusage counts the parent's peak, too
print(slowest, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


@pytest.mark.slow
def test_500_damaged_files(tmp_path):
    """No crash, no file that takes 10 s, never more than 1 GB, each listed."""
    (tmp_path / "sound").mkdir()
    (tmp_path / "in").mkdir()
    sound_files(tmp_path / "sound")
    kinds, rng = sorted((tmp_path / "sound").iterdir()), np.random.default_rng(0)
    for k in range(500):
        path = kinds[k % len(kinds)]
        (tmp_path / "in" / f"{k:03}-{path.name}").write_bytes(damaged(path.read_bytes(), rng))
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "in")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    slowest, megabytes = map(float, done.stdout.split()[-2:])
    assert slowest < 10 and megabytes < 1000, done.stdout
    assert len((tmp_path / "listed.txt").read_text().split()) == 500


# ------------------------------------------------------------------------------------------------ names
def test_an_ending_that_another_program_added_is_taken_off(tmp_path):
    for k in range(2):
        hr = bscan(k, 96, 112)
        for folder, name in (("hr", f"eye{k}"), ("sr", f"eye{k}_rlt_out"), ("methods/a", f"eye{k}"), ("methods/b", f"eye{k}")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(hr).save(tmp_path / folder / f"{name}.png")
    found = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert found.table.image.nunique() == 2 and not found.failed and found.warned == ["_rlt_out was taken off the names of the SR images"]
    with pytest.raises(UserError, match=r"a/eye0 and b/eye0 all have the name of .*one method at a time"):
        evaluate_folders(tmp_path / "methods", tmp_path / "hr", steps=0)
    Image.fromarray(hr).save(tmp_path / "sr/eye1.png")  # one has its name: then nothing is taken off
    found = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert found.table.image.unique().tolist() == ["eye1"] and len(found.failed) == 2


def test_draws_and_another_result_are_not_mixed(tmp_path):
    for folder, name in (("hr", "eye"), ("sr", "eye"), ("sr", "eye_draw1"), ("sr", "eye_draw2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(bscan(1, 96, 112)).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(UserError, match=r"eye\.png and eye_draw1\.png and eye_draw2\.png have one HR image"):
        evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)


def test_a_number_at_the_end_is_not_taken_off(tmp_path):
    for folder, name in (("hr", "eye"), ("sr", "eye_2")):
        (tmp_path / folder).mkdir()
        Image.fromarray(bscan(1, 96, 112)).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(UserError, match="no HR image named eye_2"):
        evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)


def test_patients_of_an_optional_group(tmp_path):
    for name in ("pt1_a", "pt1_b", "pt2_a", "pt2_b", "pt3_a", "scan_a", "scan_b"):
        Image.fromarray(bscan(sum(name.encode()), 64, 80)).save(tmp_path / f"{name}.png")
    table = build_manifest(tmp_path, patient_pattern=r"(?:pt(\d+))?_[ab]")
    assert table.patient.tolist() == ["1", "1", "2", "2", "3", "scan_a.png", "scan_b.png"] and table.attrs["unnamed"] == 2


def test_equal_names_in_other_folders(tmp_path):
    """A name that is unique is enough, and said, where the trees differ as wholes; not where other images lie in the same folders."""
    for folder, name, seed in (("hr/P1", "1", 1), ("hr/P2", "2", 2), ("sr/P3", "1", 1), ("sr/P4", "2", 2)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(bscan(seed, 96, 112)).save(tmp_path / folder / f"{name}.png")
    found = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert found.table.image.nunique() == 2 and "2 SR image(s) were matched by name alone" in found.warned[0]
    (tmp_path / "sr/P4").rename(tmp_path / "sr/P2")
    found = evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)
    assert found.table.image.unique().tolist() == ["P2/2"]
    assert "P1/1.png has its name but lies in another folder" in found.failed[0] and not found.warned
    (tmp_path / "sr/1.png").write_bytes((tmp_path / "sr/P3/1.png").read_bytes())
    (tmp_path / "sr/P3/1.png").unlink()  # beside folders: without one, no folder differs
    assert evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0).table.image.nunique() == 2


def test_names_are_the_same_in_both_ways_of_writing_an_accent(tmp_path):
    for folder, form in (("hr", "NFC"), ("sr", "NFD")):
        (tmp_path / folder).mkdir()
        Image.fromarray(bscan(1, 96, 112)).save(tmp_path / folder / unicodedata.normalize(form, "é0.png"))
    assert not evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0).failed


def test_several_methods_in_one_folder_are_told_apart(tmp_path):
    for folder, name in (("hr", "s0"), ("sr", "s0_bicubic"), ("sr", "s0_other")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(bscan(1, 96, 112)).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(UserError, match="s0 is there: if _bicubic names a method, give the images of one method, in a folder, at a time"):
        evaluate_folders(tmp_path / "sr", tmp_path / "hr", steps=0)


@pytest.mark.parametrize("text", ["Anonymous0001", "ANONYM12", "anonymP7x9", "ANON0001", "P-007"])
def test_a_pseudonym_is_a_patient(text):
    assert who(text) == text.casefold().encode()


@pytest.mark.parametrize("text", ["Anonymous", "ANON", "anonymized", "Anonym^Patient", "anonymous id", "00000", "unknown"])
def test_no_name_is_nobody(text):
    assert who(text) == b""
