"""Where a voxel grid lies in the patient."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from medseg.errors import GeometryError

Size3 = tuple[int, int, int]
Vec3 = tuple[float, float, float]
Mat3 = tuple[Vec3, Vec3, Vec3]
AXES: tuple[Literal["z"], Literal["y"], Literal["x"]] = ("z", "y", "x")
MOST_ANISOTROPIC = 2.0  # coarsest over finest spacing at which slices across all axes still look alike
IDENTITY: Mat3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def slice_across(patch: Size3, axis: int) -> Size3:
    """The patch (1, height, width) of a slice as one that lies across `axis`.

    >>> slice_across((1, 16, 32), 1)
    (16, 1, 32)
    """
    size = [patch[1], patch[2]]
    size.insert(axis, 1)
    return size[0], size[1], size[2]


@dataclass(frozen=True)
class Box:
    """Half-open voxel box `start <= index < stop`, array order (z, y, x)."""

    start: Size3
    stop: Size3

    @property
    def shape(self) -> Size3:
        """Voxels per axis (z, y, x)."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def slices(self) -> tuple[slice, slice, slice]:
        """The box as array slices (z, y, x)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Geometry:
    """A regular grid: array index (z, y, x) to patient point (x, y, z) in mm, LPS.

    `direction` has one row per patient axis (L, P, S) and one column per array axis x, y, z, as in DICOM and ITK.
    `unit` is "px" where a file states no physical spacing; numbers are then pixels and never called mm.
    """

    shape: Size3
    spacing_mm: Vec3
    origin_mm: Vec3 = (0.0, 0.0, 0.0)
    direction: Mat3 = IDENTITY
    frame_of_reference_uid: str | None = None
    unit: Literal["mm", "px"] = "mm"

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise GeometryError(f"shape {self.shape} has an empty axis", hint="the image holds no voxels")
        if not all(np.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise GeometryError(f"spacing {self.spacing_mm} mm is not positive", hint="correct the header")
        columns = np.array(self.direction)
        if not np.isfinite(self.origin_mm).all() or not np.allclose(columns.T @ columns, np.eye(3), atol=1e-3):
            raise GeometryError(
                "direction is not orthonormal or origin not finite", hint="resample the image on a regular grid"
            )

    def affine(self) -> Float64[np.ndarray, "4 4"]:
        """Matrix from homogeneous array index (z, y, x, 1) to LPS point (x, y, z, 1) in mm.

        >>> Geometry((2, 3, 4), (3.0, 2.0, 1.0), (10.0, 0.0, 0.0)).affine() @ [1, 0, 0, 1]
        array([10.,  0.,  3.,  1.])
        """
        matrix = np.eye(4)
        columns = np.array(self.direction)[:, ::-1] * np.array(self.spacing_mm)
        matrix[:3, :3] = columns
        matrix[:3, 3] = self.origin_mm
        return matrix

    def to_voxels(self, points_mm: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Array places (z, y, x), also between voxels and outside of the grid, of LPS points (x, y, z); NaN stays.

        >>> Geometry((2, 3, 4), (3.0, 2.0, 1.0), (10.0, 0.0, 0.0)).to_voxels(np.array([[10.5, 0.0, 3.0]]))
        array([[1. , 0. , 0.5]])
        """
        places: np.ndarray = (points_mm - np.array(self.origin_mm)) @ np.linalg.inv(self.affine()[:3, :3]).T
        return places

    def to_points_mm(self, voxels: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """LPS points (x, y, z) of array places (z, y, x); undoes `to_voxels`."""
        points: np.ndarray = voxels @ self.affine()[:3, :3].T + np.array(self.origin_mm)
        return points

    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        z, y, x = self.spacing_mm
        return z * y * x

    def crop(self, box: Box) -> "Geometry":
        """The grid of `array[box.slices()]`."""
        x, y, z = (float(v) for v in (self.affine() @ [*box.start, 1.0])[:3])
        return replace(self, shape=box.shape, origin_mm=(x, y, z))

    def with_shape(self, shape: Size3) -> "Geometry":
        """Another grid over the same extent: outer voxel edges stay, spacing follows from `shape`."""
        old = self.spacing_mm
        spacing = [s * n / m for s, n, m in zip(old, self.shape, shape, strict=True)]
        shift = [(new / s - 1) / 2 for new, s in zip(spacing, old, strict=True)]
        x, y, z = (float(v) for v in (self.affine() @ [*shift, 1.0])[:3])
        return replace(self, shape=shape, spacing_mm=(spacing[0], spacing[1], spacing[2]), origin_mm=(x, y, z))

    def same_grid(self, other: "Geometry", *, tol_mm: float = 1e-3) -> bool:
        """Whether every corner voxel of both grids lies within `tol_mm` of the other's."""
        if self.shape != other.shape:
            return False
        return self.corner_distance_mm(other) <= tol_mm

    def corner_distance_mm(self, other: "Geometry") -> float:
        """Largest distance in mm between equal corner voxels of two grids of one shape."""
        z, y, x = (n - 1 for n in self.shape)
        corners = np.array([[k, j, i, 1] for k in (0, z) for j in (0, y) for i in (0, x)], dtype=float)
        apart = (corners @ self.affine().T - corners @ other.affine().T)[:, :3]
        return float(np.linalg.norm(apart, axis=1).max())
