"""A case's image and label map as two arrays on one grid."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

from medseg.errors import DatasetError, GeometryError
from medseg.io.images import read_image, read_labels
from medseg.types.dataset import Case, Dataset
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap

T = TypeVar("T")
GRID_TOLERANCE = "0.01 mm or 1 % of a voxel"
"""Grids whose corners are closer than the larger of the two count as one grid."""


def compare_grids(image: Geometry, labels: Geometry) -> tuple[Literal["same", "repaired", "different"], str]:
    """Whether a label map lies on its image's grid, within GRID_TOLERANCE of it, or elsewhere; and what differs.

    >>> from dataclasses import replace
    >>> grid = Geometry((4, 4, 4), (1.0, 1.0, 1.0))
    >>> compare_grids(grid, replace(grid, origin_mm=(0.004, 0.0, 0.0)))
    ('repaired', 'label grid is 0.004 mm off the image grid (below 0.01 mm or 1 % of a voxel)')
    >>> compare_grids(grid, replace(grid, origin_mm=(20.0, 0.0, 0.0)))[0]
    'different'
    """
    if image.shape != labels.shape:
        return "different", f"label shape {labels.shape} is not the image shape {image.shape} (z, y, x)"
    if image.unit != labels.unit:
        return "repaired", f"image spacing is in {image.unit}, label spacing in {labels.unit}"
    apart = image.corner_distance_mm(labels)
    if apart <= 1e-6 * max(image.spacing_mm):
        return "same", ""
    what = f"label grid is {apart:.3g} {image.unit} off the image grid"
    if apart <= max(1e-2, 1e-2 * min(image.spacing_mm)):
        return "repaired", f"{what} (below {GRID_TOLERANCE})"
    parts = [("spacing", "spacing_mm"), ("origin", "origin_mm"), ("direction", "direction")]
    differ = [
        f"{name} {getattr(labels, key)} instead of {getattr(image, key)}"
        for name, key in parts
        if getattr(labels, key) != getattr(image, key)
    ]
    return "different", f"{what} in geometry: " + ", ".join(differ)


def read_pair(case: Case, dataset: Dataset) -> tuple[Image, LabelMap]:
    """Image and label map of a case; a label grid within GRID_TOLERANCE takes the image's, with a warning.

    Raises DatasetError if the case has no label map or another number of channels, GeometryError if the grids
    differ by more, and what the readers raise.
    """
    if case.label is None:
        raise DatasetError("has no label map", where=case.id, hint="add one or leave the case out")
    image = read_image(case.images, channels=dataset.channels)
    if image.array.shape[0] != len(dataset.channels):
        what = f"has {image.array.shape[0]} channels, dataset.json names {len(dataset.channels)}"
        raise DatasetError(what, where=case.id, hint="correct channel_names or the image")
    labels = read_labels(case.label, dataset.labels)
    state, what = compare_grids(image.geometry, labels.geometry)
    if state == "different":
        raise GeometryError(what, where=case.id, hint="resample the label map onto the image")
    if state == "repaired":
        labels = replace(labels, geometry=image.geometry, warnings=(*labels.warnings, what))
    return image, labels


def in_order(
    work: Callable[[Case], T], cases: Sequence[Case], *, workers: int | None = None
) -> Iterator[tuple[Case, T]]:
    """Each case with its result, in order, made by `workers` threads (None: one per core) that never run far ahead."""
    count = max(1, min(workers or os.cpu_count() or 1, len(cases)))
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[tuple[Case, Future[T]]] = deque()
        try:
            for case in cases:
                waiting.append((case, pool.submit(work, case)))
                if len(waiting) > count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
