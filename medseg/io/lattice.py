"""Voxels moved from one grid to another that shares its voxel centres: parts, flipped and exchanged axes."""

import numpy as np
from jaxtyping import Shaped

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry

_OFF_VOXEL = 0.1  # of a voxel, which rounding of headers may take
_HINT = "resample the labels onto the grid of the image"


def move(
    array: Shaped[np.ndarray, "l z y x"], own: Geometry, onto: Geometry, *, where: object = ""
) -> Shaped[np.ndarray, "l k j i"]:
    """Layers of `own` on the grid `onto`, 0 where they do not reach; nothing is interpolated.

    Raises GeometryError where voxel centres do not coincide, and where other values than 0 lie outside of `onto`.
    """
    if own == onto:
        return array
    to_index = np.linalg.inv(onto.affine()) @ own.affine()
    steps, start = np.rint(to_index[:3, :3]).astype(int), np.rint(to_index[:3, 3]).astype(int)
    drift = np.abs(to_index[:3, :3] - steps) @ np.array(own.shape) + np.abs(to_index[:3, 3] - start)
    if (np.abs(steps).sum(axis=0) != 1).any() or (np.abs(steps).sum(axis=1) != 1).any() or (drift > _OFF_VOXEL).any():
        raise GeometryError("its voxels do not coincide with those of the image", where=where, hint=_HINT)
    axes = np.abs(steps).argmax(axis=1)  # of `own`, for each axis of `onto`
    backwards = steps.sum(axis=1) < 0
    turned = array.transpose(0, *(int(axis) + 1 for axis in axes))
    turned = turned[(slice(None), *(slice(None, None, -1) if back else slice(None) for back in backwards))]
    first = start - np.where(backwards, np.array(turned.shape[1:]) - 1, 0)
    low = np.maximum(first, 0)
    high = np.maximum(np.minimum(first + turned.shape[1:], onto.shape), low)
    inner = turned[(slice(None), *(slice(a, b) for a, b in zip(low - first, high - first, strict=True)))]
    if np.count_nonzero(inner) < np.count_nonzero(turned):
        raise GeometryError("reaches beyond the image", where=where, hint="give the image that it was drawn on")
    result = np.zeros((len(array), *onto.shape), array.dtype)
    result[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))] = inner
    return result
