"""Overlap losses beside Dice: generalised Dice and Tversky, at one scale. `target.py` says what targets mean.

A class without a reference voxel in the sample (with `batch_dice`: in the batch) is left out; where no class is left
the loss is 0 with zero gradients.
"""

from typing import Literal

import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.target import WHERE, soft_overlap_sums
from medseg.types.tensors import Batch, NetworkOutput

Volume = Literal["square", "simple", "uniform"]


def generalised_dice(
    output: NetworkOutput,
    batch: Batch,
    *,
    weight: Volume = "square",
    background: bool = True,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """One minus the mean over samples of 2 * sum_c w_c sum(p * y) / sum_c w_c sum(p + y) (Sudre 2017).

    w_c is one over the squared reference volume of class c ("square"), over the volume ("simple"), or 1. `background`
    is a class like the others; regions have none.
    """
    if weight not in ("square", "simple", "uniform"):
        raise PlanError(f'weight "{weight}"', where=WHERE, hint='"square", "simple" or "uniform"')
    both, predicted, reference = _sums(output, batch, background=background, batch_dice=batch_dice)
    present = reference > 0
    volume = torch.where(present, reference, 1.0) ** {"square": 2, "simple": 1, "uniform": 0}[weight]
    shares = present / volume
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
    above, below = (shares * both).sum(1), (shares * (predicted + reference)).sum(1)
    score = (2 * above + smooth) / (below + smooth)
    some = present.any(1)
    return ((1 - score) * some).sum() / some.sum().clamp_min(1)


def tversky(
    output: NetworkOutput,
    batch: Batch,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """One minus the mean Tversky index TP / (TP + alpha * FP + beta * FN) (Salehi 2017) of the classes present.

    `beta` above `alpha` punishes what is missed more than what is too much; both 0.5 give Dice.
    """
    loss, present = _tversky(output, batch, alpha, beta, batch_dice, smooth)
    return (loss * present).sum() / present.sum().clamp_min(1)


def focal_tversky(
    output: NetworkOutput,
    batch: Batch,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """Mean of (1 - Tversky index) ** (1 / gamma) of the classes present (Abraham 2019).

    With `gamma` above 1 a class that is nearly right still moves the weights.
    """
    if gamma <= 0:
        raise PlanError(f"gamma {gamma}", where=WHERE, hint="above 0; the paper has 4/3")
    loss, present = _tversky(output, batch, alpha, beta, batch_dice, smooth)
    loss = loss.clamp_min(1e-6) ** (1 / gamma)
    return (loss * present).sum() / present.sum().clamp_min(1)


def _tversky(
    output: NetworkOutput, batch: Batch, alpha: float, beta: float, batch_dice: bool, smooth: float
) -> tuple[Tensor, Tensor]:
    """One minus the index, and which classes are present, each (b or 1, channels)."""
    if min(alpha, beta) < 0 or alpha + beta == 0:
        raise PlanError(f"alpha {alpha}, beta {beta}", where=WHERE, hint="0 or more, not both 0")
    both, predicted, reference = _sums(output, batch, background=False, batch_dice=batch_dice)
    wrong, missed = predicted - both, reference - both
    index = (both + smooth) / (both + alpha * wrong + beta * missed + smooth).clamp_min(1e-8)
    return 1 - index, reference > 0


def _sums(output: NetworkOutput, batch: Batch, *, background: bool, batch_dice: bool) -> tuple[Tensor, Tensor, Tensor]:
    sums = soft_overlap_sums(output, batch, background=background)
    both, predicted, reference = (part.sum(0, keepdim=True) if batch_dice else part for part in sums)
    return both, predicted, reference
