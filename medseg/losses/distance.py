"""The loss of the head "distance": smooth L1 to truncated signed distances that are measured in each patch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.distance_transform import distance_within
from medseg.types.tensors import Batch, NetworkOutput


def distance(output: NetworkOutput, batch: Batch, *, truncation_mm: float = 5.0, beta: float = 0.1) -> Tensor:
    """Smooth L1 (Girshick 2015) between predicted and true signed distances over `truncation_mm`, cut to [-1, 1].

    True distances are positive inside a class, from the voxel's centre to the nearest centre on the other side, with
    the batch's spacing. What lies beyond the patch, or is ignored, may be anything: where it is nearer than the other
    side, every distance from there to the one measured is right, and costs nothing. Mean over the voxels that count.
    They are measured on the batch's device, in time proportional to `truncation_mm` over the spacing. Raises PlanError
    without the head "distance" or for numbers that are not positive.
    """
    if output.distances is None:
        raise PlanError(
            "there are no distances", where="training.losses", hint="add the head distance, or leave out its loss"
        )
    if truncation_mm <= 0 or beta <= 0:
        raise PlanError("truncation_mm and beta must be above 0", where="training.losses", hint="5 and 0.1 are usual")
    found, target = output.distances.float(), batch.target
    spacing = batch.spacing or (1.0,) * (target.dim() - 2)
    with torch.no_grad():
        low, high = distance_range(target, found.shape[1], spacing, truncation_mm)
        counts = (target >= 0).expand_as(found)
    off = found - found.clamp(low, high)
    cost = F.smooth_l1_loss(off, torch.zeros_like(off), beta=beta, reduction="none")
    return (cost * counts).sum() / counts.count_nonzero().clamp_min(1)


def distance_range(
    target: Tensor, outputs: int, spacing: Sequence[float], reach: float
) -> tuple[Float[Tensor, "b k *s"], Float[Tensor, "b k *s"]]:
    """Smallest and largest signed distance, over `reach`, that fits the target (b, r, *s) at each voxel.

    One channel per class (r = 1) or region (r = `outputs`).
    """
    known = target >= 0
    classes = torch.arange(outputs, device=target.device).view(-1, *[1] * (target.dim() - 2))
    inside = target == 1 if target.shape[1] == outputs else target == classes
    outside = known & ~inside
    measured = torch.where(inside, capped_distance(outside, spacing, reach), capped_distance(inside, spacing, reach))
    around = F.pad(~known, (1, 1) * (target.dim() - 2), value=True)
    unknown = capped_distance(around, spacing, reach)
    for axis, size in enumerate(target.shape[2:], start=2):
        unknown = unknown.narrow(axis, 1, size)
    sign = torch.where(inside, 1.0, -1.0) / reach
    far, near = sign * measured, sign * torch.minimum(measured, unknown)
    return torch.minimum(far, near), torch.maximum(far, near)


def capped_distance(source: Bool[Tensor, "b k *s"], spacing: Sequence[float], reach: float) -> Float[Tensor, "b k *s"]:
    """Distance of every voxel to the nearest true voxel of `source`, exact up to `reach` and never more.

    >>> capped_distance(torch.tensor([[[[True, False, False, False]]]]), (1.0, 2.0), 5.0)
    tensor([[[[0., 2., 4., 5.]]]])
    """
    near = distance_within(source.flatten(0, 1), spacing, reach)
    return near.reshape(source.shape).clamp_max(reach)
