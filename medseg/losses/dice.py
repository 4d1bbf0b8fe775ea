"""Soft Dice and its sum with cross-entropy, at one scale.

All terms are float32 under any autocast; `target.py` says what logits and a target mean.
"""

import torch.nn.functional as F
from torch import Tensor

from medseg.losses.target import are_regions, logits_and_target, overlap_sums
from medseg.types.tensors import Batch, NetworkOutput


def dice_ce(
    output: NetworkOutput,
    batch: Batch,
    *,
    batch_dice: bool = False,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: float = 1e-5,
) -> Tensor:
    """Weighted sum of `dice` and `cross_entropy` (Isensee 2021)."""
    overlap = dice(output, batch, batch_dice=batch_dice, smooth=smooth)
    return dice_weight * overlap + ce_weight * cross_entropy(output, batch)


def dice(output: NetworkOutput, batch: Batch, *, batch_dice: bool = False, smooth: float = 1e-5) -> Tensor:
    """One minus the mean soft Dice (Milletari 2016) of the classes present.

    Dice = (2 * sum(p * y) + smooth) / (sum(p) + sum(y) + smooth) per sample and class, or per class over the
    whole batch with `batch_dice`. Background has no term. A class without a reference voxel in the sample (in the
    batch) is left out of the mean, so that it neither rewards nor punishes; cross-entropy still teaches it.
    Without any class present the loss is 0 with zero gradients.
    """
    sums = overlap_sums(*logits_and_target(output, batch))
    both, predicted, reference = (part.sum(0, keepdim=True) if batch_dice else part for part in sums)
    score = (2 * both + smooth) / (predicted + reference + smooth).clamp_min(1e-8)
    present = reference > 0
    return ((1 - score) * present).sum() / present.sum().clamp_min(1)


def cross_entropy(output: NetworkOutput, batch: Batch) -> Tensor:
    """Mean over the voxels that count of softmax cross-entropy, or of binary cross-entropy for regions."""
    logits, target = logits_and_target(output, batch)
    if are_regions(logits, target):
        counts = target >= 0
        per_voxel = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0).float(), reduction="none")
        return (per_voxel * counts).sum() / counts.sum().clamp_min(1)
    classes = target[:, 0].long()
    total = F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum")
    return total / (classes >= 0).sum().clamp_min(1)
