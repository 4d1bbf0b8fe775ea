"""Losses of the logits that a backbone has of its own: of the coarse networks of a cascade, of side outputs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import dice_ce
from medseg.losses.scales import at_scale
from medseg.types.tensors import Batch, NetworkOutput


def side(
    output: NetworkOutput,
    batch: Batch,
    *,
    batch_dice: bool = False,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> Tensor:
    """Mean over the backbone's own logits of `dice_ce` at their sizes: the first loss of a cascade (Zhang 2016).

    Raises PlanError for a backbone that has none.
    """
    values = [
        dice_ce(
            NetworkOutput((logits,)),
            at_scale(batch, logits.shape[2:]),
            batch_dice=batch_dice,
            dice_weight=dice_weight,
            ce_weight=ce_weight,
        )
        for logits in _sides(output)
    ]
    return torch.stack(values).mean()


def object_boundary(output: NetworkOutput, batch: Batch, *, shallow: int | None = None, decay: float = 0.0) -> Tensor:
    """Mean over side outputs of balanced cross-entropy: the finest learn boundaries, the others regions (Mishra 2018).

    `shallow`: how many of the finest learn boundaries, by default half of all. During training the loss is multiplied
    by (1 - progress)^`decay`, so that in the end only the fused logits count; 0 leaves it as it is. Every channel
    is a sigmoid. Raises PlanError for a backbone without side outputs.
    """
    sides = _sides(output)
    first = len(sides) // 2 if shallow is None else shallow
    if not 0 <= first <= len(sides) or decay < 0:
        what = f"shallow {first}, decay {decay} for {len(sides)} side outputs"
        raise PlanError(what, where="training.losses", hint="shallow up to their number, decay 0 or more")
    values = []
    for number, logits in enumerate(sides):
        target = band_target if number < first else region_target
        inside, counts = target(batch, logits.shape[1], logits.shape[2:])
        values.append(balanced_cross_entropy(logits.float(), inside, counts))
    fading = 1.0 if batch.progress is None else (1 - batch.progress) ** decay
    return fading * torch.stack(values).mean()


def balanced_cross_entropy(
    logits: Float[Tensor, "b k *s"], inside: Bool[Tensor, "b k *s"], counts: Bool[Tensor, "b k *s"]
) -> Tensor:
    """Mean over channels of the mean cross-entropy of what is inside and that of what is not, half each (Xie 2015).

    A channel that has only one of the two counts with that alone, halved.
    """
    cost = F.binary_cross_entropy_with_logits(logits, inside.float(), reduction="none")
    axes = (0, *range(2, logits.dim()))
    means = [(cost * part).sum(axes) / part.sum(axes).clamp_min(1) for part in (counts & inside, counts & ~inside)]
    return (means[0] + means[1]).mean() / 2


def region_target(batch: Batch, outputs: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where each output is at another size, from the nearest voxel, and which voxels count; both (b, k, *s)."""
    inside, known = _channels(at_scale(batch, size).target, outputs)
    return inside, known


def band_target(batch: Batch, outputs: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where the boundary of each output is at another size, and which voxels count; both (b, k, *s).

    At the target's size the boundary is one voxel on either side, along every axis whose spacing is at most twice the
    smallest. A larger voxel is boundary if it holds some, so that thin lines do not vanish; it counts if it does, or if
    all of it is known.
    """
    inside, known = _channels(batch.target, outputs)
    spacing = batch.spacing or (1.0,) * len(size)
    kernel = [3 if step <= 2 * min(spacing) else 1 for step in spacing]
    band = _grown(inside, kernel) & _grown(known & ~inside, kernel) & known
    held = _pooled(band, size)
    return held, held | ~_pooled(~known, size)


def _sides(output: NetworkOutput) -> tuple[Tensor, ...]:
    if not output.sides:
        hint = "use the backbone cascade or object_boundary, or leave out this loss"
        raise PlanError("the backbone has no logits of its own", where="training.losses", hint=hint)
    return output.sides


def _channels(target: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Where each output is, and which voxels are known, one channel per class or region."""
    values = torch.arange(outputs, device=target.device).view(-1, *[1] * (target.dim() - 2))
    inside = target == 1 if target.shape[1] == outputs else target == values
    return inside, (target >= 0).expand_as(inside)


def _grown(mask: Tensor, kernel: Sequence[int]) -> Tensor:
    pool = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    return pool(mask.float(), tuple(kernel), 1, tuple(k // 2 for k in kernel)) > 0


def _pooled(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Whether any voxel within each larger one is true."""
    pool = F.adaptive_max_pool2d if len(size) == 2 else F.adaptive_max_pool3d
    return pool(mask.float(), tuple(size)) > 0
