"""How far voxels are from a mask, in mm, near it: on any device, without leaving it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def distance_within(mask: Bool[Tensor, "b *s"], spacing: Sequence[float], radius_mm: float) -> Float[Tensor, "b *s"]:
    """Distance from each voxel's centre to the nearest one inside `mask`, in mm; infinite beyond `radius_mm`.

    Exact: the squared distance is a minimum of sums, taken one axis at a time (Felzenszwalb 2012), over the shifts
    within the radius. The cost grows with the radius in voxels, not with the image.
    """
    far = float("inf")
    squared = torch.where(mask, 0.0, far)
    for axis, step in enumerate(spacing, start=1):
        most = min(int(radius_mm / step + 1e-6), mask.shape[axis] - 1)
        if most > 0:
            squared = _nearest_along(squared, axis, step, most)
    return squared.masked_fill_(squared > (radius_mm * (1 + 1e-6)) ** 2, far).sqrt_()


def _nearest_along(squared: Tensor, axis: int, step: float, most: int) -> Tensor:
    """The minimum over shifts along one axis of the value there plus the squared shift."""
    nearest, size = squared.clone(), squared.shape[axis]
    for shift in range(1, most + 1):
        rest, cost = size - shift, (shift * step) ** 2
        nearest.narrow(axis, 0, rest).clamp_max_(squared.narrow(axis, shift, rest) + cost)
        nearest.narrow(axis, shift, rest).clamp_max_(squared.narrow(axis, 0, rest) + cost)
    return nearest
