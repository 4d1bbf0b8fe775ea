"""A 3D network made of one 2D network that sees the scan slice by slice along each of its axes."""

from dataclasses import dataclass, replace
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.unet import Sizes, unet
from medseg.types.geometry import MOST_ANISOTROPIC
from medseg.types.plan import Topology

_FUSIONS = ("concat", "mean")
_MIXING = ("batch", "switchable")


def direction_fused(
    topology: Topology,
    *,
    in_channels: int,
    slices: int = 3,
    fuse: Literal["concat", "mean"] = "concat",
    fuse_blocks: int = 1,
    slices_at_once: int = 32,
    recompute: bool = True,
    encoder: str = "plain",
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """Features of slices along z, y and x from one shared 2D U-Net, fused in 3D (Yang 2019).

    A slice comes with its neighbours, `slices` in all, as channels; at the ends the last one is repeated. Features are
    stacked again and fused by `fuse_blocks` 3D convolutions, or averaged. The 2D network has at every stage the largest
    kernel and stride of the topology; slices that do not fit its strides are padded by their edges. `slices_at_once`
    bounds memory; with `recompute` also in training, where each chunk is then computed twice (Chen 2016). Raises
    PlanError for 2D, where the spacing of one axis is more than twice that of another, and for norms that mix the
    slices of a chunk, as the encoder "repvgg" has one.
    """
    _check(topology, "batch" if encoder == "repvgg" else norm, fuse)
    if slices < 1 or slices % 2 == 0 or slices_at_once < 1 or fuse_blocks < 1:
        what = f"slices {slices}, slices_at_once {slices_at_once}, fuse_blocks {fuse_blocks}"
        raise PlanError(what, where="network.options", hint="slices must be odd, the others 1 or more")
    width, kernel, style = topology.channels[0], topology.kernels[0], Style(norm, act)
    plane = unet(
        plane_topology(topology),
        in_channels=in_channels * slices,
        encoder=encoder,
        norm=norm,
        act=act,
        attention=attention,
        dropout=dropout,
        **blocks,
    )
    inputs = (3 * width, *[width] * (fuse_blocks - 1)) if fuse == "concat" else ()
    fusion = nn.Sequential(*(ConvNormAct(n, width, kernel, (1, 1, 1), style) for n in inputs))
    initialise(fusion)
    return DirectionFused(topology, plane, fusion, Chunks(slices, slices_at_once, recompute))


@dataclass(frozen=True)
class Chunks:
    """How slices reach the 2D network: `slices` neighbours as channels, `at_once` in a batch, recomputed or kept."""

    slices: int
    at_once: int
    recompute: bool


class DirectionFused(nn.Module):
    """One 2D network along three axes, and what fuses its features; without convolutions their mean."""

    def __init__(self, topology: Topology, plane: nn.Module, fusion: nn.Sequential, chunks: Chunks) -> None:
        super().__init__()
        self.sizes = Sizes(topology)
        self.plane, self.fusion, self.chunks = plane, fusion, chunks
        self.divisor = max(plane_topology(topology).divisor())
        self.feature_channels = (topology.channels[0],)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.sizes.check(image.shape[2:])
        along = [self.along(image, axis) for axis in (2, 3, 4)]
        return (self.fusion(torch.cat(along, 1)) if len(self.fusion) else (along[0] + along[1] + along[2]) / 3,)

    def along(self, image: Tensor, axis: int) -> Tensor:
        """Features (b, f, z, y, x) of the slices across one axis (2, 3 or 4) of an image (b, c, z, y, x)."""
        slices, reach = image.movedim(axis, 1), self.chunks.slices // 2
        count = slices.shape[1]
        around = torch.arange(-reach, count + reach, device=image.device).clamp(0, count - 1)
        windows = slices.index_select(1, around).unfold(1, self.chunks.slices, 1)
        step = max(1, self.chunks.at_once // len(image))
        parts = [self._chunk(windows[:, first : first + step]) for first in range(0, count, step)]
        return torch.cat(parts, 1).movedim(1, 2).movedim(2, axis)

    def _chunk(self, windows: Tensor) -> Tensor:
        """Features (b, n, f, h, w) of slices with their neighbours (b, n, c, h, w, slices)."""
        batch = windows.movedim(-1, 3).flatten(2, 3).flatten(0, 1)
        if self.chunks.recompute and self.training and torch.is_grad_enabled():
            live = batch.new_zeros(()).requires_grad_()  # recomputing needs an input that has a gradient
            found: Tensor = checkpoint(self._features, batch, live, use_reentrant=True)
        else:
            found = self._features(batch)
        return found.reshape(*windows.shape[:2], *found.shape[1:])

    def _features(self, batch: Tensor, live: Tensor | None = None) -> Tensor:
        """The finest features of images of any size: padded by their edges to what the strides divide."""
        height, width = batch.shape[2:]
        lack = [-n % self.divisor for n in (height, width)]
        padded = F.pad(batch, (0, lack[1], 0, lack[0]), mode="replicate") if any(lack) else batch
        found: Tensor = self.plane(padded)[0]
        return found[..., :height, :width]


def plane_topology(topology: Topology) -> Topology:
    """The 2D topology whose kernel and stride at every stage are the largest of the 3D one, alike along both axes.

    >>> plane_topology(Topology(3, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (3, 3, 3)), (1, 1))).strides
    ((1, 1, 1), (1, 2, 2))
    """
    strides = tuple((1, max(row), max(row)) for row in topology.strides)
    kernels = tuple((1, max(row), max(row)) for row in topology.kernels)
    return replace(topology, ndim=2, strides=strides, kernels=kernels, spacing_mm=None)


def _check(topology: Topology, norm: str, fuse: str) -> None:
    if topology.ndim != 3:
        raise PlanError("directions need 3D", where="network.topology.ndim", hint="use the backbone unet in 2D")
    spacing = topology.spacing_mm or (1.0, 1.0, 1.0)
    if max(spacing) > MOST_ANISOTROPIC * min(spacing) * (1 + 1e-6):
        what = f"a spacing of {spacing} mm is too anisotropic for slices along every axis"
        raise PlanError(what, where="network.topology.spacing_mm", hint="at most 1 to 2, or use the backbone unet")
    if norm in _MIXING:
        what = f'the norm "{norm}" mixes the slices that are computed together'
        raise PlanError(what, where="network.options", hint="use instance, group or layer, and not repvgg")
    if fuse not in _FUSIONS:
        raise PlanError(f'unknown fusion "{fuse}"', where="network.options", hint=f"use one of {', '.join(_FUSIONS)}")
