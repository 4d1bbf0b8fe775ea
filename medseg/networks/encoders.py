"""Encoder stages by name: what a stage of a U-Net is made of.

A stage is a function `(inputs, outputs, kernel, stride, blocks, style, *, options) -> nn.Module`; the first of its
blocks is strided. Kernel and stride have one entry per axis. Options are those of `blocks.options`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ConvNormAct, Style, conv
from medseg.networks.blocks.convnext import ConvNextBlock, patchify
from medseg.networks.blocks.dense import DenseStage
from medseg.networks.blocks.grouped import Bottleneck, GroupedResidualBlock
from medseg.networks.blocks.mobilenet import InvertedResidual
from medseg.networks.blocks.options import BlockOptions, options_of
from medseg.networks.blocks.poolformer import PoolFormerBlock
from medseg.networks.blocks.repvgg import RepVggBlock
from medseg.networks.blocks.residual import ResidualBlock
from medseg.networks.blocks.separable import SeparableConv
from medseg.networks.blocks.shuffle import ShuffleUnit

BuildStage = Callable[..., nn.Module]


def plain(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` convolutions with norm and activation."""
    return _chain(ConvNormAct, inputs, outputs, kernel, stride, blocks, style)


def residual(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` residual blocks (He 2016)."""
    return _chain(ResidualBlock, inputs, outputs, kernel, stride, blocks, style)


def resnext(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    groups: int = 32,
) -> nn.Sequential:
    """`blocks` bottlenecks of up to `groups` paths (Xie 2017)."""
    return _chain(partial(Bottleneck, groups=groups), inputs, outputs, kernel, stride, blocks, style)


def grouped_residual(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    groups: int = 8,
) -> nn.Sequential:
    """`blocks` residual blocks of grouped convolutions that a 1x1 convolution mixes."""
    kind = partial(GroupedResidualBlock, groups=groups)
    return _chain(kind, inputs, outputs, kernel, stride, blocks, style)


def dense(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    growth: int | None = None,
    theta: float = 0.5,
) -> nn.Module:
    """A transition to half the channels, then `blocks` layers that each see all before them (Huang 2017)."""
    return DenseStage(inputs, outputs, kernel, stride, blocks, style, growth=growth, theta=theta)


def mobilenet(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    expand: int = 6,
) -> nn.Sequential:
    """`blocks` inverted residuals with linear ends (Sandler 2018)."""
    return _chain(partial(InvertedResidual, expand=expand), inputs, outputs, kernel, stride, blocks, style)


def shuffle(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` ShuffleNet units (Ma 2018); channels are even."""
    return _chain(ShuffleUnit, inputs, outputs, kernel, stride, blocks, style)


def convnext(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    expand: int = 4,
    scale: float = 1e-6,
) -> nn.Sequential:
    """`blocks` ConvNeXt blocks after a convolution over whole strides where size or channels change (Liu 2022).

    Norm and activation are the paper's, layer norm and GELU, whatever the style.
    """
    entry = [patchify(inputs, outputs, stride)] if inputs != outputs or max(stride) > 1 else []
    return nn.Sequential(*entry, *(ConvNextBlock(outputs, kernel, expand=expand, scale=scale) for _ in range(blocks)))


def poolformer(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
    *,
    expand: int = 4,
    scale: float = 1e-5,
) -> nn.Sequential:
    """`blocks` PoolFormer blocks after a strided convolution where size or channels change (Yu 2022).

    Norm and activation are the paper's, a norm over all channels and GELU, whatever the style.
    """
    entry = [conv(inputs, outputs, kernel, stride)] if inputs != outputs or max(stride) > 1 else []
    return nn.Sequential(*entry, *(PoolFormerBlock(outputs, kernel, expand=expand, scale=scale) for _ in range(blocks)))


def repvgg(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` convolutions with branches that an exported model no longer has (Ding 2021).

    The norm is batch norm whatever the style.
    """
    return _chain(RepVggBlock, inputs, outputs, kernel, stride, blocks, style)


def separable(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` depthwise-separable convolutions (Howard 2017)."""
    return _chain(SeparableConv, inputs, outputs, kernel, stride, blocks, style)


def _chain(
    build: Callable[..., nn.Module],
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    style: Style,
) -> nn.Sequential:
    """One block that changes size and channels, and `blocks - 1` that keep them."""
    ones = (1,) * len(kernel)
    first = build(inputs, outputs, kernel, stride, style)
    return nn.Sequential(first, *(build(outputs, outputs, kernel, ones, style) for _ in range(blocks - 1)))


ENCODERS: Mapping[str, BuildStage] = {
    "plain": plain,
    "residual": residual,
    "resnext": resnext,
    "grouped_residual": grouped_residual,
    "dense": dense,
    "mobilenet": mobilenet,
    "shuffle": shuffle,
    "convnext": convnext,
    "poolformer": poolformer,
    "repvgg": repvgg,
    "separable": separable,
}


def stage_kind(encoder: str, options: BlockOptions | None = None) -> BuildStage:
    """The builder of stages named `encoder`, with its options; raises PlanError if there is none."""
    if encoder not in ENCODERS:
        hint = f"use one of {', '.join(sorted(ENCODERS))}"
        raise PlanError(f'unknown encoder "{encoder}"', where="network.options", hint=hint)
    own = options_of(encoder, options or {})
    return partial(ENCODERS[encoder], **own) if own else ENCODERS[encoder]
