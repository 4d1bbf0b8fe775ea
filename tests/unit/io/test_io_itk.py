import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import GeometryError, ImageError
from medseg.io.images import read_image
from medseg.io.itk import read_itk, write_itk
from medseg.types.geometry import Geometry

SHAPE = (5, 6, 7)
DIRECTION = ((0.0, -0.8, 0.6), (1.0, 0.0, 0.0), (0.0, 0.6, 0.8))
GEOMETRY = Geometry(SHAPE, (2.5, 0.7, 0.4), (-31.0, 12.5, 80.0), DIRECTION)


def noise(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def itk_image(array, vector=False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((0.4, 0.7, 2.5)[: image.GetDimension()])
    return image


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "Säge 1.MHA", "b b.NRRD"])
def test_round_trip_and_the_position_simpleitk_sees(tmp_path, name):
    path = tmp_path / "Ordner ü" / name
    write_itk(noise(), GEOMETRY, path)
    ours = read_itk(path)
    assert ours.geometry.same_grid(GEOMETRY)
    assert ours.geometry.unit == "mm"
    assert ours.array.dtype == np.int16
    assert np.array_equal(ours.array[0], noise())
    assert list(path.parent.iterdir()) == [path]
    lower = path.rename(path.with_suffix(path.suffix.lower()))
    theirs = sitk.ReadImage(str(lower))
    np.testing.assert_allclose(
        theirs.TransformIndexToPhysicalPoint((6, 1, 3)), (GEOMETRY.affine() @ [3, 1, 6, 1])[:3], atol=1e-6
    )


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd"])
def test_vectors_are_channels(tmp_path, name):
    scores = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    write_itk(scores, GEOMETRY, tmp_path / name)
    assert sitk.ReadImage(str(tmp_path / name)).GetNumberOfComponentsPerPixel() == 3
    image = read_itk(tmp_path / name)
    assert np.array_equal(image.array, scores)
    assert image.channels == ("0", "1", "2")


@pytest.mark.parametrize("name", ["f.mha", "f.nrrd"])
def test_a_fourth_axis_is_channels_and_a_flat_image_has_one_slice(tmp_path, name):
    planes = noise((2, *SHAPE))
    volumes = [sitk.GetImageFromArray(plane) for plane in planes]
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / name))
    assert np.array_equal(read_itk(tmp_path / name, channels_named=True).array, planes)
    with pytest.raises(ImageError, match="4D series of 2 volumes"):
        read_itk(tmp_path / name)
    sitk.WriteImage(itk_image(noise((6, 7))), str(tmp_path / name))
    image = read_itk(tmp_path / name)
    assert image.array.shape == (1, 1, 6, 7)
    assert image.geometry.spacing_mm == (1.0, 0.7, 0.4)


def test_doubles_are_single(tmp_path):
    sitk.WriteImage(itk_image(noise(dtype=np.float64)), str(tmp_path / "d.nrrd"))
    assert read_itk(tmp_path / "d.nrrd").array.dtype == np.float32


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["t.mha", "t.mhd", "t.nrrd", "t.nhdr"])
def test_truncated_files_are_refused_without_a_word_on_the_terminal(tmp_path, name, compressed, capfd):
    path = tmp_path / name
    sitk.WriteImage(itk_image(noise()), str(path), compressed)
    assert np.array_equal(read_itk(path).array[0], noise())
    data = max(tmp_path.iterdir(), key=lambda p: (p.suffix not in (".mhd", ".nhdr"), p.stat().st_size))
    data.write_bytes(data.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"cut off|cannot be decoded") as caught:
        read_itk(path)
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["c.mha", "c.mhd", "c.nrrd", "c.nhdr"])
def test_a_flipped_bit_in_compressed_data_is_found(tmp_path, name):
    sitk.WriteImage(itk_image(noise((20, 30, 40))), str(tmp_path / name), True)
    data = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[-3000] ^= 0xFF
    data.write_bytes(raw)
    with pytest.raises(ImageError, match=r"damaged|cut off"):
        read_itk(tmp_path / name)


def test_a_missing_data_file_is_named(tmp_path):
    sitk.WriteImage(itk_image(noise()), str(tmp_path / "m.mhd"))
    (tmp_path / "m.raw").unlink()
    with pytest.raises(ImageError, match=r'm\.mhd: its data file "m\.raw" is missing'):
        read_itk(tmp_path / "m.mhd")


def test_no_stated_spacing_is_pixels(tmp_path):
    sitk.WriteImage(itk_image(noise()), str(tmp_path / "p.mhd"))
    text = (tmp_path / "p.mhd").read_text().splitlines()
    (tmp_path / "p.mhd").write_text("\n".join(line for line in text if not line.startswith("ElementSpacing")) + "\n")
    image = read_itk(tmp_path / "p.mhd")
    assert image.geometry.unit == "px"
    assert "no spacing" in image.warnings[0]


@pytest.mark.parametrize("name", ["p.mha", "p.nrrd"])
def test_pixels_stay_pixels(tmp_path, name):
    write_itk(noise(), Geometry(SHAPE, (1.0, 1.0, 1.0), unit="px"), tmp_path / name)
    assert read_itk(tmp_path / name).geometry.unit == "px"


def test_nrrd_in_ras_is_turned_and_other_units_refused(tmp_path):
    body = noise((2, 3, 4), np.uint8).tobytes()
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 4 3 2\n"
    head += b"space directions: (1,0,0) (0,2,0) (0,0,3)\nencoding: raw\nspace origin: (5,6,7)\n"
    (tmp_path / "r.nrrd").write_bytes(head + b"\n" + body)
    geometry = read_itk(tmp_path / "r.nrrd").geometry
    assert geometry.origin_mm == (-5.0, -6.0, 7.0)
    np.testing.assert_allclose((geometry.affine() @ [1, 1, 1, 1])[:3], (-6, -8, 10))
    (tmp_path / "u.nrrd").write_bytes(head + b'space units: "um" "um" "um"\n\n' + body)
    with pytest.raises(GeometryError, match=r"u\.nrrd: space units"):
        read_itk(tmp_path / "u.nrrd")


def test_sheared_nrrd_is_refused_with_its_name(tmp_path):
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
    head += b"space directions: (1,0,0) (0.5,2,0) (0,0,3)\nencoding: raw\nspace origin: (0,0,0)\n\n"
    (tmp_path / "s.nrrd").write_bytes(head + noise((2, 3, 4), np.uint8).tobytes())
    with pytest.raises(GeometryError, match=r"s\.nrrd: .*orthonormal"):
        read_image([tmp_path / "s.nrrd"])


def test_complex_voxels_and_junk_are_refused(tmp_path):
    sitk.WriteImage(itk_image(noise().astype(np.complex64)), str(tmp_path / "c.nrrd"))
    (tmp_path / "j.nrrd").write_bytes(b"junk" * 100)
    (tmp_path / "j.mha").write_bytes(b"junk" * 100)
    for name in ("c.nrrd", "j.nrrd", "j.mha"):
        with pytest.raises(ImageError, match=name):
            read_itk(tmp_path / name)
