"""Outlines of a mask as closed polygons, and polygons filled back into a mask, in pixel coordinates (x, y).

Pixel centres lie at whole numbers. Outlines run 0.49 of a pixel outside of the last inner pixel centre, so that filling
them gives the same pixels back, also to readers that round to the nearest pixel.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int64

Polygon = Float64[np.ndarray, "_ 2"]
_LEVEL = 0.51  # outlines lie 0.49 of a pixel outside of the last inner centre
_AT_ONCE = 1 << 20  # crossings of edges and pixel rows that are worked on together


def outlines(mask: Bool[np.ndarray, "y x"]) -> tuple[Polygon, ...]:
    """One closed polygon per 4-connected part, points (x, y), the first not repeated, none on a line between others.

    A hole is joined to its outer line by a channel of no width (keyhole), which runs between two rows of pixels.

    >>> outlines(np.eye(1, dtype=bool))[0].round(9).tolist()
    [[-0.49, 0.0], [0.0, -0.49], [0.49, 0.0], [0.0, 0.49]]
    """
    from contourpy import FillType, contour_generator

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return ()
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(part, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset, name="serial")
    found, starts = cast(tuple[list[Polygon], list[Int64[np.ndarray, " m"]]], generator.filled(_LEVEL, 2.0))
    shift = np.array([columns[0] - 1, rows[0] - 1])
    polygons = []
    for points, offsets in zip(found, starts, strict=True):
        rings = [_corners(points[a:b] + shift) for a, b in pairwise(offsets.tolist())]
        polygons.append(_with_holes(rings[0], rings[1:]))
    return tuple(polygons)


def fill(polygons: Sequence[Polygon], shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Pixels whose centres lie within an odd number of closed polygons; what lies outside of `shape` is cut off.

    >>> fill([np.array([[0.5, -0.5], [2.5, -0.5], [2.5, 1.5], [0.5, 1.5]])], (2, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0]])
    """
    height, width = shape
    if not polygons:
        return np.zeros(shape, dtype=bool)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    size = np.array([width, height])
    corner = np.clip(np.floor(starts.min(axis=0)), 0, size).astype(np.int64)
    beyond = np.clip(np.ceil(starts.max(axis=0)) + 1, 0, size).astype(np.int64)
    inside = np.zeros(shape, dtype=bool)
    if (beyond > corner).all():
        columns, rows = (slice(a, b) for a, b in zip(corner.tolist(), beyond.tolist(), strict=True))
        inside[rows, columns] = _fill_box(starts - corner, ends - corner, inside[rows, columns].shape)
    return inside


def crossing(polygons: Sequence[Polygon], shape: tuple[int, int]) -> bool:
    """Whether two polygons share pixels without one lying within the other, so that odd and even say little.

    >>> square = np.array([[-0.5, -0.5], [4.5, -0.5], [4.5, 4.5], [-0.5, 4.5]])
    >>> [crossing([square, other], (20, 20)) for other in (square + 2, square + 9, square / 2 + 1)]
    [True, False, False]
    """
    lows = np.array([polygon.min(axis=0) for polygon in polygons]).reshape(-1, 2)
    highs = np.array([polygon.max(axis=0) for polygon in polygons]).reshape(-1, 2)
    for one in range(len(polygons)):
        meet = (lows[one] <= highs[one + 1 :]).all(axis=1) & (lows[one + 1 :] <= highs[one]).all(axis=1)
        for other in (np.flatnonzero(meet) + one + 1).tolist():
            low, high = np.maximum(lows[one], lows[other]), np.minimum(highs[one], highs[other])
            corner = np.clip(np.floor(low), 0, shape[::-1])
            width, height = (np.clip(np.ceil(high) + 1, 0, shape[::-1]) - corner).astype(int).tolist()
            first, second = (fill([polygons[i] - corner], (height, width)) for i in (one, other))
            inner = [i for i in (one, other) if (low == lows[i]).all() and (high == highs[i]).all()]
            shared = np.count_nonzero(first & second)
            most = min(np.count_nonzero(first if i == one else second) for i in inner) if inner else np.inf
            if 0 < shared < most:
                return True
    return False


def _fill_box(starts: Polygon, ends: Polygon, shape: tuple[int, ...]) -> Bool[np.ndarray, "y x"]:
    """Pixels of a box that an odd number of edges lies to the left of."""
    height, width = shape
    upward = (starts[:, 1] < ends[:, 1])[:, np.newaxis]
    low, high = np.where(upward, starts, ends), np.where(upward, ends, starts)
    first = np.ceil(np.clip(low[:, 1], 0, height)).astype(np.int64)
    stop = np.ceil(np.clip(high[:, 1], 0, height)).astype(np.int64)
    turns = np.zeros(height * (width + 1), dtype=np.int64)
    for part in _parts(stop - first):
        turns += _turns(low[part], high[part], first[part], stop[part], (height, width))
    crossed: Int64[np.ndarray, "y x"] = np.cumsum(turns.reshape(height, width + 1), axis=1)[:, :width]
    odd: Bool[np.ndarray, "y x"] = crossed % 2 == 1
    return odd


def _turns(
    low: Polygon, high: Polygon, first: Int64[np.ndarray, " n"], stop: Int64[np.ndarray, " n"], shape: tuple[int, int]
) -> Int64[np.ndarray, " m"]:
    """How often edges cross each row just before each of its pixels, rows of x + 1 pixels."""
    height, width = shape
    counts = stop - first
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    along = (rows - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
    across = low[edge, 0] + along * (high[edge, 0] - low[edge, 0])
    columns = np.ceil(np.clip(across, 0, width)).astype(np.int64)
    return np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))


def _parts(counts: Int64[np.ndarray, " n"]) -> list[slice]:
    """Runs of edges that cross about `_AT_ONCE` rows together, so that memory does not grow with a polygon."""
    total = np.cumsum(counts)
    if not total.size or total[-1] <= _AT_ONCE:
        return [slice(0, len(counts))]
    cuts = np.searchsorted(total, np.arange(_AT_ONCE, total[-1], _AT_ONCE))
    edges = [0, *np.unique(cuts + 1).tolist(), len(counts)]
    return [slice(a, b) for a, b in pairwise(edges) if a < b]


def _corners(ring: Polygon) -> Polygon:
    """A ring without its repeated last point and without points on a straight line."""
    ring = ring[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turning: Bool[np.ndarray, " n"] = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    kept: Polygon = ring[turning]
    return kept


def _with_holes(ring: Polygon, holes: Sequence[Polygon]) -> Polygon:
    """The outer ring and its holes as one line: each hole is tied, from its last row to the right, to what is there.

    What the tie of a hole meets ends lower or, on the same row, farther right; in that order it is part of the ring.
    """
    ties = [max(range(len(hole)), key=lambda i, h=hole: (h[i, 1], h[i, 0])) for hole in holes]  # type: ignore[misc]
    order = sorted(range(len(holes)), key=lambda i: (holes[i][ties[i], 1], holes[i][ties[i], 0]), reverse=True)
    for index in order:
        hole = np.roll(holes[index], -ties[index], axis=0)
        edge, meeting = _to_the_right(ring, hole[0])
        loop = [meeting, *hole, hole[0], meeting]
        ring = np.concatenate([ring[: edge + 1], np.array(loop), ring[edge + 1 :]])
    return ring


def _to_the_right(ring: Polygon, point: Float64[np.ndarray, "2"]) -> tuple[int, Float64[np.ndarray, "2"]]:
    """The edge of `ring` that a ray from `point` along x meets first, and where."""
    ends = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], ends[:, 1]), np.maximum(ring[:, 1], ends[:, 1])
    touched = np.flatnonzero((low <= point[1]) & (point[1] <= high))
    start, end = ring[touched], ends[touched]
    rise = end[:, 1] - start[:, 1]
    along = np.divide(point[1] - start[:, 1], rise, out=np.zeros(len(rise)), where=rise != 0)
    across = np.where(rise == 0, np.minimum(start[:, 0], end[:, 0]), start[:, 0] + along * (end[:, 0] - start[:, 0]))
    across[across <= point[0]] = np.inf
    nearest = int(np.argmin(across))
    return int(touched[nearest]), np.array([across[nearest], point[1]])
