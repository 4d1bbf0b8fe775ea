"""Put scans on another grid, in millimetres.

Grids whose axes are parallel (also after permuting and flipping) need three small banded matrix products, one per
axis; only other grids go through SimpleITK.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Shaped
from scipy.ndimage import gaussian_filter

from medseg.errors import ImageError, PlanError
from medseg.preprocess.axes import (
    SPARSE,
    Band,
    Positions,
    along_x,
    along_y,
    are_aligned,
    averaged,
    axis_positions,
    bands,
    nearest,
)
from medseg.preprocess.orientation import orientation_code, reorient
from medseg.types.geometry import Geometry, Size3, Vec3
from medseg.types.image import Image

Orders = tuple[int, int, int]
COARSE = 3.0  # an axis this many times coarser than the finest is interpolated apart (Isensee 2021)
_SLAB_BYTES = 8 << 20


def resample_image(image: Image, target: Geometry, *, order: int = 3, coarse_order: int = 1) -> Image:
    """`image` on the grid `target`; float32, or the stored type for order 0 and for an unchanged grid.

    Order 0 is nearest, 1 linear, 3 cubic B-spline clipped to the grey values present. Along axes that become more than
    1.5 times coarser a voxel is the mean over its width; nnU-Net samples points there, and noise and fine detail stay
    as aliases. Outside the scan its edge voxels are repeated. Along an axis whose spacing is more than 3 times that of
    the finest axis an order of 3 becomes `coarse_order`: splines ring between thick slices. nnU-Net takes order 0
    there; linear moves no edge by half a slice.

    Peak memory is the result plus about 150 planes of float32. Raises ImageError where voxels are not finite.
    """
    if order not in (0, 1, 3) or coarse_order not in (0, 1, 3):
        raise PlanError(f"order {order} of interpolation", where="preprocess.image_order", hint="use 0, 1 or 3")
    if image.geometry.same_grid(target):
        return replace(image, geometry=target)
    array, source = image.array, image.geometry
    if not are_aligned(source, target):
        array, source = reorient(array, source, orientation_code(target))
    if not are_aligned(source, target):
        smooth = (_smoothed(channel, source, target, order) for channel in array)
        channels = [resample_oblique(channel, source, target, order=order) for channel in smooth]
        return replace(image, array=np.stack(channels), geometry=target)
    positions = axis_positions(source, target)
    if order == 0:
        return replace(image, array=take_nearest(array, source.shape, positions), geometry=target)
    orders = axis_orders(source.spacing_mm, target.spacing_mm, order, coarse_order)
    result = np.empty((len(array), *target.shape), np.float32)
    for channel, out in zip(array, result, strict=True):
        _resample_into(out, channel, positions, _steps(source, target), orders)
    return replace(image, array=result, geometry=target)


def axis_orders(source_mm: Vec3, target_mm: Vec3, order: int, coarse_order: int) -> Orders:
    """Order per axis (z, y, x): order 3 becomes `coarse_order` along one axis over 3 times coarser than the finest.

    The source decides; where none of its axes is that coarse, the target does (Isensee 2021).

    >>> axis_orders((5.0, 0.5, 0.5), (1.0, 1.0, 1.0), 3, 1)
    (1, 3, 3)
    """
    for spacing in (source_mm, target_mm):
        if order == 3 and max(spacing) / min(spacing) > COARSE:
            coarse = [s == max(spacing) for s in spacing]
            z, y, x = (coarse_order if c and sum(coarse) == 1 else order for c in coarse)
            return z, y, x
    return order, order, order


def take_nearest(
    array: Shaped[np.ndarray, "*c z y x"], source: Size3, positions: Positions
) -> Shaped[np.ndarray, "*c Z Y X"]:
    """The nearest voxel at every position; keeps the type."""
    z, y, x = (nearest(p, n) for p, n in zip(positions, source, strict=True))
    taken: np.ndarray = array[..., z[:, None, None], y[:, None], x]
    return taken


def resample_oblique(
    array: Shaped[np.ndarray, "z y x"], source: Geometry, target: Geometry, *, order: int, labels: bool = False
) -> Shaped[np.ndarray, "Z Y X"]:
    """One channel on a grid with other axes, by SimpleITK; outside lies the smallest grey value (label 0)."""
    import SimpleITK as sitk

    kinds = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLabelLinear if labels else sitk.sitkLinear, 3: sitk.sitkBSpline}
    exact = labels or order == 0
    image = sitk.GetImageFromArray(np.ascontiguousarray(array if exact else array.astype(np.float32)))
    image.SetSpacing(source.spacing_mm[::-1])
    image.SetOrigin(source.origin_mm)
    image.SetDirection([v for row in source.direction for v in row])
    low, high = _finite_range(array)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(target.shape[::-1])
    resampler.SetOutputSpacing(target.spacing_mm[::-1])
    resampler.SetOutputOrigin(target.origin_mm)
    resampler.SetOutputDirection([v for row in target.direction for v in row])
    resampler.SetInterpolator(kinds[order])
    resampler.SetDefaultPixelValue(0 if labels else low)
    result: np.ndarray = sitk.GetArrayFromImage(resampler.Execute(image))
    return result if exact else np.clip(result, np.float32(low), np.float32(high))


def _steps(source: Geometry, target: Geometry) -> Vec3:
    """How many voxels of `source` one of `target` spans per axis (z, y, x), where axes are nearly parallel."""
    z, y, x = (new / old for new, old in zip(target.spacing_mm, source.spacing_mm, strict=True))
    return z, y, x


def _smoothed(
    array: Shaped[np.ndarray, "z y x"], source: Geometry, target: Geometry, order: int
) -> Shaped[np.ndarray, "z y x"]:
    """A channel with a Gaussian as wide as the mean over a new voxel, along axes that become much coarser."""
    widths = [math.sqrt((step**2 - 1) / 12) if order and step > SPARSE else 0.0 for step in _steps(source, target)]
    return gaussian_filter(array.astype(np.float32), widths, mode="nearest") if any(widths) else array


def _resample_into(
    out: Float32[np.ndarray, "Z Y X"],
    array: Shaped[np.ndarray, "z y x"],
    positions: Positions,
    steps: Vec3,
    orders: Orders,
) -> None:
    low, high = _finite_range(array)
    axes = zip(positions, array.shape, steps, orders, strict=True)
    weights = [averaged(p, n, step, order=o) for p, n, step, o in axes]
    in_plane = (bands(weights[1]), bands(weights[2]))
    z_first = len(out) < len(array)
    plane_bytes = 4 * max(array[0].size, out[0].size)
    rows = min(max(_SLAB_BYTES // plane_bytes, 8), 64)
    held, held_from = np.empty((0, 0, 0), np.float32), 0
    for start in range(0, len(out), rows):
        block = weights[0][start : start + rows]
        used = np.flatnonzero(block.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        fresh_from = min(max(held_from + len(held), first), last)
        fresh = array[fresh_from:last].astype(np.float32, order="C")
        if not z_first:
            fresh = _along_plane(fresh, in_plane)
        kept = held[first - held_from :]
        held = np.concatenate([kept, fresh]) if len(kept) else fresh
        held_from = first
        mixed = _along_z(block[:, first:last], held)
        out[start : start + rows] = _along_plane(mixed, in_plane) if z_first else mixed
        np.clip(out[start : start + rows], low, high, out=out[start : start + rows])


def _along_z(weights: Float32[np.ndarray, "Z z"], planes: Float32[np.ndarray, "z y x"]) -> np.ndarray:
    if weights.shape[0] == weights.shape[1] and np.array_equal(weights, np.eye(len(weights), dtype=np.float32)):
        return planes
    flat: np.ndarray = weights @ planes.reshape(len(planes), -1)
    return flat.reshape(len(weights), *planes.shape[1:])


def _along_plane(
    planes: Float32[np.ndarray, "n y x"], parts: tuple[tuple[Band, ...] | None, tuple[Band, ...] | None]
) -> Float32[np.ndarray, "n Y X"]:
    y, x = parts
    return along_x(along_y(planes, y), x)


def _finite_range(array: Shaped[np.ndarray, "z y x"]) -> tuple[float, float]:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("voxels hold NaN or infinity", where="image", hint="replace them with a grey value of air")
    return low, high
