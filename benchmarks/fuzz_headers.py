"""Coverage-guided fuzzing of DICOM headers, grouping and uncompressed pixels: a record, an image or a reason.

pip install atheris; python benchmarks/fuzz_headers.py CORPUS -max_total_time=1200
"""

import io
import pickle

import atheris

with atheris.instrument_imports(include=["medseg.io", "medseg.types", "pydicom"]):
    from medseg.errors import MedsegError
    from medseg.io.dicom_headers import read_header
    from medseg.io.dicom_series import group_files, read_series

import pydicom
from fuzz_target import fuzz, scratch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

HOME = scratch()
PATIENT = "Doe^Jane"
PLAIN = {ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, ""}


def one(data: bytes) -> None:
    path = HOME / "a.dcm"
    path.write_bytes(data)
    found = read_header(path)
    if isinstance(found, str):
        assert found
    else:
        assert repr(pickle.loads(pickle.dumps(found))) == repr(found)  # NaN is unequal to itself
    series, refused = group_files([path])
    assert {*refused, *(file for one in series for file in one.files)} == {path}
    assert all(one.summary for one in series) and all(refused.values())
    plain = not isinstance(found, str) and found.syntax in PLAIN  # native decoders are not fuzzed here
    for one in series if plain else ():
        try:
            image = read_series(one)
        except MedsegError as error:
            assert PATIENT not in str(error)
        else:
            assert image.array.shape[1:] == image.geometry.shape and PATIENT not in str(image.warnings)


def _slice(syntax: str = ExplicitVRLittleEndian, **more: object) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "2.25.7"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.Modality, ds.PatientName, ds.SeriesInstanceUID, ds.StudyInstanceUID = "CT", PATIENT, "2.25.8", "2.25.9"
    ds.SeriesDescription, ds.FrameOfReferenceUID, ds.InstanceNumber = "phantom", "2.25.10", 1
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-1, -2, 3]
    ds.PixelSpacing, ds.SliceThickness, ds.ImageType = [0.5, 0.5], 2, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 5, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for name, value in more.items():
        setattr(ds, name, value)
    ds.PixelData = bytes(40 * int(more.get("NumberOfFrames", 1)))
    ds["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _of(**values: object) -> Dataset:
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def _enhanced() -> bytes:
    shared = _of(
        PlaneOrientationSequence=Sequence([_of(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelMeasuresSequence=Sequence([_of(PixelSpacing=[0.5, 0.5], SliceThickness=2)]),
    )
    frames = [
        _of(
            PlanePositionSequence=Sequence([_of(ImagePositionPatient=[0, 0, 2 * k])]),
            FrameContentSequence=Sequence(
                [_of(DimensionIndexValues=[1, k + 1], StackID="1", InStackPositionNumber=k + 1)]
            ),
        )
        for k in range(3)
    ]
    return _slice(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def _ultrasound() -> bytes:
    region = _of(
        RegionSpatialFormat=1, RegionDataType=1, RegionFlags=0, RegionLocationMinX0=0, RegionLocationMinY0=0,
        RegionLocationMaxX1=4, RegionLocationMaxY1=3, PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3,
        PhysicalDeltaX=0.01, PhysicalDeltaY=0.01,
    )  # fmt: skip
    return _slice(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1",
        Modality="US",
        NumberOfFrames=2,
        SequenceOfUltrasoundRegions=Sequence([region]),
    )


def seeds() -> dict[str, bytes]:
    """A slice in each uncompressed syntax, an enhanced CT, a cine, and a slice without a preamble."""
    plain = _slice()
    return {
        "explicit": plain,
        "implicit": _slice(ImplicitVRLittleEndian),
        "big-endian": _slice(ExplicitVRBigEndian),
        "deflated": _slice(DeflatedExplicitVRLittleEndian),
        "enhanced": _enhanced(),
        "cine": _ultrasound(),
        "no-preamble": plain[132:],
    }


if __name__ == "__main__":
    fuzz(one, seeds)
