"""BiSeNet: fast 2D segmentation from a path that keeps places and one that sees context (Yu 2018)."""

from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.attention import after_stage
from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, conv, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.blocks.resample import resized
from medseg.networks.blocks.separable import WeightedPool
from medseg.networks.encoders import stage_kind
from medseg.networks.unet import Sizes, refuse_gates
from medseg.types.plan import Topology

Pooling = Literal["mean", "weighted"]


def bisenet(
    topology: Topology,
    *,
    in_channels: int,
    encoder: str = "residual",
    pooling: Pooling = "mean",
    norm: NormKind = "instance",
    act: ActKind = "relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """BiSeNet: three strided convolutions beside an `encoder` that goes to the coarsest stage (Yu 2018).

    Nothing but the last interpolation happens at full size. Norms of pooled features are batch norms where `norm` is
    "batch" and left out otherwise, because one value per channel is left. "weighted" `pooling` learns where to look.
    Takes any image whose size is a multiple of `topology.divisor()`. Raises PlanError in 3D, for fewer than three
    stages, and for attention on skips.
    """
    if topology.ndim != 2 or len(topology.channels) < 3:
        raise PlanError(
            f"bisenet has two dimensions and three stages or more, not {topology.ndim} and {len(topology.channels)}",
            where="network.topology",
            hint="use unet",
        )
    if pooling not in ("mean", "weighted"):
        raise PlanError(f'unknown pooling "{pooling}"', where="network.options", hint="use mean or weighted")
    style = Style(norm, act, attention, dropout, blocks=blocks)
    refuse_gates(style)
    network = BiSeNet(Sizes(topology), in_channels, encoder, pooling, style)
    initialise(network)
    return network


class BiSeNet(nn.Module):
    """Spatial path, context path and their fusion.

    The paths meet at the third stage below full size, in short encoders at the last but one. Features: the fused one
    interpolated to the image's size, then what the context path has there and at its last but one stage.
    """

    def __init__(self, sizes: Sizes, in_channels: int, encoder: str, pooling: Pooling, style: Style) -> None:
        super().__init__()
        last, ones = len(sizes.channels) - 1, (1, 1)
        self.meet, self.sizes = min(3, last - 1), sizes
        width, kernel = sizes.channels[self.meet], sizes.kernels[self.meet]
        inputs = (in_channels, *sizes.channels[1:])
        self.spatial = nn.Sequential(
            *(
                ConvNormAct(inputs[k - 1], sizes.channels[k], sizes.kernels[k], sizes.strides[k], style)
                for k in range(1, self.meet + 1)
            )
        )
        self.context = nn.ModuleList(_stage(sizes, inputs[k - 1], k, encoder, style) for k in range(1, last + 1))
        self.refine = nn.ModuleList(
            Refinement(sizes.channels[k], width, sizes.kernels[k], pooling, style) for k in (last, last - 1)
        )
        pooled = replace(style, norm="batch" if style.norm == "batch" else "none", dropout=0.0)
        self.tail = nn.Sequential(
            _pool(pooling, sizes.channels[last]), ConvNormAct(sizes.channels[last], width, ones, ones, pooled)
        )
        self.smooth = nn.ModuleList(ConvNormAct(width, width, kernel, ones, style) for _ in range(2))
        self.fusion = Fusion(2 * width, 2 * width, pooling, style)
        self.last = ConvNormAct(2 * width, sizes.channels[0], kernel, ones, style)
        self.feature_channels = (sizes.channels[0], width, width)
        self.scale_weights = (1.0, 1.0, 1.0)  # two auxiliary losses, each with the weight of the main one

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.sizes.check(image.shape[2:])
        places, x, found = self.spatial(image), image, []
        for stage in self.context:
            x = stage(x)
            found.append(x)
        coarse = self.refine[0](x) + self.tail(x)
        coarse = self.smooth[0](resized(coarse, found[-2].shape[2:]))
        fine = self.smooth[1](resized(self.refine[1](found[-2]) + coarse, places.shape[2:]))
        fused = self.last(self.fusion(places, fine))
        return resized(fused, image.shape[2:]), fine, coarse


class Refinement(nn.Module):
    """Attention refinement: a convolution whose channels are weighed by what they are on average."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, ...], pooling: Pooling, style: Style) -> None:
        super().__init__()
        ones = (1, 1)
        gate = replace(style, norm="batch" if style.norm == "batch" else "none")
        self.conv = ConvNormAct(inputs, outputs, kernel, ones, style)
        self.pool = _pool(pooling, outputs)
        self.gate = ConvNormAct(outputs, outputs, ones, ones, gate, act=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.weights(x)

    def weights(self, x: Tensor) -> Tensor:
        """What channels are multiplied by, (b, c, 1, 1), between 0 and 1."""
        return self.gate(self.pool(x)).sigmoid()  # type: ignore[no-any-return]


class Fusion(nn.Module):
    """Feature fusion: both paths through a 1x1 convolution, and of the result once more what a gate lets through."""

    def __init__(self, inputs: int, outputs: int, pooling: Pooling, style: Style) -> None:
        super().__init__()
        ones, inner = (1, 1), max(outputs // 4, 4)
        self.mix = ConvNormAct(inputs, outputs, ones, ones, style)
        self.pool = _pool(pooling, outputs)
        self.gate = nn.Sequential(conv(outputs, inner, ones), nn.ReLU(), conv(inner, outputs, ones))

    def forward(self, places: Tensor, context: Tensor) -> Tensor:
        x = self.mix(torch.cat([places, context], 1))
        return x + x * self.weights(x)  # type: ignore[no-any-return]

    def weights(self, x: Tensor) -> Tensor:
        """What channels are multiplied by before they are added, (b, c, 1, 1), between 0 and 1."""
        return self.gate(self.pool(x)).sigmoid()  # type: ignore[no-any-return]


def _stage(sizes: Sizes, inputs: int, k: int, encoder: str, style: Style) -> nn.Sequential:
    """Stage `k` of the context path; its first one is halved by a convolution before anything else."""
    channels, stride, kernel, blocks = sizes.stages()[k]
    build, parts = stage_kind(encoder, style.blocks), []
    if k == 1:
        parts, inputs, stride = [ConvNormAct(inputs, channels, kernel, stride, style)], channels, (1, 1)
    more = after_stage(style, channels, sizes.spacings[k], coarsest=k == len(sizes.channels) - 1)
    return nn.Sequential(*parts, build(inputs, channels, kernel, stride, blocks, style), *more)


def _pool(pooling: Pooling, channels: int) -> nn.Module:
    return WeightedPool(channels, (7, 7)) if pooling == "weighted" else nn.AdaptiveAvgPool2d(1)
