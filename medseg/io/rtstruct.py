"""Read the closed contours of a DICOM RT Structure Set as a label map on the grid of its images."""

import warnings as python_warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Bool, Float64
from pydicom.tag import Tag

from medseg.errors import DicomError, GeometryError, MedsegError
from medseg.io.contours import Polygon, crossing, fill
from medseg.io.label_names import choose, numbered, paint
from medseg.io.rtstruct_writer import write_rtstruct
from medseg.io.source_planes import source_planes
from medseg.io.terminology import plain_text
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Labels

__all__ = ["check_rtstruct", "read_rtstruct", "write_rtstruct", "written_masks"]
_Slices = Mapping[tuple[str, int | None], int | None]
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FLAT_MM = 0.1  # how far points of one contour may stray from its plane, or 5 % of the slice spacing
_ON_PLANE_MM = 0.0101
_AGAIN = "export the structure set again"
_OTHER_IMAGE = "give the images that the structure set was drawn on"


@dataclass(frozen=True, eq=False)
class _Contour:
    """One closed contour: points in pixels (x, y), its height in slices, and the slice its file names (None: none)."""

    polygon: Polygon
    height: float
    named: int | None


@dataclass
class _Structure:
    """One ROI as its file has it; contours stay unread until the ROI is wanted."""

    number: str
    name: str
    frame: str
    items: Sequence[Any] = field(default_factory=tuple)


def read_rtstruct(path: Path, image: Image, labels: Labels | None = None) -> LabelMap:
    """Read the structures of an RTSTRUCT named like `labels` (None: all, numbered in file order) on the image's grid.

    A voxel is inside if its centre lies within an odd number of the contours of its plane, so that inner contours and
    keyholes are holes. Contours within half a slice spacing of an image plane count for it, with a warning if they do
    not lie on it. `image` should come from DICOM; otherwise nothing but the places in mm links the two, which is
    warned about. Raises DicomError for files that are no RTSTRUCT, contours of another frame of reference, on images
    that are not among those of `image`, beyond its planes or not parallel to them, and structures without a closed one.
    """
    with _reading(path):
        return _read(path, image, labels)


def _read(path: Path, image: Image, labels: Labels | None) -> LabelMap:
    ds = _open(path)
    structures = _structures(ds, path)
    names = [structure.name for structure in structures]
    warnings: list[str] = []
    if labels is None:
        labels = numbered(names)
        chosen = list(enumerate(labels.items))
    else:
        chosen, absent = choose(names, labels, where=path)
        warnings += absent
    named = _slices_of_images(image)
    if not named:
        warnings.append("the image is not from DICOM; contours are placed by their coordinates alone")
    found = [(label, _contours(structures[index], image.geometry, named, path, warnings)) for index, label in chosen]
    masks = ((label, _mask(contours, image.geometry, label.name, warnings)) for label, contours in found)
    array, notes = paint(masks, labels, image.geometry.shape)
    return LabelMap(array, image.geometry, labels, (*warnings, *notes))


def written_masks(path: Path, image: Image, labels: Labels) -> Iterator[Bool[np.ndarray, "z y x"]]:
    """The structures of a file that `write_rtstruct` made of `labels`, in their order, one mask at a time.

    Raises as `read_rtstruct`, and DicomError if there is another number of structures.
    """
    with _reading(path):
        structures, named = _structures(_open(path), path), _slices_of_images(image)
        if len(structures) != len(labels.items):
            raise DicomError(f"holds {len(structures)} of {len(labels.items)} structures", where=path, hint=_AGAIN)
        found = [_contours(structure, image.geometry, named, path, []) for structure in structures]
    for structure, contours in zip(structures, found, strict=True):
        yield _mask(contours, image.geometry, structure.name, [])


def check_rtstruct(path: Path, labels: Labels) -> None:
    """Raise DicomError unless a file that `write_rtstruct` made is whole and has a structure of every label."""
    with _reading(path):
        ds = _open(path)
        names = [structure.name for structure in _structures(ds, path)]
        last = ds.get("ApprovalStatus")  # the last element of such a file
        if last is None or names != [plain_text(label.name) for label in labels.items]:
            raise DicomError("is cut off or holds other structures", where=path, hint="write it again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pydicom raises on damaged elements, which it decodes late, into DicomError; silence its warnings."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except (MedsegError, MemoryError):
        raise
    except Exception as error:
        raise DicomError(f"is damaged ({type(error).__name__})", where=path, hint=_AGAIN) from error


def _open(path: Path) -> Any:
    ds = pydicom.dcmread(path, force=True)
    if ds.get("Modality") != "RTSTRUCT":
        raise DicomError("is no RT Structure Set", where=path, hint="give an RTSTRUCT file")
    return ds


def _structures(ds: Any, path: Path) -> list[_Structure]:
    found = {
        str(roi.ROINumber): _Structure(
            str(roi.ROINumber), str(roi.get("ROIName") or ""), str(roi.get("ReferencedFrameOfReferenceUID") or "")
        )
        for roi in ds.get("StructureSetROISequence") or []
    }
    for roi in ds.get("ROIContourSequence") or []:
        structure = found.get(str(roi.ReferencedROINumber))
        if structure is None:
            raise DicomError("has contours of a structure without a name", where=path, hint=_AGAIN)
        structure.items = [*structure.items, *(roi.get("ContourSequence") or [])]
    if not found:
        raise DicomError("holds no structure", where=path, hint=_AGAIN)
    return list(found.values())


def _slices_of_images(image: Image) -> _Slices:
    """The slice that was read from each SOP instance, or frame; None for an instance of several frames."""
    normal = np.array(image.geometry.direction)[:, 2]
    dz = image.geometry.spacing_mm[0]
    slices: dict[tuple[str, int | None], int | None] = {}
    for plane in source_planes(image.source):
        height = float((np.array(plane.position_mm) - image.geometry.origin_mm) @ normal) / dz
        slices[plane.sop_instance, plane.frame] = round(height)
        slices.setdefault((plane.sop_instance, None), None)
    return slices


def _contours(
    structure: _Structure,
    geometry: Geometry,
    named: _Slices,
    path: Path,
    warnings: list[str],
) -> list[_Contour]:
    """The closed contours of a structure in pixels; others are left out with a warning."""
    to_index = np.linalg.inv(geometry.affine())
    contours, other, absent = [], 0, 0
    for item in structure.items:
        points = _points(item, structure, path)
        if item.get("ContourGeometricType") not in _CLOSED or len(points) < 3:
            other += 1
            continue
        place = _named_slice(item, named)
        absent += place == -1
        z, y, x = (np.c_[points, np.ones(len(points))] @ to_index.T)[:, :3].T
        spread = float(np.ptp(z)) * geometry.spacing_mm[0]
        if spread > max(_FLAT_MM, 0.05 * geometry.spacing_mm[0]):
            what = f'a contour of "{structure.name}" is not parallel to the slices (its points span {spread:.3g} mm)'
            raise DicomError(what, where=path, hint=_OTHER_IMAGE)
        contours.append(_Contour(np.stack([x, y], axis=1), float(z.mean()), place))
    if absent:
        what = f'{absent} of {len(contours)} contours of "{structure.name}" lie on images that are not in the series'
        raise DicomError(what, where=path, hint=_OTHER_IMAGE)
    outside = sum(not -0.5 <= one.height <= geometry.shape[0] - 0.5 for one in contours)
    if outside:
        what = f'{outside} of {len(contours)} contours of "{structure.name}" lie beyond the slices of the image'
        raise DicomError(what, where=path, hint=_OTHER_IMAGE)
    if other and not contours:
        what = f'"{structure.name}" has points or open lines only'
        raise DicomError(what, where=path, hint="leave it out of the labels; only closed contours enclose voxels")
    if other:
        warnings.append(f'"{structure.name}": {other} points or open lines are left out')
    _check_frame(structure, contours, geometry, path, warnings)
    return contours


def _points(item: Any, structure: _Structure, path: Path) -> Float64[np.ndarray, "n 3"]:
    """Contour data from its bytes; element objects for millions of numbers would take minutes."""
    tag = Tag("ContourData")
    try:
        value = item.get_item(tag).value if tag in item else b""
        texts = value.strip(b" \0").split(b"\\") if isinstance(value, bytes) else list(value or ())
        points = np.array(texts if any(texts[:1]) else []).astype(np.float64).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        what = f'a contour of "{structure.name}" is no list of points'
        raise DicomError(what, where=path, hint=_AGAIN) from error
    if not np.isfinite(points).all() or (points.size and np.abs(points).max() > 1e6):
        raise DicomError(f'a contour of "{structure.name}" has points at no place', where=path, hint=_AGAIN)
    return points


def _named_slice(item: Any, named: _Slices) -> int | None:
    """The slice that a contour names: None if it names none or nothing is known of the images, -1 if it is absent."""
    images = item.get("ContourImageSequence") or []
    if not named or not images:
        return None
    frame = images[0].get("ReferencedFrameNumber")
    uid = str(images[0].get("ReferencedSOPInstanceUID", ""))
    number = None if frame is None else int(frame if isinstance(frame, (int, str)) else frame[0])
    return named.get((uid, number), named.get((uid, None), -1))


def _check_frame(
    structure: _Structure, contours: Sequence[_Contour], geometry: Geometry, path: Path, warnings: list[str]
) -> None:
    """Refuse contours that are not those of the image: by frame of reference, and by the image that each names."""
    dz = geometry.spacing_mm[0]
    astray = max((abs(one.height - one.named) for one in contours if one.named is not None), default=0.0)
    if astray > 0.5:
        what = f'a contour of "{structure.name}" lies {astray * dz:.3g} mm from the image that it names'
        raise DicomError(what, where=path, hint=_AGAIN)
    if not contours or not structure.frame or geometry.frame_of_reference_uid in (None, structure.frame):
        return
    on_images = all(one.named is not None and abs(one.height - one.named) * dz <= _ON_PLANE_MM for one in contours)
    if not on_images:
        what = f'"{structure.name}" has another frame of reference than the image'
        raise GeometryError(what, where=path, hint=_OTHER_IMAGE)
    agreement = "every contour names one of the images and lies on it"
    warnings.append(f'"{structure.name}" states another frame of reference than the image, but {agreement}')


def _mask(
    contours: Sequence[_Contour], geometry: Geometry, name: str, warnings: list[str]
) -> Bool[np.ndarray, "z y x"]:
    mask = np.zeros(geometry.shape, dtype=bool)
    _, height, width = geometry.shape
    planes: dict[int, list[_Contour]] = defaultdict(list)
    for one in contours:
        planes[min(max(round(one.height), 0), geometry.shape[0] - 1)].append(one)
    dropped = doubled = cut = crossed = 0
    for index, group in planes.items():
        nearest = min((one.height for one in group), key=lambda height, at=index: abs(height - at))  # type: ignore[misc]
        kept = [one for one in group if abs(one.height - nearest) < 0.01]
        different = {one.polygon.round(3).tobytes(): one.polygon for one in kept}
        dropped += len(group) - len(kept)
        doubled += len(kept) - len(different)
        for polygon in different.values():
            low, high = polygon.min(axis=0), polygon.max(axis=0)
            cut += bool(low.min() < -0.51 or high[0] > width - 0.49 or high[1] > height - 0.49)
        mask[index] = fill(list(different.values()), (height, width))
        crossed += crossing(list(different.values()), (height, width))
    counted = {
        "lie between planes that have contours of their own and are left out": dropped,
        "are there twice and count once": doubled,
        "reach beyond the image and are cut off": cut,
    }
    warnings += [f'"{name}": {count} contours {what}' for what, count in counted.items() if count]
    if crossed:
        warnings.append(f'"{name}": contours cross each other on {crossed} slices; what two of them share is outside')
    off = max((abs(one.height - round(one.height)) for one in contours), default=0.0) * geometry.spacing_mm[0]
    if off > _ON_PLANE_MM:
        warnings.append(f'"{name}": contours lie up to {off:.3g} mm off the image planes and count for the nearest')
    steps = np.diff(sorted(planes))
    if len(steps) > 1 and np.median(steps) > 1:
        warnings.append(f'"{name}" has contours on every {np.median(steps):g}. slice only; slices between stay empty')
    return mask
