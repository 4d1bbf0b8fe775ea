"""Where the windows lie and how much each of their voxels counts."""

from itertools import product

import numpy as np
from jaxtyping import Float32

from medseg.errors import PlanError
from medseg.types.geometry import Box, Size3
from medseg.types.plan import Inference

_FLOOR = 1e-3


def starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxel of each window along one axis: evenly spread, the last flush with the edge.

    Neighbours share at least the fraction `overlap` of a window. Raises PlanError unless 0 <= overlap < 1.

    >>> starts(100, 40, 0.5)
    (0, 20, 40, 60)
    >>> starts(30, 40, 0.5)
    (0,)
    """
    if not 0 <= overlap < 1:
        raise PlanError(f"overlap {overlap} is not in [0, 1)", where="inference.overlap", hint="0.5 is usual")
    free = size - patch
    if free <= 0:
        return (0,)
    step = max(1.0, patch * (1 - overlap))
    gaps = int(np.ceil(round(free / step, 6)))
    return tuple(round(i * free / gaps) for i in range(gaps + 1))


def tile(shape: Size3, patch: Size3, overlap: float) -> tuple[Box, ...]:
    """Windows of size `patch` that cover `shape`, z slowest; where `patch` is larger it sticks out at the end."""
    axes = [starts(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
    z, y, x = patch
    return tuple(Box((a, b, c), (a + z, b + y, c + x)) for a, b, c in product(*axes))


def bell(patch: int, blend: str) -> Float32[np.ndarray, " n"]:
    """Weight of the voxels of a window along one axis: 1, or a Gaussian of sigma patch / 8 (Isensee 2021).

    Symmetric about (patch - 1) / 2 and never below a thousandth.

    >>> bool((bell(9, "gaussian") == bell(9, "gaussian")[::-1]).all())
    True
    """
    if blend == "constant":
        return np.ones(patch, np.float32)
    distance = np.arange(patch) - (patch - 1) / 2
    weight: Float32[np.ndarray, " n"] = np.maximum(np.exp(-0.5 * (distance / (patch / 8)) ** 2), _FLOOR)
    return weight.astype(np.float32)


def shares(shape: Size3, patch: Size3, plan: Inference) -> tuple[dict[int, Float32[np.ndarray, " n"]], ...]:
    """Per axis (z, y, x): start of a window -> the share of each of its voxels in the weighted mean.

    The weight is a product over the axes, so the shares of all windows that touch a voxel sum to 1 axis by axis, and
    no sum of weights has to be kept beside the sum of scores.
    """
    return tuple(_axis_shares(n, p, plan) for n, p in zip(shape, patch, strict=True))


def _axis_shares(size: int, patch: int, plan: Inference) -> dict[int, Float32[np.ndarray, " n"]]:
    first = starts(size, patch, plan.overlap)
    weight = bell(patch, plan.blend).astype(np.float64)
    total = np.zeros(max(size, patch))
    for start in first:
        total[start : start + patch] += weight
    return {start: (weight / total[start : start + patch]).astype(np.float32) for start in first}
