"""Contours and segments of other programs on their images, and contours of a whole CBCT.

pytest -m acceptance --data FOLDER tests/acceptance/test_labels_in.py
"""

import json
import subprocess
from dataclasses import replace
from shutil import copytree, which

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline

from medseg import check_dataset
from medseg.errors import DicomError, GeometryError
from medseg.io.images import read_image, read_labels
from medseg.io.rtstruct import read_rtstruct, write_rtstruct
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

pytestmark = pytest.mark.acceptance
SILVER = Labels((Label("other bone", (1,)), Label("mandible", (2,)), Label("air", (3,))))


def test_contours_of_another_program(real_data):
    folder = real_data / "dicom-awkward" / "rtstruct-with-ct"
    image = read_image([folder])
    found = read_rtstruct(folder / "rt.dcm", image, Labels((Label("roi-1", (1,)),)))
    outer, inner = (
        np.array(contour.ContourData, float).reshape(-1, 3)
        for contour in pydicom.dcmread(folder / "rt.dcm").ROIContourSequence[0].ContourSequence
    )
    y, x = np.mgrid[:512, :512]
    places = np.c_[x.ravel(), y.ravel()] * 0.488281 - 125
    inside = [
        Outline(points[:, :2], closed=False).contains_points(places).reshape(512, 512) for points in (outer, inner)
    ]
    assert np.array_equal(found.array[0], inside[0] & ~inside[1])
    assert not found.array[1].any()
    assert "another frame of reference" in found.warnings[0]


def test_contours_on_absent_images_are_refused(real_data):
    folder = real_data / "dicom-awkward" / "rtstruct-with-ct"
    with pytest.raises(DicomError, match=r'1 of 3 contours of "ROI-1" lie on images that are not in the series'):
        read_rtstruct(folder / "invalid_reference_rt.dcm", read_image([folder]))
    with pytest.raises((DicomError, GeometryError)):
        other = real_data / "dicom-awkward" / "seg-on-ct" / "ct"
        read_rtstruct(folder / "rt.dcm", read_image([other]))


def test_segments_in_reverse_order(real_data):
    folder = real_data / "dicom-awkward" / "seg-on-ct"
    image = read_image([folder / "ct"])
    found = read_labels(folder / "liver_seg.dcm", Labels((Label("liver", (3,)),)), image)
    ds = pydicom.dcmread(folder / "liver_seg.dcm")
    assert ds.pixel_array.sum() == np.count_nonzero(found.array == 3)
    for pixels, groups in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        index = round((height - image.geometry.origin_mm[2]) / image.geometry.spacing_mm[0])
        assert np.array_equal(found.array[index] == 3, pixels > 0)


def test_they_make_data_sets(real_data, tmp_path):
    folder = real_data / "dicom-awkward"
    copytree(folder / "seg-on-ct" / "ct", tmp_path / "imagesTr" / "liver_0000")
    copytree(folder / "rtstruct-with-ct", tmp_path / "imagesTr" / "phantom_0000")
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "liver.dcm").write_bytes((folder / "seg-on-ct" / "liver_seg.dcm").read_bytes())
    (tmp_path / "labelsTr" / "phantom.dcm").write_bytes((folder / "rtstruct-with-ct" / "rt.dcm").read_bytes())
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "ROI-1": 2},
        "file_ending": ".dcm",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described), "utf-8")
    faults = check_dataset(tmp_path)
    assert not [fault for fault in faults if fault.severity == "error"]
    told = [fault.what for fault in faults]
    assert any("another frame of reference" in what for what in told)
    assert any('holds no "liver", taken as absent; it holds "ROI-1"' in what for what in told)


def test_contours_of_a_whole_cbct(real_data, tmp_path):
    """517 slices of 640 x 640 voxels: every voxel comes back, and a validator has no objection."""
    image = read_image([real_data / "cbct-icat" / "DICOM"])
    labels = read_labels(real_data / "cbct-icat" / "label_native.nii.gz", SILVER)
    image = replace(image, array=np.broadcast_to(np.zeros((), np.uint8), image.array.shape))
    path = tmp_path / "head.rtstruct.dcm"
    write_rtstruct(LabelMap(labels.array, image.geometry, SILVER), image, path)
    back = read_rtstruct(path, image, SILVER)
    assert np.array_equal(back.array, labels.array) and back.warnings == ()
    if which("dciodvfy"):
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in told.stderr + told.stdout
