"""Statistics of voxel values from small samples."""

import hashlib

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from medseg.types.fingerprint import IntensityStats

SAMPLE = 10_000


def sample_voxels(
    array: Shaped[np.ndarray, "c z y x"], mask: Bool[np.ndarray, "z y x"] | None, *, name: str, size: int = SAMPLE
) -> Float32[np.ndarray, "c n"]:
    """At most `size` voxels of every channel, spread over the mask (over everything if None), all if there are fewer.

    One voxel is drawn from each of `size` equal stretches of the mask, with a generator seeded by `name`.
    """
    counts = [array[0, z].size if mask is None else int(np.count_nonzero(mask[z])) for z in range(array.shape[1])]
    starts = np.concatenate([[0], np.cumsum(counts)])
    picks = _spread(int(starts[-1]), size, name)
    values = []
    for z in range(array.shape[1]):
        low, high = np.searchsorted(picks, starts[z : z + 2])
        if high > low:
            inside = picks[low:high] - starts[z]
            flat = inside if mask is None else np.flatnonzero(mask[z])[inside]
            rows, columns = np.unravel_index(flat, array.shape[2:])
            values.append(array[:, z, rows, columns].astype(np.float32))
    return np.concatenate(values, axis=1) if values else np.zeros((array.shape[0], 0), np.float32)


def intensity_stats(values: Float32[np.ndarray, " n"]) -> IntensityStats:
    """Statistics of one channel's sample, rounded to 6 significant digits; all 0 for an empty one."""
    if values.size == 0:
        return IntensityStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    exact = values.astype(np.float64)
    low, median, high = np.percentile(exact, (0.5, 50.0, 99.5))
    numbers = (exact.mean(), exact.std(), exact.min(), low, median, high, exact.max())
    return IntensityStats(*(rounded(float(number)) for number in numbers))


def rounded(value: float) -> float:
    """Six significant digits, so that a last bit that differs between machines is not written.

    >>> rounded(1234567.891), rounded(-0.000123456789)
    (1234570.0, -0.000123457)
    """
    return float(f"{value:.6g}")


def _spread(total: int, size: int, name: str) -> np.ndarray:
    """At most `size` increasing numbers below `total`, one from each equal stretch."""
    if total <= size:
        return np.arange(total)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    places = (np.arange(size) + np.random.default_rng(seed).random(size)) * (total / size)
    return np.minimum(places.astype(np.int64), total - 1)
