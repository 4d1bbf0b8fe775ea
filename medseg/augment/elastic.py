"""Smooth deformations that never fold."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from medseg.augment.intensity import uniforms
from medseg.augment.spatial import sample_at
from medseg.errors import PlanError
from medseg.types.tensors import Patch


def elastic(
    patch: Patch, rng: torch.Generator, *, p: float = 0.2, cells: int = 4, most: float = 0.7, in_plane: bool = False
) -> Patch:
    """Bend the patch with chance `p` by a cubic B-spline grid of `cells` cells per axis (Rueckert 1999).

    Control points are drawn from a normal distribution and scaled so that the steps from a voxel to its neighbours
    change by a share of a voxel, uniform in [0, `most`], where they change most: below 1 nothing folds. What is at the
    border of the patch stays at it. `in_plane` bends every slice of a 3D patch alike and leaves its first axis alone.
    Images are interpolated linearly, labels are the largest of the linearly interpolated indicators; points go where
    their voxels go. Raises PlanError for other `cells` and `most`.
    """
    if not 0 <= most <= 0.8 or cells < 4:
        hint = "take most from 0 to 0.8, near 1 places fold, and 4 cells or more"
        raise PlanError(f"most {most:g} of {cells} cells", where="elastic", hint=hint)
    fires, strength = uniforms(rng, 2)
    bent = 2 if in_plane else patch.image.ndim - 1
    moves = torch.randn([cells + 3] * bent + [bent], generator=rng)
    if fires >= p:
        return patch
    for axis in range(bent):  # three control points reach the border: what lies on it gets no move across it
        moves[..., axis].movedim(axis, 0)[[0, 1, 2, -3, -2, -1]] = 0
    size = patch.image.shape[-bent:]
    ticks = [torch.arange(n) / max(n - 1, 1) * cells for n in size]
    field = _on_grid(moves, ticks)
    scale = strength * most / max(_steepest(field), 1e-6)
    here = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in size], indexing="ij"), -1)
    place = (here + field * scale).to(patch.image.device)
    points = None if patch.points is None else _points(patch.points, field * scale)
    if bent == patch.image.ndim - 1:
        image, labels = sample_at(patch.image[None], patch.labels[None], place)
        return replace(patch, image=image[0], labels=labels[0], points=points)
    image, labels = sample_at(patch.image.transpose(0, 1), patch.labels.transpose(0, 1), place)
    image, labels = image.transpose(0, 1).contiguous(), labels.transpose(0, 1).contiguous()
    return replace(patch, image=image, labels=labels, points=points)


def _steepest(field: Tensor) -> float:
    """The largest change of any component of (*s, d) from a voxel to its next along all axes together."""
    change = torch.zeros_like(field)
    for axis in range(field.ndim - 1):
        steps = field.diff(dim=axis).abs()
        change.narrow(axis, 0, steps.shape[axis]).add_(steps)
    return float(change.max())


def _on_grid(moves: Tensor, ticks: Sequence[Tensor]) -> Tensor:
    """The B-spline of control points (k, ..., d) at every combination of `ticks`, in cells: (*s, d)."""
    count = len(moves)
    for tick in reversed(ticks):
        moves = torch.tensordot(_weights(tick, count), moves, ([1], [len(ticks) - 1]))
    return moves


def _points(points: Tensor, field: Tensor) -> Tensor:
    """Where points go: the place whose content comes from theirs, by fixed-point search in `field` (*s, d)."""
    bent = field.shape[-1]
    planes, last = field.double().movedim(-1, 0)[None], torch.tensor([max(n - 1, 1) for n in field.shape[:-1]])
    source = points[:, -bent:].double().cpu().nan_to_num(0.0)
    there = source
    for _ in range(_ROUNDS):
        grid = (2 * there / last - 1).flip(-1).view(1, -1, *[1] * (bent - 1), bent)
        there = source - grid_sample(planes, grid, padding_mode="border", align_corners=True).reshape(bent, -1).T
    moved = points.clone()
    moved[:, -bent:] += (there - source).to(points)
    return moved


_ROUNDS = 60  # what is left shrinks to `most` of it each time: 0.8 ** 60 = 2e-6


def _weights(ticks: Tensor, count: int) -> Tensor:
    """Cubic B-spline weights (n, count) of control points at -1, 0, 1, ... at `ticks`, in cells."""
    far = (ticks[:, None] - (torch.arange(count, dtype=ticks.dtype) - 1)).abs()
    near = 2 / 3 - far**2 + far**3 / 2
    return torch.where(far < 1, near, (2 - far).clamp_min(0) ** 3 / 6)
