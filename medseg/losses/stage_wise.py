"""The stage-wise hybrid loss of the contour-refining V-Net: binary cross-entropy and batch Dice at every stage."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.losses.dice import dice
from medseg.types.tensors import Batch, NetworkOutput


def bce_batch_dice(
    output: NetworkOutput,
    batch: Batch,
    *,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
    smooth: float = 1e-5,
) -> Tensor:
    """Binary cross-entropy of every class against the rest, plus one minus the Dice over the whole batch (Lei 2019).

    At one decoder scale; the weights of the scales sum to 1. With one class it is softmax cross-entropy and batch Dice.
    """
    overlap = dice(output, batch, batch_dice=True, smooth=smooth)
    return bce_weight * binary_cross_entropy(output.logits[0].float(), batch.target) + dice_weight * overlap


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over foreground classes (or regions) and voxels that count of -log of the probability of what is there."""
    counts = target >= 0
    if logits.shape[1] == target.shape[1]:
        cost = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0).float(), reduction="none")
        return (cost * counts).sum() / counts.sum().clamp_min(1)
    classes = torch.arange(1, logits.shape[1], device=logits.device).view(-1, *[1] * (logits.dim() - 2))
    is_class, is_other = logits.log_softmax(1)[:, 1:], log_others(logits)[:, 1:]
    cost = -torch.where(target == classes, is_class, is_other)
    return (cost * counts).sum() / (counts.sum() * cost.shape[1]).clamp_min(1)


def log_others(logits: Tensor) -> Tensor:
    """log(1 - softmax) over channels, exact also where a probability rounds to 1.

    Only the largest probability can be near 1; of it the rest is summed, of the others one minus them is well behaved.
    """
    largest = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    return torch.log1p(-logits.softmax(1).scatter(1, largest, 0.0)).scatter(1, largest, others)
