"""Files to arrays: every kind that people have, and a corpus of broken ones."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from srlib.config import UserError
from srlib.data import inspection
from srlib.data.manifest import build_manifest
from srlib.data.phantom import bscan
from srlib.data.reading import find_images, jpeg_tables, lr_partner, read_image, slices
from srlib.formats.stacks import MAX_PIXELS


@pytest.fixture
def scan():
    return bscan(1, 64, 80)


def test_volumes_are_read_slice_by_slice(tmp_path, scan):
    pages = [Image.fromarray(np.roll(scan, 7 * k, 1)) for k in range(3)]
    path = tmp_path / "NORMAL-5-1.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    names = slices(path)
    assert [n.name for n in names] == [f"{path.name}#{k}" for k in (1, 2, 3)]
    for page, name in zip(pages, names, strict=True):
        assert (read_image(name) == np.asarray(page)).all() and read_image(name, 3).shape == (64, 80, 3)
    with pytest.raises(UserError, match="holds 3 slices; name one, as in"):
        read_image(path)
    with pytest.raises(UserError, match="has no slice 4; it has 3"):
        read_image(f"{path}#4")
    for k in range(6, 9):
        Image.fromarray(bscan(k, 64, 80)).save(tmp_path / f"NORMAL-{k}-1.png")
    table = build_manifest(tmp_path)
    assert table.path.str.contains("#").sum() == 3 and table[table.patient == "5"].split.nunique() == 1
    assert table.sha256.is_unique


def test_the_tables_of_a_jpeg(tmp_path, scan):
    """They make the same JPEG again; a file of another format has none."""
    Image.fromarray(scan).save(tmp_path / "a.jpg", quality=60)
    Image.fromarray(scan).save(tmp_path / "b.jpg", qtables=jpeg_tables(tmp_path / "a.jpg"))
    assert (read_image(tmp_path / "a.jpg") == read_image(tmp_path / "b.jpg")).all()
    Image.fromarray(scan).save(tmp_path / "c.png")
    assert jpeg_tables(tmp_path / "c.png") == {}


def test_a_number_sign_in_a_name_is_no_slice(tmp_path, scan):
    Image.fromarray(scan).save(tmp_path / "a.png#2.png")
    assert (read_image(tmp_path / "a.png#2.png") == scan).all()


def test_partners_of_names_with_a_number_sign_and_of_slices(tmp_path, scan):
    for part in ("hr", "lr"):
        (tmp_path / part / "A").mkdir(parents=True)
    for name in ("s#b.png", "s#2.png", "v.tif"):
        Image.fromarray(scan).save(tmp_path / "hr/A" / name)
    for name in ("s#b.png", "s#2.jpg", "v.tif"):
        Image.fromarray(scan).save(tmp_path / "lr/A" / name)
    for name, partner in (("s#b.png", "s#b.png"), ("s#2.png", "s#2.jpg"), ("v.tif", "v.tif"), ("v.tif#1", "v.tif#1")):
        assert lr_partner(tmp_path / "hr/A" / name) == tmp_path / "lr/A" / partner


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, scan, mode):
    clear = np.full(scan.shape, 255, np.uint8)
    clear[:20] = 0
    image = Image.merge("LA", (Image.fromarray(scan), Image.fromarray(clear)))
    if mode == "RGBA":
        image = image.convert("RGBA")
    if mode == "P":
        image = Image.fromarray(np.where(clear == 0, 0, np.maximum(scan, 1))).convert("P")
        image.info["transparency"] = 0
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[:20] == 255).all() and np.abs(read[20:].astype(int) - scan[20:]).max() <= 1
    assert read_image(tmp_path / "a.png", 3).shape == (64, 80, 3)


@pytest.mark.parametrize(("turn", "back"), [(3, 2), (6, 1), (8, 3)])
def test_exif_rotation(tmp_path, scan, turn, back):
    """Orientation 6 says: turn 90 degrees clockwise to see it upright."""
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = np.ascontiguousarray(np.rot90(scan, back))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png") == scan).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit(tmp_path, scan, suffix):
    deep = scan.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / f"a{suffix}")
    assert (read_image(tmp_path / f"a{suffix}") == scan).all()
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif: holds floating-point"):
        read_image(tmp_path / "f.tif")


def test_kinds_by_content(tmp_path, scan):
    """The extension may lie between the kinds that are read; other programs' kinds are refused."""
    Image.fromarray(scan).save(tmp_path / "a.jpeg", "PNG")
    Image.fromarray(scan).save(tmp_path / "b.png", "BMP")
    assert (read_image(tmp_path / "a.jpeg") == scan).all() and (read_image(tmp_path / "b.png") == scan).all()
    Image.fromarray(scan).save(tmp_path / "c.png", "GIF")
    with pytest.raises(UserError, match="is a GIF file, which is not supported"):
        read_image(tmp_path / "c.png")


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
    os.mkfifo(root / "pipe.png")
    made |= {"loop.png": None, "dangling.png": None, "pipe.png": None}
    (root / "folder.png").mkdir()
    (root / "folder.png" / "round").symlink_to(root)
    return made


def test_a_corpus_of_broken_files(tmp_path, scan):
    """Never a crash or a hang; each file is listed with a reason, or read exactly as it was before it was broken."""
    broken = corpus(tmp_path, scan)
    assert len(broken) > 200
    names = ["with space.png", "größe.png", "目.png", "line\nbreak.png", *(f"NORMAL-{k}-1.png" for k in range(5))]
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


def test_unreadable_file(tmp_path, scan, monkeypatch):
    Image.fromarray(scan).save(tmp_path / "a.png")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("srlib.data.reading.Image.open", denied)  # (root may read everything, so the mode bits would not do)
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image \(Permission denied\)"):
        read_image(tmp_path / "a.png")


def test_files_are_inspected_once(tmp_path, scan, monkeypatch):
    """What is known of a file is kept while size and time stay; a changed file is looked at again, and so is one that could not be read: the
    cause may be gone. A torn memory is no harm."""
    monkeypatch.setattr(inspection, "REMEMBER_FROM", 0)
    monkeypatch.setattr(inspection, "data_home", lambda: tmp_path / "home")
    root = tmp_path / "scans"
    root.mkdir()
    for k in range(4):
        Image.fromarray(bscan(k, 64, 80)).save(root / f"NORMAL-{k}-1.png")
    (root / "text.png").write_text("no")
    looked = []
    original = inspection._inspect
    monkeypatch.setattr(
        inspection, "_inspect", lambda root, relative, reading: looked.append(relative) or original(root, relative, reading)
    )
    first = build_manifest(root)
    assert len(looked) == 5
    again = build_manifest(root)
    assert looked[5:] == ["text.png"] and again.equals(first) and again.attrs["skipped"] == first.attrs["skipped"]
    Image.fromarray(bscan(9, 70, 80)).save(root / "NORMAL-2-1.png")
    assert build_manifest(root).height.tolist() == [64, 64, 70, 64] and sorted(looked[6:]) == ["NORMAL-2-1.png", "text.png"]
    memory = next((tmp_path / "home" / "cache").iterdir())
    memory.write_text(memory.read_text()[:40])
    assert len(build_manifest(root)) == 4 and len(looked) == 13
    assert [p.name for p in find_images(root)] == sorted(["text.png"] + [f"NORMAL-{k}-1.png" for k in range(4)])


def test_memory_that_runs_out_is_no_damaged_file(tmp_path, scan, monkeypatch):
    Image.fromarray(scan).save(tmp_path / "a.png")

    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("srlib.data.reading.Image.open", full)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")
    (row,) = inspection._inspect(tmp_path, "a.png", {})
    assert row[4] == "memory ran out while it was read"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colour_tiff_is_turned_once(tmp_path, scan, orientation):
    """Compressed with LZW, 16 bits, colour: OpenCV decodes it, and turns it."""
    import cv2

    turned = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1), 6: np.rot90,
              7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1), 8: lambda a: np.rot90(a, -1)}.get(orientation, np.asarray)  # fmt: skip
    path = tmp_path / "a.tif"
    stored = np.ascontiguousarray(turned(scan)).astype(np.uint16) * 257
    cv2.imwrite(str(path), np.stack([stored] * 3, -1), [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    tags = [bytes(content[at + 2 + 12 * k : at + 14 + 12 * k]) for k in range(count)]
    tags = [tag for tag in tags if struct.unpack("<H", tag[:2])[0] != 274] + [struct.pack("<HHIHH", 274, 3, 1, orientation, 0)]
    content += b"\0" * (len(content) % 2)
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", len(tags)) + b"".join(sorted(tags, key=lambda tag: struct.unpack("<H", tag[:2]))) + b"\0" * 4
    path.write_bytes(content)
    assert (read_image(path) == scan).all()


def test_an_alpha_that_hides_everything_hides_nothing(tmp_path, scan):
    Image.merge("RGBA", [Image.fromarray(scan)] * 3 + [Image.new("L", (80, 64), 0)]).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - scan).max() <= 1
    import cv2

    deep = np.stack([scan.astype(np.uint16) * 257] * 3 + [np.zeros(scan.shape, np.uint16)], -1)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert np.abs(read_image(tmp_path / "deep.png").astype(int) - scan).max() <= 1


def test_a_dicom_file_without_header_is_called_that(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100" * 20)
    with pytest.raises(UserError, match="has no DICOM header"):
        read_image(tmp_path / "a.dcm")


def test_the_transparent_grey_level_of_16_bit_becomes_white(tmp_path, scan):
    deep = scan.astype(np.uint16) * 257
    deep[:8] = 12345
    Image.fromarray(deep).save(tmp_path / "a.png", transparency=12345)
    image = read_image(tmp_path / "a.png")
    assert (image[:8] == 255).all() and (image[8:] == scan[8:]).all()
    (tmp_path / "twelve").mkdir()
    twelve = np.where(deep == 12345, 449, scan.astype(np.uint16) * 16)
    Image.fromarray(twelve.astype(np.uint16)).save(tmp_path / "twelve/a.png", transparency=449)
    image = read_image(tmp_path / "twelve/a.png", bits=12)
    assert (image[:8] == 255).all() and np.abs(image[8:].astype(int) - scan[8:]).max() <= 1
