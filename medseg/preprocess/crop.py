"""Find the part of a scan that holds anything."""

import numpy as np
from jaxtyping import Shaped

from medseg.types.geometry import Box


def nonzero_box(array: Shaped[np.ndarray, "c z y x"]) -> Box:
    """The smallest box that holds every voxel where any channel is not 0; the whole grid if there is none.

    >>> image = np.zeros((1, 4, 5, 6)); image[0, 1:3, 2, 3:5] = 7
    >>> nonzero_box(image)
    Box(start=(1, 2, 3), stop=(3, 3, 5))
    """
    shape = array.shape[1:]
    seen = [np.zeros(n, bool) for n in shape]
    for z in range(shape[0]):
        plane = (array[:, z] != 0).any(axis=0)
        seen[0][z] = plane.any()
        seen[1] |= plane.any(axis=1)
        seen[2] |= plane.any(axis=0)
    ends = [(int(n[0]), int(n[-1]) + 1) if (n := np.flatnonzero(s)).size else (0, s.size) for s in seen]
    (z0, z1), (y0, y1), (x0, x1) = ends
    return Box((z0, y0, x0), (z1, y1, x1))
