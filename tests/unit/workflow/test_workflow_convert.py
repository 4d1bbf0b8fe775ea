import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import ImageError
from medseg.io.images import read_image
from medseg.io.nifti import write_nifti
from medseg.types.geometry import Geometry
from medseg.workflow.convert import convert

OBLIQUE = (
    (0.9848077530122081, -0.17364817766693033, 0.0),
    (0.17364817766693033, 0.9848077530122081, 0.0),
    (0.0, 0.0, 1.0),
)
GRID = Geometry((3, 4, 5), (2.5, 1.1, 0.7), (-10.0, 20.0, 30.0), OBLIQUE)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_nifti(np.arange(60, dtype=np.int16).reshape(GRID.shape) - 20, GRID, path)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".NII.GZ"])
def test_every_format_keeps_integers_values_and_place(scan, tmp_path, suffix):
    out = tmp_path / f"new folder/out{suffix}"
    convert(scan, out)
    back = read_image([out])
    assert back.array.dtype == np.int16
    assert np.array_equal(back.array, read_image([scan]).array)
    assert back.geometry.corner_distance_mm(GRID) < 1e-4
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_second_reader_sees_the_same_volume(scan, tmp_path):
    convert(scan, tmp_path / "out.nrrd")
    image = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    assert np.array_equal(sitk.GetArrayFromImage(image), read_image([scan]).array[0])
    assert np.allclose(image.GetOrigin(), GRID.origin_mm)
    assert np.allclose(image.GetSpacing(), GRID.spacing_mm[::-1])
    assert np.allclose(image.GetDirection(), np.array(OBLIQUE).ravel(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_channels_stay_apart(tmp_path, suffix):
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    write_nifti(array, GRID, tmp_path / "two.nii")
    convert(tmp_path / "two.nii", tmp_path / f"out{suffix}")
    assert np.array_equal(read_image([tmp_path / f"out{suffix}"]).array, array)


def test_an_unknown_suffix_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ImageError, match="no format for volumes"):
        convert(tmp_path / "absent.nii", tmp_path / "out.png")


def test_a_failed_conversion_leaves_the_older_file(scan, tmp_path):
    out = tmp_path / "out.nii.gz"
    out.write_bytes(b"older")
    scan.write_bytes(scan.read_bytes()[:-30])
    with pytest.raises(ImageError, match="cut off"):
        convert(scan, out)
    assert out.read_bytes() == b"older"
