"""Bring array axes into one patient order by permuting and flipping; no voxel leaves its place in mm."""

from dataclasses import replace
from itertools import permutations

import numpy as np
from jaxtyping import Float64, Shaped

from medseg.errors import GeometryError, PlanError
from medseg.types.geometry import Geometry, Size3, Vec3

_NAMES = ("RL", "AP", "IS")  # negative and positive direction of each LPS axis
STORED = "stored"
Signs = tuple[int, int, int]


def orientation_code(geometry: Geometry) -> str:
    """Closest patient directions of the array axes x, y, z, one letter each (towards larger indices).

    >>> orientation_code(Geometry((2, 3, 4), (1.0, 1.0, 1.0)))
    'LPS'
    >>> orientation_code(Geometry((2, 3, 4), (1.0, 1.0, 1.0), direction=((0, 0, -1), (1, 0, 0), (0, -1, 0))))
    'PIR'
    """
    direction = np.array(geometry.direction, dtype=float)
    axes = _closest_axes(direction)
    return "".join(_NAMES[axis][int(direction[axis, column] > 0)] for column, axis in enumerate(axes))


def reorient(
    array: Shaped[np.ndarray, "*c z y x"], geometry: Geometry, code: str
) -> tuple[Shaped[np.ndarray, "*c Z Y X"], Geometry]:
    """A view of `array` (..., z, y, x) whose axes x, y, z run closest to `code`, and its grid.

    "stored" changes nothing. The one slice of a 2D image stays the z axis, whatever `code` says; its other two axes
    are put in the order and direction of `code`. Raises PlanError if `code` names no orientation.

    >>> view, grid = reorient(np.arange(3).reshape(1, 1, 3), Geometry((1, 1, 3), (1.0, 1.0, 1.0)), "RPS")
    >>> view.ravel().tolist(), grid.origin_mm
    ([2, 1, 0], (2.0, 0.0, 0.0))
    """
    if tuple(array.shape[-3:]) != geometry.shape:
        raise GeometryError(f"array {array.shape} is not on the grid {geometry.shape}", hint="give matching ones")
    if code == STORED:
        return array, geometry
    axes, signs = _parse(code)
    direction = np.array(geometry.direction, dtype=float)
    now = _closest_axes(direction)
    if geometry.shape[0] == 1 and axes[2] != now[2]:
        order = [axis for axis in axes if axis != now[2]] + [now[2]]
        signs = _take(signs, [axes.index(axis) for axis in order])
        axes = (order[0], order[1], order[2])
    columns = [now.index(axis) for axis in axes]  # new array axis x, y, z <- stored array axis
    flips = [bool(direction[now[c], c] * s < 0) for c, s in zip(columns, signs, strict=True)]
    return _move(array, columns, flips), _move_geometry(geometry, columns, flips)


def restore(
    array: Shaped[np.ndarray, "*c z y x"], geometry_now: Geometry, native: Geometry
) -> Shaped[np.ndarray, "*c Z Y X"]:
    """A view of `array` (..., z, y, x), whose axes run as in `geometry_now`, in the axis order of `native`.

    Only the directions of the grids matter, so this also undoes `reorient` for arrays of another spacing or extent.
    Raises GeometryError where the axes of both grids are not parallel.
    """
    columns, flips = _parallel_axes(geometry_now, native)
    return _move(array, columns, flips)


def match_axes(
    array: Shaped[np.ndarray, "*c z y x"], geometry: Geometry, like: Geometry
) -> tuple[Shaped[np.ndarray, "*c Z Y X"], Geometry]:
    """A view of `array` (..., z, y, x) whose axes run as those of `like`, and its grid.

    Raises GeometryError where the axes of both grids are not parallel.
    """
    columns, flips = _parallel_axes(geometry, like)
    return _move(array, columns, flips), _move_geometry(geometry, columns, flips)


def _parallel_axes(source: Geometry, target: Geometry) -> tuple[list[int], list[bool]]:
    """For each array axis x, y, z of `target`: the parallel axis of `source`, and whether it runs backwards."""
    cosines = np.array(target.direction).T @ np.array(source.direction)
    columns = [int(c) for c in np.abs(cosines).argmax(axis=1)]
    along = cosines[range(3), columns]
    if sorted(columns) != [0, 1, 2] or np.abs(along).min() < 1 - 1e-3:
        raise GeometryError("the axes of two grids are not parallel", hint="resample onto the other grid instead")
    return columns, [bool(cosine < 0) for cosine in along]


def _closest_axes(direction: Float64[np.ndarray, "3 3"]) -> Signs:
    """For each array axis x, y, z the patient axis 0, 1, 2 it is closest to; each is used once."""
    size = np.abs(direction)
    best = max(permutations(range(3)), key=lambda axes: float(sum(size[a, c] for c, a in enumerate(axes))))
    return best[0], best[1], best[2]


def _parse(code: str) -> tuple[Signs, Signs]:
    axes = [next((i for i, pair in enumerate(_NAMES) if letter in pair), -1) for letter in code]
    if sorted(axes) != [0, 1, 2]:
        raise PlanError(
            f'"{code}" is no orientation', where="preprocess.orientation", hint='use three letters like "LPS"'
        )
    signs = [1 if code[i] == _NAMES[axis][1] else -1 for i, axis in enumerate(axes)]
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def _take(values: Signs, order: list[int]) -> Signs:
    return values[order[0]], values[order[1]], values[order[2]]


def _move(array: Shaped[np.ndarray, "*c z y x"], columns: list[int], flips: list[bool]) -> np.ndarray:
    lead = array.ndim - 3
    axes = [lead + 2 - column for column in reversed(columns)]
    moved = array.transpose([*range(lead), *axes])
    return moved[(..., *(slice(None, None, -1 if flip else None) for flip in reversed(flips)))]


def _move_geometry(geometry: Geometry, columns: list[int], flips: list[bool]) -> Geometry:
    shape_xyz, spacing_xyz = geometry.shape[::-1], geometry.spacing_mm[::-1]
    corner = [0, 0, 0]
    for column, flip in zip(columns, flips, strict=True):
        corner[column] = shape_xyz[column] - 1 if flip else 0
    x, y, z = (float(v) for v in (geometry.affine() @ [*reversed(corner), 1.0])[:3])
    signs = [-1.0 if flip else 1.0 for flip in flips]
    rows = [[row[c] * s + 0.0 for c, s in zip(columns, signs, strict=True)] for row in geometry.direction]
    shape: Size3 = (shape_xyz[columns[2]], shape_xyz[columns[1]], shape_xyz[columns[0]])
    spacing: Vec3 = (spacing_xyz[columns[2]], spacing_xyz[columns[1]], spacing_xyz[columns[0]])
    direction = ((rows[0][0], rows[0][1], rows[0][2]), (rows[1][0], rows[1][1], rows[1][2]),
                 (rows[2][0], rows[2][1], rows[2][2]))  # fmt: skip
    return replace(geometry, shape=shape, spacing_mm=spacing, origin_mm=(x, y, z), direction=direction)
