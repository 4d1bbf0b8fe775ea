"""Fill holes of label maps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import find_objects

from medseg.postprocess.components import Components, chosen, components, voxel_values
from medseg.types.image import LabelMap


def fill_holes(labels: LabelMap, *, names: Sequence[str] = (), max_mm3: float = 0.0) -> LabelMap:
    """Give background voxels that one label encloses to that label.

    A hole is what cannot be left face by face without crossing the label, neither to the edge of the scan (where
    z = 1, within the plane); other labels inside it stay. Holes larger than `max_mm3` (with all they hold) stay; 0 is
    no limit. `names` are the labels to fill, all if empty, in label order; a region is filled with its written value.
    Raises PlanError for a name that is no label.
    """
    array = labels.array.copy()
    boxes = find_objects(array)
    for label in chosen(labels.labels, names):
        box = joint_box(boxes, voxel_values(label))
        if box is None:
            continue
        crop = array[box]
        holes = components(~np.isin(crop, voxel_values(label)), faces_only=True)
        inside = ~_open(holes, array.shape[0] > 1)
        if max_mm3 > 0:
            inside &= holes.voxels * labels.geometry.voxel_mm3() <= max_mm3 * (1 + 1e-9)
        for index in holes.indices(inside):
            place = np.unravel_index(index, crop.shape)
            free = crop[place] == 0
            crop[tuple(axis[free] for axis in place)] = label.written
        boxes = find_objects(array) if labels.labels.are_regions() else boxes
    return replace(labels, array=array)


def joint_box(boxes: Sequence[tuple[slice, ...] | None], values: Sequence[int]) -> tuple[slice, ...] | None:
    """The smallest box around several values, from scipy's box of each value 1, 2, ...; None if all are absent."""
    present = [box for value in values if value <= len(boxes) and (box := boxes[value - 1]) is not None]
    if not present:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*present, strict=True))


def _open(found: Components, deep: bool) -> np.ndarray:
    """Which components reach the edge of their array; along z only where the scan is `deep`."""
    first, last = found.boxes()
    size = np.array(found.shape)
    at_edge = (first == 0) | (last == size)
    return np.asarray(at_edge[:, 0 if deep else 1 :].any(axis=1))
