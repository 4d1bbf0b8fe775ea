"""Frames over time: what a multi-frame ultrasound file holds. They are no slices of a volume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source


@dataclass(frozen=True, eq=False)
class Cine:
    """`count` frames of one grid (z = 1), decoded one at a time when asked for.

    `times_s` are seconds since the first frame, empty where the file states none. `read` decodes the frame of a
    number as (c, z, y, x).
    """

    count: int
    geometry: Geometry
    channels: tuple[str, ...]
    source: Source
    read: Callable[[int], Shaped[np.ndarray, "c 1 y x"]]
    times_s: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()

    def frame(self, number: int) -> Image:
        """Frame `number`, from 0, as an image of one slice; warnings of the whole file are not repeated."""
        return Image(self.read(number), self.geometry, self.channels, self.source)

    def frames(self) -> Iterator[Image]:
        """All frames in order of time, one at a time in memory."""
        return (self.frame(number) for number in range(self.count))
