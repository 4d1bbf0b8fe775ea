"""Small DICOM series of any orientation, with known places, for tests of what is written on them."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medseg.types.geometry import Geometry

AXIAL = np.eye(3)
SAGITTAL = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # columns: x to P, y to F, z to R
OBLIQUE = np.array([[0.0, 1.0, 0.0], [0.6, 0.0, -0.8], [0.8, 0.0, 0.6]]) @ np.diag([1.0, 1.0, -1.0])
FRAME = "1.2.826.0.1.3680043.10.1.7"


def grid(shape, *, axes=AXIAL, spacing_mm=(2.5, 0.7, 0.4), origin_mm=(-20.0, 35.5, 101.25), frame=FRAME):
    """A grid with the given direction columns x, y, z."""
    return Geometry(shape, spacing_mm, origin_mm, tuple(tuple(row) for row in axes.tolist()), frame)


def write_dicom(folder, pixels, geometry, *, study=None, series=None, **changes):
    """CT slices of int16 voxels (z, y, x), in file order against the slice order; returns the series' UID."""
    study, series = study or generate_uid(), series or generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    columns = np.array(geometry.direction)
    for index, plane in enumerate(pixels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        path = folder / f"{len(pixels) - index:03d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Only", "P-1", "", "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = geometry.frame_of_reference_uid, ""
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200102", "101112", "1", ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.ReferringPhysicianName = "CT", 1, index + 1, ""
        ds.Manufacturer, ds.SliceThickness = "none", geometry.spacing_mm[0]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelSpacing = list(geometry.spacing_mm[1:])
        ds.ImagePositionPatient = [f"{v:.6f}" for v in (geometry.affine() @ [index, 0, 0, 1])[:3]]
        ds.ImageOrientationPatient = [f"{v:.6f}" for v in columns[:, :2].T.ravel()]
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = plane.astype("<i2").tobytes()
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(path, enforce_file_format=True)
    return series
