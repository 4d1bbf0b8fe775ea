"""How many voxels a structure has, how large it is and where its centre lies: what a written file must agree on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from medseg.types.geometry import Geometry, Vec3
from medseg.types.labels import Labels


@dataclass(frozen=True)
class Moment:
    """Of one structure: voxels, volume in mm3 and centroid in LPS mm (None where empty); in pixels without mm."""

    voxels: int
    volume_mm3: float
    centroid_mm: Vec3 | None


def value_sums(planes: Iterable[Shaped[np.ndarray, "y x"]]) -> Float64[np.ndarray, "v 4"]:
    """For every value: its voxels, and the sums of their z, y and x indices. One plane at a time in memory.

    Counted by runs of equal voxels along x, of which anatomy has few.
    """
    table = np.zeros((1, 4))
    for z, plane in enumerate(planes):
        flat, width = plane.ravel(), plane.shape[1]
        ends = flat[1:] != flat[:-1]
        ends[width - 1 :: width] = True
        first = np.concatenate([[0], np.flatnonzero(ends) + 1])
        length = np.diff(first, append=len(flat))
        kept = np.flatnonzero(flat[first])
        if not len(kept):
            continue
        first, length = first[kept], length[kept]
        values = flat[first].astype(np.intp)
        rows = first // width
        counts = np.bincount(values, length)
        if len(counts) > len(table):
            table = np.concatenate([table, np.zeros((len(counts) - len(table), 4))])
        own = table[: len(counts)]
        own[:, 0] += counts
        own[:, 1] += z * counts
        own[:, 2] += np.bincount(values, rows * length)
        own[:, 3] += np.bincount(values, (first - rows * width + (length - 1) / 2) * length)
    return table


def class_sums(table: Float64[np.ndarray, "v 4"], labels: Labels) -> Float64[np.ndarray, "k 4"]:
    """The same per class of a predicted label map; a region is all of its values."""
    rows = [[value for value in item.stored if value < len(table)] for item in labels.items]
    return np.stack([table[row].sum(axis=0) if row else np.zeros(4) for row in rows])


def placed(sums: Float64[np.ndarray, "k 4"], affine: Float64[np.ndarray, "4 4"]) -> tuple[Moment, ...]:
    """Moments of index sums (voxels, z, y, x) on a grid with this matrix from (z, y, x, 1) to points."""
    volume = float(abs(np.linalg.det(affine[:3, :3])))
    return from_points([(row[0], (affine @ [*row[1:], row[0]])[:3]) for row in sums], volume)


def from_points(sums: Sequence[tuple[float, Float64[np.ndarray, " 3"]]], voxel_mm3: float) -> tuple[Moment, ...]:
    """Moments from the voxels of each structure and the sum of their points."""
    moments = []
    for count, points in sums:
        centroid = None
        if count:
            x, y, z = (float(value / count) for value in points)
            centroid = x, y, z
        moments.append(Moment(int(count), float(count) * voxel_mm3, centroid))
    return tuple(moments)


def in_pixels(geometry: Geometry) -> Geometry:
    """The grid without a place: for files that hold none."""
    return Geometry(geometry.shape, (1.0, 1.0, 1.0), unit="px")
