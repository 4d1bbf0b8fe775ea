"""Losses of boundary modules, at each module's own scale: masks and edges are shrunk to it, never scores enlarged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.edges import EdgeKind, at_module, check_kind, edges_of, reference_masks
from medseg.types.tensors import Batch, Boundary, NetworkOutput


def gg_net(
    output: NetworkOutput,
    batch: Batch,
    *,
    edge: EdgeKind = "both",
    edge_weight: float = 10.0,
    smooth: float = 1e-5,
) -> Tensor:
    """Sum over boundary modules of `edge_weight` * MSE(edge) + BCE(mask) + 1 - Dice(mask) (Xue 2021).

    The network's loss on its final segmentation is not part of it: keep the term "dice_ce" of the plan beside it.
    Every channel of classes counts in the first two, but background not in Dice, nor, per sample, a class it has no
    voxel of. At its scale a voxel's mask is the share of it that lies inside, and it counts where at least half of it
    is known. `edge` is explained at `losses.edges.edges_of`; which axes have neighbours is told by the spacing of the
    module's voxels, as in the head. Raises PlanError without the head "boundary".
    """
    total = batch.image.new_zeros((), dtype=torch.float32)
    for found, truth in _modules(output, batch, edge):
        total = total + edge_weight * _mean((found.edge.float() - truth.edge).square(), truth.edge_counts)
        total = total + _mask_loss(found.mask.float(), truth, smooth)
    return total


def boundary(
    output: NetworkOutput, batch: Batch, *, edge: EdgeKind = "both", kind: Literal["mse", "bce"] = "mse"
) -> Tensor:
    """Mean over boundary modules of the error of their edges alone (Xue 2021).

    "mse": squared. "bce": cross-entropy of the chance 1 - exp(-E) of an edge, because E is 0 or more and 0 means none.
    Scales, ignored voxels and `edge` as in `gg_net`. Raises PlanError without the head "boundary".
    """
    if kind not in ("mse", "bce"):
        raise PlanError(f'unknown kind "{kind}"', where="training.losses", hint="use mse or bce")
    losses = []
    for found, truth in _modules(output, batch, edge):
        e = found.edge.float()
        losses.append(
            _mean((e - truth.edge).square() if kind == "mse" else _edge_bce(e, truth.edge), truth.edge_counts)
        )
    return torch.stack(losses).mean()


@dataclass(frozen=True, eq=False)
class _Truth:
    """Reference of one module, (b, k, *s) each; `foreground` is the first channel that is no background."""

    mask: Tensor
    edge: Tensor
    mask_counts: Tensor
    edge_counts: Tensor
    foreground: int


def _modules(output: NetworkOutput, batch: Batch, edge: EdgeKind) -> Iterator[tuple[Boundary, _Truth]]:
    """Every boundary module and its reference."""
    check_kind(edge)
    if not output.boundaries:
        hint = "add the head boundary, or leave out its loss"
        raise PlanError("there are no boundaries", where="training.losses", hint=hint)
    channels, target = output.boundaries[0].mask.shape[1], batch.target
    masks, known = reference_masks(target, channels)
    spacing = batch.spacing or (1.0,) * (target.dim() - 2)
    foreground = 0 if target.shape[1] == channels else 1
    for found in output.boundaries:
        size = found.mask.shape[2:]
        at_scale = [s * old / new for s, old, new in zip(spacing, target.shape[2:], size, strict=True)]
        edges, sure = edges_of(masks, known, at_scale, edge)
        mask, line = at_module(masks & known, edges & sure, size)
        (share, _), (certain, _) = at_module(known, known, size), at_module(sure, sure, size)
        mask = mask / share.clamp_min(1e-6)
        yield found, _Truth(mask, line, share >= _HALF, certain >= _HALF, foreground)


def _mask_loss(logits: Tensor, truth: _Truth, smooth: float) -> Tensor:
    """Binary cross-entropy plus one minus Dice of what the edges enclose."""
    bce = F.binary_cross_entropy_with_logits(logits, truth.mask.clamp(0, 1), reduction="none")
    axes = tuple(range(2, logits.dim()))
    p, y = logits.sigmoid() * truth.mask_counts, truth.mask * truth.mask_counts
    both, sizes, reference = (p * y).sum(axes), (p + y).sum(axes), y.sum(axes)
    misses = (1 - (2 * both + smooth) / (sizes + smooth))[:, truth.foreground :]
    return _mean(bce, truth.mask_counts) + _mean(misses, reference[:, truth.foreground :] > 0)


def _edge_bce(e: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of y with the chance 1 - exp(-e)."""
    return -y * torch.log(-torch.expm1(-e.clamp_min(1e-6))) + (1 - y) * e


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.count_nonzero().clamp_min(1)


_HALF = 0.5 - 1e-6
