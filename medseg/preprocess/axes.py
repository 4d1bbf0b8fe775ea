"""Interpolation on axis-aligned grids, one axis at a time: positions, weights and banded matrix products."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from scipy.linalg import solve_banded

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry

Positions = tuple[Float64[np.ndarray, " Z"], Float64[np.ndarray, " Y"], Float64[np.ndarray, " X"]]
_PAD = 12  # edge voxels repeated on both sides; the spline prefilter has decayed to 1e-7 there
_TINY = 1e-7  # weights below this are dropped
SPARSE = 1.5  # voxels between samples above which what lies between them is averaged
_BLOCK = 32  # targets per matrix product: a compromise between zeros multiplied and calls


@dataclass(frozen=True, eq=False)
class Band:
    """The part of a weight matrix that makes the targets `rows` out of the sources `columns`."""

    rows: slice
    columns: slice
    weights: Float32[np.ndarray, "rows columns"]


def are_aligned(source: Geometry, target: Geometry, *, tolerance: float = 0.01) -> bool:
    """Whether the axes of both grids are parallel, to within `tolerance` voxels of `source` over all of `target`."""
    to_index = np.linalg.inv(source.affine()) @ target.affine()
    off_axis = np.abs(to_index[:3, :3]) * (1 - np.eye(3))
    return bool((off_axis @ np.array(target.shape)).max() <= tolerance and np.diag(to_index).min() > 0)


def axis_positions(source: Geometry, target: Geometry) -> Positions:
    """Voxel centres of `target` as fractional indices of `source`, per axis (z, y, x), to 1e-7 voxels.

    Raises GeometryError where the axes are not parallel and equally directed.

    >>> axis_positions(Geometry((1, 1, 4), (1.0, 1.0, 1.0)), Geometry((1, 1, 2), (1.0, 1.0, 2.0), (0.5, 0.0, 0.0)))[2]
    array([0.5, 2.5])
    """
    if not are_aligned(source, target):
        raise GeometryError("the axes of two grids are not parallel", hint="resample onto the other grid instead")
    to_index = np.linalg.inv(source.affine()) @ target.affine()
    middle = (np.array(target.shape) - 1) / 2
    steps = to_index[:3, :3] @ np.diag(middle)
    start = to_index[:3, 3] + steps.sum(axis=1) - np.diag(steps)
    z, y, x = (np.round(start[a] + to_index[a, a] * np.arange(target.shape[a]), 7) + 0.0 for a in range(3))
    return z, y, x


def inside(positions: Float64[np.ndarray, " n"], source: int) -> Bool[np.ndarray, " n"]:
    """Which positions lie within the outer voxel edges of an axis of `source` voxels."""
    return (positions >= -0.5 - 1e-6) & (positions <= source - 0.5 + 1e-6)


def linear_taps(
    positions: Float64[np.ndarray, " n"], source: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Lower and upper neighbour and the upper one's weight; edges are clamped."""
    clamped = np.clip(positions, 0, source - 1)
    lower = np.minimum(np.floor(clamped).astype(np.int64), max(source - 2, 0))
    return lower, np.minimum(lower + 1, source - 1), clamped - lower


def nearest(positions: Float64[np.ndarray, " n"], source: int) -> Int64[np.ndarray, " n"]:
    """Index of the nearest voxel; halves go up, edges are clamped."""
    return np.clip(np.floor(positions + 0.5).astype(np.int64), 0, source - 1)


def mixed_cells(low: Shaped[np.ndarray, "y x"], high: Shaped[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Whether the eight corners of the cell that starts at (y, x) differ."""
    cells: np.ndarray = low != high
    for plane in (low, high):
        cells[:-1] |= plane[:-1] != plane[1:]
        cells[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    cells[:-1, :-1] |= (low[:-1, :-1] != low[1:, 1:]) | (low[:-1, :-1] != high[1:, 1:])
    return cells


def axis_weights(source: int, target: int, *, order: int) -> Float32[np.ndarray, "target source"]:
    """One axis' interpolation matrix between two grids over the same extent (outer voxel edges).

    Order 0 is nearest, 1 linear, 3 the cubic B-spline with its prefilter folded in (Unser 1999). Edge voxels extend
    outwards, as in `scipy.ndimage.zoom(mode="nearest", grid_mode=True)`. There is no low-pass filter: see `averaged`.

    >>> axis_weights(4, 2, order=1)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]], dtype=float32)
    """
    return weights_at((np.arange(target) + 0.5) * source / target - 0.5, source, order=order)


def weights_at(
    positions: Float64[np.ndarray, " target"], source: int, *, order: int
) -> Float32[np.ndarray, "target source"]:
    """The interpolation matrix for any positions on an axis of `source` voxels; see `axis_weights`."""
    rows = np.arange(len(positions))
    weights = np.zeros((len(positions), source))
    if order == 0:
        weights[rows, nearest(positions, source)] = 1
    elif order == 1:
        lower, upper, fraction = linear_taps(positions, source)
        np.add.at(weights, (rows, lower), 1 - fraction)
        np.add.at(weights, (rows, upper), fraction)
    else:
        weights = _spline_weights(np.clip(positions, 2 - _PAD, source + _PAD - 3), source)
    weights[np.abs(weights) < _TINY] = 0
    return weights.astype(np.float32)


def averaged(
    positions: Float64[np.ndarray, " target"], source: int, step: float, *, order: int
) -> Float32[np.ndarray, "target source"]:
    """As `weights_at`, but of positions more than 1.5 voxels apart the mean over ceil(`step`) parts of each `step`.

    So detail finer than a new voxel is averaged and does not come back as noise or as something coarser. Order 0 is
    left alone.

    >>> averaged(np.array([0.5, 2.5]), 4, 2.0, order=1)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]], dtype=float32)
    """
    if order == 0 or step <= SPARSE:
        return weights_at(positions, source, order=order)
    parts = math.ceil(step)
    places = [((part + 0.5) / parts - 0.5) * step for part in range(parts)]
    mean: np.ndarray = np.mean([weights_at(positions + place, source, order=order) for place in places], axis=0)
    return mean


def bands(weights: Float32[np.ndarray, "target source"]) -> tuple[Band, ...] | None:
    """The nonzero blocks of a weight matrix, or None for the identity."""
    if weights.shape[0] == weights.shape[1] and np.array_equal(weights, np.eye(len(weights), dtype=np.float32)):
        return None
    parts = []
    for start in range(0, len(weights), _BLOCK):
        rows = weights[start : start + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        parts.append(Band(slice(start, start + len(rows)), columns, np.ascontiguousarray(rows[:, columns])))
    return tuple(parts)


def along_y(planes: Float32[np.ndarray, "n y x"], parts: tuple[Band, ...] | None) -> Float32[np.ndarray, "n Y x"]:
    """Multiply the second axis by a banded matrix."""
    if parts is None:
        return planes
    out = np.empty((planes.shape[0], parts[-1].rows.stop, planes.shape[2]), np.float32)
    for part in parts:
        np.matmul(part.weights, planes[:, part.columns], out=out[:, part.rows])
    return out


def along_x(planes: Float32[np.ndarray, "n y x"], parts: tuple[Band, ...] | None) -> Float32[np.ndarray, "n y X"]:
    """Multiply the last axis by a banded matrix."""
    if parts is None:
        return planes
    out = np.empty((*planes.shape[:2], parts[-1].rows.stop), np.float32)
    for part in parts:
        np.matmul(planes[:, :, part.columns], part.weights.T, out=out[:, :, part.rows])
    return out


def _spline_weights(positions: Float64[np.ndarray, " target"], source: int) -> Float64[np.ndarray, "target source"]:
    padded = source + 2 * _PAD
    # Coefficients c of the samples f: (c[i-1] + 4 c[i] + c[i+1]) / 6 = f[i], mirrored at the outer edges.
    system = np.ones((3, padded))
    system[1] = 4
    system[1, [0, -1]] = 5
    prefilter = solve_banded((1, 1), system / 6, np.eye(padded))
    at = positions + _PAD
    lower = np.floor(at).astype(np.int64)
    t = at - lower
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3)
    weights = sum(b[:, None] / 6 * prefilter[lower + k] for k, b in zip((-1, 0, 1, 2), basis, strict=True))
    folded = np.array(weights[:, _PAD : _PAD + source])
    folded[:, 0] += weights[:, :_PAD].sum(axis=1)
    folded[:, -1] += weights[:, _PAD + source :].sum(axis=1)
    return folded
