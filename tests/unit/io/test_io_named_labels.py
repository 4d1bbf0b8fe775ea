from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medseg.errors import GeometryError, ImageError
from medseg.io.images import read_image, read_labels
from medseg.io.named_labels import is_named
from medseg.io.rtstruct import write_rtstruct
from medseg.io.seg_nrrd import write_seg_nrrd
from medseg.types.geometry import Box
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from tests.dicom_phantoms import OBLIQUE, grid, write_dicom

SHAPE = (5, 14, 12)
WANTED = Labels((Label("LIVER", (4,)), Label("spleen", (2,))))


@pytest.fixture
def image(tmp_path):
    write_dicom(tmp_path / "ct", np.zeros(SHAPE), grid(SHAPE, axes=OBLIQUE))
    return read_image([tmp_path / "ct"])


def organs():
    """Liver 1, spleen 2, and a body 3 that nobody asks for."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:4, 2:12, 2:10] = 3
    array[1:3, 3:7, 3:6] = 1
    array[2:4, 8:11, 5:9] = 2
    return array


def write_seg(image, masks, path, kind="BINARY"):
    """Masks (z, y, x, s) of liver, spleen and body by highdicom."""
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(["liver", "spleen", "body"], start=1)
    ]
    highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in image.source.files],
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **({"max_fractional_value": 100} if kind == "FRACTIONAL" else {}),
    ).save_as(path)
    return path


def stacked(array):
    return np.stack([array == value for value in (1, 2, 3)], axis=-1)


EXPECTED = np.array([0, 4, 2, 0])[organs()]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_segments_of_a_dicom_seg(image, tmp_path, kind):
    masks = stacked(organs())
    voxels = {"BINARY": masks.astype(np.uint8), "LABELMAP": organs(), "FRACTIONAL": masks * 0.8}[kind]
    path = write_seg(image, voxels, tmp_path / "a.dcm", kind)
    assert is_named(path)
    found = read_labels(path, WANTED, image)
    assert np.array_equal(found.array, EXPECTED) and found.geometry == image.geometry and found.labels == WANTED
    assert [note for note in found.warnings if "fractions" not in note] == []


def test_only_overlaps_of_wanted_segments_are_told(image, tmp_path):
    masks = stacked(organs())
    masks[..., 2] = organs() > 0  # the body holds the liver and the spleen
    found = read_labels(write_seg(image, masks.astype(np.uint8), tmp_path / "a.dcm"), WANTED, image)
    assert np.array_equal(found.array, EXPECTED) and found.warnings == ()
    masks[3, 4, 4, :2] = True
    found = read_labels(write_seg(image, masks.astype(np.uint8), tmp_path / "a.dcm"), WANTED, image)
    assert found.warnings == ('1 voxels lie in "LIVER" and in "spleen" and count as the latter',)


def test_a_seg_of_another_series_in_the_same_place_is_told(image, tmp_path):
    path = write_seg(image, organs(), tmp_path / "a.dcm")
    write_dicom(tmp_path / "pet", np.zeros(SHAPE), grid(SHAPE, axes=OBLIQUE))
    found = read_labels(path, WANTED, read_image([tmp_path / "pet"]))
    assert np.array_equal(found.array, EXPECTED)
    assert found.warnings == ("was drawn on another series of the same frame of reference",)
    write_dicom(tmp_path / "away", np.zeros(SHAPE), grid(SHAPE, axes=OBLIQUE, frame="1.2.3"))
    with pytest.raises(GeometryError, match="frame of reference"):
        read_labels(path, WANTED, read_image([tmp_path / "away"]))


def test_dicom_needs_its_image(image, tmp_path):
    drawn = LabelMap(organs(), image.geometry, Labels((Label("liver", (1,)), Label("spleen", (2,)))))
    write_rtstruct(drawn, image, tmp_path / "rs.dcm")
    for path in (write_seg(image, organs(), tmp_path / "a.dcm"), tmp_path / "rs.dcm"):
        with pytest.raises(ImageError, match="together with the image"):
            read_labels(path, WANTED)
    assert np.array_equal(read_labels(tmp_path / "rs.dcm", WANTED, image).array, EXPECTED)


def test_segments_of_3d_slicer_need_no_image_but_lie_on_it(image, tmp_path):
    names = Labels((Label("liver", (1,)), Label("spleen", (2,)), Label("body", (3,))))
    path = tmp_path / "a.seg.nrrd"
    write_seg_nrrd(LabelMap(organs(), image.geometry, names), path)
    assert is_named(path)
    assert np.array_equal(read_labels(path, WANTED).array, EXPECTED)
    assert np.array_equal(read_labels(path, WANTED, image).array, EXPECTED)
    part = image.geometry.crop(Box((2, 0, 0), SHAPE))
    smaller = replace(image, array=image.array[:, 2:], geometry=part)
    with pytest.raises(GeometryError, match="beyond the image"):
        read_labels(path, WANTED, smaller)
    moved = replace(image, geometry=replace(image.geometry, origin_mm=(0.0, 0.0, 0.3)))
    with pytest.raises(GeometryError, match="do not coincide"):
        read_labels(path, WANTED, moved)


def test_other_files_have_no_names(image, tmp_path):
    (tmp_path / "text.txt").write_text("DICM")
    others = [image.source.files[0], image.source.files[0].parent, tmp_path / "text.txt", tmp_path / "absent.dcm"]
    assert not any(is_named(path) for path in others)
