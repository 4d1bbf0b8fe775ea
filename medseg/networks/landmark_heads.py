"""Heads that find points, on the finest decoder features.

Both give heat maps at the image's size and points (b, n, d) in voxels of the image, (z, y, x) or (y, x), in float32
also under autocast: half precision rounds places away.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv, initialise
from medseg.types.plan import Topology
from medseg.types.tensors import NetworkOutput

Values = Literal["gaussian", "logit"]
_FLOOR = 1e-4  # of the peak: what lies below says nothing about where the peak is


def dsnt(topology: Topology, feature_channels: tuple[int, ...], *, outputs: int, points: int) -> nn.Module:
    """One probability map per point, a softmax over all voxels; the point is its expectation (Nibali 2018)."""
    return DsntHead(_maps(topology, feature_channels, points, bias=False))  # a softmax does not see a bias


def heatmap(
    topology: Topology, feature_channels: tuple[int, ...], *, outputs: int, points: int, values: Values = "gaussian"
) -> nn.Module:
    """One map per point; the point is its highest place between voxels (Payer 2019, Zhang 2020).

    `values`: what the maps hold, a Gaussian of height 1 itself (loss `heatmap` with kind mse) or its logit (bce).
    """
    if values not in ("gaussian", "logit"):
        raise PlanError(f'heat maps hold no "{values}"', where="network.heads", hint="use gaussian or logit")
    return HeatmapHead(_maps(topology, feature_channels, points, bias=True), logit=values == "logit")


class DsntHead(nn.Module):
    """Features, finest first, to probability maps and their expectations."""

    def __init__(self, maps: nn.Module) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, features: Sequence[Tensor]) -> NetworkOutput:
        with torch.autocast(features[0].device.type, enabled=False):
            scores = self.maps(features[0].float())
            heatmaps = scores.flatten(2).softmax(2).reshape(scores.shape)
            return NetworkOutput(heatmaps=heatmaps, points=to_voxels(expectation(heatmaps), scores.shape[2:]))


class HeatmapHead(nn.Module):
    """Features, finest first, to regressed maps and their peaks, through which no gradient flows."""

    def __init__(self, maps: nn.Module, *, logit: bool) -> None:
        super().__init__()
        self.maps = maps
        self.logit = logit

    def forward(self, features: Sequence[Tensor]) -> NetworkOutput:
        with torch.autocast(features[0].device.type, enabled=False):
            heatmaps = self.maps(features[0].float())
            return NetworkOutput(heatmaps=heatmaps, points=peaks(heatmaps.detach(), logit=self.logit))


def expectation(heatmaps: Float[Tensor, "b n *s"]) -> Float[Tensor, "b n d"]:
    """Mean place of maps that sum to 1, axis by axis of the maps, from -1 to 1 between the image's outer edges.

    Voxel i of m lies at (2 i + 1) / m - 1. Each axis takes its own marginal, so no grid of places is made.

    >>> expectation(torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])).tolist()
    [[[0.25]]]
    """
    axes = range(2, heatmaps.dim())
    means = []
    for axis in axes:
        others = [other for other in axes if other != axis]
        marginal = heatmaps.sum(others) if others else heatmaps
        voxels = torch.arange(heatmaps.shape[axis], device=heatmaps.device, dtype=heatmaps.dtype)
        means.append(marginal @ ((2 * voxels + 1) / heatmaps.shape[axis] - 1))
    return torch.stack(means, 2)


def to_voxels(places: Float[Tensor, "b n d"], size: Sequence[int]) -> Float[Tensor, "b n d"]:
    """Places between -1 and 1 as voxel coordinates of a map of this size; the centre of the first voxel is 0.

    >>> to_voxels(torch.tensor([[[-1.0, 0.25]]]), (8, 4)).tolist()
    [[[-0.5, 2.0]]]
    """
    return ((places + 1) * places.new_tensor(tuple(size)) - 1) / 2


def peaks(heatmaps: Float[Tensor, "b n *s"], *, logit: bool = False) -> Float[Tensor, "b n d"]:
    """Voxel coordinates of every map's highest place, between voxels where its neighbours tell.

    Along each axis the logarithm of a Gaussian is a parabola through the highest voxel and its two neighbours, whose
    top is exact for a Gaussian whose axes are the image's (Zhang 2020); at most half a voxel away, and none at the
    image's edges. Infinite or equal values move nothing.
    """
    size = heatmaps.shape[2:]
    flat = heatmaps.flatten(2)
    top, index = flat.max(2)
    places, steps = [], 1
    for length in reversed(size):
        at = index // steps % length
        inside = (at > 0) & (at < length - 1)
        before, after = (
            flat.gather(2, (index + move).where(inside, index)[..., None])[..., 0] for move in (-steps, steps)
        )
        places.append(at + _top(before, top, after, logit=logit).where(inside, 0.0))
        steps *= length
    return torch.stack(places[::-1], 2)


def _top(before: Tensor, top: Tensor, after: Tensor, *, logit: bool) -> Tensor:
    """Where between -1/2 and 1/2 a parabola through three logarithms is highest."""
    if logit:
        left, middle, right = (F.logsigmoid(value) for value in (before, top, after))
    else:
        least = (top * _FLOOR).clamp_min(torch.finfo(top.dtype).tiny)
        left, middle, right = (torch.maximum(value, least).log() for value in (before, top, after))
    bend = 2 * middle - left - right
    moved = (right - left) / (2 * bend.clamp_min(1e-6))
    return moved.clamp(-0.5, 0.5).nan_to_num(0.0)


def _maps(topology: Topology, feature_channels: tuple[int, ...], points: int, *, bias: bool) -> nn.Module:
    if points < 1:
        raise PlanError(f"a head for {points} points", where="network.heads", hint="give at least one landmark")
    if max(topology.strides[0]) > 1:
        what = f"the finest features are {topology.strides[0]} times coarser than the image"
        raise PlanError(what, where="network.heads", hint="landmark heads need features at the image's size: stride 1")
    maps = conv(feature_channels[0], points, (1,) * topology.ndim, bias=bias)
    initialise(maps)
    return maps
