"""Find scans that look the same, so that they are not learnt from in one fold and tested on in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from medseg.planning.atlas import pooled, standardised

SIMILAR = 0.99
THUMBNAIL = 16
_ROWS = 2048


@dataclass(frozen=True)
class LookAlikes:
    """Cases linked by pairs whose correlation is above the limit; `correlation` is that of the most alike pair."""

    case_ids: tuple[str, ...]
    correlation: float


def thumbnail(array: Shaped[np.ndarray, "c z y x"]) -> Float32[np.ndarray, " n"]:
    """Every channel as 16 x 16 (x 16 for volumes) box means over its own extent, mean 0 and deviation 1."""
    shape = (1 if array.shape[1] == 1 else THUMBNAIL, THUMBNAIL, THUMBNAIL)
    parts: list[Float64[np.ndarray, " m"]] = [standardised(pooled(channel, shape)).ravel() for channel in array]
    return np.concatenate(parts).astype(np.float32)


def find_look_alikes(
    thumbnails: Mapping[str, Float32[np.ndarray, " n"]], *, above: float = SIMILAR
) -> tuple[LookAlikes, ...]:
    """Groups of two or more cases whose thumbnails correlate above a limit; constant ones are left out.

    >>> wave = np.sin(np.arange(256.0, dtype=np.float32))
    >>> find_look_alikes({"a": wave, "b": 3 * wave, "c": wave[::-1]})[0].case_ids
    ('a', 'b')
    """
    linked: dict[str, str] = {}
    best: dict[tuple[str, str], float] = {}
    for length in sorted({picture.size for picture in thumbnails.values()}):
        ids = [case for case, picture in thumbnails.items() if picture.size == length and picture.any()]
        for first, second, alike in _pairs(ids, [thumbnails[case] for case in ids], above):
            best[first, second] = alike
            a, b = _root(linked, first), _root(linked, second)
            linked[max(a, b)] = min(a, b)
    groups: dict[str, set[str]] = {}
    top: dict[str, float] = {}
    for (first, second), alike in best.items():
        root = _root(linked, first)
        groups.setdefault(root, set()).update((first, second))
        top[root] = max(top.get(root, 0.0), alike)
    return tuple(LookAlikes(tuple(sorted(groups[root])), round(top[root], 4)) for root in sorted(groups))


def _pairs(
    ids: Sequence[str], pictures: Sequence[Float32[np.ndarray, " n"]], above: float
) -> list[tuple[str, str, float]]:
    """Every pair above the limit, from matrix products over blocks of rows."""
    if len(ids) < 2:
        return []
    unit = np.stack(pictures)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    found = []
    for start in range(0, len(ids), _ROWS):
        alike = unit[start : start + _ROWS] @ unit[start:].T
        for row, column in np.argwhere(np.triu(alike, 1) > above):
            found.append((ids[start + row], ids[start + column], min(1.0, float(alike[row, column]))))
    return found


def _root(linked: dict[str, str], case: str) -> str:
    while linked.get(case, case) != case:
        case = linked[case]
    return case
