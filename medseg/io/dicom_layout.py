"""From the positions of image planes to one regular grid, or the reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from medseg.errors import DicomError
from medseg.io.dicom_headers import Slice
from medseg.io.dicom_planes import Plane
from medseg.io.dicom_values import Numbers, tag_name
from medseg.types.geometry import Geometry

ROUNDING_MM = 0.0101  # positions are often written with two decimals
_ULTRASOUND_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_AGAIN = "export the series again"
_SEVERAL = "the series holds several volumes (time, echo, b-value) or doubled files; split it"


@dataclass(frozen=True)
class Layout:
    """Planes in array order on a grid; `copies` are (kept, left out) planes at one place, to be compared by pixels.

    `shear_mm` (y, x) is how far each plane lies beside the one before it within its plane: (0, 0) but under a tilted
    gantry, where `geometry` is that of the first plane, stacked along its normal.
    """

    slices: tuple[Slice, ...]
    geometry: Geometry
    shear_mm: tuple[float, float]
    copies: tuple[tuple[Slice, Slice], ...]
    warnings: tuple[str, ...]


def lay_out(slices: Sequence[Slice]) -> Layout:
    """Order planes along their normal and fit a grid; no pixels are read.

    Raises DicomError, naming file and tag, for planes that are unlike each other, without position or pixel spacing,
    missing, more than 1 % of their distance off an even grid, unevenly displaced within their plane, or at one place.
    """
    _check_alike(slices)
    first = slices[0]
    if first.header.kind != "volume" and first.plane.position is None and len(slices) == 1:
        return _flat(first)
    axes = _axes(first)
    points = np.array([_point(one) for one in slices])
    order = np.argsort(points @ axes[:, 2], kind="stable")
    kept, copies = _copies([slices[i] for i in order], points[order], axes)
    points = np.array([_point(one) for one in kept])
    dz, shear, warnings = _steps(kept, points, axes)
    if copies:
        warnings = (*warnings, f"{len(copies)} identical duplicates of slices are left out")
    if first.header.sop_class == _ULTRASOUND_VOLUME:
        warnings = (*warnings, "positions are relative to the ultrasound probe; their place in the patient is unknown")
    (dy, dx), more = _pixel_spacing(first)
    geometry = _geometry(kept[0], len(kept), (dz, dy, dx), points[0], axes)
    return Layout(kept, geometry, shear, copies, (*warnings, *more))


def _flat(one: Slice) -> Layout:
    """A projection: it has a pixel size and no place."""
    (dy, dx), warnings = _pixel_spacing(one)
    said = "projection without a position in the patient; its plane is laid at the origin"
    geometry = _geometry(one, 1, (1.0, dy, dx), np.zeros(3), np.eye(3))
    return Layout((one,), geometry, (0.0, 0.0), (), (*warnings, said))


def _geometry(
    one: Slice,
    count: int,
    spacing: tuple[float, float, float],
    origin: Float64[np.ndarray, " 3"],
    axes: Float64[np.ndarray, "3 3"],
) -> Geometry:
    pixels = one.header.pixels
    rows = [tuple(float(v) for v in row) for row in axes]
    x, y, z = (float(v) for v in origin)
    return Geometry(
        (count, pixels.rows, pixels.columns),
        spacing,
        (x, y, z),
        (rows[0], rows[1], rows[2]),  # type: ignore[arg-type]
        one.header.frame_uid or None,
    )


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    spacing, _ = _pixel_spacing(first)
    for one in slices[1:]:
        for keyword, value, usual in zip(
            ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation", "SamplesPerPixel"),
            _identity(one),
            _identity(first),
            strict=True,
        ):
            if value != usual:
                raise DicomError(f"{tag_name(keyword)} differs within the series", where=one.name, hint="split it")
        if not np.allclose(_pixel_spacing(one)[0], spacing, rtol=1e-4):
            raise DicomError(f"{tag_name('PixelSpacing')} differs within the series", where=one.name, hint=_AGAIN)
        cosines = [_numbers(s, "ImageOrientationPatient", s.plane.orientation, 6) for s in (one, first)]
        if np.abs(cosines[0] - cosines[1]).max() > 1e-3:
            raise DicomError(
                f"{tag_name('ImageOrientationPatient')} differs within the series", where=one.name, hint="split it"
            )


def _identity(one: Slice) -> tuple[object, ...]:
    pixels = one.header.pixels
    return one.header.series_uid, pixels.rows, pixels.columns, pixels.photometric, pixels.samples


def _numbers(one: Slice, keyword: str, value: Numbers, count: int) -> Float64[np.ndarray, " n"]:
    if value is None:
        raise DicomError(
            f"{tag_name(keyword)} is missing",
            where=one.name,
            hint="no value is assumed for it; export the series again",
        )
    if len(value) != count:
        raise DicomError(f"{tag_name(keyword)} is not {count} numbers", where=one.name, hint=_AGAIN)
    return np.array(value, dtype=np.float64)


def _point(one: Slice) -> Float64[np.ndarray, " 3"]:
    return _numbers(one, "ImagePositionPatient", one.plane.position, 3)


def _pixel_spacing(one: Slice) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Distance of rows and of columns in mm; that of a detector stands in for projections only."""
    plane, warnings = one.plane, ()
    value, keyword = plane.spacing, "PixelSpacing"
    if value is None and plane.detector_spacing and one.header.kind == "projection":
        value = plane.detector_spacing
        said = "pixel size is that at the detector (ImagerPixelSpacing or NominalScannedPixelSpacing), not corrected"
        warnings = (f"{said} for magnification",)  # type: ignore[assignment]
    dy, dx = (float(v) for v in _numbers(one, keyword, value, 2))
    if min(dy, dx) <= 0:
        raise DicomError(f"{tag_name(keyword)} is {dy} x {dx}", where=one.name, hint=_AGAIN)
    return (dy, dx), warnings


def _axes(one: Slice) -> Float64[np.ndarray, "3 3"]:
    """Unit vectors of the array axes x, y, z as columns; z is the normal x cross y."""
    plane = _numbers(one, "ImageOrientationPatient", one.plane.orientation, 6).reshape(2, 3)
    if not np.allclose(plane @ plane.T, np.eye(2), atol=1e-3):
        raise DicomError(f"{tag_name('ImageOrientationPatient')} is no right angle", where=one.name, hint=_AGAIN)
    plane = plane / np.linalg.norm(plane, axis=1, keepdims=True)
    return np.stack([plane[0], plane[1], np.cross(plane[0], plane[1])], axis=1)


def _copies(
    slices: Sequence[Slice], points: Float64[np.ndarray, "n 3"], axes: Float64[np.ndarray, "3 3"]
) -> tuple[tuple[Slice, ...], tuple[tuple[Slice, Slice], ...]]:
    """Planes at places of their own, and those at the place of the plane before them with that plane."""
    kept, copies = [slices[0]], []
    last = 0
    steps = np.diff(points @ axes[:, 2])
    close = max(1e-3, 0.01 * float(np.median(steps[steps > 1e-3]))) if np.any(steps > 1e-3) else 1e-3
    for i in range(1, len(slices)):
        if (points[i] - points[last]) @ axes[:, 2] >= close:
            kept.append(slices[i])
            last = i
        elif np.abs(points[i] - points[last]).max() > ROUNDING_MM:
            raise DicomError(
                f"lies at the same height as {_short(slices[last])}, beside it", where=slices[i].name, hint=_SEVERAL
            )
        else:
            copies.append((slices[last], slices[i]))
    return tuple(kept), tuple(copies)


def _steps(
    slices: Sequence[Slice], points: Float64[np.ndarray, "n 3"], axes: Float64[np.ndarray, "3 3"]
) -> tuple[float, tuple[float, float], tuple[str, ...]]:
    """Distance of planes in mm, their shear (y, x) per plane, and warnings; planes must lie evenly on a line."""
    if len(points) == 1:
        spacing, warnings = _single_spacing(slices[0].plane)
        return spacing, (0.0, 0.0), warnings
    along = points @ axes[:, 2]
    dz = float(along[-1] - along[0]) / (len(along) - 1)
    off = _off_line((points - points[0]) @ axes)
    slack = max(0.01 * dz, ROUNDING_MM)
    drift = (points[-1] - points[0]) @ axes[:, :2]
    if off[:, 2].max() > slack:
        raise _uneven(slices, along, tilted=bool(np.abs(drift).max() > 2 * slack))
    sideways = off[:, :2].max(axis=1)
    far = int(np.argmax(sideways))
    most = float(np.abs(drift).max())
    if sideways[far] > 2 * slack or most > dz * (len(along) - 1):
        raise DicomError(
            f"is displaced by {max(sideways[far], most):.3g} mm within its plane (gantry tilt or sheared stack), "
            "unevenly or by more than 45 degrees",
            where=slices[far].name,
            hint="resample the series to a right-angled grid first",
        )
    rough = float(off.max())
    said = f"slices lie up to {rough:.2g} mm off an even grid of {dz:.4g} mm; they are taken as even"
    warnings = (said,) if rough > 2 * ROUNDING_MM else ()
    if most <= 2 * slack:
        return dz, (0.0, 0.0), warnings
    x, y = (float(v) / (len(along) - 1) for v in drift)
    return dz, (y, x), warnings


def _off_line(points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """How far every point is from the straight, even row of points that fits them all best, per axis."""
    number = np.arange(len(points)) - (len(points) - 1) / 2
    centred = points - points.mean(axis=0)
    slope = number @ centred / (number @ number)
    apart: Float64[np.ndarray, "n 3"] = np.abs(centred - number[:, None] * slope)
    return apart


def _uneven(slices: Sequence[Slice], along: Float64[np.ndarray, " n"], *, tilted: bool) -> DicomError:
    steps = np.diff(along)
    usual = float(np.median(steps))
    worst = int(np.argmax(np.abs(steps - usual)))
    missing = round(float(steps[worst]) / usual) - 1
    count = f"; about {missing} missing" if missing > 0 else ""
    also = "; the stack is also sheared (gantry tilt)" if tilted else ""
    return DicomError(
        f"lies {steps[worst]:.4g} mm after {_short(slices[worst])}, other slices {usual:.4g} mm apart{count}{also}",
        where=slices[worst + 1].name,
        hint="complete the series, or resample it if its slices are uneven on purpose",
    )


def _single_spacing(plane: Plane) -> tuple[float, tuple[str, ...]]:
    said = "single slice: "
    for value, keyword in ((plane.between, "SpacingBetweenSlices"), (plane.thickness, "SliceThickness")):
        if value and len(value) == 1 and value[0] > 0:
            warned = () if keyword == "SpacingBetweenSlices" else (f"{said}{keyword} is taken as its extent",)
            return value[0], warned
    return 1.0, (f"{said}it has no thickness; 1 mm is assumed",)


def _short(one: Slice) -> str:
    path = one.header.path
    frame = f" frame {one.plane.frame + 1}" if one.header.frames > 1 else ""
    return f"{path.parent.name}/{path.name}{frame}"
