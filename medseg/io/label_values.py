"""The voxel values of label maps: whole numbers, and which of them occur."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medseg.errors import ImageError


def whole_numbers(grid: Shaped[np.ndarray, "z y x"], top: int, path: Path) -> Shaped[np.ndarray, "z y x"]:
    """The same values as the smallest unsigned type that holds them and `top`."""
    if grid.dtype.kind == "f":
        for plane in grid:
            odd = plane[np.abs(plane - np.rint(plane)) > 1e-3]
            if odd.size:
                fractions = some_of(np.unique(odd).tolist())
                raise ImageError(f"holds fractions {fractions}", where=path, hint="a label map holds whole numbers")
        grid = np.rint(grid)
    low, high = int(grid.min()), int(grid.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ImageError(f"holds values from {low} to {high}", where=path, hint="label values are 0 to 65535")
    return grid.astype(np.uint8 if max(top, high) < 256 else np.uint16, copy=False)


def values_in(grid: Shaped[np.ndarray, "z y x"]) -> list[int]:
    """Every value that occurs, plane by plane, so that no large temporary is made."""
    counts = np.zeros(int(grid.max()) + 1, dtype=np.int64)
    for plane in grid:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return [int(value) for value in np.flatnonzero(counts)]


def some_of(values: Sequence[float]) -> str:
    """The first ten values as text, and how many there are.

    >>> some_of([1, 2.5])
    '1, 2.5'
    """
    shown = ", ".join(f"{value:g}" for value in values[:10])
    return shown if len(values) <= 10 else f"{shown} ... ({len(values)} in all)"
