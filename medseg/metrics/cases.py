"""All metrics of one case, and their summary over cases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import find_objects

from medseg.errors import GeometryError
from medseg.io.images import check_same_grid
from medseg.metrics.overlap import dice, iou, lesions
from medseg.metrics.surface import surface_distances
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.result import CaseScores, LabelScores

_COUNTS = ("lesions", "lesions_found", "false_lesions")
_METRICS = tuple(f.name for f in fields(LabelScores) if f.name not in (*_COUNTS, "state"))

State = Literal["both", "empty_reference", "empty_prediction", "both_empty"]
_STATES: Mapping[tuple[bool, bool], State] = {
    (True, True): "both",
    (True, False): "empty_reference",
    (False, True): "empty_prediction",
    (False, False): "both_empty",
}


def score_case(case_id: str, prediction: LabelMap, reference: LabelMap, *, tolerance_mm: float = 1.0) -> CaseScores:
    """Every metric of every label of the reference; voxels of its ignore value count in neither map.

    Distances are voxel-surface distances in mm (in pixels where the grid has no physical spacing; volumes are then
    NaN); a region is the union of its values. Empty masks: both -> NaN throughout, one -> Dice, IoU and NSD 0,
    distances inf; `state` says which. Raises GeometryError if the grids are not one by `io.images.check_same_grid`.
    """
    _same_grid(case_id, prediction.geometry, reference.geometry)
    grid = prediction.geometry if reference.geometry.unit == "px" else reference.geometry  # in mm if one of them is
    labels, made = reference.labels, {label.name: label for label in prediction.labels.items}
    array, truth = prediction.array, reference.array
    if labels.ignore is not None:
        valid = truth != labels.ignore
        array, truth = np.where(valid, array, 0), np.where(valid, truth, 0)
    boxes = find_objects(array), find_objects(truth)
    rows = {}
    for label in labels.items:
        ours, theirs = _values(made.get(label.name, label), prediction.labels), label.values
        box = _joint_box([(boxes[0], ours), (boxes[1], theirs)])
        one, two = np.isin(array[box], ours), np.isin(truth[box], theirs)
        rows[label.name] = _score(one, two, grid, tolerance_mm)
    return CaseScores(case_id, rows, grid.unit, nsd_tolerance_mm=tolerance_mm)


def summarise(scores: Sequence[CaseScores]) -> dict[str, object]:
    """Per label and metric the mean, median and sample standard deviation over cases, ready for JSON.

    `n` cases with a finite value enter; those where it is undefined (`n_undefined`, both masks empty) or infinite
    (`n_infinite`, one empty) are counted apart, and null stands where no number exists. "mean" holds, per metric, the
    mean over labels of their means. Lesion counts are summed over cases; F1 = 2 found / (lesions + found + false).
    Failed cases are counted apart and enter nothing else.
    """
    names = list(dict.fromkeys(name for case in scores for name in case.labels))
    labels = {name: _summary([case.labels[name] for case in scores if name in case.labels]) for name in names}
    mean: dict[str, object] = {}
    for metric in _METRICS:
        values = [value for label in labels.values() if (value := _mean_of(label[metric])) is not None]
        mean[metric] = float(np.mean(values)) if values else None
    scored = [case for case in scores if case.status == "ok"]
    unit = "/".join(sorted({case.unit for case in scored}))
    tolerances = sorted({case.nsd_tolerance_mm for case in scored})
    counts = {"cases": len(scored), "failed": len(scores) - len(scored)}
    return {**counts, "unit": unit, "nsd_tolerance_mm": tolerances, "mean": mean, "labels": labels}


def json_number(value: float) -> float | str | None:
    """A metric as JSON can hold it: null where undefined, "inf" where infinite.

    >>> json_number(0.5), json_number(math.nan), json_number(math.inf)
    (0.5, None, 'inf')
    """
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf"


def _score(
    one: Bool[np.ndarray, "z y x"], two: Bool[np.ndarray, "z y x"], geometry: Geometry, tolerance_mm: float
) -> LabelScores:
    distances = surface_distances(one, two, geometry.spacing_mm)
    count, found, false = lesions(one, two)
    ml = geometry.voxel_mm3() / 1000 if geometry.unit == "mm" else math.nan
    return LabelScores(
        dice=dice(one, two),
        iou=iou(one, two),
        hd95_mm=distances.hd95_mm(),
        mean_surface_mm=distances.mean_mm(),
        nsd=distances.nsd(tolerance_mm),
        volume_ml=int(np.count_nonzero(one)) * ml,
        reference_ml=int(np.count_nonzero(two)) * ml,
        lesions=count,
        lesions_found=found,
        false_lesions=false,
        state=_STATES[bool(one.any()), bool(two.any())],
    )


def _summary(rows: Sequence[LabelScores]) -> dict[str, object]:
    result: dict[str, object] = {metric: _spread([getattr(row, metric) for row in rows]) for metric in _METRICS}
    total, found, false = (sum(getattr(row, count) for row in rows) for count in _COUNTS)
    f1 = 2 * found / (total + found + false) if total + false else None
    result["lesions"] = {"lesions": total, "found": found, "false": false, "f1": f1}
    states = [row.state for row in rows]
    result["states"] = {state: states.count(state) for state in sorted(set(states))}
    return result


def _spread(values: Sequence[float]) -> dict[str, object]:
    finite = [value for value in values if math.isfinite(value)]
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "median": float(np.median(finite)) if finite else None,
        "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else None,
        "n": len(finite),
        "n_undefined": sum(math.isnan(value) for value in values),
        "n_infinite": sum(math.isinf(value) for value in values),
    }


def _mean_of(spread: object) -> float | None:
    return spread["mean"] if isinstance(spread, Mapping) else None


def _values(label: Label, labels: Labels) -> tuple[int, ...]:
    """The values of a label in a predicted map: what is written for it, or every value of a region."""
    return (*label.values, label.written) if labels.are_regions() else (label.written,)


def _same_grid(case_id: str, one: Geometry, two: Geometry) -> None:
    if one.shape != two.shape:
        raise GeometryError(
            f"prediction has shape {one.shape} and reference {two.shape}", where=case_id, hint="compare equal grids"
        )
    try:
        check_same_grid(two, one)
    except GeometryError as problem:
        raise GeometryError(
            f"prediction and reference lie {one.corner_distance_mm(two):.3g} {two.unit} apart",
            where=case_id,
            hint="resample one onto the other's grid, or correct its header",
        ) from problem


def _joint_box(
    found: Sequence[tuple[Sequence[tuple[slice, ...] | None], Sequence[int]]],
) -> tuple[slice, ...]:
    """The smallest box that holds given values of two arrays and a voxel around it; one voxel if there are none."""
    boxes = [box for objects, values in found for v in values if v <= len(objects) and (box := objects[v - 1])]
    if not boxes:
        return (slice(0, 1),) * 3
    joint = zip(*boxes, strict=True)
    return tuple(slice(max(0, min(s.start for s in axis) - 1), max(s.stop for s in axis) + 1) for axis in joint)
