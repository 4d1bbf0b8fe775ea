"""From network-grid scores to labels on the scan's own grid, plane by plane.

Between voxels, scores are interpolated linearly. Where all eight neighbours have one best class, that class is best
everywhere between them (a mean of differences that are all >= 0 is >= 0), so only the other voxels are interpolated
class by class. Peak memory is the result, one slab of scores and a few planes, whatever the number of classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped
from scipy.sparse import csr_array

from medseg.errors import GeometryError
from medseg.preprocess.axes import (
    Positions,
    along_x,
    along_y,
    axis_positions,
    bands,
    inside,
    linear_taps,
    mixed_cells,
    weights_at,
)
from medseg.preprocess.orientation import match_axes
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap, Probabilities, Slab
from medseg.types.labels import Labels

Plane = Float32[np.ndarray, "k y x"]
Decide = Callable[[Float32[np.ndarray, "k *s"]], Shaped[np.ndarray, "*s"]]


@dataclass(frozen=True, eq=False)
class _Axis:
    """Native voxels `start <= i < stop` lie inside the prepared box: their neighbours and the upper one's weight."""

    start: int
    stop: int
    lower: Int64[np.ndarray, " n"]
    upper: Int64[np.ndarray, " n"]
    fraction: Float64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class _Mixed:
    """Native voxels (y, x) of one layer that need interpolation, as a matrix on the score voxels `nodes`."""

    y: Int64[np.ndarray, " m"]
    x: Int64[np.ndarray, " m"]
    nodes: Int64[np.ndarray, " n"]
    weights: csr_array


def native_labels(slabs: Iterable[Slab], prepared: Geometry, native: Geometry, labels: Labels) -> LabelMap:
    """Labels on the grid `native` from scores on the grid `prepared` (as `prepare_image` made it).

    `slabs`: logits (k, n, y, x) in z order, without gaps. Scores are interpolated linearly, edges clamped; then the
    largest score wins (the first of equals), or for regions every score > 0 (probability > 0.5) writes its value, later
    regions over earlier ones. Voxels beyond the outer voxel edges of `prepared` are 0. The values are `Label.written`,
    uint8 where they fit, else uint16.

    Raises GeometryError where the slabs do not cover `prepared`, are not finite, or the grids' axes are not parallel.
    """
    values = _written(labels)
    result = np.zeros(native.shape, values.dtype)
    out, oriented = match_axes(result, native, prepared)
    z, y, x = _axes(prepared, axis_positions(prepared, oriented))
    inner = out[z.start : z.stop, y.start : y.stop, x.start : x.stop]
    decide = _last_positive if labels.are_regions() else _first_largest
    known: dict[int, np.ndarray] = {}
    for below, low, high in _layers(slabs, prepared, labels.outputs()):
        rows = range(*(int(i) for i in np.searchsorted(z.lower, [below, below + 1])))
        if not rows:
            continue
        above = min(below + 1, prepared.shape[0] - 1)
        known = {i: known[i] if i in known else decide(plane) for i, plane in ((below, low), (above, high))}
        certain = known[below][y.lower][:, x.lower]
        mixed = _find_mixed(mixed_cells(known[below], known[above]), y, x)
        scores_low, scores_high = _at_nodes(low, mixed), _at_nodes(high, mixed)
        for row in rows:
            blend = _blend(scores_low, scores_high, float(z.fraction[row]))
            between = mixed.weights @ np.ascontiguousarray(blend.T)
            certain[mixed.y, mixed.x] = decide(np.ascontiguousarray(between.T))
            inner[row] = values[certain]
    return LabelMap(result, native, labels)


def native_probabilities(slabs: Iterable[Slab], prepared: Geometry, native: Geometry, labels: Labels) -> Probabilities:
    """Probabilities on the grid `native`: softmax (regions: sigmoid) of the linearly interpolated scores.

    Same slabs, grids and errors as `native_labels`. Beyond the box of `prepared` background is 1 (regions: all 0).
    Memory is the result, 4 bytes per class and native voxel, and a few planes.
    """
    result = np.zeros((labels.outputs(), *native.shape), np.float32)
    if not labels.are_regions():
        result[0] = 1
    out, oriented = match_axes(result, native, prepared)
    positions = axis_positions(prepared, oriented)
    z, y, x = _axes(prepared, positions)
    inner = out[:, z.start : z.stop, y.start : y.stop, x.start : x.stop]
    to_y = bands(weights_at(positions[1][y.start : y.stop], prepared.shape[1], order=1))
    to_x = bands(weights_at(positions[2][x.start : x.stop], prepared.shape[2], order=1))
    activate = _sigmoid if labels.are_regions() else _softmax
    for below, low, high in _layers(slabs, prepared, labels.outputs()):
        for row in range(*(int(i) for i in np.searchsorted(z.lower, [below, below + 1]))):
            blend = _blend(low, high, float(z.fraction[row]))
            inner[:, row] = activate(along_x(along_y(blend, to_y), to_x))
    return Probabilities(result, native, labels)


def most_probable(probabilities: Probabilities) -> LabelMap:
    """The labels of `native_probabilities`: the largest probability, or for regions every one > 0.5, in label order."""
    labels = probabilities.labels
    values = _written(labels)
    result = np.zeros(probabilities.geometry.shape, values.dtype)
    for z, out in enumerate(result):
        plane = probabilities.array[:, z]
        out[:] = values[_last_positive(plane - np.float32(0.5)) if labels.are_regions() else _first_largest(plane)]
    return LabelMap(result, probabilities.geometry, labels)


def _written(labels: Labels) -> Shaped[np.ndarray, " k"]:
    values = np.array([0, *(item.written for item in labels.items)])
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def _axes(prepared: Geometry, positions: Positions) -> tuple[_Axis, _Axis, _Axis]:
    axes = []
    for along, source in zip(positions, prepared.shape, strict=True):
        within = np.flatnonzero(inside(along, source))
        start, stop = (int(within[0]), int(within[-1]) + 1) if len(within) else (0, 0)
        axes.append(_Axis(start, stop, *linear_taps(along[start:stop], source)))
    return axes[0], axes[1], axes[2]


def _layers(slabs: Iterable[Slab], prepared: Geometry, outputs: int) -> Iterator[tuple[int, Plane, Plane]]:
    """Neighbouring planes z and z + 1 with their z, in order; for a single plane, it twice."""
    depth, plane_shape = prepared.shape[0], (outputs, *prepared.shape[1:])
    done, last = 0, np.empty((0, 0, 0), np.float32)
    for slab in slabs:
        planes = slab.scores.swapaxes(0, 1)
        if slab.start != done or planes.shape[1:] != plane_shape or done + len(planes) > depth:
            raise GeometryError(
                f"scores {slab.scores.shape} from plane {slab.start} do not continue {done} of {depth} planes "
                f"{plane_shape}",
                hint="give slabs of the prepared grid in z order",
            )
        for plane in planes:
            _check_finite(plane, done)
            if done or depth == 1:
                yield max(done - 1, 0), last if done else plane, plane
            last, done = plane, done + 1
        last = last.copy()  # the next slab may reuse the memory of this one
    if done != depth:
        raise GeometryError(f"scores end at plane {done} of {depth}", hint="give slabs of the whole prepared grid")


def _check_finite(plane: Plane, z: int) -> None:
    if not np.isfinite(plane.sum()) and not np.isfinite(plane).all():
        raise GeometryError(f"scores of plane {z} hold NaN or infinity", hint="run the network in a wider precision")


def _first_largest(scores: Float32[np.ndarray, "k *s"]) -> Shaped[np.ndarray, "*s"]:
    """Index of the largest score, the first of equals."""
    index = np.zeros(scores.shape[1:], np.uint8 if len(scores) < 257 else np.uint16)
    largest = scores[0].copy()
    for k in range(1, len(scores)):
        np.maximum(index, (scores[k] > largest) * index.dtype.type(k), out=index)
        np.maximum(largest, scores[k], out=largest)
    return index


def _last_positive(scores: Float32[np.ndarray, "k *s"]) -> Shaped[np.ndarray, "*s"]:
    """1 + index of the last score > 0, or 0."""
    index = np.zeros(scores.shape[1:], np.uint8 if len(scores) < 256 else np.uint16)
    for k, score in enumerate(scores):
        np.maximum(index, (score > 0) * index.dtype.type(k + 1), out=index)
    return index


def _find_mixed(cells: Shaped[np.ndarray, "y x"], y: _Axis, x: _Axis) -> _Mixed:
    rows, columns = np.nonzero(cells[y.lower][:, x.lower])
    width = cells.shape[1]
    corners = [(y_tap[rows] * width + x_tap[columns]) for y_tap in (y.lower, y.upper) for x_tap in (x.lower, x.upper)]
    fy, fx = y.fraction[rows], x.fraction[columns]
    shares = [wy * wx for wy in (1 - fy, fy) for wx in (1 - fx, fx)]
    used = np.zeros(cells.size, bool)
    for corner in corners:
        used[corner] = True
    nodes = np.flatnonzero(used)
    number = np.zeros(cells.size, np.int32)
    number[nodes] = np.arange(len(nodes), dtype=np.int32)
    data = np.stack(shares, axis=1).astype(np.float32).ravel()
    indices = number[np.stack(corners, axis=1)].ravel()
    matrix = csr_array((data, indices, np.arange(0, len(data) + 1, 4, dtype=np.int32)), shape=(len(rows), len(nodes)))
    return _Mixed(rows, columns, nodes, matrix)


def _at_nodes(plane: Plane, mixed: _Mixed) -> Float32[np.ndarray, "k n"]:
    out = np.empty((len(plane), len(mixed.nodes)), np.float32)
    for scores, row in zip(plane, out, strict=True):
        scores.ravel().take(mixed.nodes, out=row, mode="clip")
    return out


def _blend(low: np.ndarray, high: np.ndarray, fraction: float) -> np.ndarray:
    if fraction == 0:
        return low
    mixed: np.ndarray = low * np.float32(1 - fraction) + high * np.float32(fraction)
    return mixed


def _softmax(scores: Plane) -> Plane:
    powers: np.ndarray = np.exp(scores - scores.max(axis=0))
    powers /= powers.sum(axis=0)
    return powers


def _sigmoid(scores: Plane) -> Plane:
    half: np.ndarray = 0.5 * np.tanh(0.5 * scores) + 0.5
    return half
