"""Losses of points and of their heat maps; each is called once with the whole output.

Points are voxel coordinates (b, n, d) in the axes' order of the heat maps. A point that holds NaN is unknown and counts
nowhere; without any known point a loss is 0 with zero gradients.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.types.tensors import Batch, NetworkOutput

Unit = Literal["normalised", "mm"]
Regulariser = Literal["js", "variance", "none"]
Kind = Literal["mse", "bce"]
_WHERE = "training.losses"
_VOXELS_AT_ONCE = 1 << 21


def dsnt(
    output: NetworkOutput,
    batch: Batch,
    *,
    unit: Unit = "normalised",
    regulariser: Regulariser = "js",
    weight: float = 1.0,
    sigma_mm: float | None = None,
) -> Tensor:
    """Mean distance of points, plus `weight` times what keeps their heat maps compact (Nibali 2018).

    `unit`: "normalised" measures along every axis in halves of the image, "mm" by the spacing. `regulariser`: "js" is
    the Jensen-Shannon divergence from a Gaussian around the true point, "variance" the squared difference between the
    variances of heat map and Gaussian in voxels, summed over axes. `sigma_mm` is that Gaussian's: divided by the
    spacing of each axis, so that it is round in the patient; None takes the finest spacing.
    """
    _check_options(unit, ("normalised", "mm"), regulariser, ("js", "variance", "none"), sigma_mm)
    heatmaps, points, truth, known = _checked(output, batch)
    size = heatmaps.shape[2:]
    scale = _spacing(batch, len(size)) if unit == "mm" else [2 / n for n in size]
    losses = torch.linalg.vector_norm((points - truth) * points.new_tensor(scale), dim=2)
    if regulariser == "js" and weight:
        losses = losses + weight * jensen_shannon(heatmaps, truth, voxel_sigma(batch, len(size), sigma_mm))
    elif regulariser == "variance" and weight:
        losses = losses + weight * _variance_error(heatmaps, points, voxel_sigma(batch, len(size), sigma_mm))
    return _mean(losses, known)


def heatmap(
    output: NetworkOutput,
    batch: Batch,
    *,
    kind: Kind = "mse",
    sigma_mm: float | None = None,
    balance: float | None = 0.5,
) -> Tensor:
    """Mean error of heat maps against Gaussians of height 1 around the true points.

    `kind`: "mse" for maps that hold the Gaussian itself, "bce" for maps that hold its logit. `balance` is the share of
    the Gaussians: their voxels, weighted by their height, against all others, which would drown them; None weighs every
    voxel the same. `sigma_mm`: None takes three times the finest spacing, which leaves a peak that can be found.
    """
    _check_options(kind, ("mse", "bce"), kind, ("mse", "bce"), sigma_mm)
    if balance is not None and not 0 <= balance <= 1:
        raise PlanError(f"balance {balance}", where=_WHERE, hint="give a share from 0 to 1, or null")
    heatmaps, _, truth, known = _checked(output, batch)
    ndim = heatmaps.dim() - 2
    sigma = voxel_sigma(batch, ndim, sigma_mm if sigma_mm is not None else 3 * min(_spacing(batch, ndim)))
    target = gaussians(truth, heatmaps.shape[2:], sigma, height=True)
    if kind == "mse":
        errors = (heatmaps - target).square()
    else:
        errors = F.binary_cross_entropy_with_logits(heatmaps, target, reduction="none")
    axes = tuple(range(2, heatmaps.dim()))
    if balance is None:
        return _mean(errors.mean(axes), known)
    near = (errors * target).sum(axes) / target.sum(axes).clamp_min(1e-6)
    far = (errors * (1 - target)).sum(axes) / (1 - target).sum(axes).clamp_min(1e-6)
    return _mean(balance * near + (1 - balance) * far, known)


def voxel_sigma(batch: Batch, ndim: int, sigma_mm: float | None) -> list[float]:
    """A standard deviation in mm as voxels per axis; None is that of the finest axis's voxel."""
    spacing = _spacing(batch, ndim)
    return [(min(spacing) if sigma_mm is None else sigma_mm) / s for s in spacing]


def gaussians(
    points: Float[Tensor, "b n d"], size: Sequence[int], sigma: Sequence[float], *, height: bool = False
) -> Float[Tensor, "b n *s"]:
    """A Gaussian around every point: its voxels sum to 1, or with `height` its top is 1.

    A product over the axes, each normalised by itself, so that a narrow one never becomes 0 everywhere.

    >>> gaussians(torch.tensor([[[1.0]]]), (3,), (1e-3,)).tolist()
    [[[0.0, 1.0, 0.0]]]
    """
    axes = _marginals(points, size, sigma, height=height)
    found = axes[0]
    for axis in axes[1:]:
        found = found[..., None] * axis.reshape(*axis.shape[:2], *(1,) * (found.dim() - 2), axis.shape[2])
    return found


def jensen_shannon(
    heatmaps: Float[Tensor, "b n *s"], points: Float[Tensor, "b n d"], sigma: Sequence[float]
) -> Float[Tensor, "b n"]:
    """Jensen-Shannon divergence in nats (0 to ln 2) of each heat map, which sums to 1, from a Gaussian at its point."""
    value: Tensor = _JensenShannon.apply(heatmaps, points, tuple(sigma))  # type: ignore[no-untyped-call]
    return value


class _JensenShannon(torch.autograd.Function):
    """A few maps at a time, their Gaussians made again for the gradient: nothing as large as all heat maps is kept.

    The gradient with respect to a heat map P is log(P / M) / 2, where M is the mean of P and the Gaussian; the true
    points get none. Where P is 0 the logarithm stops at the smallest number.
    """

    @staticmethod
    def forward(ctx: Any, heatmaps: Tensor, points: Tensor, sigma: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(heatmaps, points)
        ctx.sigma = sigma
        values = []
        for heat, gauss in _few_at_once(heatmaps, points, sigma):
            both = (heat + gauss) / 2
            values.append((_divergence(heat, both) + _divergence(gauss, both)) / 2)
        return torch.cat(values).reshape(heatmaps.shape[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        heatmaps, points = ctx.saved_tensors
        least = torch.finfo(heatmaps.dtype).tiny
        rows = []
        for heat, gauss in _few_at_once(heatmaps, points, ctx.sigma):
            both = ((heat + gauss) / 2).clamp_min(least)
            rows.append((heat.clamp_min(least) / both).log() / 2)
        scale = grads[0].reshape(*grads[0].shape, *(1,) * (heatmaps.dim() - 2))
        return torch.cat(rows).reshape(heatmaps.shape).mul_(scale), None, None


def _few_at_once(heatmaps: Tensor, points: Tensor, sigma: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Heat maps (m, *s) and the Gaussians of their points, as many together as make kernels worth their launch."""
    size = heatmaps.shape[2:]
    count = max(1, _VOXELS_AT_ONCE // math.prod(size))
    parts = (torch.split(tensor.flatten(0, 1), count) for tensor in (heatmaps, points))
    for heat, point in zip(*parts, strict=True):
        yield heat, gaussians(point[None], size, sigma)[0]


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence per map of p from q, which is not 0 where p is not."""
    least = torch.finfo(p.dtype).tiny
    return (p * (p.clamp_min(least) / q.clamp_min(least)).log()).flatten(1).sum(1)


def _variance_error(heatmaps: Tensor, points: Tensor, sigma: Sequence[float]) -> Tensor:
    """Sum over axes of the squared difference between the variance of a heat map and sigma squared, in voxels."""
    axes = range(2, heatmaps.dim())
    error = heatmaps.new_zeros(heatmaps.shape[:2])
    for axis in axes:
        others = [other for other in axes if other != axis]
        marginal = heatmaps.sum(others) if others else heatmaps
        voxels = torch.arange(heatmaps.shape[axis], device=heatmaps.device, dtype=heatmaps.dtype)
        variance = (marginal * (voxels - points[..., axis - 2, None]).square()).sum(2)
        error = error + (variance - sigma[axis - 2] ** 2).square()
    return error


def _marginals(points: Tensor, size: Sequence[int], sigma: Sequence[float], *, height: bool) -> list[Tensor]:
    axes = []
    for axis, length in enumerate(size):
        voxels = torch.arange(length, device=points.device, dtype=points.dtype)
        exponent = -0.5 * ((voxels - points[..., axis, None]) / sigma[axis]).square()
        axes.append(exponent.exp() if height else exponent.softmax(2))
    return axes


def _checked(output: NetworkOutput, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, "b n"]]:
    """Heat maps, points, true points with unknown ones at 0, and which are known."""
    if output.heatmaps is None or output.points is None:
        hint = "add the head dsnt or heatmap, or leave the loss out"
        raise PlanError("a loss of landmarks without a head that finds them", where=_WHERE, hint=hint)
    if batch.points is None or batch.points.shape != output.points.shape:
        found = "none" if batch.points is None else tuple(batch.points.shape)
        what = f"the head finds points {tuple(output.points.shape)}, the batch holds {found}"
        raise PlanError(what, where=_WHERE, hint="the head's option points is the number of the plan's landmarks")
    if output.heatmaps.shape[2:] != batch.image.shape[2:]:
        what = f"heat maps {tuple(output.heatmaps.shape[2:])} for images {tuple(batch.image.shape[2:])}"
        raise PlanError(what, where="network.heads", hint="use a backbone whose finest features have the image's size")
    known = ~batch.points.isnan().any(2)
    truth = batch.points.to(output.points.dtype).where(known[..., None], 0.0)
    return output.heatmaps, output.points, truth, known


def _check_options(
    first: str, known_first: Sequence[str], second: str, known_second: Sequence[str], sigma_mm: float | None
) -> None:
    for value, known in ((first, known_first), (second, known_second)):
        if value not in known:
            raise PlanError(f'there is no "{value}"', where=_WHERE, hint=f"use one of {', '.join(known)}")
    if sigma_mm is not None and sigma_mm <= 0:
        raise PlanError(f"sigma_mm {sigma_mm} is not above 0", where=_WHERE, hint="give mm, or null")


def _spacing(batch: Batch, ndim: int) -> tuple[float, ...]:
    return batch.spacing or (1.0,) * ndim


def _mean(losses: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]) -> Tensor:
    return losses.where(known, 0.0).sum() / known.sum().clamp_min(1)
