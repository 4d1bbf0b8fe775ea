"""The images that a DICOM SEG refers to, as data sets that highdicom accepts: identity and place, no pixels."""

import re
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset as DicomDataset
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat

from medseg.errors import DicomError
from medseg.types.geometry import Geometry
from medseg.types.image import Source

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_PLACE = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
_EMPTY = """PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime
    ReferringPhysicianName""".split()
_NOT_COPIED = """SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ReferencedImageSequence
    SourceImageSequence ReferencedSeriesSequence DimensionIndexSequence SpacingBetweenSlices SliceThickness""".split()
_AGAIN = "export the series again, or write seg.nrrd"
_ROUNDING_MM = 0.0101  # positions are often written with two decimals
EVEN = 0.02  # of the slice distance, by which an image may stand off the even grid that was made of its series
_CHARACTERS = r"ISO_IR \d+|ISO 2022 IR \d+|GB18030|GBK"
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}


@dataclass(frozen=True, eq=False)
class SourceImages:
    """Data sets for highdicom, and the place of each slice of the grid: that of its image where there is one, exactly.

    `aligned`: the images (or frames of the one image) are the slices of the grid, voxel for voxel and in their order.
    """

    images: tuple[Any, ...]
    aligned: bool
    positions_mm: tuple[tuple[float, ...], ...]


def source_images(source: Source, geometry: Geometry) -> SourceImages:
    """The images behind a scan, read by their headers; patient and study stay as the source has them.

    Values of patient and study that the standard does not allow are left empty, as highdicom refuses them. Raises
    DicomError, naming the file, where a UID or a place is missing, or a header cannot be read any more.
    """
    if not source.files:
        raise DicomError("the scan names no files", where=source.series_uid or "", hint=_AGAIN)
    path = source.files[0]
    first = _header(path, None)
    _complete(first, path, _IDENTITY)
    if "PerFrameFunctionalGroupsSequence" in first:
        return _multi_frame(first, source, geometry)
    rest = [(other, _header(other, [*_IDENTITY, *_PLACE])) for other in source.files[1:]]
    same = [(other, data) for other, data in rest if data.get("SeriesInstanceUID") == first.SeriesInstanceUID]
    for other, data in ((path, first), *same):
        _complete(data, other, (*_IDENTITY, *_PLACE))
    headers = [first, *(data for _, data in same)]
    places = [_numbers(data.ImagePositionPatient) for data in headers]
    cosines, spacing = _numbers(first.ImageOrientationPatient), _numbers(first.PixelSpacing)
    on_grid = _same_plane((int(first.Rows), int(first.Columns)), cosines, spacing, geometry)
    order = _matched(places, geometry) if on_grid else None
    chosen = range(len(headers)) if order is None else order
    images = [_single(headers[i], cosines, geometry) for i in chosen]
    images[0].update(about_source(first))
    return SourceImages(tuple(images), order is not None, _positions([places[i] for i in order or ()], geometry))


def _header(path: Path, tags: Sequence[str] | None) -> Any:
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DicomError(f"header cannot be read ({type(error).__name__})", where=path, hint=_AGAIN) from error


def _complete(data: Any, path: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not data.get(name)]
    if missing:
        raise DicomError(f"lacks {', '.join(missing)}, which a DICOM SEG refers to", where=path, hint=_AGAIN)


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


def _same_plane(matrix: tuple[int, int], cosines: list[float], spacing: list[float], geometry: Geometry) -> bool:
    """Whether pixels lie as the rows and columns of the grid do: matrix, directions, spacing."""
    if matrix != geometry.shape[1:]:
        return False
    extent = np.array(geometry.shape[1:]) * geometry.spacing_mm[1:]
    turned = np.abs(np.array(cosines).reshape(2, 3) - np.array(geometry.direction)[:, :2].T).max() * extent.max()
    drift = np.abs(np.array(spacing) - geometry.spacing_mm[1:]) * geometry.shape[1:]
    return bool(max(turned, drift.max()) < max(_ROUNDING_MM, 0.05 * min(geometry.spacing_mm[1:])))


def _matched(places: Sequence[list[float]], geometry: Geometry) -> list[int] | None:
    """For every slice the one image at its place, or None if a slice has none of its own."""
    tolerance = max(2 * _ROUNDING_MM, EVEN * geometry.spacing_mm[0])
    stacked = np.array(places)
    order = []
    for corner in _corners(geometry):
        apart = np.linalg.norm(stacked - corner, axis=1)
        order.append(int(np.argmin(apart)))
        if apart[order[-1]] > tolerance:
            return None
    return order if len(set(order)) == len(order) else None


def _corners(geometry: Geometry) -> list[np.ndarray]:
    return [(geometry.affine() @ [z, 0, 0, 1])[:3] for z in range(geometry.shape[0])]


def _positions(places: Sequence[list[float]], geometry: Geometry) -> tuple[tuple[float, ...], ...]:
    """The places of matched images, else those of the grid."""
    return tuple(tuple(decimal(float(value)) for value in place) for place in places or _corners(geometry))


def _single(data: Any, cosines: list[float], geometry: Geometry) -> Any:
    """Identity and place of a single-frame image; orientation and slice distance as measured over the series."""
    image = DicomDataset()
    for name in (*_IDENTITY, "Rows", "Columns"):
        setattr(image, name, data.get(name))
    image.ImageOrientationPatient = [decimal(value) for value in cosines]
    for name in ("ImagePositionPatient", "PixelSpacing"):
        setattr(image, name, [decimal(value) for value in _numbers(data.get(name))])
    image.SpacingBetweenSlices = image.SliceThickness = decimal(geometry.spacing_mm[0])
    return image


def about_source(data: Any) -> Any:
    """Patient, study, series and equipment of the source, without private tags and what describes its frames."""
    about = DicomDataset()
    left_out = {Tag(name) for name in (*_IDENTITY, *_PLACE, *_NOT_COPIED)}
    about.update({tag: data[tag] for tag in data.keys() if not tag.is_private and tag not in left_out})
    if not about.get("SpecificCharacterSet"):
        about.pop("SpecificCharacterSet", None)  # an empty one means ASCII, as none does
    for name in _EMPTY:
        value = about.get(name)
        if value is None or (name in _FORMS and not re.fullmatch(_FORMS[name], str(value))):
            setattr(about, name, "")
    if not all(re.fullmatch(_CHARACTERS, term) for term in _terms(about.get("SpecificCharacterSet"))):
        about.SpecificCharacterSet = "ISO_IR 192"  # texts are decoded as well as can be, and written anew
    return about


def _terms(value: Any) -> list[str]:
    """The terms of SpecificCharacterSet but for an empty first one, which is ASCII."""
    return [str(term) for term in ([value] if isinstance(value, str) else value or ()) if term]


def _multi_frame(first: Any, source: Source, geometry: Geometry) -> SourceImages:
    """One multi-frame image, its functional groups reduced to place and size."""
    path = source.files[0]
    series = [_header(other, ["SeriesInstanceUID"]).get("SeriesInstanceUID") for other in source.files[1:]]
    if first.SeriesInstanceUID in series:
        what = "the scan is spread over several multi-frame files, which a DICOM SEG cannot be drawn on here"
        raise DicomError(what, where=path, hint="write nii.gz")
    shared = (first.get("SharedFunctionalGroupsSequence") or [DicomDataset()])[0]
    frames = [_frame(own, shared, path) for own in first.PerFrameFunctionalGroupsSequence]
    matrix = int(first.Rows), int(first.Columns)
    alike = [i for i, (_, cosines, spacing) in enumerate(frames) if _same_plane(matrix, cosines, spacing, geometry)]
    order = _matched([frames[i][0] for i in alike], geometry) if alike else None
    chosen = [alike[i] for i in order or ()]
    _, cosines, spacing = frames[alike[0] if alike else 0]
    image = about_source(first)
    for name in (*_IDENTITY, "Rows", "Columns"):
        setattr(image, name, first.get(name))
    image.SharedFunctionalGroupsSequence = [_shared_groups(cosines, spacing, geometry)]
    image.PerFrameFunctionalGroupsSequence = [_frame_groups(position) for position, _, _ in frames]
    image.NumberOfFrames = len(frames)
    positions = _positions([frames[i][0] for i in chosen], geometry)
    return SourceImages((image,), chosen == list(range(len(frames))), positions)


def _frame(own: Any, shared: Any, path: Path) -> tuple[list[float], list[float], list[float]]:
    """Position, direction cosines and pixel spacing of one frame."""

    def group(name: str) -> Any:
        return (own.get(name) or shared.get(name))[0]

    try:
        position = _numbers(group("PlanePositionSequence").ImagePositionPatient)
        cosines = _numbers(group("PlaneOrientationSequence").ImageOrientationPatient)
        return position, cosines, _numbers(group("PixelMeasuresSequence").PixelSpacing)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise DicomError("has a frame without a place", where=path, hint=_AGAIN) from error


def _shared_groups(cosines: list[float], spacing: list[float], geometry: Geometry) -> Any:
    orientation, measures, item = DicomDataset(), DicomDataset(), DicomDataset()
    orientation.ImageOrientationPatient = [decimal(value) for value in cosines]
    measures.PixelSpacing = [decimal(value) for value in spacing]
    measures.SliceThickness = measures.SpacingBetweenSlices = decimal(geometry.spacing_mm[0])
    item.PlaneOrientationSequence, item.PixelMeasuresSequence = [orientation], [measures]
    return item


def _frame_groups(position: list[float]) -> Any:
    place, item = DicomDataset(), DicomDataset()
    place.ImagePositionPatient = [decimal(value) for value in position]
    item.PlanePositionSequence = [place]
    return item


def decimal(value: float) -> float:
    """A number as a decimal string (DS) of at most 16 characters can hold it."""
    return float(str(DSfloat(float(value), auto_format=True)))
