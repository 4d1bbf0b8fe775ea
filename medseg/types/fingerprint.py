"""What the planner knows about the data; holds no voxels and no patient data."""

from dataclasses import dataclass
from typing import Literal

from medseg.types.geometry import Size3, Vec3
from medseg.types.labels import Labels


@dataclass(frozen=True)
class IntensityStats:
    """Statistics of one channel in scanner units, over the foreground (over all voxels where there is none)."""

    mean: float
    std: float
    minimum: float
    p005: float
    median: float
    p995: float
    maximum: float


@dataclass(frozen=True)
class CaseFingerprint:
    """Measurements of one case; shapes and spacings are (z, y, x) in the dataset's common orientation.

    `landmarks` are the names of the points that are placed, within the scan, `lowest` the smallest values of its
    channels, `ignored_voxels` are those with the ignore value within `cropped_shape`.
    """

    case_id: str
    shape: Size3
    spacing_mm: Vec3
    cropped_shape: Size3
    stored_orientation: str
    intensity: tuple[IntensityStats, ...]
    class_voxels: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    landmarks: tuple[str, ...] = ()
    lowest: tuple[float, ...] = ()
    ignored_voxels: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """Measurements of a dataset.

    `orientation` is the patient direction of the array axes x, y, z of all scans after reorienting, e.g. "LPS".
    `mirror_labels` and `mirror_image` say, per axis (z, y, x), how alike the mean label atlas (overlap of the least
    symmetric class) and the mean image (correlation) of all cases are to their own mirror image: 1 = symmetric, 0 or
    less = mirroring makes scans that never occur. Between left and right of volumes, classes of both sides count as
    exchanged; without classes every axis has 1. `landmarks` are the names of all points, in the data set's order, and
    `landmark_across` says where each lies in the mean scan, from its right (0) to its left border (1); None where it is
    placed nowhere, nothing for flat scans. `raters` are the names of those who annotated, where the data set says so.
    """

    schema: Literal["medseg.fingerprint/1"]
    dataset: str
    channels: tuple[str, ...]
    labels: Labels
    ndim: Literal[2, 3]
    unit: Literal["mm", "px"]
    orientation: str
    cases: tuple[CaseFingerprint, ...]
    intensity: tuple[IntensityStats, ...]
    mirror_labels: Vec3
    mirror_image: Vec3
    landmarks: tuple[str, ...] = ()
    landmark_across: tuple[float | None, ...] = ()
    raters: tuple[str, ...] = ()
