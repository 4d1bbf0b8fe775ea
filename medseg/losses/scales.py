"""Decoder scales: how much each counts, and the batch at its size."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from medseg.types.tensors import Batch


def scale_weights(scales: int, wanted: Sequence[float] = ()) -> tuple[float, ...]:
    """Share of each decoder scale, finest first: as `wanted`, or half as much each, the coarsest of several nothing.

    >>> scale_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    >>> scale_weights(2, (1.0, 1.0, 1.0))
    (0.5, 0.5)
    """
    weights = list(wanted[:scales]) or [0.5**i for i in range(scales)]
    if scales > 1 and not wanted:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def at_scale(batch: Batch, size: Sequence[int]) -> Batch:
    """The batch with its targets (not its image) at another size: the nearest voxel's value, also of a teacher."""
    target, teacher = batch.target, batch.teacher
    other = None if batch.mixed is None else batch.mixed.target
    spacing = list(batch.spacing or ())
    for axis, new in enumerate(size, start=2):
        old = target.shape[axis]
        if old != new:
            centres = (torch.arange(new, device=target.device) + 0.5) * (old / new)
            target = target.index_select(axis, centres.long())
            teacher = teacher if teacher is None else teacher.index_select(axis, centres.long())
            other = other if other is None else other.index_select(axis, centres.long())
            if spacing:
                spacing[axis - 2] *= old / new
    mixed = None if batch.mixed is None or other is None else replace(batch.mixed, target=other)
    return replace(batch, target=target, teacher=teacher, mixed=mixed, spacing=tuple(spacing) or None)
