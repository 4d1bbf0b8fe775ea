"""Measure a dataset: read every case once, keep numbers and small samples, never voxels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from medseg.errors import DatasetError, MedsegError
from medseg.io.dataset_points import read_points, within
from medseg.io.pairs import in_order, read_pair
from medseg.planning.atlas import label_atlas, mirror_correlation, mirror_overlap, pooled, standardised
from medseg.planning.intensity_stats import intensity_stats, rounded, sample_voxels
from medseg.preprocess.crop import nonzero_box
from medseg.preprocess.orientation import STORED, orientation_code, reorient
from medseg.types.dataset import Case, Dataset
from medseg.types.fingerprint import CaseFingerprint, Fingerprint
from medseg.types.geometry import Size3, Vec3
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Labels
from medseg.types.progress import Progress, Report, silent
from medseg.types.sides import paired_names, swapped_order

T = TypeVar("T")
ATLAS = 32
COARSE = 1.5
"""An axis is the slice axis z of all scans if its median spacing is this many times the next coarsest."""
_ORDERS = {"LPS": (0, 1, 2), "LSP": (1, 0, 2), "PSL": (2, 0, 1)}
"""Common orientation to the place of its axes z, y, x among the axes z, y, x of LPS."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One case along its axes z, y, x in LPS (as stored if `flat`).

    `sample` holds foreground voxels only, or any where there are no classes. `across` has a number per landmark, from
    0 at the right border of the scan to 1 at the left one, NaN where it is not placed.
    """

    case: CaseFingerprint
    unit: Literal["mm", "px"]
    flat: bool
    sample: Float32[np.ndarray, "c n"]
    across: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Pictures:
    """What fills each box of a coarse grid over a scan: share of every class, and grey value (mean 0, deviation 1)."""

    classes: Float64[np.ndarray, "k d h w"]
    grey: Float64[np.ndarray, "d h w"]

    def __add__(self, other: "Pictures") -> "Pictures":
        """Box by box."""
        return Pictures(self.classes + other.classes, self.grey + other.grey)


def measure_dataset(dataset: Dataset, *, workers: int | None = None, report: Report = silent) -> Fingerprint:
    """What the planner asks of a dataset; the same numbers for any number of `workers` (None: one per core, at most 4).

    Each case is read once. A label grid within the tolerance of `io.pairs` is taken for the image's, with a warning.
    Scans are described in one common orientation, whose z axis is the coarsest. Raises DatasetError that lists every
    case that cannot be measured.
    """
    measured, sums, wrong = _measure_all(dataset, dataset.cases, True, workers, report)
    if len(sums) > 1 and not wrong:  # a few scans of one slice among volumes: they follow the volumes
        few = tuple(case for case in dataset.cases if measured[case.id].flat)
        anew, more, wrong = _measure_all(dataset, few, False, workers, report)
        measured |= anew
        sums = {False: sums[False] + more[False]} if not wrong else sums
    few_px = [one.case.case_id for one in measured.values() if one.unit == "px"]
    if few_px and len(few_px) < len(measured):
        names = ", ".join(few_px[:5])
        wrong.append(f"{len(few_px)} of {len(measured)} scans state no spacing in mm, the others do: {names}")
    if wrong:
        what = "\n  ".join([f"{len(wrong)} faults", *wrong])
        raise DatasetError(what, where=dataset.root, hint="medseg check lists every fault with its fix")
    if not measured:
        raise DatasetError("holds no cases", where=dataset.root, hint="add cases with image and label map")
    (pictures,) = sums.values()
    return _summary(dataset, list(measured.values()), pictures)


def measure_case(case_id: str, image: Image, labels: LabelMap, *, flat: bool = False) -> tuple[Measurement, Pictures]:
    """Measure one case whose image and labels share a grid; `flat` keeps the stored axes of a 2D image.

    Intensities are those of a sample of the foreground (label > 0 and not ignored), of all voxels if there is none.
    """
    code = STORED if flat else "LPS"
    array, geometry = reorient(image.array, image.geometry, code)
    target, _ = reorient(labels.array, image.geometry, code)
    mask = target > 0
    if labels.labels.ignore is not None:
        mask &= target != labels.labels.ignore
    sample = sample_voxels(array, mask, name=case_id)
    seen = sample if sample.shape[1] else sample_voxels(array, None, name=case_id)
    classes = tuple(item.values for item in labels.labels.items)
    counts, box = _counts(target), nonzero_box(array)
    ignore = labels.labels.ignore
    case = CaseFingerprint(
        case_id=case_id,
        shape=geometry.shape,
        spacing_mm=_rounded3(geometry.spacing_mm),
        cropped_shape=box.shape,
        stored_orientation=orientation_code(image.geometry),
        intensity=tuple(intensity_stats(channel) for channel in seen),
        class_voxels=tuple(sum(counts.get(value, 0) for value in values) for values in classes),
        warnings=tuple(dict.fromkeys((*image.warnings, *labels.warnings))),
        lowest=tuple(round(float(channel.min()), 4) for channel in array),
        ignored_voxels=0 if ignore is None else int(np.count_nonzero(target[box.slices()] == ignore)),
    )
    boxes = (1 if flat else ATLAS, ATLAS, ATLAS)
    grey = np.mean([standardised(pooled(channel, boxes)) for channel in array], axis=0)
    pooled_sample = sample if classes else seen
    return Measurement(case, geometry.unit, flat, pooled_sample), Pictures(label_atlas(target, classes, boxes), grey)


def common_orientation(spacings_mm: Sequence[Vec3]) -> str:
    """Orientation code whose z axis is the coarsest of the median spacings (z, y, x) of scans in LPS.

    >>> common_orientation([(1.0, 1.0, 1.1)]), common_orientation([(0.5, 0.5, 3.0)]), common_orientation([(1, 4, 1)])
    ('LPS', 'PSL', 'LSP')
    """
    z, y, x = np.median(np.array(spacings_mm, float), axis=0)
    if y >= COARSE * max(z, x):
        return "LSP"
    return "PSL" if x >= COARSE * max(z, y) else "LPS"


def _measure_all(
    dataset: Dataset, cases: Sequence[Case], keep_flat: bool, workers: int | None, report: Report
) -> tuple[dict[str, Measurement], dict[bool, Pictures], list[str]]:
    """Measurements by case id, the sum of pictures of flat and of other scans, and what went wrong."""
    measured: dict[str, Measurement] = {}
    sums: dict[bool, Pictures] = {}
    wrong: list[str] = []
    work = partial(_read_and_measure, dataset, keep_flat=keep_flat)
    for done, (case, result) in enumerate(in_order(work, cases, workers=workers), start=1):
        if isinstance(result, str):
            wrong.append(result)
        else:
            one, pictures = result
            measured[case.id] = one
            sums[one.flat] = sums[one.flat] + pictures if one.flat in sums else pictures
        report(Progress("measure", done, len(cases)))
    return measured, sums, wrong


def _read_and_measure(dataset: Dataset, case: Case, *, keep_flat: bool) -> tuple[Measurement, Pictures] | str:
    try:
        image, labels = read_pair(case, dataset)
        points = read_points(case, dataset, image.geometry)
        inside = within(image.geometry, points)
        one, pictures = measure_case(case.id, image, labels, flat=keep_flat and image.geometry.shape[0] == 1)
        placed = tuple(name for name, there in zip(dataset.landmarks, inside, strict=True) if there)
        _, upright = reorient(image.array, image.geometry, "LPS")
        across = tuple(((upright.to_voxels(points)[:, 2] + 0.5) / upright.shape[2]).tolist())
        return replace(one, case=replace(one.case, landmarks=placed), across=across), pictures
    except MedsegError as problem:
        text = str(problem)
        return text if case.id in text else f"{case.id}: {text}"


def _summary(dataset: Dataset, measured: Sequence[Measurement], sums: Pictures) -> Fingerprint:
    """Pooled statistics, and everything turned into the common orientation."""
    flat = measured[0].flat
    code = STORED if flat else common_orientation([one.case.spacing_mm for one in measured])
    order = _ORDERS.get(code, (0, 1, 2))
    pooled_values = np.concatenate([one.sample for one in measured], axis=1)
    return Fingerprint(
        schema="medseg.fingerprint/1",
        dataset=dataset.name,
        channels=dataset.channels,
        labels=dataset.labels,
        ndim=2 if flat else 3,
        unit=measured[0].unit,
        orientation=code,
        cases=tuple(_turned(one.case, order) for one in measured),
        intensity=tuple(intensity_stats(channel) for channel in pooled_values),
        mirror_labels=_turn(_decimals(_mirror_labels(dataset.labels, sums, flat=flat)), order),
        mirror_image=_turn(_decimals(mirror_correlation(sums.grey)), order),
        landmarks=dataset.landmarks,
        landmark_across=() if flat else _across(dataset.landmarks, measured),
        raters=dataset.raters(),
    )


def _across(landmarks: Sequence[str], measured: Sequence[Measurement]) -> tuple[float | None, ...]:
    """The mean place of each landmark between right and left, over the cases that place it."""
    known = [[one.across[number] for one in measured] for number in range(len(landmarks))]
    known = [[place for place in places if not np.isnan(place)] for places in known]
    return tuple(round(sum(places) / len(places), 4) if places else None for places in known)


def _mirror_labels(labels: Labels, sums: Pictures, *, flat: bool) -> Vec3:
    """Overlap with the mirror image, in which left and right are exchanged along x of LPS; 1 without labels."""
    if not labels.items:
        return 1.0, 1.0, 1.0
    pairs = () if flat else paired_names(labels.names()).pairs
    return mirror_overlap(sums.classes, swapped_order(labels.names(), pairs))


def _turned(case: CaseFingerprint, order: Size3) -> CaseFingerprint:
    return replace(
        case,
        shape=_turn(case.shape, order),
        spacing_mm=_turn(case.spacing_mm, order),
        cropped_shape=_turn(case.cropped_shape, order),
    )


def _turn(values: tuple[T, T, T], order: Size3) -> tuple[T, T, T]:
    a, b, c = order
    return values[a], values[b], values[c]


def _counts(labels: Shaped[np.ndarray, "z y x"]) -> dict[int, int]:
    """Voxels per value, slice after slice."""
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _rounded3(values: Vec3) -> Vec3:
    z, y, x = (rounded(value) for value in values)
    return z, y, x


def _decimals(values: Vec3) -> Vec3:
    z, y, x = (round(value, 6) + 0.0 for value in values)
    return z, y, x
