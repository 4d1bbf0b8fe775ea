"""Overlap of centre lines: keeps thin structures (canals, vessels, lines) in one piece. At one scale.

`target.py` says what targets mean.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medseg.errors import PlanError
from medseg.losses.target import WHERE, are_regions, logits_and_target
from medseg.types.tensors import Batch, NetworkOutput


def cldice(
    output: NetworkOutput,
    batch: Batch,
    *,
    iterations: int = 3,
    classes: Sequence[int] | None = None,
    batch_dice: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """One minus the mean centre-line Dice (Shit 2021) of the classes present.

    The harmonic mean of the share of the predicted centre line inside the reference and of the reference's inside the
    prediction. `classes` are places in the plan's list of labels, the first is 1; None takes all. `iterations` is the
    half width in voxels of the thickest structure; thicker ones keep a core instead of a line. Along an axis whose
    voxels are more than twice as long as the finest ones nothing is thinned.
    """
    if iterations < 0:
        raise PlanError(f"iterations {iterations}", where=WHERE, hint="0 or more")
    logits, target = logits_and_target(output, batch)
    predicted, reference = _chosen(logits, target, classes)
    spacing = batch.spacing or (1.0,) * (target.dim() - 2)
    axes = [axis for axis, step in enumerate(spacing) if step <= 2 * min(spacing)]
    line, true_line = soft_skeleton(predicted, axes, iterations), soft_skeleton(reference, axes, iterations)
    over = tuple(range(2, target.dim()))
    inside, found = (line * reference).sum(over), (true_line * predicted).sum(over)
    sums = inside, line.sum(over), found, true_line.sum(over), reference.sum(over)
    inside, lines, found, true_lines, volume = (s.sum(0, keepdim=True) if batch_dice else s for s in sums)
    precision, sensitivity = (inside + smooth) / (lines + smooth), (found + smooth) / (true_lines + smooth)
    score = 2 * precision * sensitivity / (precision + sensitivity).clamp_min(1e-8)
    present = volume > 0
    return ((1 - score) * present).sum() / present.sum().clamp_min(1)


def soft_skeleton(mask: Float[Tensor, "b k *s"], axes: Sequence[int], iterations: int) -> Float[Tensor, "b k *s"]:
    """The centre lines of masks with values from 0 to 1: what opening removes, gathered while the mask is eroded.

    `axes` are the spatial axes that count as neighbours.
    """
    # Made again for the gradient: kept, the steps would need more memory than a network.
    line: Tensor = checkpoint(_first, mask, axes, use_reentrant=False, preserve_rng_state=False)
    for _ in range(iterations):
        mask, line = checkpoint(_thinner, mask, line, axes, use_reentrant=False, preserve_rng_state=False)
    return line


def _first(mask: Tensor, axes: Sequence[int]) -> Tensor:
    return F.relu(mask - _opened(mask, axes))


def _thinner(mask: Tensor, line: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mask one erosion on, and the line with what that opened."""
    mask = _eroded(mask, axes)
    new = F.relu(mask - _opened(mask, axes))
    return mask, line + F.relu(new - line * new)


def _chosen(logits: Tensor, target: Tensor, classes: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Scores and reference (b, n, *s) of the chosen classes, 0 where ignored."""
    regions = are_regions(logits, target)
    number = logits.shape[1] - (0 if regions else 1)
    wanted = list(range(1, number + 1)) if classes is None else list(classes)
    if not wanted or min(wanted) < 1 or max(wanted) > number:
        raise PlanError(f"classes {wanted} of {number}", where=WHERE, hint=f"1 to {number}, in the order of the labels")
    if regions:
        channels = [c - 1 for c in wanted]
        part = target[:, channels]
        return logits[:, channels].sigmoid() * (part >= 0), (part > 0).float()
    reference = torch.cat([target == c for c in wanted], dim=1).float()
    return logits.softmax(1)[:, wanted] * (target >= 0), reference


def _opened(mask: Tensor, axes: Sequence[int]) -> Tensor:
    return _pool(_eroded(mask, axes), [3 if axis in axes else 1 for axis in range(mask.dim() - 2)])


def _eroded(mask: Tensor, axes: Sequence[int]) -> Tensor:
    """The least of a voxel and its neighbours along each axis."""
    least = mask
    for axis in axes:
        kernel = [3 if other == axis else 1 for other in range(mask.dim() - 2)]
        least = torch.minimum(least, -_pool(-mask, kernel))
    return least


def _pool(mask: Tensor, kernel: list[int]) -> Tensor:
    """The largest within an odd kernel; the gradient of torch's own pooling does not repeat bit for bit on GPUs."""
    for axis, n in enumerate(kernel, start=2):
        if n > 1:
            pad = [0] * (2 * (mask.dim() - 1 - axis)) + [n // 2] * 2
            wide, size = F.pad(mask, pad, value=-torch.inf), mask.shape[axis]
            mask = wide.narrow(axis, 0, size)
            for start in range(1, n):
                mask = torch.maximum(mask, wide.narrow(axis, start, size))
    return mask
