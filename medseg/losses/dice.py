"""Soft Dice and its sum with cross-entropy, at one scale.

All terms are float32 under any autocast; `target.py` says what logits and a target mean.
"""

import torch.nn.functional as F
from torch import Tensor

from medseg.losses.target import are_regions, logits_and_target, soft_overlap_sums, voxel_cross_entropy
from medseg.types.tensors import Batch, Mixed, NetworkOutput


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
    sums = soft_overlap_sums(output, batch)
    both, predicted, reference = (part.sum(0, keepdim=True) if batch_dice else part for part in sums)
    score = (2 * both + smooth) / (predicted + reference + smooth).clamp_min(1e-8)
    present = reference > 0
    return ((1 - score) * present).sum() / present.sum().clamp_min(1)


def cross_entropy(output: NetworkOutput, batch: Batch) -> Tensor:
    """Mean over the voxels that count of softmax cross-entropy, or of binary cross-entropy for regions.

    Of mixed samples it is that with the soft labels, which is linear in them.
    """
    logits, target = logits_and_target(output, batch)
    if batch.mixed is not None:
        return _mixed_cross_entropy(logits, target, batch.mixed)
    if are_regions(logits, target):
        counts = target >= 0
        per_voxel = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0).float(), reduction="none")
        return (per_voxel * counts).sum() / counts.sum().clamp_min(1)
    classes = target[:, 0].long()
    total = F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum")
    return total / (classes >= 0).sum().clamp_min(1)


def _mixed_cross_entropy(logits: Tensor, target: Tensor, mixed: Mixed) -> Tensor:
    """Both targets ignore the same voxels."""
    first, counts = voxel_cross_entropy(logits, target)
    second, _ = voxel_cross_entropy(logits, mixed.target)
    sums = mixed.share * first.flatten(1).sum(1) + (1 - mixed.share) * second.flatten(1).sum(1)
    return sums.sum() / counts.count_nonzero().clamp_min(1)
