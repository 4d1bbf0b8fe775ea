"""Find DICOM series in a folder and read one as a regular volume."""

import warnings as python_warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float64
from pydicom.errors import InvalidDicomError

from medseg.errors import DicomError
from medseg.io.dicom_pixels import read_volume, tag_name, white_is_low
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source

_NO_IMAGE = frozenset("SR SEG RTSTRUCT RTPLAN RTDOSE RTRECORD REG KO PR ECG HD EPS AU DOC PLAN FID RWV SMR".split())
_DICOMDIR = "1.2.840.10008.1.3.10"
_TAGS = """SOPClassUID Modality SeriesDescription SeriesInstanceUID FrameOfReferenceUID InstanceNumber NumberOfFrames
    ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices Rows Columns
    SamplesPerPixel PhotometricInterpretation BitsStored PixelRepresentation RescaleSlope RescaleIntercept
    ModalityLUTSequence""".split()
_SAME = ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation")
_AGAIN = "export the series again"
_ROUNDING_MM = 0.0101  # positions are often written with two decimals


@dataclass(frozen=True)
class Series:
    """Single-frame files of one series, frame of reference, orientation and matrix, sorted along the slice normal."""

    uid: str
    modality: str
    description: str
    files: tuple[Path, ...]
    matrix: tuple[int, int] = (0, 0)

    @property
    def summary(self) -> str:
        """What tells it from others without patient data: modality, rows x columns, number of files."""
        return f"{self.modality or 'unknown'} {self.matrix[0]} x {self.matrix[1]}, {len(self.files)} files"


def find_series(folder: Path) -> tuple[tuple[Series, ...], dict[Path, str]]:
    """All image series in a folder and its subfolders, and for every other file the reason it is none of them.

    Only headers are read. Nothing is raised for bad files; hidden files are passed over.
    """
    return group_files(sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")))


def group_files(files: Iterable[Path]) -> tuple[tuple[Series, ...], dict[Path, str]]:
    """As `find_series`, for files given one by one."""
    refused: dict[Path, str] = {}
    groups: dict[tuple[object, ...], list[list[tuple[Path, Any]]]] = {}
    for path in files:
        header = _header(path)
        reason = header if isinstance(header, str) else _refusal(header)
        if reason is not None:
            refused[path] = reason
            continue
        key = tuple(str(header.get(name, "")) for name in ("SeriesInstanceUID", "FrameOfReferenceUID"))
        alike = groups.setdefault((*key, int(header.Rows), int(header.Columns)), [])
        group = next((g for g in alike if _same_orientation(g[0][1], header)), None)
        if group is None:
            alike.append([(path, header)])
        else:
            group.append((path, header))
    found = tuple(_series(group) for alike in groups.values() for group in alike)
    return tuple(sorted(found, key=lambda series: (series.uid, min(series.files)))), refused


def read_series(series: Series) -> Image:
    """Read one series as a volume: array (c, z, y, x), slices along the normal of the image plane, geometry LPS mm.

    Geometry comes from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone, the distance of slices
    from their positions; a single slice takes SpacingBetweenSlices, else SliceThickness, else 1 mm with a warning.
    Values are rescaled (HU in CT); see `read_volume`.

    Raises DicomError, naming file and tag, for slices that are missing, doubled, uneven by more than 1 %, displaced
    within their plane (gantry tilt), unlike each other, or without a position or pixel spacing.
    """
    if not series.files:
        raise DicomError("series without files", where=series.uid, hint="give at least one file")
    pairs = [(path, _header(path)) for path in series.files]
    for path, header in pairs:
        reason = header if isinstance(header, str) else _refusal(header)
        if reason is not None:
            raise DicomError(reason, where=path, hint="leave this file out")
    _check_alike(pairs)
    points = np.array([_numbers(header, "ImagePositionPatient", 3, path) for path, header in pairs])
    axes = _axes(pairs[0][1], pairs[0][0])
    order = np.argsort(points @ axes[:, 2], kind="stable")
    files, headers = [pairs[i][0] for i in order], [pairs[i][1] for i in order]
    dz, warnings = _slice_spacing(points[order], axes, files, headers)
    dy, dx = _pixel_spacing(headers[0], files[0])
    array = read_volume(files, headers)
    if white_is_low(headers[0]):
        warnings = (*warnings, "MONOCHROME1: grey values are inverted so that white is high")
    if not series.uid:
        warnings = (*warnings, f"{tag_name('SeriesInstanceUID')} is missing; the files are taken as one series")
    rows = [tuple(float(v) for v in row) for row in axes]
    x, y, z = (float(v) for v in points[order[0]])
    geometry = Geometry(
        (array.shape[1], array.shape[2], array.shape[3]),
        (dz, dy, dx),
        (x, y, z),
        (rows[0], rows[1], rows[2]),  # type: ignore[arg-type]
        str(headers[0].get("FrameOfReferenceUID", "")) or None,
    )
    names = tuple(str(i) for i in range(len(array)))
    return Image(array, geometry, names, Source(tuple(files), "dicom", series.uid or None), warnings)


def _header(path: Path) -> Any:
    """The tags read here, or the reason there are none."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=_lacks_preamble(path))
    except InvalidDicomError:
        return "is not a DICOM file"
    except Exception as error:  # pydicom raises many kinds on damaged files
        return f"header cannot be read ({type(error).__name__})"


def _lacks_preamble(path: Path) -> bool:
    """Whether the file starts with a data element of group 0002 or 0008, as old files without preamble do."""
    with path.open("rb") as file:
        return file.read(2) in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _refusal(header: Any) -> str | None:
    meta = getattr(header, "file_meta", {})
    modality = str(header.get("Modality", ""))
    if _DICOMDIR in (meta.get("MediaStorageSOPClassUID"), header.get("SOPClassUID")):
        return "is a DICOMDIR, an index of files"
    if modality in _NO_IMAGE:
        return f"is a {modality} object, no image"
    try:
        sized = int(header.get("Rows") or 0) > 0 and int(header.get("Columns") or 0) > 0
        frames = int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return "size of the image is no number"
    if not sized:
        return "holds no pixels"
    return f"is a multi-frame object ({frames} frames), which is not read yet" if frames > 1 else None


def _series(group: list[tuple[Path, Any]]) -> Series:
    path, first = group[0]
    try:
        normal = _axes(first, path)[:, 2]
        along = [float(normal @ _numbers(header, "ImagePositionPatient", 3, file)) for file, header in group]
        files = [group[i][0] for i in np.argsort(along, kind="stable")]
    except DicomError:
        files = [file for file, _ in group]
    text = [str(first.get(name, "")) for name in ("SeriesInstanceUID", "Modality", "SeriesDescription")]
    return Series(text[0], text[1], text[2], tuple(files), (int(first.Rows), int(first.Columns)))


def _same_orientation(one: Any, other: Any) -> bool:
    try:
        a, b = (_numbers(header, "ImageOrientationPatient", 6, Path()) for header in (one, other))
    except DicomError:
        return "ImageOrientationPatient" not in one and "ImageOrientationPatient" not in other
    return bool(np.abs(a - b).max() < 0.01)


def _numbers(header: Any, keyword: str, count: int, path: Path) -> Float64[np.ndarray, " n"]:
    try:
        value = header.get(keyword)
        numbers = np.array([float(v) for v in value]) if value is not None else None
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers is None:
        raise DicomError(f"{tag_name(keyword)} is missing", where=path, hint="this file has no place in the patient")
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise DicomError(f"{tag_name(keyword)} is not {count} numbers", where=path, hint=_AGAIN)
    return numbers


def _pixel_spacing(header: Any, path: Path) -> tuple[float, float]:
    dy, dx = (float(v) for v in _numbers(header, "PixelSpacing", 2, path))
    if min(dy, dx) <= 0:
        raise DicomError(f"{tag_name('PixelSpacing')} is {dy} x {dx}", where=path, hint=_AGAIN)
    return dy, dx


def _axes(header: Any, path: Path) -> Float64[np.ndarray, "3 3"]:
    """Unit vectors of the array axes x, y, z as columns; z is the normal x cross y."""
    cosines = _numbers(header, "ImageOrientationPatient", 6, path)
    plane = cosines.reshape(2, 3)
    if not np.allclose(plane @ plane.T, np.eye(2), atol=1e-3):
        raise DicomError(f"{tag_name('ImageOrientationPatient')} is no right angle", where=path, hint=_AGAIN)
    plane = plane / np.linalg.norm(plane, axis=1, keepdims=True)
    return np.stack([plane[0], plane[1], np.cross(plane[0], plane[1])], axis=1)


def _check_alike(pairs: Sequence[tuple[Path, Any]]) -> None:
    first_path, first = pairs[0]
    spacing = np.array(_pixel_spacing(first, first_path))
    cosines = _numbers(first, "ImageOrientationPatient", 6, first_path)
    for path, header in pairs[1:]:
        for keyword in _SAME:
            if header.get(keyword) != first.get(keyword):
                raise DicomError(f"{tag_name(keyword)} differs within the series", where=path, hint="split the series")
        if not np.allclose(_pixel_spacing(header, path), spacing, rtol=1e-4):
            raise DicomError(f"{tag_name('PixelSpacing')} differs within the series", where=path, hint=_AGAIN)
        if np.abs(_numbers(header, "ImageOrientationPatient", 6, path) - cosines).max() > 1e-3:
            raise DicomError(
                f"{tag_name('ImageOrientationPatient')} differs within the series", where=path, hint="split the series"
            )


def _slice_spacing(
    points: Float64[np.ndarray, "n 3"], axes: Float64[np.ndarray, "3 3"], files: Sequence[Path], headers: Sequence[Any]
) -> tuple[float, tuple[str, ...]]:
    """Distance of slices in mm, from sorted positions that must lie evenly on a line along the normal."""
    if len(points) == 1:
        return _single_spacing(headers[0])
    along = points @ axes[:, 2]
    steps = np.diff(along)
    usual = float(np.median(steps))
    close = int(np.argmin(steps))
    if steps[close] < max(1e-3, 0.01 * usual):
        raise DicomError(
            f"lies at the same position as {files[close].parent.name}/{files[close].name}",
            where=files[close + 1],
            hint="the series holds several volumes (time, echo, b-value) or doubled files; split it",
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > max(0.01 * usual, _ROUNDING_MM):
        missing = round(float(steps[worst]) / usual) - 1
        count = f"; about {missing} missing" if missing > 0 else ""
        raise DicomError(
            f"lies {steps[worst]:.4g} mm after {files[worst].name}, other slices {usual:.4g} mm apart{count}",
            where=files[worst + 1],
            hint="complete the series, or resample it if its slices are uneven on purpose",
        )
    sideways = np.abs((points - points[0]) @ axes[:, :2]).max(axis=1)
    far = int(np.argmax(sideways))
    if sideways[far] > 2 * _ROUNDING_MM:
        raise DicomError(
            f"is displaced by {sideways[far]:.3g} mm within its plane (gantry tilt or sheared stack)",
            where=files[far],
            hint="resample the series to a right-angled grid first",
        )
    return float(along[-1] - along[0]) / (len(along) - 1), ()


def _single_spacing(header: Any) -> tuple[float, tuple[str, ...]]:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            value = float(header.get(keyword) or 0)
        except (TypeError, ValueError):
            continue
        if np.isfinite(value) and value > 0:
            return value, ()
    return 1.0, ("single slice without a thickness; 1 mm is assumed",)
