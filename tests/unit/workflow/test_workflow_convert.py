import re
import shutil
import subprocess
import sys
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_phantoms import OBLIQUE as SLANTED
from dicom_phantoms import grid, write_dicom
from full_disk import full_disk
from PIL import Image as Picture

from medseg.cli import main
from medseg.errors import DicomError, ImageError
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


@pytest.mark.parametrize("name", ["out.seg.nrrd", "OUT.SEG.NRRD"])
def test_a_scan_is_not_named_like_a_segmentation(scan, tmp_path, capsys, name):
    assert main(["convert", str(scan), "-o", str(tmp_path / name)]) == 2
    assert "is the name of segmentations" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_failed_conversion_leaves_the_older_file(scan, tmp_path):
    out = tmp_path / "out.nii.gz"
    out.write_bytes(b"older")
    scan.write_bytes(scan.read_bytes()[:-30])
    with pytest.raises(ImageError, match="cut off"):
        convert(scan, out)
    assert out.read_bytes() == b"older"


@pytest.fixture
def two_series(tmp_path):
    """Two series side by side, of which the second holds two echoes at every place."""
    folder = tmp_path / "study"
    plain = grid((4, 5, 6), axes=SLANTED)
    pixels = np.arange(120, dtype=np.int16).reshape(plain.shape)
    first = write_dicom(folder / "a", pixels, plain, SeriesDescription="first")
    second = write_dicom(folder / "b", pixels + 1000, plain, EchoTime="4.6", Modality="MR")
    write_dicom(folder / "c", pixels + 2000, plain, series=second, EchoTime="9.2", Modality="MR")
    return folder, first, second, pixels, plain


def test_one_of_several_series_is_chosen_by_name(two_series, tmp_path):
    folder, first, second, pixels, plain = two_series
    with pytest.raises(DicomError, match="holds 3 series"):
        convert(folder, tmp_path / "out.nii.gz")
    image = convert(folder, tmp_path / "out.nii.gz", series=first)
    assert any("8 other files" in warning for warning in image.warnings)
    back = read_image([tmp_path / "out.nii.gz"])
    assert np.array_equal(back.array[0], pixels)
    assert back.geometry.corner_distance_mm(plain) < 1e-3
    with pytest.raises(DicomError, match=r"holds 2 volumes .*--part 'EchoTime 4.6'; .*--part 'EchoTime 9.2'"):
        convert(folder, tmp_path / "out.nii.gz", series=second)
    convert(folder, tmp_path / "out.nii.gz", series=second, part="EchoTime 9.2")
    assert np.array_equal(read_image([tmp_path / "out.nii.gz"]).array[0], pixels + 2000)
    with pytest.raises(DicomError, match=rf"holds no series 1\.2\.3.*--series {first}"):
        convert(folder, tmp_path / "out.nii.gz", series="1.2.3")


def test_an_archive_is_read_and_cleared_away(two_series, tmp_path, monkeypatch):
    folder, _, _, pixels, _ = two_series
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    shutil.make_archive(str(tmp_path / "a"), "zip", folder / "a")
    convert(tmp_path / "a.zip", tmp_path / "out.nrrd")
    assert np.array_equal(read_image([tmp_path / "out.nrrd"]).array[0], pixels)
    assert not list((tmp_path / "temporary").iterdir())


def test_pictures_without_a_spacing_are_written_with_a_warning_or_a_given_one(tmp_path):
    Picture.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "p.png")
    assert "no spacing is stated" in convert(tmp_path / "p.png", tmp_path / "p.mha").warnings[-1]
    assert not convert(tmp_path / "p.png", tmp_path / "q.mha", spacing_mm=(0.3, 0.2)).warnings
    assert read_image([tmp_path / "q.mha"]).geometry.spacing_mm == (1.0, 0.3, 0.2)


def test_the_command_says_warnings_on_stderr_and_what_it_wrote_on_stdout(tmp_path, capsys):
    Picture.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "p.png")
    assert main(["convert", str(tmp_path / "p.png"), "-o", str(tmp_path / "p.nii")]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["warning: no spacing is stated; one voxel is written as 1 mm"]
    assert "p.nii: 4 x 3 x 1 voxels" in said.out and "uint8" in said.out
    assert main(["convert", str(tmp_path / "absent.nii"), "-o", str(tmp_path / "q.nii")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "q.nii").exists()


def test_time_points_need_names(tmp_path, capsys):
    image = nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "t.nii")
    argv = ["convert", str(tmp_path / "t.nii"), "-o", str(tmp_path / "o.nii")]
    assert main(argv) == 2
    assert "4D series of 2 volumes" in capsys.readouterr().err
    assert main([*argv, "--channels", "before", "after"]) == 0
    assert "2 channels" in capsys.readouterr().out


def test_converting_needs_no_torch(scan, tmp_path):
    code = "import sys; import medseg.cli as c; c.main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", str(scan), "-o", str(tmp_path / "o.nii")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_full_disk_leaves_the_older_file_and_no_part(tmp_path, suffix, capsys):
    grid_mm = Geometry((20, 30, 40), (1.0, 1.0, 1.0))
    noise = np.random.default_rng(0).integers(0, 30_000, grid_mm.shape).astype(np.int16)
    write_nifti(noise, grid_mm, tmp_path / "noise.nii")
    out = tmp_path / "out" / f"scan{suffix}"
    out.parent.mkdir()
    out.write_bytes(b"older")
    with full_disk(10_000):
        assert main(["convert", str(tmp_path / "noise.nii"), "-o", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert out.read_bytes() == b"older"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_error_within_an_archive_names_the_archive(two_series, tmp_path, capsys):
    folder, first, second, *_ = two_series
    archive = shutil.make_archive(str(tmp_path / "z ü"), "zip", folder)
    assert main(["convert", archive, "-o", str(tmp_path / "out.nii.gz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {archive}: holds 3 series: ") and "medseg-" not in error
    assert f"series {first}" in error and f"EchoTime 4.6, series {second}" in error
    assert f"`medseg inspect {archive}`" in error and "--series ?" not in error
    with pytest.raises(DicomError) as caught:
        convert(archive, tmp_path / "out.nii.gz", series="1.2.3")
    assert caught.value.where == archive
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as cut:
        for path in sorted((folder / "a").iterdir()):
            cut.writestr(f"a/{path.name}", path.read_bytes()[:-7])
    with pytest.raises(DicomError, match=f"^{tmp_path}/cut.zip/a/00"):
        convert(tmp_path / "cut.zip", tmp_path / "out.nii.gz")


def test_a_series_without_a_sound_uid_is_chosen_by_what_is_listed(tmp_path):
    plain = grid((4, 5, 6))
    pixels = np.arange(120, dtype=np.int16).reshape(plain.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(tmp_path / "in" / "a", pixels, plain, series="Geheim")
    write_dicom(tmp_path / "in" / "b", pixels + 1, plain)
    with pytest.raises(DicomError, match="series invalid-") as caught:
        convert(tmp_path / "in", tmp_path / "out.nii.gz")
    assert "Geheim" not in str(caught.value)
    (name,) = re.findall(r"invalid-\w+", str(caught.value))
    assert np.array_equal(convert(tmp_path / "in", tmp_path / "out.nii.gz", series=name).array[0], pixels)
