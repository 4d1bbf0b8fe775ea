import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image as Picture

from medseg.errors import ImageError
from medseg.io.images import read_image, read_labels
from medseg.io.raster import read_raster, write_raster
from medseg.types.geometry import Geometry
from medseg.types.labels import Label, Labels

GREY = (np.arange(12 * 17).reshape(12, 17) % 251).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def save(path, pixels, mode=None, **options):
    picture = Picture.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "B Ü.TIFF"])
def test_grey_and_rgb(tmp_path, name):
    image = read_raster(save(tmp_path / name, GREY))
    assert image.array.shape == (1, 1, 12, 17)
    assert np.array_equal(image.array[0, 0], GREY)
    assert (image.geometry.unit, image.geometry.spacing_mm) == ("px", (1.0, 1.0, 1.0))
    assert image.array.flags.writeable
    image = read_raster(save(tmp_path / name, RGB))
    assert np.array_equal(np.moveaxis(image.array[:, 0], 0, -1), RGB)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_every_bit(tmp_path, name):
    pixels = GREY.astype(np.uint16) * 257 + 3
    save(tmp_path / name, pixels)
    image = read_raster(tmp_path / name)
    assert image.array.dtype == np.uint16
    assert np.array_equal(image.array[0, 0], pixels)


def test_sixteen_bit_rgb_is_not_rounded_to_eight(tmp_path):
    pixels = RGB.astype(np.uint16) * 250 + 7
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "c.png"))
    tifffile.imwrite(tmp_path / "c.tif", pixels, photometric="rgb")
    for name in ("c.png", "c.tif"):
        image = read_raster(tmp_path / name)
        assert np.array_equal(np.moveaxis(image.array[:, 0], 0, -1), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparency_is_dropped_with_a_warning(tmp_path, name):
    image = read_raster(save(tmp_path / name, RGB, "RGBA"))
    assert np.array_equal(np.moveaxis(image.array[:, 0], 0, -1), RGB)
    assert "transparency" in image.warnings[0]
    image = read_raster(save(tmp_path / name, GREY, "LA"))
    assert np.array_equal(image.array[0, 0], GREY)
    assert len(image.array) == 1


@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.bmp"])
def test_palettes_are_colours_for_images_and_numbers_for_labels(tmp_path, name):
    picture = Picture.fromarray(GREY % 3)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 64] + [0] * (768 - 9))
    picture.save(tmp_path / name)
    image = read_raster(tmp_path / name)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 64]])
    assert np.array_equal(np.moveaxis(image.array[:, 0], 0, -1), colours[GREY % 3])
    assert np.array_equal(read_raster(tmp_path / name, stored_values=True).array[0, 0], GREY % 3)


@pytest.mark.parametrize("name", ["b.png", "b.tif", "b.bmp"])
def test_one_bit_masks_are_zero_and_one(tmp_path, name):
    save(tmp_path / name, GREY > 100)
    values = read_raster(tmp_path / name, stored_values=True).array[0, 0]
    assert np.array_equal(values, (GREY > 100).astype(np.uint8))


def test_four_bit_png_keeps_its_numbers(tmp_path):
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes([0x01, 0x23]) for _ in range(2))  # values 0 1 2 3
    head = struct.pack(">IIBBBBB", 4, 2, 4, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "four.png").write_bytes(data)
    assert read_raster(tmp_path / "four.png").array[0, 0].tolist() == [[0, 1, 2, 3]] * 2


def test_white_is_zero_is_inverted_for_images_only(tmp_path):
    tifffile.imwrite(tmp_path / "w.tif", GREY, photometric="miniswhite")
    image = read_raster(tmp_path / "w.tif")
    assert np.array_equal(image.array[0, 0], 255 - GREY)
    assert "inverted" in image.warnings[0]
    assert np.array_equal(read_raster(tmp_path / "w.tif", stored_values=True).array[0, 0], GREY)


def test_pages_are_slices(tmp_path):
    stack = np.stack([GREY, GREY[::-1], GREY // 2]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", compression="zlib")
    assert np.array_equal(read_raster(tmp_path / "s.tif").array[0], stack)
    colours = np.stack([RGB, RGB[::-1]])
    tifffile.imwrite(tmp_path / "c.tif", colours, photometric="rgb")
    assert np.array_equal(np.moveaxis(read_raster(tmp_path / "c.tif").array, 0, -1), colours)


def test_lzw_is_read(tmp_path):
    pages = [Picture.fromarray(GREY), Picture.fromarray(GREY[::-1].copy())]
    pages[0].save(tmp_path / "l.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_raster(tmp_path / "l.tif").array[0], np.stack([GREY, GREY[::-1]]))
    save(tmp_path / "c.tif", RGB, compression="tiff_lzw")
    assert np.array_equal(np.moveaxis(read_raster(tmp_path / "c.tif").array[:, 0], 0, -1), RGB)


def test_printing_resolution_is_no_spacing(tmp_path):
    save(tmp_path / "d.png", GREY, dpi=(300, 300))
    save(tmp_path / "d.tif", GREY, dpi=(300, 300))
    assert read_raster(tmp_path / "d.png").geometry.unit == "px"
    assert read_raster(tmp_path / "d.tif").geometry.unit == "px"


@pytest.mark.parametrize(
    ("unit", "scale"), [("mm", 1.0), ("um", 1e-3), ("micron", 1e-3), ("cm", 10.0), ("\\u00B5m", 1e-3)]
)
def test_imagej_units_are_spacing(tmp_path, unit, scale):
    metadata = {"unit": unit, "spacing": 3.0, "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "i.tif", np.stack([GREY, GREY]), imagej=True, resolution=(4, 2), metadata=metadata)
    geometry = read_raster(tmp_path / "i.tif").geometry
    assert geometry.unit == "mm"
    np.testing.assert_allclose(geometry.spacing_mm, (3 * scale, 0.5 * scale, 0.25 * scale), rtol=1e-6)


def test_imagej_inch_is_printing(tmp_path):
    tifffile.imwrite(tmp_path / "i.tif", GREY, imagej=True, resolution=(72, 72), metadata={"unit": "inch"})
    assert read_raster(tmp_path / "i.tif").geometry.unit == "px"


def test_ome_sizes_are_spacing(tmp_path):
    sizes = {"PhysicalSizeX": 250.0, "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "mm", "PhysicalSizeZ": 0.2}
    metadata = {"axes": "ZYX", **sizes, "PhysicalSizeZUnit": "cm"}
    tifffile.imwrite(tmp_path / "o.ome.tif", np.stack([GREY, GREY]), metadata=metadata)
    geometry = read_raster(tmp_path / "o.ome.tif").geometry
    assert geometry.unit == "mm"
    np.testing.assert_allclose(geometry.spacing_mm, (2.0, 0.5, 0.25))


def test_write_and_read_back(tmp_path):
    mm = Geometry((1, 12, 17), (1.0, 0.3, 0.2))
    for name in ("a.png", "a.tif"):
        for array in (GREY[None], GREY[None].astype(np.uint16) * 100):
            write_raster(array, mm, tmp_path / name)
            image = read_raster(tmp_path / name)
            assert image.array.dtype == array.dtype
            assert np.array_equal(image.array[0], array)
    np.testing.assert_allclose(read_raster(tmp_path / "a.tif").geometry.spacing_mm, mm.spacing_mm, rtol=1e-6)
    write_raster(GREY[None], Geometry((1, 12, 17), (1.0, 1.0, 1.0), unit="px"), tmp_path / "p.tif")
    assert read_raster(tmp_path / "p.tif").geometry.unit == "px"
    with pytest.raises(ImageError, match="2 slices"):
        write_raster(np.zeros((2, 3, 4), np.uint8), Geometry((2, 3, 4), (1.0, 1.0, 1.0)), tmp_path / "z.png")


@pytest.mark.parametrize("name", ["t.png", "t.tif", "t.bmp"])
def test_truncated_and_foreign_files_are_refused(tmp_path, name):
    save(tmp_path / name, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    raw = (tmp_path / name).read_bytes()
    for data in (raw[: len(raw) // 2], raw[:20], b"", b"junk" * 50):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name) as caught:
            read_raster(tmp_path / name)
        assert caught.value.hint


def test_damaged_png_pixels_are_found(tmp_path):
    save(tmp_path / "d.png", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    raw = bytearray((tmp_path / "d.png").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "d.png").write_bytes(raw)
    with pytest.raises(ImageError, match=r"d\.png"):
        read_raster(tmp_path / "d.png")


def test_animations_and_unlike_pages_are_refused(tmp_path):
    frames = [Picture.fromarray(GREY), Picture.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated"):
        read_raster(tmp_path / "a.png")
    with tifffile.TiffWriter(tmp_path / "u.tif") as file:
        file.write(GREY, metadata=None)
        file.write(GREY[:5], metadata=None)
    with pytest.raises(ImageError, match="2 unlike images"):
        read_raster(tmp_path / "u.tif")


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG"])
def test_a_jpeg_is_a_scan_with_a_warning_and_never_a_label_map(tmp_path, name):
    path = tmp_path / name
    Picture.fromarray(GREY).save(path, format="JPEG", quality=95)
    image = read_image([path])
    assert np.abs(image.array[0, 0].astype(int) - GREY).mean() < 3
    assert any("approximate" in warning for warning in image.warnings)
    with pytest.raises(ImageError, match="cannot hold labels"):
        read_labels(path, Labels((Label("a", (1,)),)))
