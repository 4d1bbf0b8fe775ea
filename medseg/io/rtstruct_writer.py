"""Write a label map as a DICOM RT Structure Set on the images it was drawn on."""

import re
import warnings as python_warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset as Item
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medseg.errors import DicomError, GeometryError
from medseg.io.contours import outlines
from medseg.io.files import whole_file
from medseg.io.source_planes import Plane, match_planes, read_header, source_planes
from medseg.io.terminology import colour, concept, plain_text
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # retired, but what every planning system puts here
_CONTOUR_DATA = Tag("ContourData")
_COPIED = """PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID
    AccessionNumber ReferringPhysicianName""".split()
_TYPES = {"gtv": "GTV", "ctv": "CTV", "ptv": "PTV", "itv": "CTV", "external": "EXTERNAL", "body": "EXTERNAL"}


def write_rtstruct(labels: LabelMap, image: Image, path: Path) -> None:
    """Write one ROI per class as closed contours in LPS mm on the planes of the DICOM images behind `image`.

    A class with several values is the union of them. Contours run 0.49 of a voxel beyond the outermost centres; holes
    are joined by keyholes. Coordinates are rounded to 0.0001 mm. Patient and study are those of the source.
    Raises GeometryError if the grids differ, DicomError if `image` was not read from DICOM, states no frame of
    reference or has slices that lie on no source image.
    """
    if not labels.geometry.same_grid(image.geometry):
        raise GeometryError("labels do not lie on the grid of the image", where=path, hint="resample them first")
    if image.source is None or not (found := source_planes(image.source)):
        hint = "use nii.gz, nrrd or mha for scans that are not DICOM"
        raise DicomError("an RT Structure Set needs DICOM images", where=path, hint=hint)
    found = tuple(plane for plane in found if plane.series == found[0].series)  # of the first channel
    planes = match_planes(image.geometry, found, where=path)
    header = read_header(image.source.files[0])
    frame = image.geometry.frame_of_reference_uid
    if not frame or not header.get("SeriesInstanceUID"):
        hint = "contours have no place without it"
        raise DicomError("the images state no frame of reference or no series", where=path, hint=hint)
    with python_warnings.catch_warnings(), whole_file(path) as temporary:
        python_warnings.simplefilter("ignore")  # about values of the source that the standard would have otherwise
        ds = _new_file(header, path)
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = frame, str(header.get("PositionReferenceIndicator", ""))
        ds.ReferencedFrameOfReferenceSequence = [_referenced(header, frame, found)]
        items = list(enumerate(labels.labels.items, start=1))
        ds.StructureSetROISequence = [_roi(number, label, frame) for number, label in items]
        ds.ROIContourSequence = [_roi_contour(number, label, labels, planes) for number, label in items]
        ds.RTROIObservationsSequence = [_observation(number, label) for number, label in items]
        ds.save_as(temporary, enforce_file_format=True)


def _new_file(header: Any, path: Path) -> FileDataset:
    """The general modules: patient, study, series, equipment, structure set, approval."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit VR cannot hold 64 kB of contour in one element
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.now()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in _COPIED:
        setattr(ds, keyword, str(header.get(keyword) or ""))
    ds.StudyInstanceUID = ds.StudyInstanceUID or generate_uid()
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "RTSTRUCT", generate_uid(), 300
    ds.SeriesDate = ds.StructureSetDate = ds.InstanceCreationDate = now.strftime("%Y%m%d")
    ds.SeriesTime = ds.StructureSetTime = ds.InstanceCreationTime = now.strftime("%H%M%S")
    ds.SeriesDescription, ds.OperatorsName = "medseg contours", ""
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "medseg", "medseg", _version()
    ds.StructureSetLabel, ds.ApprovalStatus = "medseg", "UNAPPROVED"
    return ds


def _version() -> str:
    from importlib.metadata import version

    return version("medseg")


def _referenced(header: Any, frame: str, planes: Sequence[Plane]) -> Item:
    """The frame of reference with study, series and every image of the series."""
    images = {plane.sop_instance: plane.sop_class for plane in planes}
    series = _item(
        SeriesInstanceUID=str(header.SeriesInstanceUID),
        ContourImageSequence=[
            _item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid) for uid, sop_class in images.items()
        ],
    )
    study = _item(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=str(header.get("StudyInstanceUID", "")),
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])


def _roi(number: int, label: Label, frame: str) -> Item:
    return _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame,
        ROIName=plain_text(label.name),
        ROIGenerationAlgorithm="AUTOMATIC",
    )


def _roi_contour(number: int, label: Label, labels: LabelMap, planes: Sequence[Plane]) -> Item:
    """All contours of one class; an empty class has none."""
    items = []
    for index, plane in enumerate(planes):
        mask: Bool[np.ndarray, "y x"] = np.isin(labels.array[index], label.stored)
        for polygon in outlines(mask):
            items.append(_contour(_to_mm(polygon, index, labels.geometry), plane))
    roi = _item(ROIDisplayColor=list(colour(number - 1)), ReferencedROINumber=number)
    if items:
        roi.ContourSequence = items
    return roi


def _to_mm(polygon: Float64[np.ndarray, "n 2"], index: int, geometry: Geometry) -> Float64[np.ndarray, "n 3"]:
    x, y = polygon.T
    points: Float64[np.ndarray, "n 3"] = (geometry.affine() @ [np.full(len(x), index), y, x, np.ones(len(x))])[:3].T
    return points


def _contour(points: Float64[np.ndarray, "n 3"], plane: Plane) -> Item:
    image = _item(ReferencedSOPClassUID=plane.sop_class, ReferencedSOPInstanceUID=plane.sop_instance)
    if plane.frame is not None:
        image.ReferencedFrameNumber = plane.frame
    item = _item(ContourImageSequence=[image], ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points))
    text = _decimals(points)
    # as bytes: element objects for millions of numbers would take minutes and gigabytes
    item[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(text), text.encode("ascii"), 0, True, True)
    item.set_original_encoding(True, True, item._character_set)
    return item


def _decimals(points: Float64[np.ndarray, "n 3"]) -> str:
    """Decimal strings, of at most 16 characters for any place within 10 km, of even length together.

    >>> _decimals(np.array([[-12.5, 0.0, 123456.78996]]))
    '-12.5000\\\\0.0000\\\\123456.7900 '
    """
    values = points.ravel().tolist()
    text = "\\".join(["%.4f"] * len(values)) % tuple(values)
    return text + " " * (len(text) % 2)


def _observation(number: int, label: Label) -> Item:
    """What kind of structure it is, by the first word of its name (GTV, CTV, PTV, body, else ORGAN), and its code."""
    first = re.match("[a-z]+", label.name.strip().casefold())
    kind = _TYPES.get(first[0] if first else "", "ORGAN")
    item = _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind, ROIInterpreter="")
    code = concept(label).kind
    if label.code is not None or code.scheme == "SCT":
        item.RTROIIdentificationCodeSequence = [
            _item(
                CodeValue=plain_text(code.value, 16),
                CodingSchemeDesignator=plain_text(code.scheme, 16),
                CodeMeaning=plain_text(code.meaning),
            )
        ]
    return item


def _item(**values: Any) -> Item:
    item = Item()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
