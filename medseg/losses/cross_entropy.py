"""Cross-entropy in which classes or places count more than others, at one scale.

The value is always sum(w * l) / sum(w) over the voxels that count, so that weights shift attention and not the size
of the loss. `target.py` says what logits and a target mean.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.distance_transform import distance_within
from medseg.losses.target import WHERE, are_regions, logits_and_target, per_class, voxel_cross_entropy
from medseg.types.tensors import Batch, NetworkOutput

Place = Literal["gaps", "edges"]
_LEAST, _MOST = 0.1, 20.0
_SIGMAS = 4.0  # where the sum of both distances is larger, the map of gaps is below 0.04 % of its top


def weighted_cross_entropy(output: NetworkOutput, batch: Batch, *, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy in which class c weighs `weights[c]` (King 2001), background first; of regions, what is inside.

    Outside a region weighs 1. Without `weights` every batch is balanced by its own voxels (see `balanced_weights`).
    """
    logits, target = logits_and_target(output, batch)
    losses, counts = voxel_cross_entropy(logits, target)
    return weighted_mean(losses, counts * class_weights(logits, target, weights))


def pixel_cross_entropy(
    output: NetworkOutput,
    batch: Batch,
    *,
    place: Place = "gaps",
    extra: float = 10.0,
    sigma_mm: float | None = None,
    band_mm: float | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Cross-entropy in which a voxel weighs its class's weight (1 without `weights`) plus `extra` where it is hard.

    "gaps": `extra` * exp(-(d1 + d2)^2 / (2 sigma_mm^2)) with the distances in mm to the nearest and the second nearest
    class or region (Ronneberger 2015), which are 0 inside; regions that share voxels have no gaps. `sigma_mm` is 5
    voxels of the image (along its finest axis) unless given. All pieces of a class are one object: what lies between
    two of them is not stressed.
    "edges": `extra` within `band_mm` of a voxel on the other side of a border. Unless given it is 1.5 voxels of the
    image, and reaches at least the next voxel at coarser decoder scales. Ignored voxels make no border.
    """
    lengths = [length for length in (sigma_mm, band_mm) if length is not None]
    if place not in ("gaps", "edges") or extra < 0 or min(lengths, default=1.0) <= 0:
        hint = 'place "gaps" or "edges", extra from 0, lengths above 0'
        raise PlanError(f'place "{place}", extra {extra}, sigma {sigma_mm}, band {band_mm}', where=WHERE, hint=hint)
    logits, target = logits_and_target(output, batch)
    spacing = batch.spacing or (1.0,) * (target.dim() - 2)
    finest = min(s * n / m for s, n, m in zip(spacing, target.shape[2:], batch.image.shape[2:], strict=True))
    losses, counts = voxel_cross_entropy(logits, target)
    own = 1.0 if weights is None else class_weights(logits, target, weights)
    objects = _objects(target, logits.shape[1])
    if place == "gaps":
        more = gap_map(objects, spacing, 5 * finest if sigma_mm is None else sigma_mm)[:, None]
    else:
        band = max(1.5 * finest, min(spacing)) if band_mm is None else band_mm
        more = edge_band(objects, target, spacing, band)
    return weighted_mean(losses, counts * (own + extra * more))


def balanced_weights(counts: Tensor, *, least: float = _LEAST, most: float = _MOST) -> Tensor:
    """N / (K * n_c) for the voxels n_c of the K classes in the last axis, N together, kept within `least` and `most`.

    A class without voxels weighs `most`.

    >>> balanced_weights(torch.tensor([90, 10])).tolist()
    [0.5555555820465088, 5.0]
    """
    share = counts.sum(-1, keepdim=True) / (counts.shape[-1] * counts.clamp_min(1))
    return torch.where(counts > 0, share, most).float().clamp(least, most)


def class_weights(logits: Tensor, target: Tensor, weights: Sequence[float] | None) -> Float[Tensor, "b r *s"]:
    """The weight of every voxel by its class; without `weights` balanced by the voxels of this batch."""
    if are_regions(logits, target):
        inside = target > 0
        shape = (1, -1, *(1,) * (target.dim() - 2))
        if per_class(weights, logits.shape[1], name="weights") is not None:
            given = logits.new_tensor(weights).reshape(shape)
            return torch.where(inside, given, 1.0)
        axes = (0, *range(2, target.dim()))
        pairs = balanced_weights(torch.stack([(target == 0).sum(axes), inside.sum(axes)], dim=-1))
        return torch.where(inside, pairs[:, 1].reshape(shape), pairs[:, 0].reshape(shape))
    index = target.long().clamp_min(0)
    if per_class(weights, logits.shape[1], name="weights") is not None:
        return logits.new_tensor(weights)[index]
    found = torch.stack([(target == number).sum() for number in range(logits.shape[1])])
    return balanced_weights(found)[index]


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights times losses over the sum of weights; 0 with zero gradients where there is no weight."""
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, 1.0)


def gap_map(objects: Bool[Tensor, "b k *s"], spacing: Sequence[float], sigma_mm: float) -> Float[Tensor, "b *s"]:
    """exp(-(d1 + d2)^2 / (2 sigma_mm^2)) of the distances to the nearest and second nearest object (Ronneberger 2015).

    0 where both together are more than 4 `sigma_mm` away, and where there is one object only.
    """
    nearest = second = objects[:, 0].new_full(objects[:, 0].shape, float("inf"), dtype=torch.float32)
    for part in objects.unbind(1):
        distance = distance_within(part, spacing, _SIGMAS * sigma_mm)
        second = torch.minimum(second, torch.maximum(nearest, distance))
        nearest = torch.minimum(nearest, distance)
    both = nearest + second
    return torch.where(both <= _SIGMAS * sigma_mm, torch.exp(-(both**2) / (2 * sigma_mm**2)), 0.0)


def edge_band(
    objects: Bool[Tensor, "b k *s"], target: Tensor, spacing: Sequence[float], band_mm: float
) -> Float[Tensor, "b r *s"]:
    """1 within `band_mm` of a counted voxel that belongs elsewhere, else 0, for each channel of `target`."""
    if target.shape[1] == objects.shape[1]:
        sides = [(part, outside) for part, outside in zip(objects.unbind(1), (target == 0).unbind(1), strict=True)]
        return torch.stack([_touches(pair, spacing, band_mm) for pair in sides], dim=1)
    return _touches([target[:, 0] == 0, *objects.unbind(1)], spacing, band_mm)[:, None]


def _touches(parts: Sequence[Tensor], spacing: Sequence[float], band_mm: float) -> Tensor:
    """Where a voxel of one of the disjoint `parts` has another one within reach."""
    near = torch.stack([distance_within(part, spacing, band_mm) <= band_mm * (1 + 1e-6) for part in parts])
    return (near.sum(0) > 1).float()


def _objects(target: Tensor, channels: int) -> Tensor:
    """Masks (b, k, *s) of the classes without background, or of the regions."""
    if target.shape[1] == channels:
        return target > 0
    return torch.stack([target[:, 0] == c for c in range(1, channels)], dim=1)
