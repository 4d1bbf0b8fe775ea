"""Write results, then read every file back and compare: volume and centroid of each class must be those predicted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.errors import ImageError
from medseg.io.landmarks import read_landmarks, write_landmarks
from medseg.io.moments import Moment, class_sums, in_pixels, placed, value_sums
from medseg.io.outputs import SegKind, landmark_names, output_name, scan_of, write_results
from medseg.io.read_back import has_place, read_back
from medseg.types.geometry import Geometry
from medseg.types.landmarks import Landmarks
from medseg.types.result import Prediction, Provenance

_VOLUME = 1e-4  # relative; spacings are stored with 7 digits or more
_CENTROID = 1e-3  # mm, or pixels
_DICOM_MM, _DICOM_STEP = 0.0202, 0.02  # frames stand where their images do, which an even grid meets this well
_POINT_MM, _CONFIDENCE = 1e-5, 1e-3  # digits that files keep
_CONTOUR_VOXELS = 1e-3  # of all; a voxel whose centre lies on a line may count or not


def write_checked(
    prediction: Prediction,
    out: Path,
    case_id: str,
    formats: Sequence[str],
    made_by: Provenance,
    *,
    seg_kind: SegKind = "binary",
) -> tuple[str, ...]:
    """As `write_results`; leaves none of the files, not even older ones, if one cannot be written or read back.

    Every class of every file must have the voxels predicted (an RT Structure Set: within 0.1 %), the volume within
    0.01 % and the centroid within 0.001 mm (DICOM: 0.02 mm or 2 % of the slice distance, which is how far images may
    stand off an even grid). Raises ImageError, naming file, class and difference, if one has not, and what writers and
    readers raise.
    """
    try:
        names = write_results(prediction, out, case_id, formats, made_by, seg_kind=seg_kind)
        check_written(prediction, out, case_id, formats)
    except BaseException:  # Ctrl-C between writing and reading back, too
        for form in formats:
            (out / output_name(case_id, form)).unlink(missing_ok=True)
        raise
    return names


def write_landmarks_checked(landmarks: Landmarks, out: Path, case_id: str) -> tuple[str, ...]:
    """Write landmarks as .mrk.json and .landmarks.csv, and read both back; returns the names of the files.

    Names, places within 0.00001 mm, missing places and confidence must be those found. Leaves none of the files, not
    even older ones, and raises ImageError if they are not.
    """
    names = landmark_names(case_id)
    try:
        for name in names:
            write_landmarks(landmarks, out / name)
            what = _landmarks_differ(landmarks, read_landmarks(out / name))
            if what:
                hint = "the file is not kept; please report this"
                raise ImageError(f"written and read back, {what}", where=out / name, hint=hint)
    except BaseException:
        for name in names:
            (out / name).unlink(missing_ok=True)
        raise
    return names


def check_written(prediction: Prediction, out: Path, case_id: str, formats: Sequence[str]) -> None:
    """Raise ImageError for the first file that does not hold what was predicted."""
    labels, scan = prediction.labels.labels, scan_of(prediction)
    sums = class_sums(value_sums(prediction.labels.array), labels)
    for form in formats:
        path = out / output_name(case_id, form)
        geometry = scan.geometry if has_place(form, scan) else in_pixels(scan.geometry)
        pairs = zip(labels.items, placed(sums, geometry.affine()), read_back(path, form, labels, scan), strict=True)
        for item, predicted, found in pairs:
            what = _difference(predicted, found, _allowed(form, geometry), geometry.unit)
            if what:
                hint = "the file is not kept; write another format, and please report this"
                raise ImageError(f'written and read back, "{item.name}" {what}', where=path, hint=hint)


def _landmarks_differ(found: Landmarks, read: Landmarks) -> str | None:
    if read.names != found.names:
        return f"holds the landmarks {list(read.names)}, not {list(found.names)}"
    if not np.allclose(read.points_mm, found.points_mm, rtol=0, atol=_POINT_MM, equal_nan=True):
        return "landmarks lie elsewhere"
    if (read.confidence is None) != (found.confidence is None):
        return "confidences are lost"
    if read.confidence is not None and found.confidence is not None:
        same = np.allclose(read.confidence, found.confidence, rtol=_CONFIDENCE, atol=0, equal_nan=True)
        return None if same else "confidences differ"
    return None


def _allowed(form: str, geometry: Geometry) -> tuple[float, float]:
    """Part of the voxels, and distance of centroids in the unit of the grid, by which a format may differ."""
    if form not in ("dicom-seg", "rtstruct"):
        return 0.0, _CENTROID
    return _CONTOUR_VOXELS if form == "rtstruct" else 0.0, max(_DICOM_MM, _DICOM_STEP * geometry.spacing_mm[0])


def _difference(predicted: Moment, found: Moment, allowed: tuple[float, float], unit: str) -> str | None:
    part, distance = allowed
    if abs(predicted.voxels - found.voxels) > part * predicted.voxels:
        return f"has {found.voxels} voxels where {predicted.voxels} were predicted"
    if abs(predicted.volume_mm3 - found.volume_mm3) > (_VOLUME + part) * predicted.volume_mm3:
        return f"has {found.volume_mm3 / 1000:.6g} ml where {predicted.volume_mm3 / 1000:.6g} were predicted"
    if predicted.centroid_mm is None or found.centroid_mm is None:
        return None
    apart = float(np.linalg.norm(np.subtract(predicted.centroid_mm, found.centroid_mm)))
    return f"lies {apart:.3g} {unit} from where it was predicted" if apart > distance else None
