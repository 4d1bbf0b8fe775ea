"""The DICOM images behind a volume: which instance or frame each of its slices was read from."""

import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float64

from medseg.errors import DicomError
from medseg.types.geometry import Geometry
from medseg.types.image import Source

_TAGS = """SpecificCharacterSet SOPClassUID SOPInstanceUID ImagePositionPatient ImageOrientationPatient NumberOfFrames
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameOfReferenceUID PositionReferenceIndicator
    PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName StudyDescription SeriesInstanceUID""".split()
_APART_MM = 0.0101  # positions are often written with two decimals


@dataclass(frozen=True)
class Plane:
    """One source image: series, SOP class and instance, frame (1, 2, ...; None: the only one), place in mm LPS."""

    series: str
    sop_class: str
    sop_instance: str
    frame: int | None
    position_mm: tuple[float, float, float]
    normal: tuple[float, float, float]


def read_header(path: Path) -> Any:
    """What a file says about patient, study and place, without pixels. Raises DicomError if it cannot be read."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    except Exception as error:  # pydicom raises many kinds on damaged files
        what = f"header cannot be read ({type(error).__name__})"
        raise DicomError(what, where=path, hint="keep the source series where it was read") from error


def source_planes(source: Source | None) -> tuple[Plane, ...]:
    """Every image that a volume was read from, none if it does not come from DICOM.

    Raises DicomError, naming the file, where an image lacks its UIDs or its place.
    """
    if source is None or not source.format.startswith("dicom"):
        return ()
    read = ((_planes(read_header(path), path), own) for path, own in zip_longest(source.files, source.frames))
    return tuple(plane for planes, own in read for plane in planes if own is None or plane.frame in own)


def match_planes(geometry: Geometry, planes: Sequence[Plane], *, where: object = "") -> tuple[Plane, ...]:
    """The source image of each slice, by its place along the slice normal.

    Raises DicomError for a slice that lies on no image, as after resampling across slices.
    """
    normal = np.array(geometry.direction)[:, 2]
    flat = [plane for plane in planes if abs(float(np.dot(plane.normal, normal))) > 0.9999]
    if not flat:
        raise DicomError("its slices are not parallel to the source images", where=where, hint="use another format")
    heights = np.array([np.dot(plane.position_mm, normal) for plane in flat])
    tolerance = max(_APART_MM, 0.02 * geometry.spacing_mm[0])
    found = []
    for index in range(geometry.shape[0]):
        apart = np.abs(heights - (geometry.affine() @ [index, 0, 0, 1])[:3] @ normal)
        nearest = int(np.argmin(apart))
        if apart[nearest] > tolerance:
            what = f"slice {index} lies {apart[nearest]:.3g} mm from the nearest source image"
            raise DicomError(what, where=where, hint="use a format that needs no source images, e.g. nii.gz")
        found.append(flat[nearest])
    return tuple(found)


def _planes(header: Any, path: Path) -> list[Plane]:
    try:
        sop = str(header.get("SeriesInstanceUID", "")), str(header.SOPClassUID), str(header.SOPInstanceUID)
        frames = header.get("PerFrameFunctionalGroupsSequence")
        if not frames:
            return [Plane(*sop, None, *_place(header.ImagePositionPatient, header.ImageOrientationPatient))]
        (shared,) = header.get("SharedFunctionalGroupsSequence") or [{}]
        planes = []
        for number, own in enumerate(frames, start=1):
            position = _group(own, shared, "PlanePositionSequence").ImagePositionPatient
            cosines = _group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient
            planes.append(Plane(*sop, number, *_place(position, cosines)))
        return planes
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        hint = "contours and segments need the UIDs and positions of their images"
        raise DicomError("lacks its UIDs or its place in the patient", where=path, hint=hint) from error


def _group(own: Any, shared: Any, keyword: str) -> Any:
    """The item of a functional group, of the frame or shared by all frames."""
    return (own.get(keyword) or shared.get(keyword))[0]


def _place(position: Any, cosines: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    x, y, z = (float(value) for value in position)
    row_x, row_y, row_z, column_x, column_y, column_z = (float(value) for value in cosines)
    normal: Float64[np.ndarray, " 3"] = np.cross([row_x, row_y, row_z], [column_x, column_y, column_z])
    return (x, y, z), (float(normal[0]), float(normal[1]), float(normal[2]))
