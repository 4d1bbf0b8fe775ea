from dataclasses import replace

import numpy as np
import pydicom
import pytest

from medseg.errors import DicomError
from medseg.io.images import read_image
from medseg.io.source_planes import match_planes, read_header, source_planes
from medseg.types.image import Source
from tests.dicom_phantoms import OBLIQUE, SAGITTAL, grid, write_dicom

SHAPE = (4, 6, 5)


@pytest.mark.parametrize("axes", [OBLIQUE, SAGITTAL])
def test_every_slice_finds_its_file(tmp_path, axes):
    write_dicom(tmp_path, np.zeros(SHAPE), grid(SHAPE, axes=axes))
    image = read_image([tmp_path])
    shuffled = replace(image.source, files=image.source.files[::-1])
    planes = match_planes(image.geometry, source_planes(shuffled))
    for index, plane in enumerate(planes):
        header = pydicom.dcmread(image.source.files[index])
        assert plane.sop_instance == header.SOPInstanceUID and plane.frame is None
        assert np.allclose(plane.position_mm, (image.geometry.affine() @ [index, 0, 0, 1])[:3], atol=1e-3)


def test_what_has_no_planes(tmp_path):
    assert source_planes(None) == () and source_planes(Source((tmp_path / "a.nii.gz",), "nifti")) == ()
    with pytest.raises(DicomError, match="header cannot be read"):
        read_header(tmp_path / "absent.dcm")
    write_dicom(tmp_path, np.zeros((1, 6, 5)), grid((1, 6, 5)))
    path = tmp_path / "001.dcm"
    ds = pydicom.dcmread(path)
    del ds.ImagePositionPatient
    ds.save_as(path)
    with pytest.raises(DicomError, match=r"001.dcm: lacks its UIDs or its place"):
        source_planes(Source((path,), "dicom"))
