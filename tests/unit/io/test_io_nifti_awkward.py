"""NIfTI files that mislead: right or refused, in bounded memory, and never silent."""

import gzip
import resource
import struct
import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import GeometryError, ImageError
from medseg.io.images import read_image
from medseg.io.nifti import read_nifti, write_nifti
from medseg.types.geometry import Geometry

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)  # x, y, z
AFFINE = np.diag([-2.0, -3.0, 4.0, 1.0])


def save(path, data=DATA, kind=nib.Nifti1Image, **fields):
    """A .nii whose header fields were changed behind nibabel's back."""
    raw = bytearray(kind(data, AFFINE).to_bytes())
    header_type = nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header
    size = header_type.template_dtype.itemsize
    header = header_type(bytes(raw[:size]), check=False)
    for key, value in fields.items():
        header[key] = value
    raw[:size] = header.binaryblock
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("code", [8, 16, 24])
def test_time_points_are_no_channels_unless_named(tmp_path, kind, code):
    path = save(tmp_path / "t.nii", np.stack([DATA, DATA + 1], -1), kind, xyzt_units=2 | code)
    with pytest.raises(ImageError, match=r"4D series of 2 volumes over time.*name its channels"):
        read_image([path])
    assert np.array_equal(read_image([path], channels=("a", "b")).array, np.stack([DATA.T, DATA.T + 1]))


def test_a_fourth_axis_without_a_unit_is_taken_as_channels_with_a_warning(tmp_path):
    image = read_image([save(tmp_path / "c.nii", np.stack([DATA, DATA], -1), xyzt_units=2)])
    assert image.array.shape == (2, 5, 4, 3)
    assert image.warnings == ("its fourth axis is taken as 2 channels",)
    assert not read_image([tmp_path / "c.nii"], channels=("a", "b")).warnings


def test_one_time_point_is_a_volume(tmp_path):
    image = read_image([save(tmp_path / "o.nii", DATA[..., None], xyzt_units=10)])
    assert image.array.shape == (1, 5, 4, 3)
    assert not image.warnings


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dim", [[3, 32767, 32767, 32767], [3, 3, 4, 6], [7, 32767, 32767, 32767, 1, 1, 1, 1]])
def test_sizes_beyond_the_file_are_refused(tmp_path, dim, suffix):
    path = save(tmp_path / f"h{suffix}", dim=[*dim, *[1] * (8 - len(dim))])
    with pytest.raises(ImageError, match=r"is cut off"):
        read_image([path])


def test_a_nifti2_size_of_exabytes_is_refused(tmp_path):
    path = save(tmp_path / "h.nii.gz", kind=nib.Nifti2Image, dim=[3, 2**40, 2**40, 2**40, 1, 1, 1, 1])
    with pytest.raises(ImageError, match="cut off"):
        read_image([path])


@pytest.mark.parametrize("offset", [1e9, 1e30, -400, 100, 352.5, float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_far_or_odd_vox_offset_is_refused(tmp_path, offset, suffix):
    with pytest.raises(ImageError, match=r"vox_offset|cut off"):
        read_image([save(tmp_path / f"o{suffix}", vox_offset=offset)])


def test_extensions_are_passed_over(tmp_path):
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane" * 50))
    nib.save(image, tmp_path / "e.nii.gz")
    read = read_image([tmp_path / "e.nii.gz"])
    assert np.array_equal(read.array[0], DATA.T)
    assert "Doe" not in str(read)


def test_a_bomb_is_unpacked_no_further_than_a_little_behind_its_voxels(tmp_path):
    member = gzip.compress(bytes(64 << 20), 9)
    path = save(tmp_path / "b.nii.gz")
    path.write_bytes(path.read_bytes() + member * 64)  # 4 GiB
    code = (
        "import sys; from pathlib import Path; from medseg.io.images import read_image; read_image([Path(sys.argv[1])])"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (15, 15))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True, preexec_fn=limit
    )
    assert "holds far more bytes than its header promises" in done.stderr


def test_an_offset_into_a_bomb_takes_no_memory(tmp_path):
    path = save(tmp_path / "b.nii.gz", vox_offset=352 + (255 << 20))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(64 << 20), 9) * 4)
    tracemalloc.start()
    image = read_image([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert image.array.max() == 0  # the zeros that lie where the header points


def test_bytes_behind_the_voxels_are_said(tmp_path):
    for name in ("s.nii", "s.nii.gz"):
        path = save(tmp_path / name, dim=[3, 3, 4, 4, 1, 1, 1, 1])
        assert read_image([path]).warnings == ("24 bytes behind the voxels are left out",)


def test_many_empty_gzip_members_do_not_take_for_ever(tmp_path):
    path = save(tmp_path / "m.nii.gz")
    path.write_bytes(gzip.compress(b"") * 100_000 + path.read_bytes())
    assert np.array_equal(read_image([path]).array[0], DATA.T)


def test_padding_and_junk_behind_gzip(tmp_path):
    path = save(tmp_path / "p.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    assert np.array_equal(read_image([path]).array[0], DATA.T)
    path.write_bytes(whole + b"junk")
    with pytest.raises(ImageError, match="damaged"):
        read_image([path])


def test_names_do_not_decide_about_compression(tmp_path):
    raw = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(raw)
    (tmp_path / "c.nii").write_bytes(gzip.compress(raw))
    for name in ("a.nii", "b.nii.gz", "c.nii"):
        assert np.array_equal(read_image([tmp_path / name]).array[0], DATA.T)


@pytest.mark.parametrize("suffix", [".img", ".img.gz"])
def test_pairs_are_read_as_nibabel_reads_them(tmp_path, suffix):
    path = tmp_path / f"pair{suffix}"
    nib.save(nib.Nifti1Pair(DATA, AFFINE), path)
    header = tmp_path / f"pair{suffix.replace('img', 'hdr')}"
    image = read_image([header])
    assert np.array_equal(image.array[0], np.asarray(nib.load(path).dataobj).T)
    assert image.geometry.spacing_mm == (4, 3, 2)
    assert image.source.files == (header, path)


def test_pairs_that_are_none_are_refused(tmp_path):
    nib.save(nib.Nifti1Pair(DATA, AFFINE), tmp_path / "p.img")
    header = (tmp_path / "p.hdr").read_bytes()
    (tmp_path / "p.img").rename(tmp_path / "q.img")
    with pytest.raises(ImageError, match=r"has no \.img"):
        read_image([tmp_path / "p.hdr"])
    (tmp_path / "p.img").write_bytes(b"")
    with pytest.raises(ImageError, match="cut off"):
        read_image([tmp_path / "p.hdr"])
    (tmp_path / "p.img.gz").write_bytes(b"")
    with pytest.raises(ImageError, match="several files"):
        read_image([tmp_path / "p.hdr"])
    (tmp_path / "alone.nii").write_bytes(header)
    with pytest.raises(ImageError, match=r"only the header"):
        read_image([tmp_path / "alone.nii"])


def test_analyze_is_refused_because_it_has_no_left_and_right(tmp_path):
    nib.save(nib.AnalyzeImage(DATA, np.diag([2.0, 3, 4, 1])), tmp_path / "a.img")
    with pytest.raises(ImageError, match=r"Analyze 7\.5.*left and right"):
        read_image([tmp_path / "a.hdr"])


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (2, np.nan), (2, np.inf), (-np.inf, 1)])
def test_scaling_that_is_not_finite_is_refused(tmp_path, slope, inter):
    with pytest.raises(ImageError, match="not finite"):
        read_image([save(tmp_path / "s.nii", scl_slope=slope, scl_inter=inter)])


def test_no_slope_means_no_scaling(tmp_path):
    for slope, inter, words in [(0, 0, ()), (np.nan, np.nan, ()), (0, 7, ("intercept 7 is not applied",))]:
        image = read_image([save(tmp_path / "s.nii", scl_slope=slope, scl_inter=inter)])
        assert np.array_equal(image.array[0], DATA.T)
        assert image.array.dtype == np.int16
        assert [w.split(" because")[0] for w in image.warnings] == list(words)


def test_a_slope_that_overflows_is_refused(tmp_path):
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image([save(tmp_path / "s.nii", scl_slope=1e38, scl_inter=0)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_nan_is_never_zero(tmp_path, dtype):
    data = DATA.astype(dtype)
    data[1, 2, 3] = np.nan
    with pytest.raises(ImageError, match="1 voxels are NaN or infinite"):
        read_image([save(tmp_path / "n.nii", data)])


def test_a_double_beyond_single_precision_is_refused(tmp_path):
    data = DATA.astype(np.float64)
    data[0, 0, 0] = 1e300
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_image([save(tmp_path / "d.nii", data)])


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [np.inf, 0, 0, 0]},
        {"srow_z": [0, 0, np.nan, 0]},
        {"srow_x": [3e38, 3e38, 0, 0]},
        {"srow_y": [0, 0, 0, 0]},
        {"srow_x": [1, 1, 1, 0], "srow_y": [1, 1, 1, 0], "srow_z": [1, 1, 1, 0]},
        {"srow_x": [-2, 0.4, 0, 0]},
        {"sform_code": -1},
        {"qform_code": 99},
        {"xyzt_units": 7},
        {"sform_code": 0, "qform_code": 1, "quatern_b": 2.0},
        {"sform_code": 0, "qform_code": 1, "quatern_b": np.nan},
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 3, 4, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, -2, 3, 4, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, np.inf, 3, 4, 1, 1, 1, 1]},
    ],
    ids=str,
)
def test_places_that_are_no_grid_are_refused(tmp_path, fields):
    with pytest.raises(GeometryError, match=r"g\.nii"):
        read_image([save(tmp_path / "g.nii", **fields)])


def test_contradictions_of_the_header_are_said(tmp_path):
    save(tmp_path / "p.nii", qform_code=0, sform_code=2, pixdim=[1, 0.5, 0.5, 3, 1, 1, 1, 1])
    (note,) = read_image([tmp_path / "p.nii"]).warnings
    assert note == "pixdim states voxels of 0.5 x 0.5 x 3 mm and the sform of 2 x 3 x 4; the sform is used"
    save(tmp_path / "q.nii", qform_code=1, sform_code=1, quatern_b=3.0)
    assert read_image([tmp_path / "q.nii"]).warnings == ("qform is not a valid grid; the sform is used",)
    save(tmp_path / "b.nii", bitpix=8)
    assert "bitpix is 8" in read_image([tmp_path / "b.nii"]).warnings[0]
    save(tmp_path / "u.nii", xyzt_units=1)
    assert "lengths are in m" in read_image([tmp_path / "u.nii"]).warnings[0]


def test_a_qfac_of_zero_means_one(tmp_path):
    save(tmp_path / "z.nii", sform_code=0, qform_code=1, pixdim=[0, 2, 3, 4, 1, 1, 1, 1])
    itk = sitk.ReadImage(str(tmp_path / "z.nii"))
    geometry = read_nifti(tmp_path / "z.nii").geometry
    np.testing.assert_allclose(np.ravel(geometry.direction), itk.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("fields", [{"sizeof_hdr": 0}, {"magic": b"n+3"}, {"datatype": 1}, {"datatype": 0}])
def test_headers_of_no_known_kind_are_refused(tmp_path, fields):
    with pytest.raises(ImageError, match=r"h\.nii"):
        read_image([save(tmp_path / "h.nii", **fields)])


def test_files_shorter_than_a_header_are_refused(tmp_path):
    whole = save(tmp_path / "s.nii", kind=nib.Nifti2Image).read_bytes()
    for length in (0, 1, 2, 100, 347, 348, 500, 539, 540, 543, 544):
        (tmp_path / "s.nii").write_bytes(whole[:length])
        with pytest.raises(ImageError):
            read_image([tmp_path / "s.nii"])


def test_rgb_and_rgba_are_refused(tmp_path):
    for datatype, size in [(128, 3), (2304, 4)]:
        path = tmp_path / "r.nii"
        raw = bytearray(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), AFFINE).to_bytes()[:352]) + bytes(60 * size)
        struct.pack_into("<hh", raw, 70, datatype, 8 * size)
        path.write_bytes(raw)
        with pytest.raises(ImageError, match="colour"):
            read_image([path])


def test_a_named_pipe_and_a_device_do_not_hang(tmp_path):
    import os

    os.mkfifo(tmp_path / "p.nii")
    (tmp_path / "z.nii").symlink_to("/dev/zero")
    for name in ("p.nii", "z.nii"):
        with pytest.raises(ImageError, match="no regular file"):
            read_image([tmp_path / name])


def test_an_axis_that_nifti1_cannot_state_is_refused_when_writing(tmp_path):
    array = np.zeros((1, 1, 40_000), np.uint8)
    with pytest.raises(ImageError, match=r"do not fit NIfTI-1.*\.nrrd"):
        write_nifti(array, Geometry(array.shape, (1.0, 1.0, 1.0)), tmp_path / "w.nii")
    assert not list(tmp_path.iterdir())
