"""Real segmentations read, and the CBCT's label written on its series in every format and read back.

    pytest -m acceptance --data FOLDER tests/acceptance/test_written_formats.py

FOLDER holds dicom-awkward (seg-on-ct, seg-highdicom) and cbct-icat (DICOM, label_native.nii.gz).
"""

import shutil
import subprocess
from dataclasses import replace

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.io.dicom_seg_reader import read_seg
from medseg.io.images import read_image, read_labels
from medseg.types.labels import Label, Labels
from medseg.types.result import Prediction, Provenance
from medseg.workflow.write_back import write_checked

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]
CLASSES = Labels((Label("upper skull and teeth", (1,)), Label("mandible", (2,)), Label("airway", (3,))))


def as_highdicom_has_it(path, segment):
    """Voxels of one segment as LPS points, rounded to a thousandth of a mm."""
    seg = highdicom.seg.segread(path)
    volume = seg.get_volume(segment_numbers=[segment], allow_missing_positions=True)
    index = np.argwhere(volume.array[..., 0])
    return {tuple(point) for point in np.round((np.c_[index, np.ones(len(index))] @ volume.affine.T)[:, :3], 3)}


def as_read(found, item):
    index = np.argwhere(found.mask(item))
    points = (np.c_[index, np.ones(len(index))] @ found.geometry.affine().T)[:, :3]
    return {tuple(point) for point in np.round(points, 3)}


@pytest.mark.parametrize(
    "name",
    [
        "seg-on-ct/liver_seg.dcm",
        "seg-highdicom/seg_image_ct_binary.dcm",
        "seg-highdicom/seg_image_ct_binary_overlap.dcm",
        "seg-highdicom/seg_image_ct_binary_single_frame.dcm",
    ],
)
def test_segmentations_of_others_hold_what_highdicom_finds_in_them(real_data, name):
    path = real_data / "dicom-awkward" / name
    found = read_seg(path)
    assert found.items
    for item in found.items:
        theirs = as_highdicom_has_it(path, item.value)
        assert theirs and as_read(found, item) == theirs


def test_overlaps_are_told(real_data):
    found = read_seg(real_data / "dicom-awkward" / "seg-highdicom" / "seg_image_ct_binary_overlap.dcm")
    assert len(found.layers) == 2 and found.warnings == ('16 voxels lie in "first segment" and in "second segment"',)


def test_a_liver_lands_on_its_ct(real_data):
    folder = real_data / "dicom-awkward" / "seg-on-ct"
    scan = read_image([folder / "ct"])
    found = read_seg(folder / "liver_seg.dcm", scan.geometry)
    assert found.layers.shape[1:] == scan.array.shape[1:] and found.mask(found.items[0]).sum() == 107098
    inside = scan.array[0][found.mask(found.items[0])]
    assert 0 < np.median(inside) < 150  # HU of liver


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_cbct_label_is_written_on_its_series(real_data, tmp_path, kind):
    scan = read_image([real_data / "cbct-icat" / "DICOM"])
    labels = read_labels(real_data / "cbct-icat" / "label_native.nii.gz", CLASSES)
    assert labels.geometry.same_grid(scan.geometry, tol_mm=0.01)
    geometry, source = scan.geometry, scan.source
    del scan
    made = Prediction("cbct", replace(labels, geometry=geometry), {}, source=source)
    formats = ("dicom-seg", "seg.nrrd", "rtstruct") if kind == "binary" else ("dicom-seg",)
    names = write_checked(made, tmp_path, "cbct", formats, Provenance("cbct", "0" * 64), seg_kind=kind)
    found = read_seg(tmp_path / names[0], geometry)
    assert np.array_equal(np.choose(found.layers[0], [0, 1, 2, 3]), labels.array)
    if kind == "binary":
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / names[1]))), labels.array)
        if shutil.which("dciodvfy"):
            told = subprocess.run(
                ["dciodvfy", "-new", tmp_path / names[0]], capture_output=True, text=True, check=False
            )
            assert not [line for line in told.stderr.splitlines() if line.startswith("Error")]
