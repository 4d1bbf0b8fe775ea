"""Distances between the surfaces of two masks, in mm."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import cKDTree

from medseg.types.geometry import Vec3


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance in mm of every surface voxel of one mask to the nearest of the other.

    The surface is the set of voxels of a mask that have a neighbour by face (by edge of a pixel where z = 1) outside
    it, or lie at the edge of the scan; all its voxels count alike. This is the definition of MONAI; metrics over
    surface elements (Nikolov 2018) weight voxels by area and differ slightly on the same masks.
    """

    to_reference: Float64[np.ndarray, " p"]
    to_prediction: Float64[np.ndarray, " r"]

    def hd95_mm(self) -> float:
        """The larger of the two 95th percentiles; NaN if both masks are empty, inf if one is."""
        if not self._comparable():
            return self._empty(math.inf)
        return max(float(np.percentile(d, 95)) for d in (self.to_reference, self.to_prediction))

    def mean_mm(self) -> float:
        """Mean over the voxels of both surfaces; NaN if both masks are empty, inf if one is."""
        if not self._comparable():
            return self._empty(math.inf)
        return float(np.concatenate([self.to_reference, self.to_prediction]).mean())

    def nsd(self, tolerance_mm: float) -> float:
        """Share of both surfaces within `tolerance_mm` of the other; NaN if both masks are empty, 0 if one is."""
        if not self._comparable():
            return self._empty(0.0)
        both = np.concatenate([self.to_reference, self.to_prediction])
        return float(np.count_nonzero(both <= tolerance_mm + 1e-9) / len(both))

    def _comparable(self) -> bool:
        return len(self.to_reference) > 0 and len(self.to_prediction) > 0

    def _empty(self, one: float) -> float:
        return one if len(self.to_reference) or len(self.to_prediction) else math.nan


def surface_distances(
    prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"], spacing_mm: Vec3
) -> SurfaceDistances:
    """Both directed sets of surface distances; inf for every voxel where the other mask is empty.

    Where z = 1 the surface and the distances lie in the plane.
    """
    one, two = _surface(prediction), _surface(reference)
    return SurfaceDistances(_nearest(one, two, spacing_mm), _nearest(two, one, spacing_mm))


def hd95_mm(prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"], spacing_mm: Vec3) -> float:
    """95th-percentile Hausdorff distance (Huttenlocher 1993); NaN if both are empty, inf if one is."""
    return surface_distances(prediction, reference, spacing_mm).hd95_mm()


def mean_surface_mm(
    prediction: Bool[np.ndarray, "z y x"], reference: Bool[np.ndarray, "z y x"], spacing_mm: Vec3
) -> float:
    """Average symmetric surface distance (Heimann 2009); NaN if both are empty, inf if one is."""
    return surface_distances(prediction, reference, spacing_mm).mean_mm()


def nsd(
    prediction: Bool[np.ndarray, "z y x"],
    reference: Bool[np.ndarray, "z y x"],
    spacing_mm: Vec3,
    tolerance_mm: float = 1.0,
) -> float:
    """Normalised surface Dice at a tolerance (Nikolov 2018), over voxels; NaN if both are empty, 0 if one is."""
    return surface_distances(prediction, reference, spacing_mm).nsd(tolerance_mm)


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of `mask` that have a face neighbour outside it."""
    flat = mask.shape[0] == 1
    padded = np.pad(mask, [(0 if flat and axis == 0 else 1,) * 2 for axis in range(3)])
    inner = np.array(mask, dtype=bool)
    for axis in range(1 if flat else 0, 3):
        for side in (slice(0, -2), slice(2, None)):
            cut = [slice(None) if flat and a == 0 else slice(1, -1) for a in range(3)]
            cut[axis] = side
            inner &= padded[tuple(cut)]
    return np.asarray(mask & ~inner)


def _nearest(surface: np.ndarray, other: np.ndarray, spacing_mm: Vec3) -> np.ndarray:
    """Distance of each voxel of `surface` to `other`; voxels of both are 0 without a search."""
    distances = np.zeros(int(np.count_nonzero(surface)))
    apart = ~other[surface]
    if not apart.any():
        return distances
    if not other.any():
        return np.full(len(distances), math.inf)
    tree = cKDTree(np.argwhere(other) * spacing_mm, balanced_tree=False, compact_nodes=False)
    distances[apart] = tree.query(np.argwhere(surface)[apart] * spacing_mm)[0]
    return distances
