"""MetaImage and NRRD headers that mislead; right ones in every spelling, with SimpleITK as second reader."""

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import GeometryError, ImageError
from medseg.io.itk import read_itk

BODY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
RAW = BODY.tobytes()
NRRD = {
    "type": "uint8",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 3 2",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "encoding": "raw",
    "space origin": "(5,6,7)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "5 6 7",
    "ElementSpacing": "1 2 3",
    "DimSize": "4 3 2",
    "ElementType": "MET_UCHAR",
}


def nrrd(path, body=RAW, more="", **changes):
    fields = {**NRRD, **{key.replace("_", " "): value for key, value in changes.items()}}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    path.write_bytes(("NRRD0005\n" + "\n".join(lines) + "\n" + more + "\n").encode() + body)
    return path


def meta(path, body=RAW, data="LOCAL", more="", **changes):
    fields = {**META, **changes}
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    path.write_bytes(("\n".join(lines) + f"\n{more}ElementDataFile = {data}\n").encode() + body)
    return path


def agrees_with_simpleitk(path):
    image, theirs = read_itk(path), sitk.ReadImage(str(path))
    assert np.array_equal(image.array.ravel(), sitk.GetArrayFromImage(theirs).ravel())
    point = theirs.TransformIndexToPhysicalPoint((3, 1, 1))
    np.testing.assert_allclose((image.geometry.affine() @ [1, 1, 3, 1])[:3], point, atol=1e-9)
    return image


def test_the_plain_files_are_read(tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd"), meta(tmp_path / "a.mha")):
        image = agrees_with_simpleitk(path)
        assert np.array_equal(image.array[0], BODY)
        assert not image.warnings
        assert image.geometry.origin_mm == (5, 6, 7)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[("signed char", "i1"), ("unsigned char", "u1"), ("short int", "<i2"), ("unsigned short int", "<u2")],
        *[("signed int", "<i4"), ("uint32_t", "<u4"), ("long long int", "<i8"), ("unsigned long long", "<u8")],
        *[("float", "<f4"), ("double", "<f8")],
    ],
)
def test_types_have_many_names(tmp_path, name, dtype):
    image = agrees_with_simpleitk(nrrd(tmp_path / "t.nrrd", BODY.astype(dtype).tobytes(), type=name, endian="little"))
    assert image.array.dtype.itemsize == min(np.dtype(dtype).itemsize, 4 if "f" in dtype else 8)


def test_big_endian_data_come_in_native_order(tmp_path):
    raw = (BODY.astype(">i2") * 300).tobytes()
    agrees_with_simpleitk(nrrd(tmp_path / "b.nrrd", raw, type="short", endian="big"))
    image = agrees_with_simpleitk(
        meta(tmp_path / "b.mha", raw, ElementType="MET_SHORT", BinaryDataByteOrderMSB="True", BinaryData=None)
    )
    assert image.array.dtype.isnative


def test_text_gzip_and_zlib_data_are_read(tmp_path):
    words = " ".join(map(str, BODY.ravel())).encode()
    agrees_with_simpleitk(nrrd(tmp_path / "t.nrrd", words, encoding="ascii"))
    agrees_with_simpleitk(nrrd(tmp_path / "g.nrrd", gzip.compress(BODY.tobytes()), encoding="gz"))
    packed = zlib.compress(BODY.tobytes())
    agrees_with_simpleitk(meta(tmp_path / "z.mha", packed, CompressedData="True", CompressedDataSize=str(len(packed))))
    assert np.array_equal(read_itk(meta(tmp_path / "t.mha", words, BinaryData="False")).array[0], BODY)


def test_channels_may_be_any_axis(tmp_path):
    colours = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)  # z, y, x, c
    vectors = "(1,0,0) (0,2,0) (0,0,3)"
    first = {"sizes": "3 4 3 2", "kinds": "RGB-color domain domain domain", "space_directions": f"none {vectors}"}
    last = {"sizes": "4 3 2 3", "kinds": "domain domain domain list", "space_directions": f"{vectors} none"}
    first = nrrd(tmp_path / "f.nrrd", colours.tobytes(), dimension="4", **first)
    last = nrrd(tmp_path / "l.nrrd", np.moveaxis(colours, -1, 0).tobytes(), dimension="4", **last)
    for path in (first, last):
        image = read_itk(path)
        assert np.array_equal(image.array, np.moveaxis(colours, -1, 0))
        assert image.geometry.spacing_mm == (3, 2, 1)
    assert "taken as channels" in read_itk(last).warnings[0]
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(first)))
    assert np.array_equal(np.moveaxis(theirs, -1, 0), read_itk(first).array)


def test_time_is_refused_until_its_points_are_named(tmp_path):
    path = nrrd(tmp_path / "t.nrrd", BODY.tobytes() * 2, dimension="4", sizes="4 3 2 2",
                kinds="domain domain domain time", space_directions="(1,0,0) (0,2,0) (0,0,3) none")  # fmt: skip
    with pytest.raises(ImageError, match="4D series over time"):
        read_itk(path)
    path = meta(tmp_path / "t.mha", BODY.tobytes() * 2, NDims="4", DimSize="4 3 2 2", ElementSpacing="1 2 3 1",
                TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", Offset="5 6 7 0")  # fmt: skip
    with pytest.raises(ImageError, match="4D series of 2 volumes"):
        read_itk(path)
    assert np.array_equal(read_itk(path, channels_named=True).array, np.stack([BODY, BODY]))


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.raw", "sub/../../secret.raw", "link.raw", "a\\b.raw"])
def test_data_outside_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "scan"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(BODY.tobytes())
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    for path in (meta(folder / "a.mhd", b"", name), nrrd(folder / "a.nhdr", b"", data_file=name)):
        with pytest.raises(ImageError, match="lies outside its folder"):
            read_itk(path)


def test_data_beside_the_header_are_read_past_their_own_header(tmp_path):
    (tmp_path / "d.raw").write_bytes(b"HEADER" + BODY.tobytes())
    assert np.array_equal(read_itk(meta(tmp_path / "a.mhd", b"", "d.raw", HeaderSize="6")).array[0], BODY)
    assert np.array_equal(read_itk(meta(tmp_path / "b.mhd", b"", "d.raw", HeaderSize="-1")).array[0], BODY)
    assert np.array_equal(read_itk(nrrd(tmp_path / "a.nhdr", b"", data_file="d.raw", byte_skip="6")).array[0], BODY)
    assert np.array_equal(read_itk(nrrd(tmp_path / "b.nhdr", b"", data_file="d.raw", byte_skip="-1")).array[0], BODY)


@pytest.mark.parametrize("name", ["LIST", "slice%03d.raw", "slice%03d.raw 1 2 1"])
def test_files_per_slice_are_refused(tmp_path, name):
    for path in (meta(tmp_path / "a.mhd", b"", name), nrrd(tmp_path / "a.nhdr", b"", data_file=name)):
        with pytest.raises(ImageError, match="spread over several files"):
            read_itk(path)


HUGE = "32767 32767 32767"


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
def test_sizes_the_file_cannot_hold_take_no_memory(tmp_path, encoding):
    with pytest.raises(ImageError, match="cut off"):
        read_itk(nrrd(tmp_path / "h.nrrd", gzip.compress(BODY.tobytes()), sizes=HUGE, encoding=encoding))
    compressed = str(encoding == "gzip")
    with pytest.raises(ImageError, match="cut off"):
        read_itk(meta(tmp_path / "h.mha", zlib.compress(BODY.tobytes()), DimSize=HUGE, CompressedData=compressed))


def test_a_bomb_behind_the_voxels_is_refused_soon(tmp_path):
    bomb = gzip.compress(BODY.tobytes()) + gzip.compress(bytes(64 << 20), 9) * 40
    with pytest.raises(ImageError, match="far more bytes"):
        read_itk(nrrd(tmp_path / "b.nrrd", bomb, encoding="gzip"))


def test_bytes_behind_the_voxels_are_said(tmp_path):
    assert "5 bytes behind" in read_itk(nrrd(tmp_path / "s.nrrd", BODY.tobytes() + b"extra")).warnings[0]
    assert "5 bytes behind" in read_itk(meta(tmp_path / "s.mha", BODY.tobytes() + b"extra")).warnings[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": "4 3"},
        {"sizes": "4 3 0"},
        {"sizes": "4 -3 2"},
        {"sizes": "4 3 2.5"},
        {"sizes": "4 3 ²"},
        {"type": "block"},
        {"type": "short"},
        {"encoding": "bzip2"},
        {"encoding": "hex"},
        {"encoding": None},
        {"line_skip": "2"},
        {"byte_skip": "x"},
        {"kinds": "complex domain domain"},
        {"kinds": "list list domain"},
        {"dimension": "9"},
    ],
    ids=str,
)
def test_nrrd_headers_that_say_too_little_are_refused(tmp_path, changes):
    with pytest.raises(ImageError, match=r"n\.nrrd"):
        read_itk(nrrd(tmp_path / "n.nrrd", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"DimSize": "4 3"},
        {"DimSize": "4 3 x"},
        {"ElementType": "MET_STRING"},
        {"ElementType": None},
        {"ElementNumberOfChannels": "0"},
        {"ElementNumberOfChannels": "many"},
        {"ElementNumberOfChannels": "1000000000000"},
        {"HeaderSize": "-7"},
        {"HeaderSize": "10"},
        {"ElementToIntensityFunctionSlope": "2"},
        {"ElementToIntensityFunctionOffset": "-1024"},
        {"NDims": "7"},
    ],
    ids=str,
)
def test_meta_headers_that_say_too_little_are_refused(tmp_path, changes):
    with pytest.raises(ImageError, match=r"m\.mha"):
        read_itk(meta(tmp_path / "m.mha", **changes))


def test_a_field_that_is_stated_twice_is_refused(tmp_path):
    with pytest.raises(ImageError, match="twice"):
        read_itk(meta(tmp_path / "m.mha", more="DimSize = 2 3 4\n"))
    with pytest.raises(ImageError, match="twice"):
        read_itk(nrrd(tmp_path / "n.nrrd", more="sizes: 2 3 4\n"))


def test_an_endless_header_is_refused(tmp_path):
    with pytest.raises(ImageError, match="no end"):
        read_itk(nrrd(tmp_path / "n.nrrd", more="# x\n" * 400_000))
    (tmp_path / "m.mha").write_bytes(b"x" * (3 << 20))
    with pytest.raises(ImageError, match="no end"):
        read_itk(tmp_path / "m.mha")


@pytest.mark.parametrize(
    "matrix", ["0 0 0 0 0 0 0 0 0", "1 0 0 1 0 0 0 0 1", "nan 0 0 0 1 0 0 0 1", "1 0.5 0 0 1 0 0 0 1"]
)
def test_places_that_are_no_grid_are_refused(tmp_path, matrix):
    with pytest.raises((GeometryError, ImageError)):
        read_itk(meta(tmp_path / "m.mha", TransformMatrix=matrix))
    a, b, c, d, e, f, g, h, i = matrix.split()
    with pytest.raises((GeometryError, ImageError)):
        read_itk(nrrd(tmp_path / "n.nrrd", space_directions=f"({a},{b},{c}) ({d},{e},{f}) ({g},{h},{i})"))


@pytest.mark.parametrize(
    "changes",
    [
        {"Offset": "5 6"},
        {"Offset": "5 x 7"},
        {"Offset": "5 6 7 8"},
        {"Offset": "nan 6 7"},
        {"Position": "1 2 3"},
        {"TransformMatrix": "1 0 0 0 1 0 0 0"},
        {"Orientation": "0 1 0 1 0 0 0 0 1"},
        {"ElementSpacing": "1 2"},
        {"ElementSpacing": "1 2x 3"},
        {"ElementSpacing": "1 2 3 4"},
        {"ElementByteOrderMSB": "True"},
    ],
    ids=str,
)
def test_numbers_that_itk_would_replace_in_silence_are_refused(tmp_path, changes):
    with pytest.raises((GeometryError, ImageError), match=r"m\.mha"):
        read_itk(meta(tmp_path / "m.mha", **changes))


@pytest.mark.parametrize("spacings", ["1 2 nan", "1 2", "1 2 0", "1 -2 3", "1 2 x", "1 2 3 4"])
def test_nrrd_spacings_that_are_none_are_refused(tmp_path, spacings):
    with pytest.raises((GeometryError, ImageError), match=r"n\.nrrd"):
        read_itk(nrrd(tmp_path / "n.nrrd", space=None, space_directions=None, space_origin=None, spacings=spacings))


def test_a_missing_origin_is_said(tmp_path):
    for path in (nrrd(tmp_path / "n.nrrd", space_origin=None), meta(tmp_path / "m.mha", Offset=None)):
        image = read_itk(path)
        assert image.geometry.origin_mm == (0, 0, 0)
        assert image.warnings == ("does not state its origin; 0, 0, 0 is taken",)


def test_the_size_of_elements_is_a_spacing_where_there_is_no_other(tmp_path):
    path = meta(tmp_path / "m.mha", ElementSpacing=None, ElementSize="1 2 3")
    assert agrees_with_simpleitk(path).geometry.spacing_mm == (3, 2, 1)
    assert agrees_with_simpleitk(meta(path, ElementSize="9 9 9")).geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("spacing", ["0 2 3", "-1 2 3", "nan 2 3", "inf 2 3"])
def test_spacings_that_are_none_are_refused(tmp_path, spacing):
    with pytest.raises((GeometryError, ImageError)):
        read_itk(meta(tmp_path / "m.mha", ElementSpacing=spacing))


def test_doubts_about_the_place_are_said(tmp_path):
    image = read_itk(meta(tmp_path / "m.mha", TransformMatrix=None))
    assert "orientation is not stated" in image.warnings[0]
    image = read_itk(nrrd(tmp_path / "n.nrrd", space="3D-right-handed"))
    assert "does not name its patient frame" in image.warnings[0]
    image = read_itk(nrrd(tmp_path / "s.nrrd", space=None, space_directions=None, space_origin=None, spacings="1 2 3"))
    assert "orientation is not stated" in image.warnings[0]
