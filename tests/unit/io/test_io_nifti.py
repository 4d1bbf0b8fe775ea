import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.errors import GeometryError, ImageError
from medseg.io.images import read_image
from medseg.io.nifti import read_nifti, write_nifti
from medseg.types.geometry import Geometry

SHAPE = (5, 6, 7)  # z, y, x
MARK = (3, 1, 5)


def oblique(shape=SHAPE, **more):
    a, b = np.deg2rad(20), np.deg2rad(-35)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    rz = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    rows = tuple(tuple(float(v) for v in row) for row in rz @ rx)
    return Geometry(shape, (2.5, 0.7, 0.4), (-31.0, 12.5, 80.0), rows, **more)


def marked(dtype=np.uint8):
    array = np.zeros(SHAPE, dtype=dtype)
    array[MARK] = 7
    return array


def save(path, array, affine=None, **header):
    image = nib.Nifti1Image(np.asarray(array), np.diag([-2.0, -3.0, 4.0, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patch(path, **fields):
    """Change header fields of an uncompressed file behind nibabel's back."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]))
    for key, value in fields.items():
        header[key] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "Aufnahme ü 1.NII.GZ"])
def test_position_of_a_voxel_agrees_with_nibabel_and_simpleitk(tmp_path, name):
    geometry, path = oblique(), tmp_path / "Ordner mit Leerzeichen" / name
    write_nifti(marked(), geometry, path)
    point = (geometry.affine() @ [*MARK, 1])[:3]

    theirs = nib.load(path)
    index = np.argwhere(np.asarray(theirs.dataobj) == 7)[0]
    np.testing.assert_allclose((theirs.affine @ [*index, 1])[:3] * [-1, -1, 1], point, atol=1e-4)
    np.testing.assert_allclose(theirs.get_qform(), theirs.get_sform(), atol=1e-4)
    assert (theirs.header["sform_code"], theirs.header["qform_code"]) == (1, 1)
    assert theirs.header.get_xyzt_units()[0] == "mm"

    itk = sitk.ReadImage(str(path))
    z, y, x = np.argwhere(sitk.GetArrayFromImage(itk) == 7)[0]
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((int(x), int(y), int(z))), point, atol=1e-4)

    ours = read_nifti(path)
    assert ours.array.shape == (1, *SHAPE)
    assert ours.array.dtype == np.uint8
    assert ours.geometry.same_grid(geometry)
    assert np.array_equal(ours.array[0], marked())
    assert ours.source.format == "nifti"


def test_a_file_of_nibabel_with_permuted_axes_keeps_positions(tmp_path):
    affine = np.array([[0, 0, 2.0, -5], [-1.5, 0, 0, 9], [0, 0.5, 0, 30], [0, 0, 0, 1]])
    data = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    image = read_nifti(save(tmp_path / "p.nii.gz", data, affine))
    for i, j, k in [(0, 0, 0), (3, 1, 5)]:
        ras = (affine @ [i, j, k, 1])[:3]
        np.testing.assert_allclose((image.geometry.affine() @ [k, j, i, 1])[:3], ras * [-1, -1, 1], atol=1e-5)
        assert image.array[0, k, j, i] == data[i, j, k]


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    st.tuples(*[st.floats(0.05, 8)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.booleans(),
)
def test_any_grid_round_trips(tmp_path_factory, angles, spacing, origin, flip):
    matrix = Rotation.from_euler("xyz", angles).as_matrix() * [1, 1, -1 if flip else 1]
    geometry = Geometry(SHAPE, spacing, origin, tuple(tuple(row) for row in matrix.tolist()))
    path = tmp_path_factory.getbasetemp() / "any grid.nii"
    write_nifti(marked(), geometry, path)
    assert read_nifti(path).geometry.same_grid(geometry, tol_mm=1e-3)
    assert not read_nifti(path).warnings


def test_left_handed_grids_survive(tmp_path):
    flipped = Geometry(SHAPE, (1.0, 1.0, 1.0), direction=((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    write_nifti(marked(), flipped, tmp_path / "f.nii")
    assert read_nifti(tmp_path / "f.nii").geometry.same_grid(flipped)
    theirs = nib.load(tmp_path / "f.nii")
    np.testing.assert_allclose(theirs.get_qform(), theirs.get_sform(), atol=1e-5)


def test_sform_wins_over_qform_and_the_difference_is_said(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None)
    image.set_qform(np.diag([-1.0, -1, 1, 1]), code=1)
    moved = np.diag([-1.0, -1, 1, 1])
    moved[2, 3] = 40
    image.set_sform(moved, code=2)
    nib.save(image, tmp_path / "b.nii")
    ours = read_nifti(tmp_path / "b.nii")
    assert ours.geometry.origin_mm[2] == 40
    assert "sform and qform differ by up to 40 mm" in ours.warnings[0]

    image.set_sform(moved, code=0)
    nib.save(image, tmp_path / "q.nii")
    ours = read_nifti(tmp_path / "q.nii")
    assert ours.geometry.origin_mm[2] == 0
    assert not ours.warnings


def test_without_codes_the_spacing_is_kept_and_the_frame_is_doubted_as_in_itk(tmp_path):
    path = patch(save(tmp_path / "n.nii", np.zeros((3, 4, 5), np.uint8)), sform_code=0, qform_code=0)
    ours = read_nifti(path)
    assert ours.geometry.spacing_mm == (4.0, 3.0, 2.0)
    assert "orientation is not stored" in ours.warnings[0]
    itk = sitk.ReadImage(str(path))
    np.testing.assert_allclose(itk.GetDirection(), np.ravel(ours.geometry.direction))
    np.testing.assert_allclose(itk.GetOrigin(), ours.geometry.origin_mm)


def test_neither_codes_nor_pixdim_is_refused(tmp_path):
    path = save(tmp_path / "n.nii", np.zeros((3, 4, 5), np.uint8))
    patch(path, sform_code=0, qform_code=0, pixdim=np.zeros(8))
    with pytest.raises(GeometryError, match=r"n\.nii: has neither orientation nor a spacing.*set the sform"):
        read_nifti(path)


@pytest.mark.parametrize("fault", ["shear", "singular", "nan"])
def test_affines_that_are_no_grid_are_refused(tmp_path, fault):
    path = save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8))
    patch(path, srow_x={"shear": [-2, 0.5, 0, 0], "singular": [0, 0, 0, 0], "nan": [np.nan, 0, 0, 0]}[fault])
    with pytest.raises(GeometryError, match=r"a\.nii: affine is (sheared|singular)") as caught:
        read_nifti(path)
    assert caught.value.hint


def test_metres_and_microns_become_mm(tmp_path):
    path = save(tmp_path / "m.nii", np.zeros((3, 4, 5), np.uint8), np.diag([-500.0, -250, 100, 1]), xyzt_units=3)
    np.testing.assert_allclose(read_nifti(path).geometry.spacing_mm, (0.1, 0.25, 0.5))
    path = save(tmp_path / "m.nii", np.zeros((3, 4, 5), np.uint8), np.diag([-0.002, -0.002, 0.003, 1]), xyzt_units=1)
    np.testing.assert_allclose(read_nifti(path).geometry.spacing_mm, (3.0, 2.0, 2.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_integers_stay_integers(tmp_path, dtype):
    data = np.arange(60).reshape(3, 4, 5).astype(dtype)
    image = read_nifti(save(tmp_path / "i.nii.gz", data))
    assert image.array.dtype == dtype
    assert np.array_equal(image.array[0], data.T)
    assert image.array.flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_single(tmp_path, dtype):
    image = read_nifti(save(tmp_path / "f.nii.gz", np.linspace(0, 1, 60).reshape(3, 4, 5).astype(dtype)))
    assert image.array.dtype == np.float32


def test_big_endian_files_come_in_native_order(tmp_path):
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.Nifti1Image(data, np.eye(4), header), tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    image = read_nifti(tmp_path / "b.nii")
    assert image.array.dtype.isnative
    assert np.array_equal(image.array[0], data.T)


def test_slope_and_intercept_are_applied(tmp_path):
    path = save(tmp_path / "s.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    patch(path, scl_slope=0.5, scl_inter=-10)
    image = read_nifti(path)
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array[0], nib.load(path).get_fdata().T.astype(np.float32))
    assert image.array.min() == -10


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5, 4, 3), (3, 4, 5, 6)),
        ((6, 5, 4, 1), (1, 4, 5, 6)),
        ((6, 5, 4, 1, 2), (2, 4, 5, 6)),
        ((6, 5), (1, 1, 5, 6)),
        ((6, 5, 1, 3), (3, 1, 5, 6)),
    ],
)
def test_axes_become_channels_and_slices(tmp_path, shape, expected):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    image = read_nifti(save(tmp_path / "d.nii", data))
    assert image.array.shape == expected
    assert len(image.channels) == expected[0]
    assert np.array_equal(image.array[-1, -1], data[:, :, -1, ..., -1].reshape(6, 5).T if len(shape) > 2 else data.T)


def test_two_more_axes_are_refused(tmp_path):
    path = save(tmp_path / "d.nii", np.zeros((3, 3, 3, 2, 2), np.int16))
    with pytest.raises(ImageError, match="has 5 axes"):
        read_nifti(path)


def test_colour_and_complex_are_refused(tmp_path):
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match=r"rgb\.nii: has colour"):
        read_nifti(save(tmp_path / "rgb.nii", rgb))
    with pytest.raises(ImageError, match="has complex"):
        read_nifti(save(tmp_path / "c.nii", np.zeros((3, 4, 5), np.complex64)))


def test_damaged_files_are_refused(tmp_path):
    data = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    whole = save(tmp_path / "w.nii.gz", data).read_bytes()
    cut, flipped, short, junk = (tmp_path / n for n in ("cut.nii.gz", "crc.nii.gz", "short.nii", "junk.nii"))
    cut.write_bytes(whole[:-200])
    flipped.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    short.write_bytes(gzip.decompress(whole)[:-2])
    junk.write_bytes(b"not a scan at all" * 40)
    for path, words in [(cut, "cut off"), (flipped, "damaged"), (short, "promises 16000 bytes"), (junk, "not a NIfTI")]:
        with pytest.raises(ImageError, match=words) as caught:
            read_nifti(path)
        assert caught.value.where == str(path)


def test_impossible_headers_are_refused(tmp_path):
    for key, value in [("dim", [3, -1, 4, 5, 1, 1, 1, 1]), ("dim", [0] * 8), ("datatype", 9999)]:
        path = save(tmp_path / "h.nii", np.zeros((3, 4, 5), np.uint8))
        patch(path, **{key: value})
        with pytest.raises(ImageError):
            read_nifti(path)


def test_probabilities_are_4d(tmp_path):
    scores = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    write_nifti(scores, oblique(), tmp_path / "p.nii.gz")
    assert nib.load(tmp_path / "p.nii.gz").shape == (7, 6, 5, 3)
    assert np.array_equal(read_nifti(tmp_path / "p.nii.gz").array, scores)


def test_pixels_stay_pixels_and_files_are_reproducible(tmp_path):
    geometry = Geometry(SHAPE, (1.0, 1.0, 1.0), unit="px")
    write_nifti(marked(), geometry, tmp_path / "a.nii.gz")
    write_nifti(marked(), geometry, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert read_image([tmp_path / "a.nii.gz"]).geometry.unit == "px"


def test_nifti2_is_read(tmp_path):
    data = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    nib.save(nib.Nifti2Image(data, np.diag([-1.0, -2, 3, 1])), tmp_path / "n2.nii.gz")
    image = read_nifti(tmp_path / "n2.nii.gz")
    assert np.array_equal(image.array[0], data.T)
    assert image.geometry.spacing_mm == (3.0, 2.0, 1.0)
