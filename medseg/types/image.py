"""Voxels with a place: what every reader returns and every writer takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from medseg.types.geometry import Box, Geometry
from medseg.types.labels import Labels


@dataclass(frozen=True)
class Source:
    """Where an image came from, enough to write a DICOM SEG that refers to it.

    `regions`: boxes of tissue on the grid of the file, where it states them (DICOM ultrasound). `frames`: which of
    each file (1, 2, ...) the image is made of, where files of many frames may hold other volumes, too.
    """

    files: tuple[Path, ...]
    format: str
    series_uid: str | None = None
    regions: tuple[Box, ...] = ()
    frames: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Image:
    """A scan in scanner units, axes (c, z, y, x); 2D scans have z = 1.

    `warnings` says what a reader found doubtful but could settle.
    """

    array: Shaped[np.ndarray, "c z y x"]
    geometry: Geometry
    channels: tuple[str, ...]
    source: Source | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelMap:
    """One unsigned integer per voxel (uint8 or uint16), axes (z, y, x); 0 is background."""

    array: Shaped[np.ndarray, "z y x"]
    geometry: Geometry
    labels: Labels
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Probabilities:
    """One probability per class and voxel, background first unless regions."""

    array: Float32[np.ndarray, "k z y x"]
    geometry: Geometry
    labels: Labels


@dataclass(frozen=True, eq=False)
class Slab:
    """Scores of the rows `start <= z < start + n` of a network grid, float32 (k, n, y, x)."""

    start: int
    scores: Float32[np.ndarray, "k n y x"]
