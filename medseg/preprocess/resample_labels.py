"""Put label maps on another grid: the largest of the linearly interpolated label indicators.

Only voxels whose eight neighbours differ need interpolation; all others take the one label around them.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from medseg.errors import PlanError
from medseg.preprocess.axes import Positions, are_aligned, axis_positions, inside, linear_taps, mixed_cells, nearest
from medseg.preprocess.orientation import orientation_code, reorient
from medseg.preprocess.resample import resample_oblique, take_nearest
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap

_TIE = 1e-6
Taps = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]


def resample_labels(labels: LabelMap, target: Geometry, *, order: int = 1) -> LabelMap:
    """`labels` on the grid `target`; the type stays, and voxels beyond the outer voxel edges of `labels` are 0.

    Order 1 takes at each voxel the label whose linearly interpolated indicator is largest; labels within 1e-6 of the
    largest tie, and the label of the nearest voxel wins among them, else the smallest. Order 0 takes the nearest
    voxel. Memory is the result and a few planes, whatever the number of labels.
    """
    if order not in (0, 1):
        raise PlanError(f"order {order} of label interpolation", where="preprocess.label_order", hint="use 0 or 1")
    if labels.geometry.same_grid(target):
        return replace(labels, geometry=target)
    array, source = labels.array, labels.geometry
    if not are_aligned(source, target):
        array, source = reorient(array, source, orientation_code(target))
    if not are_aligned(source, target):
        moved = resample_oblique(labels.array, labels.geometry, target, order=order, labels=True)
        return replace(labels, array=moved, geometry=target)
    positions = axis_positions(source, target)
    if order == 0:
        result = np.ascontiguousarray(take_nearest(array, source.shape, positions))
    else:
        result = _largest_indicator(array, positions)
    _blank_outside(result, positions, source)
    return replace(labels, array=result, geometry=target)


def _largest_indicator(array: Shaped[np.ndarray, "z y x"], positions: Positions) -> Shaped[np.ndarray, "Z Y X"]:
    taps_z, taps_y, taps_x = (linear_taps(p, n) for p, n in zip(positions, array.shape, strict=True))
    near_z, near_y, near_x = (nearest(p, n) for p, n in zip(positions, array.shape, strict=True))
    result = np.empty(tuple(len(p) for p in positions), array.dtype)
    layer, cells, low, high = -1, np.empty((0, 0), bool), array[0], array[0]
    for z, (below, above, fraction) in enumerate(zip(*taps_z, strict=True)):
        if below != layer:
            layer, low, high = int(below), np.ascontiguousarray(array[below]), np.ascontiguousarray(array[above])
            cells = mixed_cells(low, high)
        plane = low if near_z[z] == below else high
        result[z] = plane[near_y][:, near_x]
        y, x = np.nonzero(cells[taps_y[0]][:, taps_x[0]])
        if len(y):
            corners, weights = _corners(low, high, fraction, _at(taps_y, y), _at(taps_x, x))
            result[z, y, x] = _winner(corners, weights, result[z, y, x])
    return result


def _at(
    taps: Taps, index: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    return taps[0][index], taps[1][index], taps[2][index]


def _corners(
    low: Shaped[np.ndarray, "y x"], high: Shaped[np.ndarray, "y x"], fraction: float, y: Taps, x: Taps
) -> tuple[Shaped[np.ndarray, "8 m"], Float64[np.ndarray, "8 m"]]:
    """Labels and weights of the eight neighbours of m voxels between two planes."""
    corners, weights = [], []
    for plane, weight in ((low, 1 - fraction), (high, fraction)):
        for rows, weight_y in ((y[0], 1 - y[2]), (y[1], y[2])):
            for columns, weight_x in ((x[0], 1 - x[2]), (x[1], x[2])):
                corners.append(plane[rows, columns])
                weights.append(weight * weight_y * weight_x)
    return np.stack(corners), np.stack(weights)


def _winner(
    corners: Shaped[np.ndarray, "8 m"], weights: Float64[np.ndarray, "8 m"], near: Shaped[np.ndarray, " m"]
) -> Shaped[np.ndarray, " m"]:
    """The label with the largest sum of weights; ties go to the nearest voxel's label, then to the smallest."""
    sums = weights.copy()
    for i, j in combinations(range(8), 2):
        same = corners[i] == corners[j]
        sums[i] += weights[j] * same
        sums[j] += weights[i] * same
    tied = sums >= sums.max(axis=0) - _TIE
    smallest = np.where(tied, corners, np.iinfo(corners.dtype).max).min(axis=0)
    near_wins = (tied & (corners == near)).any(axis=0)
    return np.where(near_wins, near, smallest)


def _blank_outside(result: Shaped[np.ndarray, "Z Y X"], positions: Positions, source: Geometry) -> None:
    z, y, x = (~inside(p, n) for p, n in zip(positions, source.shape, strict=True))
    result[z] = 0
    result[:, y] = 0
    result[:, :, x] = 0
