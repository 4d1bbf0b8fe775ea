"""Classic DICOM series written slice by slice, every tag of which a test can change."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

OBLIQUE = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])  # row and column direction
AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
UID, FRAME, STUDY = generate_uid(), generate_uid(), generate_uid()
ORIGIN = np.array([-20.0, 35.5, 101.25])


def stored(n=6, low=0, high=3000, dtype=np.int16):
    return np.random.default_rng(1).integers(low, high, (n, 9, 11)).astype(dtype)


def write_slice(path, pixels, position, axes=AXIAL, **changes):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if changes.get("Modality", "CT") == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = "Geheim^Person", "ID-Q4711Z"
    ds.Modality, ds.SeriesDescription = "CT", "phantom"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, UID, FRAME
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelSpacing = [0.7, 0.4]  # rows are 0.7 mm apart
    ds.ImagePositionPatient = [f"{v:.6f}" for v in position]
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in axes.ravel()]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = pixels.tobytes()
    compress = changes.pop("compress", False)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    if compress:
        ds.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, pixels=None, axes=AXIAL, step=2.5, heights=None, **changes):
    """Slices under shuffled file names; returns (folder, affine) with the affine as Geometry.affine gives it."""
    pixels = stored() if pixels is None else pixels
    normal = np.cross(axes[0], axes[1])
    heights = np.arange(len(pixels)) * step if heights is None else np.asarray(heights)
    names = np.random.default_rng(7).permutation(len(pixels))
    for plane, height, name in zip(pixels, heights, names, strict=True):
        position = ORIGIN + normal * height
        write_slice(folder / f"Bild ü {name}.dcm", plane, position, axes, InstanceNumber=int(name) + 1, **changes)
    affine = np.eye(4)
    affine[:3] = np.stack([normal * step, axes[1] * 0.7, axes[0] * 0.4, ORIGIN], axis=1)
    return folder, affine
