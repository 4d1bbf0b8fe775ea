"""A case's image and label map as two arrays on one grid."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from medseg.errors import DatasetError, GeometryError
from medseg.io.flat_spacing import with_spacing
from medseg.io.images import check_same_grid, read_image, read_labels
from medseg.types.dataset import Case, Dataset
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap

T = TypeVar("T")
Item = TypeVar("Item")
GRID_TOLERANCE = "0.01 mm or 1 % of a voxel, whichever is more"
MOST_WORKERS = 4  # each holds a case in memory


def read_scan(case: Case, dataset: Dataset) -> Image:
    """The image of a case, with the spacing that the data set states for flat images; raises what `read_image` does."""
    return read_image(case.images, channels=dataset.channels, spacing_mm=dataset.spacing_mm)


def read_pair(case: Case, dataset: Dataset) -> tuple[Image, LabelMap]:
    """Image and label map of a case; a label grid within GRID_TOLERANCE becomes the image's, with a warning.

    In a data set of landmarks alone, the label map is all background. Raises DatasetError if the case has no label map,
    GeometryError if the grids differ by more, and what the readers raise.
    """
    alone = case.landmarks is not None and not dataset.labels.items
    if case.label is None and not alone:
        raise DatasetError("has no label map", where=case.id, hint="add one or leave the case out")
    image = read_scan(case, dataset)
    if case.label is None:
        return image, LabelMap(np.zeros(image.geometry.shape, np.uint8), image.geometry, dataset.labels)
    labels = read_labels(case.label, dataset.labels, image)
    notes = check_label_grid(image.geometry, with_spacing(labels.geometry, dataset.spacing_mm), where=case.id)
    return image, replace(labels, geometry=image.geometry, warnings=(*labels.warnings, *notes))


def check_label_grid(image: Geometry, labels: Geometry, *, where: object = "") -> tuple[str, ...]:
    """Warnings (none if equal) about a label grid that is within GRID_TOLERANCE of its image's.

    Raises GeometryError that says what differs if it is farther away.

    >>> grid = Geometry((4, 4, 4), (1.0, 1.0, 1.0))
    >>> check_label_grid(grid, grid), check_label_grid(grid, replace(grid, origin_mm=(0.004, 0.0, 0.0)))
    ((), ('label map: its grid lies 0.004 mm away and is taken as equal',))
    """
    try:
        return tuple(f"label map: {note}" for note in check_same_grid(image, labels))
    except GeometryError as problem:
        names = {"shape": "shape (z, y, x)", "spacing_mm": "spacing (z, y, x)", "origin_mm": "origin"}
        differ = [
            f"{name} {_short(getattr(labels, key))} instead of {_short(getattr(image, key))}"
            for key, name in names.items()
            if getattr(labels, key) != getattr(image, key)
        ]
        if not np.allclose(image.direction, labels.direction, atol=1e-3):
            differ.append("other axis directions")
        what = "label map and image differ in geometry: " + ", ".join(differ)
        if image.shape == labels.shape:
            what += f"; corners are up to {image.corner_distance_mm(labels):.3g} mm apart"
        hint = "resample the label map onto the image, or copy the header if only the header is wrong"
        raise GeometryError(what, where=where, hint=hint) from problem


def in_order(
    work: Callable[[Item], T], cases: Sequence[Item], *, workers: int | None = None
) -> Iterator[tuple[Item, T]]:
    """Each case with its result, in order, made by `workers` threads that never run far ahead.

    None: one per processor that this process may use, at most MOST_WORKERS.
    """
    count = max(1, min(workers or min(MOST_WORKERS, _processors()), len(cases)))
    with ThreadPoolExecutor(count) as pool:
        waiting: deque[tuple[Item, Future[T]]] = deque()
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


def _processors() -> int:
    """Those that this process may use, which a container or a scheduler may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
