"""Files to arrays: every kind that people have, and a corpus of broken ones."""

import os
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from srlib.config import Config, UserError
from srlib.data.manifest import build_manifest, inspect
from srlib.data.phantom import bscan
from srlib.data.reading import jpeg_tables, lr_partner, read_image
from srlib.data.volume import MAX_PIXELS


@pytest.fixture
def scan():
    return bscan(1, 64, 80)


def test_the_tables_of_a_jpeg(tmp_path, scan):
    """They make the same JPEG again; a file of another format has none."""
    Image.fromarray(scan).save(tmp_path / "a.jpg", quality=60)
    Image.fromarray(scan).save(tmp_path / "b.jpg", qtables=jpeg_tables(tmp_path / "a.jpg"))
    assert (read_image(tmp_path / "a.jpg") == read_image(tmp_path / "b.jpg")).all()
    Image.fromarray(scan).save(tmp_path / "c.png")
    assert jpeg_tables(tmp_path / "c.png") == {}


def test_partners_of_names_with_a_number_sign_and_of_slices(tmp_path, scan):
    for part in ("hr", "lr"):
        (tmp_path / part / "A").mkdir(parents=True)
    for name in ("s#b.png", "s#2.png", "v.tif"):
        Image.fromarray(scan).save(tmp_path / "hr/A" / name)
    for name in ("s#b.png", "s#2.jpg", "v.tif"):
        Image.fromarray(scan).save(tmp_path / "lr/A" / name)
    for name, partner in (("s#b.png", "s#b.png"), ("s#2.png", "s#2.jpg"), ("v.tif", "v.tif"), ("v.tif#1", "v.tif#1")):
        assert lr_partner(tmp_path / "hr/A" / name) == tmp_path / "lr/A" / partner
        assert (read_image(tmp_path / "hr/A" / name) == scan).all()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def corpus(root, scan):
    """Write broken files into `root`; returns name to what the file would be if it were whole (None: no image at all)."""
    made = {}

    def put(name, content, whole=None):
        (root / name).write_bytes(content)
        made[name] = whole

    good = {}
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        Image.fromarray(scan).save(root / "whole", kind)
        good[kind] = (root / "whole").read_bytes(), np.asarray(Image.open(root / "whole"))
    (root / "whole").unlink()
    for kind, (content, whole) in good.items():
        suffix = "." + kind.lower()
        for k, cut in enumerate(np.linspace(1, len(content) - 1, 30).astype(int)):
            put(f"cut {k}{suffix}", content[:cut], whole)
        put(f"empty{suffix}", b"")
        put(f"text{suffix}", b"this is no image\n" * 50)
        rng = np.random.default_rng(0)
        for k in range(6):
            put(f"random{k}{suffix}", rng.bytes(2000))
            put(f"head{k}{suffix}", content[: 8 * (k + 1)] + rng.bytes(2000))
    content, whole = good["PNG"]
    for k, at in enumerate(np.linspace(0, len(content) - 1, 50).astype(int)):
        put(f"flipped{k}.png", content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :], whole)
    put("bomb.png", png_header(60_000, 60_000))
    put("bomb2.png", png_header(12_000, 12_000))
    content = bytearray(good["BMP"][0])
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    put("bomb.bmp", bytes(content))
    content = bytearray(good["JPEG"][0])
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    put("bomb.jpeg", bytes(content))
    put("lying.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n")
    put("page.tif", b"GIF89a" + b"\0" * 300)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "dangling.png").symlink_to(root / "gone")
    made |= {"loop.png": None, "dangling.png": None}
    (root / "folder.png").mkdir()
    (root / "folder.png" / "round").symlink_to(root)
    return made


def test_a_corpus_of_broken_files(tmp_path, scan):
    """Never a crash or a hang; each file is listed with a reason, or read exactly as it was before it was broken."""
    broken = corpus(tmp_path, scan)
    assert len(broken) > 200
    names = ["with space.png", "größe.png", "目.png", *(f"NORMAL-{k}-1.png" for k in range(5))]
    for k, name in enumerate(names):
        Image.fromarray(bscan(10 + k, 64, 80)).save(tmp_path / name)
    bad_name = os.fsencode(tmp_path) + b"/bad\xff.png"
    with open(bad_name, "wb") as file:
        file.write((tmp_path / names[0]).read_bytes())
    table = build_manifest(tmp_path)
    skipped = dict(table.attrs["skipped"])
    assert set(names) <= set(table.path)
    assert "bad\\udcff.png" in skipped and "rename it" in skipped["bad\\udcff.png"]
    for name, whole in broken.items():
        assert (name in skipped) != (name in set(table.path)), name
        if name in skipped:
            assert skipped[name] and "\n" not in skipped[name]
        else:
            assert whole is not None and (read_image(tmp_path / name) == whole).all(), name
    assert all("limit" in skipped[name] or "exceeds" in skipped[name] for name in broken if name.startswith("bomb"))
    assert MAX_PIXELS < 12_000**2
    assert sum(n.startswith("cut") for n in skipped) > 100
    table.to_csv(tmp_path / "manifest.csv")  # names and all


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read as an image (Permission denied)"),
        (MemoryError(), "memory ran out while it was read"),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path, scan, monkeypatch, error, reason):
    """(Root may read everything, so mode bits would not do.) Memory that runs out is no damaged file."""
    Image.fromarray(scan).save(tmp_path / "a.png")
    monkeypatch.setattr("srlib.data.formats.Image.open", Mock(side_effect=error))
    (row,) = inspect(tmp_path, "a.png", Config())
    assert row["reason"] == reason
    with pytest.raises(MemoryError if isinstance(error, MemoryError) else UserError):
        read_image(tmp_path / "a.png")
