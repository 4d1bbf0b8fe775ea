import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from medseg.errors import DicomError, GeometryError, ImageError
from medseg.io.images import (
    SUFFIXES,
    check_same_grid,
    image_stem,
    is_dicom,
    is_image,
    read_image,
    read_labels,
    write_labels,
    write_scores,
)
from medseg.io.nifti import write_nifti
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap, Probabilities
from medseg.types.labels import Label, Labels

SHAPE = (3, 4, 5)
DIRECTION = ((0.0, -0.8, 0.6), (1.0, 0.0, 0.0), (0.0, 0.6, 0.8))
GEOMETRY = Geometry(SHAPE, (2.5, 0.7, 0.4), (-31.0, 12.5, 80.0), DIRECTION)
LABELS = Labels((Label("a", (1,)), Label("b", (2,)), Label("big", (300,))), ignore=9)
SMALL = Labels((Label("a", (1,)), Label("b", (2, 1), write=2)))


def volume(dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 99, SHAPE).astype(dtype)


def shifted(mm, geometry=GEOMETRY):
    x, y, z = geometry.origin_mm
    return Geometry(geometry.shape, geometry.spacing_mm, (x + mm, y, z), geometry.direction)


def png(path, pixels):
    Picture.fromarray(pixels).save(path)
    return path


def test_suffixes_and_stems(tmp_path):
    for suffix in SUFFIXES:
        assert is_image(tmp_path / f"Fall 1.ü{suffix.upper()}")
        assert image_stem(tmp_path / f"Fall 1.ü{suffix.upper()}") == "Fall 1.ü"
    assert not is_image(tmp_path / "scan.gz")
    assert not is_image(tmp_path / "scan.dcm")
    assert image_stem(tmp_path / "notes.txt") == "notes"
    (tmp_path / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    assert is_dicom(tmp_path / "IM1")
    assert is_dicom(tmp_path / "x.DCM")
    assert not is_dicom(tmp_path / "absent")


def test_one_file_per_channel(tmp_path):
    paths = [tmp_path / f"fall ü_{i:04d}.nii.gz" for i in range(2)]
    for i, path in enumerate(paths):
        write_nifti(volume(seed=i), GEOMETRY, path)
    image = read_image(paths, channels=("T1", "T2"))
    assert image.channels == ("T1", "T2")
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array, np.stack([volume(), volume(seed=1)]))
    assert image.source.files == tuple(paths)
    assert not image.warnings
    assert read_image(paths).channels == ("0", "1")


def test_formats_and_types_of_channels_may_differ(tmp_path):
    write_nifti(volume(np.uint8), GEOMETRY, tmp_path / "a.nii")
    other = volume(np.float32) / 3
    itk = sitk.GetImageFromArray(other)
    itk.SetSpacing(GEOMETRY.spacing_mm[::-1])
    itk.SetOrigin(GEOMETRY.origin_mm)
    itk.SetDirection(np.ravel(DIRECTION).tolist())
    sitk.WriteImage(itk, str(tmp_path / "b.nrrd"))
    image = read_image([tmp_path / "a.nii", tmp_path / "b.nrrd"])
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[1], other)


def test_one_file_with_all_channels(tmp_path):
    write_nifti(np.stack([volume(), volume(seed=1)]), GEOMETRY, tmp_path / "a.nii")
    assert read_image([tmp_path / "a.nii"], channels=("T1", "T2")).channels == ("T1", "T2")
    with pytest.raises(ImageError, match=r"a\.nii: has 2 channels where 3 are expected"):
        read_image([tmp_path / "a.nii"], channels=("a", "b", "c"))
    with pytest.raises(ImageError, match="has 2 channels where 1 are expected"):
        read_image([tmp_path / "a.nii", tmp_path / "a.nii"])
    with pytest.raises(ImageError, match="2 files for channels a, b, c"):
        read_image([tmp_path / "a.nii", tmp_path / "a.nii"], channels=("a", "b", "c"))
    with pytest.raises(ImageError, match="no file given"):
        read_image([])


@pytest.mark.parametrize(("apart", "outcome"), [(0.0005, "same"), (0.008, "warned"), (0.02, "refused"), (5, "refused")])
def test_tolerance_of_grids(tmp_path, apart, outcome):
    write_nifti(volume(), GEOMETRY, tmp_path / "a.nii")
    write_nifti(volume(), shifted(apart), tmp_path / "b.nii")
    paths = [tmp_path / "a.nii", tmp_path / "b.nii"]
    if outcome == "refused":
        with pytest.raises(GeometryError, match=rf"b\.nii: its grid lies up to {apart} mm"):
            read_image(paths)
        return
    image = read_image(paths)
    assert image.geometry.same_grid(GEOMETRY)
    assert [("b.nii: " in w and "taken as equal" in w) for w in image.warnings] == [True] * (outcome == "warned")


def test_one_percent_of_a_large_voxel_is_repaired():
    coarse = Geometry(SHAPE, (5.0, 3.0, 3.0))
    assert check_same_grid(coarse, shifted(0.029, coarse))
    with pytest.raises(GeometryError):
        check_same_grid(coarse, shifted(0.031, coarse))
    with pytest.raises(GeometryError, match=r"shape \(3, 4, 6\) differs from \(3, 4, 5\)"):
        check_same_grid(coarse, Geometry((3, 4, 6), (5.0, 3.0, 3.0)), where="x")


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-0.02, 0.02)] * 3), st.floats(0.2, 6))
def test_grid_check_agrees_with_brute_force(offset, side):
    one = Geometry(SHAPE, (side, side, side))
    two = Geometry(SHAPE, (side, side, side), offset)
    apart = float(np.linalg.norm(offset))
    limit = max(0.01, 0.01 * side)
    if apart > limit * 1.001:
        with pytest.raises(GeometryError):
            check_same_grid(one, two)
    elif apart < limit * 0.999:
        assert bool(check_same_grid(one, two)) == (apart > 1e-3) or abs(apart - 1e-3) < 1e-9


def test_voxels_that_are_not_finite_are_counted(tmp_path):
    array = volume(np.float32)
    array[0, 0, :3] = [np.nan, np.inf, -np.inf]
    write_nifti(array, GEOMETRY, tmp_path / "n.nii.gz")
    with pytest.raises(ImageError, match=r"n\.nii\.gz: 3 voxels are NaN or infinite"):
        read_image([tmp_path / "n.nii.gz"])
    with pytest.raises(ImageError, match="3 voxels"):
        read_labels(tmp_path / "n.nii.gz", SMALL)
    write_nifti(np.full(SHAPE, 1e30, np.float32), GEOMETRY, tmp_path / "big.nii")
    assert read_image([tmp_path / "big.nii"]).array.max() == np.float32(1e30)
    nib.save(nib.Nifti1Image(np.full(SHAPE, 1e300), np.eye(4)), tmp_path / "huge.nii")
    with pytest.raises(ImageError, match="60 voxels"):
        read_image([tmp_path / "huge.nii"])


def test_grey_from_colour(tmp_path):
    grey = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)
    equal = png(tmp_path / "equal.png", np.stack([grey] * 3, axis=-1))
    image = read_image([equal], channels=("US",))
    assert image.array.shape == (1, 1, 6, 8)
    assert np.array_equal(image.array[0, 0], grey)
    assert not image.warnings
    assert len(read_image([equal]).array) == 3

    colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    path = png(tmp_path / "colour.png", colour)
    image = read_image([path], channels=("US",))
    assert "luminance" in image.warnings[0]
    theirs = np.asarray(Picture.open(path).convert("L")).astype(int)
    assert np.abs(image.array[0, 0].astype(int) - theirs).max() <= 1
    assert image.array.dtype == np.uint8
    with pytest.raises(ImageError, match="has 3 channels where 2"):
        read_image([path], channels=("a", "b"))


@pytest.mark.parametrize("name", ["absent.nii.gz", "absent.png", "absent.mha", "absent.dcm", "absent"])
def test_absent_files_are_named(tmp_path, name):
    with pytest.raises((ImageError, DicomError), match=name) as caught:
        read_image([tmp_path / name])
    assert caught.value.hint


def test_unknown_files_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match=r"notes\.txt: is no known image format"):
        read_image([tmp_path / "notes.txt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DicomError, match="no readable DICOM series"):
        read_image([tmp_path / "empty"])


def label_array():
    array = np.zeros(SHAPE, np.uint8)
    array[0, 0] = [0, 1, 2, 1, 2]
    return array


@pytest.mark.parametrize("name", ["l.nii", "l.nii.gz", "l.mha", "l.nrrd", "L ü.NII.GZ"])
def test_label_maps_round_trip_and_agree_with_others(tmp_path, name):
    path = tmp_path / "Ordner ü" / name
    write_labels(LabelMap(label_array().astype(np.uint16), GEOMETRY, SMALL), path)
    back = read_labels(path, SMALL)
    assert back.array.dtype == np.uint8
    assert np.array_equal(back.array, label_array())
    assert back.geometry.same_grid(GEOMETRY)
    theirs = sitk.ReadImage(str(path)) if name.islower() else None
    if theirs is not None:
        assert theirs.GetPixelID() == sitk.sitkUInt8
        np.testing.assert_allclose(
            theirs.TransformIndexToPhysicalPoint((4, 0, 0)), (GEOMETRY.affine() @ [0, 0, 4, 1])[:3], atol=1e-4
        )


def test_large_values_take_two_bytes(tmp_path):
    array = label_array().astype(np.uint16)
    array[1, 1, 1] = 300
    array[1, 1, 2] = 9
    for name in ("l.nii.gz", "l.nrrd"):
        write_labels(LabelMap(array, GEOMETRY, LABELS), tmp_path / name)
        back = read_labels(tmp_path / name, LABELS)
        assert back.array.dtype == np.uint16
        assert np.array_equal(back.array, array)


@pytest.mark.parametrize("name", ["l.png", "l.tif"])
def test_flat_label_maps(tmp_path, name):
    flat = Geometry((1, 4, 5), (1.0, 1.0, 1.0), unit="px")
    labels = Labels((Label("lesion", (255,)), Label("big", (300,))))
    array = np.array([0, 255, 300, 0] * 5, np.uint16).reshape(1, 4, 5)
    write_labels(LabelMap(array, flat, labels), tmp_path / name)
    assert np.array_equal(read_labels(tmp_path / name, labels).array, array)
    with pytest.raises(ImageError, match="3 slices do not fit"):
        write_labels(LabelMap(label_array(), GEOMETRY, SMALL), tmp_path / name)


@pytest.mark.parametrize("name", ["l.mhd", "l.jpg", "l.bmp", "l"])
def test_other_label_formats_are_refused(tmp_path, name):
    with pytest.raises(ImageError, match="no label map format"):
        write_labels(LabelMap(label_array(), GEOMETRY, SMALL), tmp_path / name)
    with pytest.raises(ImageError, match="no format for probabilities"):
        write_scores(Probabilities(np.zeros((2, *SHAPE), np.float32), GEOMETRY, SMALL), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_label_maps_that_do_not_fit_are_not_written(tmp_path):
    with pytest.raises(ImageError, match="not of shape"):
        write_labels(LabelMap(np.zeros((1, 1, 1), np.uint8), GEOMETRY, SMALL), tmp_path / "l.nii")
    with pytest.raises(ImageError, match="70000"):
        write_labels(LabelMap(np.full(SHAPE, 70000), GEOMETRY, SMALL), tmp_path / "l.nii")


def test_masks_of_0_and_255_keep_their_values(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 255
    path = png(tmp_path / "m.png", mask)
    assert np.array_equal(read_labels(path, Labels((Label("lesion", (255,)),))).array[0], mask)
    with pytest.raises(ImageError, match=r"m\.png: holds values 255 that are no class.*\[0, 1, 2\]"):
        read_labels(path, SMALL)
    rgb = png(tmp_path / "rgb.png", np.stack([mask] * 3, axis=-1))
    assert np.array_equal(read_labels(rgb, Labels((Label("lesion", (255,)),))).array[0], mask)
    colours = png(tmp_path / "colours.png", np.stack([mask, mask, mask // 2], axis=-1))
    with pytest.raises(ImageError, match="has 3 channels"):
        read_labels(colours, SMALL)


def test_float_label_maps(tmp_path):
    write_nifti(label_array().astype(np.float32)[np.newaxis], GEOMETRY, tmp_path / "f.nii.gz")
    assert nib.load(tmp_path / "f.nii.gz").shape == (5, 4, 3, 1)
    back = read_labels(tmp_path / "f.nii.gz", SMALL)
    assert back.array.dtype == np.uint8
    assert np.array_equal(back.array, label_array())
    write_nifti(label_array() * np.float32(0.75), GEOMETRY, tmp_path / "g.nii.gz")
    with pytest.raises(ImageError, match=r"g\.nii\.gz: holds fractions 0\.75, 1\.5"):
        read_labels(tmp_path / "g.nii.gz", SMALL)


def test_unknown_label_values_are_listed(tmp_path):
    array = label_array().astype(np.int16)
    array[2, 2] = [7, 9, 7, 11, 300]
    write_nifti(array, GEOMETRY, tmp_path / "u.nii")
    with pytest.raises(ImageError, match="holds values 7, 11 that are no class"):
        read_labels(tmp_path / "u.nii", LABELS)
    with pytest.raises(ImageError, match="holds values 7, 9, 11, 300"):
        read_labels(tmp_path / "u.nii", SMALL)
    array[2, 2, 0] = -1
    write_nifti(array, GEOMETRY, tmp_path / "n.nii")
    with pytest.raises(ImageError, match="holds values from -1 to 300"):
        read_labels(tmp_path / "n.nii", LABELS)


def test_what_regions_write_is_read_in_predictions_only(tmp_path):
    labels = Labels((Label("whole", (1, 2), write=300), Label("core", (2,))))
    array = np.zeros(SHAPE, np.uint16)
    array[1], array[2] = 300, 2
    write_labels(LabelMap(array, GEOMETRY, labels), tmp_path / "l.nii.gz")
    assert np.array_equal(read_labels(tmp_path / "l.nii.gz", labels, predicted=True).array, array)
    with pytest.raises(ImageError, match="holds values 300 that are no class"):
        read_labels(tmp_path / "l.nii.gz", labels)
    array[0, 0, 0] = 7
    write_labels(LabelMap(array, GEOMETRY, labels), tmp_path / "l.nii.gz")
    with pytest.raises(ImageError, match=r"holds values 7 that .*\[0, 1, 2, 300\]"):
        read_labels(tmp_path / "l.nii.gz", labels, predicted=True)


@pytest.mark.parametrize("name", ["p.nii.gz", "p.nrrd", "p.mha"])
def test_scores_round_trip(tmp_path, name):
    scores = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    write_scores(Probabilities(scores, GEOMETRY, SMALL), tmp_path / name)
    back = read_image([tmp_path / name], channels=("background", "a", "b"))
    assert back.array.dtype == np.float32
    assert np.array_equal(back.array, scores)
    assert back.geometry.same_grid(GEOMETRY)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "l.nii.gz"
    write_labels(LabelMap(label_array(), GEOMETRY, SMALL), path)
    before = path.read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", broken)
    with pytest.raises(OSError, match="No space"):
        write_labels(LabelMap(label_array() * 2, GEOMETRY, SMALL), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
