"""What logits and a target say together: classes or regions, which voxels count, and their sums.

Logits are (b, k, *s), a target (b, r, *s): k == r are regions (one sigmoid each), r == 1 and k > 1 are classes
(softmax over background and k - 1 classes). A target of -1 is ignored: in regions per channel, in classes per voxel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.types.tensors import Batch, NetworkOutput

WHERE = "training.losses"


def logits_and_target(output: NetworkOutput, batch: Batch) -> tuple[Tensor, Tensor]:
    """The finest logits in float32 and the target of their size; raises PlanError where they do not fit."""
    logits, target = output.logits[0], batch.target
    if logits.shape[2:] != target.shape[2:] or target.shape[1] not in (1, logits.shape[1]):
        raise PlanError(
            f"logits {tuple(logits.shape)} do not fit a target {tuple(target.shape)}",
            where=WHERE,
            hint="one target channel for classes, one per logit for regions",
        )
    return logits.float(), target


def are_regions(logits: Tensor, target: Tensor) -> bool:
    """Whether every logit is a region of its own."""
    return logits.shape[1] == target.shape[1]


def voxel_cross_entropy(logits: Tensor, target: Tensor) -> tuple[Float[Tensor, "b r *s"], Bool[Tensor, "b r *s"]]:
    """Cross-entropy of every voxel (of every channel of regions), 0 where ignored, and which of them count."""
    counts = target >= 0
    if are_regions(logits, target):
        # torch's own takes memory that a run without data does not see
        return F.softplus(torch.where(target > 0, -logits, logits)).masked_fill(~counts, 0.0), counts
    return F.cross_entropy(logits, target[:, 0].long(), ignore_index=-1, reduction="none")[:, None], counts


def overlap_sums(logits: Tensor, target: Tensor, *, background: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over voxels of p * y, p and y, each (b, channels); `background` keeps that of classes as the first."""
    if are_regions(logits, target):
        return _region_sums(logits, target)
    both, predicted, reference = _class_sums(logits, target)
    first = 0 if background else 1
    return both[:, first:], predicted[:, first:], reference[:, first:]


def soft_overlap_sums(
    output: NetworkOutput, batch: Batch, *, background: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`overlap_sums` of a batch; where samples are mixed, with the soft labels y = share * y1 + (1 - share) * y2."""
    logits, target = logits_and_target(output, batch)
    first = overlap_sums(logits, target, background=background)
    if batch.mixed is None:
        return first
    second, share = overlap_sums(logits, batch.mixed.target, background=background), batch.mixed.share[:, None]
    both, predicted, reference = (share * a + (1 - share) * b for a, b in zip(first, second, strict=True))
    return both, predicted, reference


def per_class(values: Sequence[float] | None, channels: int, *, name: str) -> Sequence[float] | None:
    """The option `name`, one number from 0 per channel; raises PlanError for any other count or sign."""
    if values is not None and (len(values) != channels or min(values) < 0):
        hint = f"give {channels} numbers from 0: of background and every class, or of every region"
        raise PlanError(f"{name} {list(values)} for {channels} logits", where=WHERE, hint=hint)
    return values


def _region_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    axes = tuple(range(2, logits.dim()))
    counts, inside = target >= 0, target > 0
    p = logits.sigmoid()
    return (p * inside).sum(axes), (p * counts).sum(axes), inside.float().sum(axes)


def _class_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class by class: scattered sums would vary from run to run on a GPU, and lose the last voxels of large classes."""
    classes = target.flatten(1)
    counts = classes >= 0
    p = logits.softmax(1).flatten(2).unbind(1)
    own = [classes == number for number in range(len(p))]
    both = torch.stack([(part * mine).sum(1) for part, mine in zip(p, own, strict=True)], dim=1)
    predicted = torch.stack([(part * counts).sum(1) for part in p], dim=1)
    return both, predicted, torch.stack([mine.sum(1) for mine in own], dim=1).float()
