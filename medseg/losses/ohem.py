"""Cross-entropy of the hardest voxels only, at one scale. `target.py` says what targets mean."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.target import WHERE, logits_and_target, voxel_cross_entropy
from medseg.types.tensors import Batch, NetworkOutput


def ohem(
    output: NetworkOutput,
    batch: Batch,
    *,
    share: float = 0.1,
    min_kept: int = 10_000,
    threshold: float | None = None,
) -> Tensor:
    """Mean cross-entropy of the hardest voxels of each sample, then the mean over samples (Shrivastava 2016).

    Kept are the `share` of a sample's counted voxels with the highest loss (nnU-Net: a tenth), or with `threshold`
    instead those whose truth scores below it; in both cases at least `min_kept`, or all where there are fewer.
    `min_kept` counts voxels of the image; at a coarser decoder scale it shrinks as they do. Regions have a voxel per
    channel. Each sample keeps its own, so that an easy one does not vanish beside a hard one.
    """
    good = 0 < share <= 1 and min_kept >= 0 and (threshold is None or 0 < threshold <= 1)
    if not good:
        hint = "share above 0 up to 1, min_kept from 0, threshold from 0 to 1 or null"
        raise PlanError(f"share {share}, min_kept {min_kept}, threshold {threshold}", where=WHERE, hint=hint)
    losses, counts = voxel_cross_entropy(*logits_and_target(output, batch))
    losses, counts = losses.flatten(1), counts.flatten(1)
    coarse = output.logits[0][0, 0].numel() / batch.image[0, 0].numel()
    least = math.ceil(min_kept * min(coarse, 1.0))
    kept = hardest(losses.detach(), counts, share=share, min_kept=least, threshold=threshold)
    number = kept.sum(1)
    means = (losses * kept).sum(1) / number.clamp_min(1)
    return means.sum() / (number > 0).sum().clamp_min(1)


def hardest(
    losses: Float[Tensor, "b n"], counts: Bool[Tensor, "b n"], *, share: float, min_kept: int, threshold: float | None
) -> Bool[Tensor, "b n"]:
    """Which voxels of each sample are kept; of equal losses the number kept is exact, the choice is not."""
    there = counts.sum(1, keepdim=True)
    wanted = torch.full_like(there, 0) if threshold is not None else (there * share).ceil().long()
    wanted = wanted.clamp_min(min_kept).minimum(there)
    most = min(max(min_kept, 0 if threshold is not None else math.ceil(losses.shape[1] * share)), losses.shape[1])
    kept = torch.zeros_like(counts)
    if most > 0:
        order = losses.masked_fill(~counts, -1.0).topk(most, dim=1).indices
        ranked = torch.arange(most, device=losses.device) < wanted
        kept = kept.scatter(1, order, ranked)
    if threshold is not None:
        kept = kept | ((losses > -math.log(threshold)) & counts)
    return kept
