"""Smooth the contours of labels in slices along every axis, and let the directions vote."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import find_objects, gaussian_filter

from medseg.errors import PlanError
from medseg.postprocess.components import chosen, keep_largest, voxel_values
from medseg.postprocess.fill import joint_box
from medseg.types.geometry import Vec3
from medseg.types.image import LabelMap
from medseg.types.labels import Label

_MAJORITY = 2 / 3  # of the directions
_TIE = 1e-5  # so near one half a voxel stays what it is, so that two labels that meet leave no gap


def refine_contours(
    labels: LabelMap, *, names: Sequence[str] = (), sigma_mm: float = 1.0, largest: bool = False
) -> LabelMap:
    """Smooth each label's contours in axial, coronal and sagittal slices, and keep what two of the three agree on.

    A contour moves as it does when its slice is blurred with a Gaussian of `sigma_mm` and cut at one half (Merriman
    1992): jags and bumps smaller than `sigma_mm` go, and with them whatever is as thin: this is not for canals and
    vessels. A label of which nothing would be left stays as it is.
    A label grows only where there is no other, or where another one that is smoothed withdraws; where regions overlap,
    each is smoothed by itself. One slice (z = 1) is smoothed in its plane. `largest` keeps only the largest component
    of each label afterwards. `names` are the labels to smooth, all if empty. On a grid without physical spacing, mm
    means voxels. Raises PlanError for a name that is no label and a `sigma_mm` that is not positive.
    """
    items = chosen(labels.labels, names)
    if sigma_mm <= 0:
        raise PlanError(f"sigma_mm {sigma_mm} is not positive", where="sigma_mm", hint="about a voxel is usual")
    boxes = find_objects(labels.array)
    smoothed = {}
    for item in items:
        box = joint_box(boxes, voxel_values(item))
        if box is not None:
            smoothed[item.name] = _smoothed(labels, item, box, sigma_mm)
    put = _put_regions if labels.labels.are_regions() else _put_classes
    result = replace(labels, array=put(labels, smoothed))
    return keep_largest(result, names=names) if largest else result


def voted(mask: Bool[np.ndarray, "z y x"], spacing_mm: Vec3, sigma_mm: float) -> Bool[np.ndarray, "z y x"]:
    """The voxels inside the smoothed contours of at least two thirds of the directions that have contours.

    Beyond its edges the mask goes on as it is at them.
    """
    axes = [axis for axis in range(3) if min(np.delete(mask.shape, axis)) > 1]
    votes = np.zeros(mask.shape, np.uint8)
    for axis in axes:
        sigma = [sigma_mm / step for step in np.delete(spacing_mm, axis)]
        along = np.moveaxis(votes, axis, 0)
        for i, one in enumerate(np.moveaxis(mask, axis, 0)):
            if one.any():
                share = gaussian_filter(one.astype(np.float32), sigma, mode="nearest")
                along[i] += share > np.where(one, 0.5 - _TIE, 0.5 + _TIE)
    return np.asarray(votes >= max(1, np.ceil(_MAJORITY * len(axes) - 1e-9)))


Part = tuple[tuple[slice, ...], np.ndarray]  # a box, and which of its voxels belong to a label


def _smoothed(labels: LabelMap, item: Label, box: tuple[slice, ...], sigma_mm: float) -> Part:
    """The smoothed label in a box that is one voxel wider than it, except at the edges of the scan."""
    wide = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, labels.array.shape, strict=True))
    mask = np.isin(labels.array[wide], voxel_values(item))
    kept = voted(mask, labels.geometry.spacing_mm, sigma_mm)
    return wide, kept if kept.any() else mask


def _put_classes(labels: LabelMap, smoothed: dict[str, Part]) -> np.ndarray:
    """Every smoothed class withdraws first; then each takes what is free, in label order."""
    array = labels.array.copy()
    parts = [(item, *smoothed[item.name]) for item in labels.labels.items if item.name in smoothed]
    for item, box, kept in parts:
        array[box][np.isin(array[box], voxel_values(item)) & ~kept] = 0
    for item, box, kept in parts:
        array[box][kept & (array[box] == 0)] = item.written
    return array


def _put_regions(labels: LabelMap, smoothed: dict[str, Part]) -> np.ndarray:
    """Where a region changed, later regions overwrite earlier ones anew."""
    inside, changed = {}, np.zeros(labels.array.shape, bool)
    for item in labels.labels.items:
        inside[item.name] = np.isin(labels.array, voxel_values(item))
        if item.name in smoothed:
            box, kept = smoothed[item.name]
            changed[box] |= inside[item.name][box] != kept
            inside[item.name][box] = kept
    array = labels.array.copy()
    array[changed] = 0
    for item in labels.labels.items:
        array[changed & inside[item.name]] = item.written
    return array
