"""Named points in the patient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from medseg.errors import DatasetError


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points (x, y, z) in mm, LPS, each with a name of its own; NaN where a landmark is known but has no place.

    `confidence` is 0 to 1 per landmark, where someone states it. `unit` is "px" where the scan states no spacing.

    >>> Landmarks(("menton", "nasion"), np.array([[1.0, 2.0, 3.0], [np.nan] * 3])).placed()
    {'menton': (1.0, 2.0, 3.0)}
    """

    names: tuple[str, ...]
    points_mm: Float64[np.ndarray, "n 3"]
    confidence: Float64[np.ndarray, " n"] | None = None
    warnings: tuple[str, ...] = ()
    unit: Literal["mm", "px"] = "mm"

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice or not all(name.strip() for name in self.names):
            what = f"landmark names are empty or used twice: {', '.join(twice) or 'empty'}"
            raise DatasetError(what, hint="give every landmark a name of its own")
        if self.points_mm.shape != (len(self.names), 3):
            raise DatasetError(f"{len(self.names)} names for points {self.points_mm.shape}", hint="give (n, 3) in mm")
        if self.confidence is not None and self.confidence.shape != (len(self.names),):
            raise DatasetError("as many confidences as landmarks are needed", hint="give one per landmark or none")
        missing = np.isnan(self.points_mm).any(axis=1)
        if np.isinf(self.points_mm).any() or not np.isnan(self.points_mm[missing]).all():
            raise DatasetError("a landmark has an infinite or a half-known place", hint="correct it or leave it empty")

    def placed(self) -> Mapping[str, tuple[float, float, float]]:
        """The landmarks that have a place, by name."""
        points = zip(self.names, self.points_mm.tolist(), strict=True)
        return {name: (x, y, z) for name, (x, y, z) in points if not np.isnan(x)}
