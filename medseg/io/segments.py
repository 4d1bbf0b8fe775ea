"""Segments as files hold them: named, in layers where they overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped

from medseg.types.geometry import Geometry
from medseg.types.labels import Code


@dataclass(frozen=True)
class Segment:
    """One structure: the voxels of `layer` that hold `value`."""

    name: str
    value: int
    layer: int = 0
    code: Code | None = None
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Segments:
    """All structures of a file on one grid, axes (layer, z, y, x); one layer unless some overlap.

    `series_uid` is the DICOM series they were drawn on, where the file says so.
    """

    layers: Shaped[np.ndarray, "l z y x"]
    geometry: Geometry
    items: tuple[Segment, ...]
    series_uid: str | None = None
    warnings: tuple[str, ...] = ()

    def mask(self, item: Segment) -> Bool[np.ndarray, "z y x"]:
        """Where a structure is."""
        found: np.ndarray = self.layers[item.layer] == item.value
        return found


def overlaps(segments: Segments) -> tuple[tuple[str, str, int], ...]:
    """Every two structures that share voxels, and how many."""
    found = []
    for number, one in enumerate(segments.items):
        for other in segments.items[number + 1 :]:
            if one.layer != other.layer:
                shared = int(np.count_nonzero(segments.mask(one) & segments.mask(other)))
                if shared:
                    found.append((one.name, other.name, shared))
    return tuple(found)


def unique_names(names: Sequence[str]) -> list[str]:
    """Names made unique by a number behind, and never empty.

    >>> unique_names(["cyst", "", "cyst"])
    ['cyst', 'segment 2', 'cyst (2)']
    """
    result: list[str] = []
    for number, name in enumerate(names, start=1):
        plain = name.strip() or f"segment {number}"
        unique, again = plain, 1
        while unique in result:
            again += 1
            unique = f"{plain} ({again})"
        result.append(unique)
    return result
