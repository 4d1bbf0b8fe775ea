"""Focal loss: voxels that are already right count little, at one scale. `target.py` says what targets mean."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.target import WHERE, are_regions, logits_and_target, per_class
from medseg.types.tensors import Batch, NetworkOutput


def focal(
    output: NetworkOutput, batch: Batch, *, gamma: float = 2.0, alpha: float | Sequence[float] | None = 0.25
) -> Tensor:
    """Mean over the voxels that count of -a * (1 - p)^gamma * log(p), p the score of the truth (Lin 2017).

    `alpha` is what a voxel weighs by its truth: a number is `alpha` inside any class or region and 1 - `alpha` in the
    background; a list has a weight per class, background first, or for regions the weight inside each of them and one
    minus it outside; None weighs all by 1. With `gamma` 0 and without `alpha` it is cross-entropy.
    """
    if gamma < 0:
        raise PlanError(f"gamma {gamma}", where=WHERE, hint="0 or more")
    logits, target = logits_and_target(output, batch)
    counts = target >= 0
    if are_regions(logits, target):
        inside = target > 0
        towards = torch.where(inside, logits, -logits)
        log_p, log_rest = -F.softplus(-towards), -F.softplus(towards)
    else:
        index = target.long().clamp_min(0)
        log_p = logits.log_softmax(1).gather(1, index)
        log_rest = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny).log()
    hard = torch.exp(gamma * log_rest) if gamma else 1.0
    losses = -_alpha(logits, target, alpha) * hard * log_p
    return losses.masked_fill(~counts, 0.0).sum() / counts.count_nonzero().clamp_min(1)


def _alpha(logits: Tensor, target: Tensor, alpha: float | Sequence[float] | None) -> Tensor | float:
    """The weight of every voxel by its truth, (b, r, *s)."""
    if alpha is None:
        return 1.0
    channels = logits.shape[1]
    most = max(alpha) if isinstance(alpha, Sequence) else alpha
    regions = are_regions(logits, target)
    if most > 1 and (regions or not isinstance(alpha, Sequence)):
        raise PlanError(f"alpha {alpha}", where=WHERE, hint="from 0 to 1: one minus it is the weight outside")
    if not regions:
        weights = alpha if isinstance(alpha, Sequence) else [1 - alpha, *[alpha] * (channels - 1)]
        per_class(weights, channels, name="alpha")
        return logits.new_tensor(weights)[target.long().clamp_min(0)]
    weights = alpha if isinstance(alpha, Sequence) else [alpha] * channels
    per_class(weights, channels, name="alpha")
    inside = logits.new_tensor(weights).reshape(1, -1, *(1,) * (target.dim() - 2))
    return torch.where(target > 0, inside, 1 - inside)
