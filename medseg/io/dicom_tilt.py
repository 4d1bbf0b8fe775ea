"""Undo the shear of a stack that a tilted gantry leaves."""

from dataclasses import replace
from math import ceil, floor

import numpy as np
from jaxtyping import Shaped

from medseg.types.geometry import Geometry


def unshear(
    array: Shaped[np.ndarray, "c z y x"], geometry: Geometry, shear_mm: tuple[float, float]
) -> tuple[Shaped[np.ndarray, "c z v u"], Geometry]:
    """Planes shifted within themselves, by linear interpolation, onto a right-angled grid that holds them all.

    Plane k lies `k * shear_mm` (y, x) beside plane 0, whose place `geometry` states; spacing and direction stay. Where
    no plane reaches, the lowest value of the stack is filled in. Whole numbers are rounded.
    """
    count = array.shape[1]
    spacing = geometry.spacing_mm[1:]
    shifts = [np.arange(count) * step / size for step, size in zip(shear_mm, spacing, strict=True)]  # voxels
    low = [floor(shift.min()) for shift in shifts]
    size = [n + ceil(s.max()) - m for n, s, m in zip(array.shape[2:], shifts, low, strict=True)]
    result = np.full((len(array), count, *size), array.min(), dtype=array.dtype)
    for k in range(count):
        plane = array[:, k].astype(np.float32)
        corner = []
        for axis, (shift, start) in enumerate(zip(shifts, low, strict=True), start=1):
            whole = floor(shift[k])
            plane = _shifted(plane, float(shift[k] - whole), axis)
            corner.append(whole - start)
        y, x = corner
        inside = result[:, k, y : y + plane.shape[1], x : x + plane.shape[2]]
        inside[...] = np.rint(plane) if array.dtype.kind in "iu" else plane
    x, y, z = (float(v) for v in (geometry.affine() @ [0, *low, 1.0])[:3])
    return result, replace(geometry, shape=(count, size[0], size[1]), origin_mm=(x, y, z))


def _shifted(plane: Shaped[np.ndarray, "c y x"], part: float, axis: int) -> Shaped[np.ndarray, "c y x"]:
    """The plane moved up its axis by part of a voxel; edge voxels keep their value."""
    if part == 0:
        return plane
    edge = np.take(plane, [0], axis=axis)
    before = np.concatenate([edge, np.take(plane, range(plane.shape[axis] - 1), axis=axis)], axis=axis)
    return (1 - part) * plane + part * before
