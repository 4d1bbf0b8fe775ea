"""What runs leave behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg.types.geometry import Vec3
from medseg.types.image import LabelMap, Probabilities, Source
from medseg.types.landmarks import Landmarks
from medseg.types.plan import Plan


@dataclass(frozen=True)
class Member:
    """One trained network of an ensemble; `weights` is a tensors-only file relative to the bundle."""

    fold: int | Literal["all"]
    weights: str
    sha256: str


@dataclass(frozen=True)
class ModelBundle:
    """A folder one can copy to another machine and predict with; `scores` are out-of-fold results."""

    root: Path
    plan: Plan
    members: tuple[Member, ...]
    scores: Mapping[str, object]
    code_refs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result for one case, on the grid of the input scan; `source` is where that scan came from.

    An ultrasound frame has no thickness: it has areas instead of volumes. Models that only find landmarks leave
    `labels` without classes, all background.
    """

    case_id: str
    labels: LabelMap
    volumes_ml: Mapping[str, float]
    probabilities: Probabilities | None = None
    warnings: tuple[str, ...] = ()
    source: Source | None = None
    area_mm2: Mapping[str, float] = field(default_factory=dict)
    landmarks: Landmarks | None = None


@dataclass(frozen=True)
class Provenance:
    """What made a prediction: name of the plan, identity of the bundle, and the options that change results."""

    model: str
    bundle_sha256: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseReport:
    """One line of a batch run; a failed case never stops the batch. `series_uids` are those of DICOM scans.

    `landmarks` are points (x, y, z) in mm, LPS (in pixels where a scan states no spacing, which a warning says); null
    is a landmark that is missing. Ultrasound has areas in place of volumes: `area_mm2` of a single frame,
    `largest_area_mm2` of a cine. `source_sha256` is a hash that says whether it was made of the same files; empty in
    reports of versions that did not note it.
    """

    case_id: str
    status: Literal["ok", "skipped", "failed"]
    seconds: float
    outputs: tuple[str, ...] = ()
    volumes_ml: Mapping[str, float] | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    series_uids: tuple[str, ...] = ()
    area_mm2: Mapping[str, float] | None = None
    largest_area_mm2: Mapping[str, float] | None = None
    landmarks: Mapping[str, Vec3 | None] | None = None
    source_sha256: str = ""


@dataclass(frozen=True)
class RunReport:
    """`report.json`; `settings` are the options that change results, as text."""

    schema: Literal["medseg.report/1"]
    medseg: str
    bundle_sha256: str
    device: str
    cases: tuple[CaseReport, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelScores:
    """Metrics of one class in one case; NaN where undefined, inf where one side is empty."""

    dice: float
    iou: float
    hd95_mm: float
    mean_surface_mm: float
    nsd: float
    volume_ml: float
    reference_ml: float
    lesions: int
    lesions_found: int
    false_lesions: int
    state: Literal["both", "empty_reference", "empty_prediction", "both_empty"]


@dataclass(frozen=True)
class CaseScores:
    """Metrics of one case, keyed by label name; none if it failed: no or an unusable prediction, as `error` says.

    `nsd_tolerance_mm` is that of every `nsd`.
    """

    case_id: str
    labels: Mapping[str, LabelScores]
    unit: Literal["mm", "px"] = "mm"
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    nsd_tolerance_mm: float = 1.0


@dataclass(frozen=True)
class LandmarkScores:
    """Distances in mm of one case, by the landmarks that the reference places (pixels where scans have no spacing).

    `errors_mm` are those of the prediction, NaN where it misses a landmark; `reader_mm` those of a second reader, where
    there is one. `extra` are landmarks that only the prediction places.
    """

    case_id: str
    errors_mm: Mapping[str, float]
    reader_mm: Mapping[str, float] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    unit: Literal["mm", "px"] = "mm"
