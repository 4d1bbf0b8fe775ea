"""Soft Dice and its sum with cross-entropy, at one scale.

All terms are float32 under any autocast, take logits (b, k, *s) and a target (b, r, *s), and tell by their
channels what the logits mean: k == r are regions (one sigmoid each), r == 1 and k > 1 are classes (softmax over
background and k - 1 classes). A target of -1 is ignored: in regions per channel, in classes per voxel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import PlanError
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
    logits, target = _checked(output, batch)
    sums = _region_sums(logits, target) if _are_regions(logits, target) else _class_sums(logits, target)
    both, predicted, reference = (part.sum(0, keepdim=True) if batch_dice else part for part in sums)
    score = (2 * both + smooth) / (predicted + reference + smooth).clamp_min(1e-8)
    present = reference > 0
    return ((1 - score) * present).sum() / present.sum().clamp_min(1)


def cross_entropy(output: NetworkOutput, batch: Batch) -> Tensor:
    """Mean over the voxels that count of softmax cross-entropy, or of binary cross-entropy for regions."""
    logits, target = _checked(output, batch)
    if _are_regions(logits, target):
        counts = target >= 0
        per_voxel = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0).float(), reduction="none")
        return (per_voxel * counts).sum() / counts.sum().clamp_min(1)
    classes = target[:, 0].long()
    total = F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum")
    return total / (classes >= 0).sum().clamp_min(1)


def _checked(output: NetworkOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    logits, target = output.logits[0], batch.target
    if logits.shape[2:] != target.shape[2:] or target.shape[1] not in (1, logits.shape[1]):
        raise PlanError(
            f"logits {tuple(logits.shape)} do not fit a target {tuple(target.shape)}",
            where="training.losses",
            hint="one target channel for classes, one per logit for regions",
        )
    return logits.float(), target


def _are_regions(logits: Tensor, target: Tensor) -> bool:
    return logits.shape[1] == target.shape[1]


def _region_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over voxels of p * y, p and y, each (b, k)."""
    axes = tuple(range(2, logits.dim()))
    counts, inside = target >= 0, target > 0
    p = logits.sigmoid()
    return (p * inside).sum(axes), (p * counts).sum(axes), inside.sum(axes).float()


def _class_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over voxels of p * y, p and y, each (b, k - 1): without background, and without a one-hot target."""
    samples, k = logits.shape[:2]
    p = logits.softmax(1).flatten(2)
    classes = target.flatten(1).long()
    counts = classes >= 0
    index = classes.clamp_min(0)
    own = p.gather(1, index[:, None])[:, 0] * counts
    empty = p.new_zeros(samples, k)
    both = empty.scatter_add(1, index, own)
    reference = empty.scatter_add(1, index, counts.float())
    predicted = torch.einsum("bkn,bn->bk", p, counts.float())
    return both[:, 1:], predicted[:, 1:], reference[:, 1:]
