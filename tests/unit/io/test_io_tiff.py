"""Rasters that mislead: lost strips, sizes that lie, other files, programs in disguise."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from medseg.errors import ImageError
from medseg.io.images import read_image
from medseg.io.raster import read_raster

GREY = np.random.default_rng(0).integers(0, 255, (64, 50)).astype(np.uint8)


@pytest.fixture(params=[None, "zlib"], ids=["plain", "deflate"])
def strips(tmp_path, request):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, GREY, compression=request.param, rowsperstrip=16)
    return path


def set_tag(path, name, value):
    """Overwrite the first number of a tag."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[name]
        at, size = tag.valueoffset, {3: 2, 4: 4}[int(tag.dtype)]
    raw = bytearray(path.read_bytes())
    raw[at : at + size] = value.to_bytes(size, "little")
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("StripByteCounts", 0, "lacks some of its strips"),
        ("StripByteCounts", 5, "cannot"),
        ("StripOffsets", 60000, "cut off or lacks"),
        ("StripOffsets", 0, "cut off or lacks"),
        ("ImageLength", 60000, "lacks some of its strips"),
    ],
)
def test_strips_that_are_missing_are_not_black(strips, name, value, words):
    set_tag(strips, name, value)
    with pytest.raises(ImageError, match=words):
        read_raster(strips)


def test_a_size_the_file_cannot_hold_is_refused_before_memory_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", GREY, compression="zlib", rowsperstrip=64)
    for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
        set_tag(tmp_path / "one.tif", name, 65000)
    with pytest.raises(ImageError, match="cannot hold"):
        read_raster(tmp_path / "one.tif")


def test_cut_and_changed_files_are_refused(strips):
    whole = strips.read_bytes()
    strips.write_bytes(whole[:-300])
    with pytest.raises(ImageError, match="cut off"):
        read_raster(strips)
    if b"x\x9c" in whole or b"x\xda" in whole or b"x^" in whole:
        strips.write_bytes(whole[:1500] + bytes([whole[1500] ^ 4]) + whole[1501:])
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_raster(strips)


def test_a_loop_of_pages_ends(strips):
    raw = bytearray(strips.read_bytes())
    first = int.from_bytes(raw[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(raw[first : first + 2], "little")
    raw[end : end + 4] = first.to_bytes(4, "little")
    strips.write_bytes(raw)
    with pytest.raises(ImageError, match="loop"):
        read_raster(strips)
    raw[end : end + 4] = (2**31).to_bytes(4, "little")
    strips.write_bytes(raw)
    with pytest.raises(ImageError, match="cut off"):
        read_raster(strips)


OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"
UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="64"
SizeC="1" SizeZ="2" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData FirstZ="0" IFD="0"
PlaneCount="1"><UUID FileName="in.ome.tif">urn:uuid:1</UUID></TiffData><TiffData FirstZ="1" IFD="0" PlaneCount="1">
<UUID FileName="../secret.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"""


def test_metadata_cannot_fetch_another_file(tmp_path):
    (tmp_path / "sub").mkdir()
    tifffile.imwrite(tmp_path / "secret.ome.tif", GREY, metadata={"axes": "YX"})
    tifffile.imwrite(tmp_path / "sub" / "in.ome.tif", GREY, description=OME.replace("\n", " "), metadata=None)
    with pytest.raises(ImageError, match="one of several files"):
        read_raster(tmp_path / "sub" / "in.ome.tif")


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_postscript_in_disguise_is_not_run(tmp_path, monkeypatch, name):
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    import PIL.EpsImagePlugin

    monkeypatch.setattr(PIL.EpsImagePlugin, "gs_binary", None)
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"cannot be decoded|no TIFF"):
        read_raster(tmp_path / name)
    assert not ran.exists()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, data, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_000, 50_000, 2**31 - 1])
def test_a_png_that_promises_gigabytes_is_refused(tmp_path, side):
    (tmp_path / "b.png").write_bytes(png(side, side, 8, 2, bytes(1000)))
    with pytest.raises(ImageError, match=r"cannot hold|too large|cannot be decoded"):
        read_raster(tmp_path / "b.png")


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused(tmp_path):
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(300 << 20), 9))
    (tmp_path / "t.png").write_bytes(png(2, 1, 8, 0, b"\0\1\2", bomb))
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_raster(tmp_path / "t.png")


def test_a_changed_bit_in_a_png_is_found(tmp_path):
    Picture.fromarray(GREY).save(tmp_path / "g.png")
    whole = bytearray((tmp_path / "g.png").read_bytes())
    for at in (60, 1500, len(whole) - 30):
        (tmp_path / "g.png").write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_raster(tmp_path / "g.png")


def test_jpeg_under_another_name_is_said(tmp_path):
    Picture.fromarray(GREY).save(tmp_path / "j.png", format="JPEG")
    assert "JPEG" in read_raster(tmp_path / "j.png").warnings[0]


@pytest.mark.parametrize("name", ["o.tif", "o.png"])
def test_a_turned_display_is_said_and_not_done(tmp_path, name):
    exif = Picture.Exif()
    exif[274] = 6
    Picture.fromarray(GREY).save(tmp_path / name, exif=exif)
    image = read_raster(tmp_path / name)
    assert np.array_equal(image.array[0, 0], GREY)
    assert "orientation tag" in image.warnings[0]


def test_animations_are_refused(tmp_path):
    frames = [Picture.fromarray(GREY), Picture.fromarray(GREY[::-1].copy())]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated"):
        read_raster(tmp_path / "a.png")


def test_tiff_floats_with_nan_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "n.tif", np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(ImageError, match="1 voxels are NaN"):
        read_image([tmp_path / "n.tif"])


def test_unlike_pages_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "u.tif") as writer:
        writer.write(GREY)
        writer.write(GREY[:20])
    with pytest.raises(ImageError, match="2 unlike images"):
        read_raster(tmp_path / "u.tif")
