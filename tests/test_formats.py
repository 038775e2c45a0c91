"""Files that programs and instruments write: one table of inputs and outcomes, each read with these pixels or refused in a sentence; volumes,
patients named inside; and files that are damaged at random."""

import hashlib
import resource
import struct
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, OphthalmicTomographyImageStorage, RLELossless, generate_uid

from srlib.config import Config, UserError, load_config
from srlib.data import formats
from srlib.data.formats import grey
from srlib.data.manifest import inspect
from srlib.data.phantom import bscan
from srlib.data.reading import few_values, find_images, read_image, read_scan, slices
from srlib.series.run_folder import Run

SHARED = Path(__file__).parent.parent.parent / "shared/formats"
SCAN = bscan(3, 124, 136)
WIDE = SCAN.astype(np.uint16) * 257
TWELVE = (SCAN.astype(int) * 4095 // 255).astype(np.uint16)
TEN = (SCAN.astype(int) * 1023 // 255).astype(np.uint16)
SHOWN = np.round(TWELVE / 4095 * 255).astype(np.uint8)
DIM = np.round(TWELVE / 257).astype(np.uint8)  # twelve bits in sixteen
HALF = (SCAN.astype(int) * 128 + 255 * 127 + 127) // 255  # half transparent on white
CLEAR = np.where(np.arange(136) < 40, 255, SCAN).astype(np.uint8)
COLOUR = np.stack([SCAN, SCAN // 2, SCAN // 3], -1)
LUMA = np.asarray(Image.fromarray(COLOUR).convert("L"))
ONE_BIT = np.asarray(Image.fromarray(SCAN).convert("1").convert("L"))
PAGES = np.stack([bscan(k, 64, 80) for k in range(3)])
TURNED = {1: SCAN, 2: np.fliplr(SCAN), 3: np.rot90(SCAN, 2), 4: np.flipud(SCAN)}  # how a page of each orientation is stored
TURNED |= {5: SCAN.T, 6: np.rot90(SCAN), 7: np.rot90(SCAN, 2).T, 8: np.rot90(SCAN, -1)}
UID = "1.2.840.10008.5.1.4.1.1."


def vol(path, seed=0, who="SECRET^NAME", scans=4):
    """A .vol of random reflectivity, which is returned."""
    data = np.random.default_rng(seed).gamma(2, 0.02, (scans, 64, 80)).astype(np.float32)
    data[:, :, :8] = np.finfo(np.float32).max
    sizes = struct.pack("<3I3d2I2dId", 80, scans, 64, 0.0115, 0.12, 0.00387, 8, 8, 0.1, 0.1, 30, 0.0)
    patient = 7 * bool(who), who.encode(), 18_000.0
    names = struct.pack("<4sQiI16s16sI24sdI24sd4I34s", b"OS", 10**17, 3, 256, b"1", b"1", *patient, 1, b"", 4e4, 0, 0, 0, 0, b"")
    content = b"HSF-OCT-103\0" + sizes + names + bytes(1790 + 64)
    for k in range(scans):
        head = struct.pack("<12sI4d2IfI6f", b"HSF-BS-103", 256, 1.0, 0.1 * k, 2.0, 0.1 * k, 0, 256, 20.0, 0, *[0.0] * 6)
        content += head + bytes(168) + data[k].tobytes()
    path.write_bytes(content)
    return data


def export(path, patients=1, missing=False):
    """Heidelberg's XML export: two series of three B-scans and a fundus image beside it."""
    Image.fromarray(SCAN).save(path.parent / "NIR1.tif")
    series = ""
    for s in range(2):
        images = ""
        for kind, name in (("LOCALIZER", "NIR1.tif"), *(("OCT", f"B{s}{k}.TIF") for k in range(3))):
            url = f"file:///\\\\d\\{name}"
            images += f"<Image><ImageType><Type>{kind}</Type></ImageType><ImageData><ExamURL>{url}</ExamURL></ImageData></Image>"
        for k in range(3):
            Image.fromarray(bscan(10 * s + k, 64, 80)).save(path.parent / f"b{s}{k}.tif")
        series += f"<Series><Laterality>R</Laterality>{images}</Series>"
    text = "".join(f"<Patient><PatientID>SECRET{k}</PatientID><Study>{series}</Study></Patient>" for k in range(patients))
    path.write_text(f"<HEDX><BODY>{text}</BODY></HEDX>")
    if missing:
        (path.parent / "b11.tif").unlink()


def dicom(path, frames, who="SECRET^NAME", bits=8, photometric="MONOCHROME2", sop=OphthalmicTomographyImageStorage, **fields):
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = sop
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.PatientName, d.PatientID, d.Modality = who, f"SECRET-{who}", "OPT"
    d.Rows, d.Columns = frames.shape[1:3]
    d.NumberOfFrames, d.SamplesPerPixel, d.PhotometricInterpretation = len(frames), 1 if frames.ndim == 3 else 3, photometric
    if frames.ndim == 4:
        d.PlanarConfiguration = 0
    d.BitsAllocated = 8 * frames.dtype.itemsize
    d.BitsStored, d.HighBit, d.PixelRepresentation = bits, bits - 1, 0
    d.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    for name, value in fields.items():
        setattr(d, name, value)
    d.save_as(path, enforce_file_format=True)


def rle(path, share=1.0):
    dicom(path, PAGES[:1])
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(path)
    cut(path, share)


def compressed(path, syntax):
    """A file of RLE says that it has another transfer syntax."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def pillow(values, **options):
    """A maker: Pillow's `save` of an array or an image."""
    return lambda path: (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)


def tiff(values, share=1.0, **options):
    """A maker: tifffile's `imwrite`, of which a `share` is kept."""
    return lambda path: (tifffile.imwrite(path, np.ascontiguousarray(values), **options), cut(path, share))


def content(values):
    return lambda path: path.write_bytes(values)


def changed(path, make, old, new):
    make(path)
    values = path.read_bytes()
    at = values.index(old)
    path.write_bytes(values[:at] + new + values[at + len(new) :])


def with_thumbnail(path):
    with tifffile.TiffWriter(path) as file:
        file.write(SCAN[::4, ::4].copy(), subfiletype=1, metadata=None)
        file.write(SCAN, metadata=None)


def pyramid(path):
    with tifffile.TiffWriter(path) as file:
        file.write(SCAN, subifds=1)
        file.write(SCAN[::2, ::2], subfiletype=1)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def with_alpha(mode, alpha):
    grey, level = Image.fromarray(SCAN), Image.fromarray(np.broadcast_to(np.uint8(alpha), SCAN.shape).copy())
    return Image.merge(mode, [grey] * (len(mode) - 1) + [level])


ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LONG = PngInfo()
LONG.add_text("notes", "x" * 2_000_000, zip=True)
TURNED_BADLY = b"Exif\0\0MM\0*" + struct.pack(
    ">IHHHIHHHHI4sI", 8, 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 2, b"6\0\0\0", 0
)  # and a resolution in words
LEFT = np.where(np.arange(136) < 40, 0, 255)
FLOATS, PLANES = "holds fractions or values below 0", "values a pixel; save it as grey or RGB"
SIGNED = np.round(SCAN * (128 * 255 / 32767))  # int16 that uses its upper half
WINDOW = np.round((((SCAN - 99.5) / 100 + 0.5) * 255).clip(0, 255))  # centre 100, width 101, by DICOM's formula (PS3.3, C.11.2.1.2)
CASES = {  # file name: (how it is made, the pixels that are read or, of what is refused, words of the sentence)
    "grey.png": (pillow(SCAN), SCAN),
    "colour.png": (pillow(COLOUR), LUMA),
    "grey.jpg": (pillow(SCAN, quality=97), "close"),
    "cmyk.jpg": (pillow(Image.fromarray(SCAN).convert("RGB").convert("CMYK"), quality=97), "close"),
    "several.jpg": (pillow(SCAN, format="MPO", save_all=True, append_images=[Image.fromarray(SCAN)]), "holds 2 pictures"),
    "palette.png": (pillow(Image.fromarray(SCAN).convert("P")), SCAN),
    "one bit.png": (pillow(Image.fromarray(SCAN).convert("1")), ONE_BIT),
    "profile.png": (pillow(SCAN, icc_profile=ICC), SCAN),
    "half.png": (pillow(with_alpha("LA", 128)), "half"),
    "half in colour.png": (pillow(with_alpha("RGBA", 128)), "half"),
    "clear.png": (pillow(with_alpha("RGBA", LEFT)), CLEAR),
    "all clear.png": (pillow(with_alpha("RGBA", 0)), SCAN),
    "sixteen.png": (pillow(WIDE), SCAN),
    "clear level.png": (pillow(np.where(LEFT == 0, 12345, WIDE).astype(np.uint16), transparency=12345), CLEAR),
    "twelve in sixteen.png": (pillow(TWELVE), DIM),
    "turned.jpg": (pillow(TURNED[6], exif=exif(6), quality=97), "close"),
    "bad exif.jpg": (pillow(SCAN, exif=b"Exif\0\0MM\0*\0\0\0\xff", quality=97), "close"),
    "bad exif.png": (pillow(SCAN, exif=b"nonsense"), SCAN),
    "turned and more.jpg": (pillow(TURNED[6], exif=TURNED_BADLY, quality=97), "close"),
    "long text.png": (pillow(SCAN, pnginfo=LONG), SCAN),
    "checksum of its size.png": (lambda path: changed(path, pillow(SCAN, dpi=(72, 72)), b"pHYs", b"pHYs\1"), SCAN),
    "turned in words.png": (pillow(SCAN, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x026\0\0\0\0\0\0\0"), SCAN),
    "turned.png": (pillow(np.ascontiguousarray(TURNED[8]), exif=exif(8)), SCAN),
    "animated.png": (pillow(SCAN, save_all=True, append_images=[Image.fromarray(255 - SCAN)]), "holds 2 pictures"),
    "png of another name.jpeg": (pillow(SCAN, format="PNG"), SCAN),
    "colours of 16 bit.png": (lambda path: cv2.imwrite(str(path), COLOUR.astype(np.uint16) * 257), "holds 16-bit colours"),
    "gif.png": (pillow(SCAN, format="GIF"), "not an image of a format that is read"),
    "text.png": (content(b"this is no image"), "not an image of a format that is read"),
    "empty.png": (content(b""), "not an image of a format that is read"),
    "grey.tif": (tiff(SCAN), SCAN),
    "big.tif": (tiff(SCAN, bigtiff=True), SCAN),
    "tiles.tif": (tiff(SCAN, tile=(64, 64)), SCAN),
    "strips.tif": (tiff(SCAN, rowsperstrip=7), SCAN),
    "deflate.tif": (tiff(SCAN, compression="zlib", predictor=True), SCAN),
    "lzw.tif": (pillow(SCAN, compression="tiff_lzw"), SCAN),
    "lzw16.tif": (pillow(WIDE, compression="tiff_lzw"), SCAN),
    "zip16.tif": (pillow(WIDE, compression="tiff_adobe_deflate"), SCAN),
    "zstd.tif": (tiff(SCAN, compression="zstd"), SCAN),
    "white is zero.tif": (tiff(65535 - WIDE, photometric="miniswhite"), SCAN),
    "colour.tif": (tiff(COLOUR, photometric="rgb"), LUMA),
    "planes.tif": (tiff(np.moveaxis(COLOUR, -1, 0), photometric="rgb", planarconfig="separate"), LUMA),
    "colour16.tif": (tiff(COLOUR.astype(np.uint16) * 257, photometric="rgb", tile=(32, 32), compression="zlib"), LUMA),
    "palette.tif": (pillow(Image.fromarray(SCAN).convert("P")), SCAN),
    "map of 8 bit.tif": (tiff(255 - SCAN, photometric="palette", colormap=np.stack([np.arange(255, -1, -1, dtype=np.uint16)] * 3)), SCAN),
    "one bit.tif": (pillow(Image.fromarray(SCAN).convert("1")), ONE_BIT),
    "fax.tif": (pillow(Image.fromarray(SCAN).convert("1"), compression="group4"), ONE_BIT),
    "half.tif": (pillow(with_alpha("LA", 128)), "half"),
    "multiplied.tif": (tiff(np.stack([SCAN // 2] * 2, -1), photometric="minisblack", extrasamples=["assocalpha"]), PLANES),
    "int16.tif": (tiff(SCAN.astype(np.int16) * 128), SIGNED),
    "int8.tif": (tiff((SCAN // 2).astype(np.int8)), np.round(SCAN // 2 * (255 / 127))),
    "below 0.tif": (tiff(SCAN.astype(np.int16) - 100), FLOATS),
    "uint32.tif": (tiff(SCAN.astype(np.uint32) * 1000), "are not 16-bit"),
    "complex.tif": (tiff(SCAN.astype(np.complex64)), FLOATS),
    "two.tif": (tiff(np.stack([SCAN] * 2, -1), photometric="minisblack", planarconfig="contig"), PLANES),
    "cmyk.tif": (pillow(Image.fromarray(SCAN).convert("RGB").convert("CMYK")), "SEPARATED colours"),
    "ten.tif": (tiff(TEN, bitspersample=10), np.round(TEN / 1023 * 255)),
    "twelve.tif": (tiff(TWELVE, bitspersample=12), SHOWN),
    "jbig.tif": (lambda path: changed(path, tiff(SCAN), struct.pack("<HHIH", 259, 3, 1, 1), struct.pack("<HHIH", 259, 3, 1, 34661)), "is not read"),
    "thumbnail.tif": (with_thumbnail, SCAN),
    "pyramid.tif": (pyramid, SCAN),
    "cut.tif": (tiff(SCAN, share=0.8, metadata=None), "cut off|cannot be read"),
    "zip cut.tif": (tiff(SCAN, share=0.8, metadata=None, compression="zlib", rowsperstrip=9), "cut off|cannot be read"),
    "frame.dcm": (lambda path: dicom(path, SCAN[None]), SCAN),
    "twelve.dcm": (lambda path: dicom(path, TWELVE[None], bits=12), SHOWN),
    "inverted.dcm": (lambda path: dicom(path, 4095 - TWELVE[None], bits=12, photometric="MONOCHROME1"), SHOWN),
    "two bits.dcm": (lambda path: dicom(path, SCAN[None] // 64, bits=2), SCAN // 64 * 85),
    "colour.dcm": (lambda path: dicom(path, COLOUR[None], photometric="RGB"), LUMA),
    "rle.dcm": (rle, PAGES[0]),
    "rle cut.dcm": (lambda path: rle(path, 0.7), "damaged|cannot be read"),
    "signed.dcm": (lambda path: dicom(path, SCAN[None].astype(np.int16) * 128, bits=16, PixelRepresentation=1), SIGNED),
    "window.dcm": (lambda path: dicom(path, SCAN[None], WindowCenter=100, WindowWidth=101), WINDOW),
    "signed window.dcm": (lambda path: dicom(path, SCAN[None].astype(np.int16) * 2 - 300, bits=16, PixelRepresentation=1, RescaleSlope=0.5,
                                             RescaleIntercept=150, WindowCenter=100, WindowWidth=101), WINDOW),
    "empty window.dcm": (lambda path: dicom(path, SCAN[None], WindowCenter=None, WindowWidth=None, RescaleSlope=None), SCAN),
    "no width.dcm": (lambda path: dicom(path, SCAN[None], WindowCenter=100), SCAN),
    "zero width.dcm": (lambda path: dicom(path, SCAN[None], WindowCenter=100, WindowWidth=0), "cannot be applied"),
    "window of colour.dcm": (lambda path: dicom(path, COLOUR[None], photometric="RGB", WindowCenter=9, WindowWidth=9), LUMA),
    "falling.dcm": (lambda path: dicom(path, SCAN[None], RescaleSlope=-1, RescaleIntercept=255), "RescaleSlope"),
    "film.dcm": (lambda path: (rle(path), compressed(path, "1.2.840.10008.1.2.4.102")), "its compression is not read"),
    "unheard of.dcm": (lambda path: (rle(path), compressed(path, "1.2.826.0.1.3680043.1.1")), "its compression is not read"),
    "above its depth.dcm": (lambda path: dicom(path, WIDE[None], bits=12), "are not of 12 bits; set bits to their depth"),
    "fundus.dcm": (lambda path: dicom(path, SCAN[None], sop=UID + "77.1.5.1"), "its kind in DICOM is Ophthalmic Photography 8"),
    "labels.dcm": (lambda path: dicom(path, SCAN[None], sop=UID + "66.7"), "is no OCT scan; its kind in DICOM is"),
    "many.dcm": (lambda path: dicom(path, SCAN[None], NumberOfFrames=2_000_000_000), "is cut off"),
    "a.e2e": (content(b"CMDb" * 400), "not an image of a format that is read"),
    "cut.vol": (lambda path: (vol(path), cut(path, 0.9)), "cut off|cannot be read"),
    "too many.vol": (content(b"HSF-OCT-103\0" + struct.pack("<3I", 80, 10**9, 64) + bytes(3000)), "is cut off or damaged"),
    "missing.xml": (lambda path: export(path, missing=True), "names 6 B-scans, of which 1 are not beside it"),
    "two patients.xml": (lambda path: export(path, patients=2), "holds 2 patients"),
} | {f"turned {k} {c}.tif": (pillow(np.ascontiguousarray(TURNED[k]), tiffinfo={274: k}, compression=c), SCAN)
     for k in TURNED for c in ("raw", "tiff_lzw")}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_inputs_and_outcomes(tmp_path, name):
    make, outcome = CASES[name]
    path = tmp_path / name
    make(path)
    if isinstance(outcome, str) and outcome not in ("close", "half"):
        with pytest.raises(UserError, match=outcome) as error:
            [read_image(part) for part in slices(path)]
        assert str(path) in str(error.value) and "\n" not in str(error.value) and "SECRET" not in str(error.value)
        return
    image = read_image(path)
    right, most = {"close": (SCAN, 8), "half": (HALF, 1)}[outcome] if isinstance(outcome, str) else (outcome, 0)
    assert image.dtype == np.uint8 and image.shape == right.shape and np.abs(image.astype(int) - right).max() <= most
    assert read_image(path, 3).shape == (*image.shape, 3)


# ------------------------------------------------------------------------------------------------ volumes
VOLUMES = {
    "pages.tif": lambda path: pillow(PAGES[0], save_all=True, append_images=[Image.fromarray(p) for p in PAGES[1:]])(path),
    "lzw.tif": lambda path: tifffile.imwrite(path, PAGES, photometric="minisblack", compression="lzw"),
    "stack.tif": lambda path: tifffile.imwrite(path, PAGES, imagej=True, truncate=True),  # one directory, the other slices behind it
    "big-endian.tif": lambda path: tifffile.imwrite(path, PAGES, imagej=True, truncate=True, byteorder=">"),
    "imagej.tif": lambda path: tifffile.imwrite(path, PAGES[:, None], imagej=True, metadata={"axes": "ZCYX"}),
    "frames.dcm": lambda path: dicom(path, PAGES),
    "1.2.840.7": lambda path: dicom(path, PAGES),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_are_read_slice_by_slice(tmp_path, name):
    VOLUMES[name](tmp_path / name)
    assert find_images(tmp_path) == [tmp_path / name]
    parts = slices(tmp_path / name)
    assert [p.name for p in parts] == [f"{name}#{k}" for k in (1, 2, 3)]
    assert (np.stack([read_image(p) for p in parts]) == PAGES).all()
    with pytest.raises(UserError, match="holds 3 slices; name one, as in"):
        read_image(tmp_path / name)
    with pytest.raises(UserError, match="has no slice 4; it has 3"):
        read_image(f"{tmp_path / name}#4")
    if name.endswith("tif"):
        cut(tmp_path / name, 0.6)
        with pytest.raises(UserError, match=r"cut off|cannot be read|damaged"):
            [read_image(p) for p in slices(tmp_path / name)]


def test_pages_of_unlike_sizes_keep_their_order(tmp_path):
    with tifffile.TiffWriter(tmp_path / "v.tif") as file:
        for height in (124, 123, 80, 123):
            file.write(SCAN[:height], metadata=None)
    assert [read_image(part).shape[0] for part in slices(tmp_path / "v.tif")] == [124, 123, 80, 123]


def test_a_volume_is_opened_once(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "v.tif", np.stack([SCAN[:40, :44]] * 30), photometric="minisblack")
    calls, original = [], formats.READERS["tiff"]
    monkeypatch.setitem(formats.READERS, "tiff", lambda path: (calls.append(path), original(path))[1])
    assert sum((read_image(p) == SCAN[:40, :44]).all() for p in slices(tmp_path / "v.tif")) == 30 and len(calls) == 1


def test_bits_of_deep_images(tmp_path):
    Image.fromarray(TWELVE).save(tmp_path / "a.png")
    assert "12 bits" in few_values(read_scan(tmp_path / "a.png")) and not few_values(read_scan(tmp_path / "a.png", bits=12))
    assert (read_image(tmp_path / "a.png", 3, bits=12) == SHOWN[..., None]).all()
    with pytest.raises(UserError, match=r"a\.png: values from \d+ to \d+ are not of 11 bits"):
        read_image(tmp_path / "a.png", bits=11)
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([TWELVE] * 3, -1), photometric="rgb")
    assert (read_image(tmp_path / "rgb.tif", bits=12) == SHOWN).all()
    tifffile.imwrite(tmp_path / "p.tif", TWELVE, bitspersample=12)
    scan = read_scan(tmp_path / "p.tif", deep=True)
    assert scan.white == 4095 and (np.round(scan.image * (4095 / 65535)) == TWELVE).all()


def test_reflectivity_has_a_stated_transform(tmp_path):
    import eyepy
    from eyepy.core.utils import from_vol_intensity

    values = np.array([[0, 1e-3, 0.1, 1, 2, np.nan, -1, np.finfo(np.float32).max]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (grey(values)[0, :5] == from_vol_intensity(values[:, :5].copy())[0]).all() and (grey(values)[0, 5:] == 0).all()
    vol(tmp_path / "a.vol")
    right = eyepy.import_heyex_vol(tmp_path / "a.vol").data
    assert (np.stack([read_image(p) for p in slices(tmp_path / "a.vol")]) == right).all() and right.max() > 100


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the sample files in ../shared/formats, which this checkout lacks")
@pytest.mark.parametrize("name, pages, digest", [("test_volume.vol", 10, "101ccc23f7745d19"), ("heyex_xml/test_dummy.xml", 10, "4bc58e85f8401ffb"), ("heyex_xml/NIR1.tif", 1, "b2d458c7b81ae316")])  # fmt: skip
def test_samples_keep_their_pixels(name, pages, digest):
    parts = slices(SHARED / name)
    assert len(parts) == pages and hashlib.sha256(b"".join(read_image(part).tobytes() for part in parts)).hexdigest()[:16] == digest


def test_an_export_is_one_volume_and_what_lies_beside_it_is_listed(tmp_path):
    export(tmp_path / "export.xml")
    left_out: list = []
    assert find_images(tmp_path, left_out) == [tmp_path / "export.xml"] and "holds export.xml" in left_out[0][1]
    assert (read_image(f"{tmp_path / 'export.xml'}#5") == bscan(11, 64, 80)).all()


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    vol(tmp_path / "a.vol")
    for name in [n for n in sys.modules if n.partition(".")[0] == "eyepy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "eyepy", None)
    with pytest.raises(UserError, match=r'a\.vol: reading it needs eyepy.*; pip install "\.\[formats\]"'):
        read_image(tmp_path / "a.vol#1")


# ------------------------------------------------------------------------------------------------ patients named inside
def test_patients_named_inside_are_numbered_in_path_order(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for k in (2, 1, 0):
        vol(data / f"scan{k}.vol", k, f"SECRET^{k}")
    vol(data / "again.vol", 7, "SECRET^0")
    dicom(data / "IM0001", PAGES, "SECRET^9")
    dicom(data / "nobody.dcm", SCAN[None], "", PatientID="")
    for k in range(2):
        (data / f"x{k}").mkdir()
    vol(data / "x0/v.vol", 20, "SECRET^20")
    Image.fromarray(bscan(21, 64, 80)).save(data / "x0/a.png")
    run = Run(tmp_path / "run", load_config("smoke", data=str(data), patient_pattern="(x0)/"))
    run.folder.mkdir()
    table = run.make_manifest().set_index("path")
    named = {"IM0001#1": "p001", "again.vol#1": "p002", "scan0.vol#2": "p002", "scan1.vol#1": "p003", "scan2.vol#1": "p004"}
    assert table.patient[list(named)].to_dict() == named
    assert table.patient["nobody.dcm"] == "nobody.dcm" and table.split["x0/a.png"] == table.split["x0/v.vol#1"]
    for path in run.folder.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


# ------------------------------------------------------------------------------------------------ damaged files
def sound_files(folder: Path) -> None:
    """One file of every kind."""
    for name in ("grey.png", "sixteen.png", "grey.jpg", "lzw.tif", "zip16.tif", "tiles.tif", "twelve.tif", "twelve.dcm"):
        CASES[name][0](folder / name)
    for name in ("imagej.tif", "stack.tif", "frames.dcm"):
        VOLUMES[name](folder / name)
    vol(folder / "a.vol")


def damaged(content: bytes, rng) -> bytes:
    """With a number in the header that is too large, with changed bytes, cut, or all of them."""
    values = bytearray(content)
    head, at = min(len(values), 3000), int(rng.integers(4, 300))
    if rng.random() < 0.5:
        values[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0xFFFF, 10**6, 2**31 - 1, 2**32 - 1])))
    for at in rng.integers(0, rng.choice([head, len(values)]), int(rng.integers(1, 20))):
        values[at] = int(rng.integers(256))
    return bytes(values[: int(rng.integers(1, len(values)))] if rng.random() < 0.4 else values)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(k, marks=pytest.mark.slow) for k in range(3, 8))])
def test_damaged_files_are_listed_and_read_or_refused_in_one_sentence(tmp_path, seed):
    """120 of them: no field of theirs is quoted, none takes 10 s or 1 GB of memory."""
    (tmp_path / "sound").mkdir()
    sound_files(tmp_path / "sound")
    rng, peak = np.random.default_rng(seed + 10), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k, path in enumerate(sorted((tmp_path / "sound").iterdir()) * 10):
        bad, began = tmp_path / f"{k}-{path.name}", time.monotonic()
        bad.write_bytes(damaged(path.read_bytes(), rng))
        try:
            for part in slices(bad)[:4]:
                read_image(part)
        except UserError as error:
            assert str(bad) in str(error) and "\n" not in str(error) and "SECRET" not in str(error)
        rows = inspect(tmp_path, bad.name, Config())
        assert rows and all(row["path"].partition("#")[0] == bad.name for row in rows)
        assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1e6  # kB
