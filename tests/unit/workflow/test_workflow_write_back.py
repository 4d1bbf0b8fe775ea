"""The check after writing: right files pass, and files that lie elsewhere, or hold other voxels, are caught."""

import gzip
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_phantoms import OBLIQUE, grid, write_dicom

from medseg.errors import ImageError, MedsegError
from medseg.io import outputs
from medseg.io.images import read_image, write_labels
from medseg.io.outputs import output_name, write_results
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.result import Prediction, Provenance
from medseg.workflow import write_back
from medseg.workflow.write_back import check_written, write_checked

SHAPE = (6, 11, 13)
VOLUMES = ("nii.gz", "nrrd", "mha", "seg.nrrd", "dicom-seg", "rtstruct")
THREE = Labels((Label("mandible", (3,)), Label("cap", (1,)), Label("absent", (7,))))
NESTED = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
MADE_BY = Provenance("jaws", "ab" * 32)


def blobs(values=(3, 1)):
    array = np.zeros(SHAPE, np.uint8)
    array[1:4, 2:5, 3:9], array[3:6, 7:10, 1:3] = values
    return array


@pytest.fixture
def predicted(tmp_path):
    """A label map on an oblique DICOM series."""
    write_dicom(tmp_path / "ct", np.zeros(SHAPE, np.int16), grid(SHAPE, axes=OBLIQUE))
    scan = read_image([tmp_path / "ct"])
    return Prediction("a", LabelMap(blobs(), scan.geometry, THREE), {}, source=scan.source)


@pytest.mark.parametrize("array", [blobs(), np.zeros(SHAPE, np.uint8), np.full(SHAPE, 3, np.uint8)])
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_every_format_holds_what_was_predicted(predicted, tmp_path, array, kind):
    made = replace(predicted, labels=replace(predicted.labels, array=array))
    names = write_checked(made, tmp_path / "out", "a", VOLUMES, MADE_BY, seg_kind=kind)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


def test_what_was_interrupted_before_it_was_read_back_is_removed(predicted, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(write_back, "check_written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checked(predicted, tmp_path / "out", "a", VOLUMES, MADE_BY)
    assert not any((tmp_path / "out").iterdir())


def test_regions_are_compared_as_unions(predicted, tmp_path):
    made = replace(predicted, labels=LabelMap(blobs((1, 2)), predicted.labels.geometry, NESTED))
    write_checked(made, tmp_path / "out", "a", VOLUMES, MADE_BY)


def test_pictures_are_compared_in_pixels(tmp_path):
    flat = Geometry((1, 11, 13), (1.0, 0.3, 0.3))
    made = Prediction("a", LabelMap(blobs()[2:3], flat, THREE), {})
    write_checked(made, tmp_path, "a", ("png",), MADE_BY)
    write_labels(LabelMap(blobs()[2:3, :, ::-1], flat, THREE), tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"lies .* from where"):
        check_written(made, tmp_path, "a", ("png",))


def flipped(made):
    return replace(made, labels=replace(made.labels, array=made.labels.array[:, :, ::-1]))


def shifted(made):
    x, y, z = made.labels.geometry.origin_mm
    return replace(made, labels=replace(made.labels, geometry=replace(made.labels.geometry, origin_mm=(x + 0.4, y, z))))


def stretched(made):
    spacing = tuple(1.01 * mm for mm in made.labels.geometry.spacing_mm)
    return replace(made, labels=replace(made.labels, geometry=replace(made.labels.geometry, spacing_mm=spacing)))


def mixed_up(made):
    array = np.choose(made.labels.array, [0, 3, 2, 1]).astype(np.uint8)
    return replace(made, labels=replace(made.labels, array=array))


@pytest.mark.parametrize("wrong", [flipped, shifted, stretched, mixed_up])
@pytest.mark.parametrize("form", VOLUMES[:-1])
def test_a_writer_that_errs_is_caught_and_its_files_are_removed(predicted, tmp_path, monkeypatch, form, wrong):
    write = outputs._write
    monkeypatch.setattr(outputs, "_write", lambda made, *rest: write(wrong(made), *rest))
    with pytest.raises(ImageError, match=r'written and read back, "mandible" (has|lies)') as caught:
        write_checked(predicted, tmp_path / "out", "a", (form,), MADE_BY)
    assert not list((tmp_path / "out").iterdir())
    assert caught.value.where == str(tmp_path / "out" / output_name("a", form))


def moved_contours(path, millimetres):
    data = pydicom.dcmread(path)
    for roi in data.ROIContourSequence:
        for contour in roi.get("ContourSequence", ()):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + np.array(millimetres)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    data.save_as(path)


def moved_frames(path, millimetres):
    data = pydicom.dcmread(path)
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        moved = np.array(place.ImagePositionPatient, float) + millimetres
        place.ImagePositionPatient = [f"{v:.4f}" for v in moved]
    data.save_as(path)


def rotated_bits(path, _):
    data = pydicom.dcmread(path)
    bits = np.unpackbits(np.frombuffer(data.PixelData, np.uint8), bitorder="little")
    data.PixelData = np.packbits(np.roll(bits, 1), bitorder="little").tobytes()
    data.save_as(path)


def turned_header(path, _):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    srow = np.frombuffer(raw, "<f4", 12, 280).copy()
    srow[3] += 0.5
    raw[280:328] = srow.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))


def turned_image(path, _):
    image = sitk.ReadImage(str(path))
    turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, ::-1])
    turned.CopyInformation(image)
    sitk.WriteImage(turned, str(path))


@pytest.mark.parametrize(
    ("form", "damage"),
    [
        ("rtstruct", moved_contours),
        ("dicom-seg", moved_frames),
        ("dicom-seg", rotated_bits),
        ("nii.gz", turned_header),
        ("nrrd", turned_image),
        ("mha", turned_image),
    ],
)
def test_files_changed_after_writing_are_caught(predicted, tmp_path, form, damage):
    write_results(predicted, tmp_path, "a", (form,), MADE_BY)
    check_written(predicted, tmp_path, "a", (form,))
    row = np.array(predicted.labels.geometry.direction)[:, 0]
    damage(tmp_path / output_name("a", form), row * predicted.labels.geometry.spacing_mm[2])
    with pytest.raises(ImageError, match="read back"):
        check_written(predicted, tmp_path, "a", (form,))


@pytest.mark.parametrize("form", VOLUMES)
def test_a_file_cut_short_is_caught(predicted, tmp_path, form):
    write_results(predicted, tmp_path, "a", (form,), MADE_BY)
    path = tmp_path / output_name("a", form)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MedsegError):
        check_written(predicted, tmp_path, "a", (form,))


@pytest.mark.parametrize("form", ["dicom-seg", "seg.nrrd", "rtstruct"])
def test_names_that_changed_places_are_caught(predicted, tmp_path, form):
    other = Labels((Label("cap", (3,)), Label("mandible", (1,)), Label("absent", (7,))))
    write_results(replace(predicted, labels=replace(predicted.labels, labels=other)), tmp_path, "a", (form,), MADE_BY)
    with pytest.raises(MedsegError, match=r"classes|structures"):
        check_written(predicted, tmp_path, "a", (form,))
