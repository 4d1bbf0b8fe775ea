"""Scanner units to network units, one rule per channel; each may work in place on its float32 array."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float32

from medseg.errors import PlanError
from medseg.preprocess.fan import fan_mask

Volume = Float32[np.ndarray, "z y x"]
Normalise = Callable[..., Volume]
_SMALLEST_STD = 1e-8
_SORTED = 4_000_000  # voxels, about


def z_score(array: Volume, *, nonzero: bool = False) -> Volume:
    """Zero mean and unit variance per scan, for MR; `nonzero`: of the nonzero voxels only, the others stay 0."""
    return _standardise(array, array != 0 if nonzero else None)


def clip_z_score(array: Volume, *, low: float, high: float, mean: float, std: float) -> Volume:
    """Clip to [low, high], then subtract `mean` and divide by `std` of the data set; for CT in HU (Isensee 2021)."""
    if not low < high or std < 0:
        raise PlanError(f"low {low}, high {high}, std {std}", where="preprocess.intensity", hint="low < high, std >= 0")
    np.clip(array, low, high, out=array)
    array -= np.float32(mean)
    array /= np.float32(max(std, _SMALLEST_STD))
    return array


def anchor_scale(array: Volume, *, low: float = 1.0, high: float = 90.0, limit: float = 5.0) -> Volume:
    """Map two anchors of each scan to -1 and 1 and clip to +-`limit`; for CBCT, whose grey values are not HU.

    The anchors are the percentiles `low` (air, or the darkest tissue) and `high` (dense tissue) of the voxels above the
    smallest value, which is padding outside the field of view; of large scans, of every second, third ... voxel along
    each axis, so that about 4 million are sorted. They follow any gain and offset of the scanner. They are taken twice,
    the second time without voxels brighter than `limit`: the first time a share f of metal moves a percentile p only to
    p (1 - f), however bright the metal is; the second time it is not there at all. A mean, a standard deviation or a
    percentile near 100 would follow the metal.

    >>> scan = np.linspace(0, 10, 1001, dtype=np.float32).reshape(1, 1, 1001)
    >>> bool(np.allclose(anchor_scale(3 * scan + 7), anchor_scale(scan.copy()), atol=1e-5))
    True
    """
    if not 0 <= low < high <= 100 or limit <= 0:
        raise PlanError(
            f"percentiles {low} to {high}, limit {limit}", where="preprocess.intensity", hint="0 <= low < high <= 100"
        )
    some = array[(slice(None, None, math.ceil((array.size / _SORTED) ** (1 / 3))),) * 3]
    voxels = some[some > array.min()]
    if voxels.size == 0:
        array[:] = 0
        return array
    kept = voxels.size
    for _ in range(2):
        share = (kept - 1) / max(voxels.size - 1, 1)  # percentiles of the `kept` darkest voxels, without a copy
        first, second = (float(v) for v in np.percentile(voxels, [low * share, high * share], overwrite_input=True))
        half = max((second - first) / 2, abs(first) * 1e-7, 1e-30)
        kept = int(np.count_nonzero(voxels <= (first + second) / 2 + limit * half))
    array -= np.float32((first + second) / 2)
    array /= np.float32(half)
    return np.clip(array, -limit, limit, out=array)


def fan_z_score(array: Volume) -> Volume:
    """Zero mean, unit variance inside the ultrasound fan and 0 outside; black borders and text count nowhere."""
    return _standardise(array, fan_mask(array))


def rescale(array: Volume, *, low: float = 0.0, high: float = 255.0) -> Volume:
    """Map low to 0 and high to 1, clipped; for RGB and grey images of a fixed range."""
    if not low < high:
        raise PlanError(f"low {low} is not below high {high}", where="preprocess.intensity", hint="swap them")
    array -= np.float32(low)
    array /= np.float32(high - low)
    return np.clip(array, 0, 1, out=array)


def none(array: Volume) -> Volume:
    """Leave grey values as they are."""
    return array


INTENSITY: Mapping[str, Normalise] = {
    "anchor_scale": anchor_scale,
    "clip_z_score": clip_z_score,
    "fan_z_score": fan_z_score,
    "none": none,
    "rescale": rescale,
    "z_score": z_score,
}


def _standardise(array: Volume, mask: Bool[np.ndarray, "z y x"] | None) -> Volume:
    count = array.size if mask is None else int(np.count_nonzero(mask))
    if count == 0:
        array[:] = 0
        return array
    mean = _power_sum(array, mask, 0.0, 1) / count
    std = (_power_sum(array, mask, mean, 2) / count) ** 0.5
    array -= np.float32(mean)
    array /= np.float32(max(std, _SMALLEST_STD))
    if mask is not None:
        array *= mask
    return array


def _power_sum(array: Volume, mask: Bool[np.ndarray, "z y x"] | None, centre: float, power: int) -> float:
    """Sum of (voxel - centre) ** power inside the mask in float64, a plane at a time."""
    planes = (plane if mask is None else plane[mask[z]] for z, plane in enumerate(array))
    return float(sum(((plane.astype(np.float64) - centre) ** power).sum() for plane in planes))
