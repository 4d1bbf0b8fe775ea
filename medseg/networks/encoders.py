"""Encoder stages by name: what a stage of a U-Net is made of.

A stage is a function `(inputs, outputs, kernel, stride, blocks, style) -> nn.Module`; the first of its blocks is
strided. Kernel and stride have one entry per axis.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from medseg.networks.blocks.conv import ConvNormAct, Style
from medseg.networks.blocks.residual import ResidualBlock

BuildStage = Callable[[int, int, Sequence[int], Sequence[int], int, Style], nn.Module]


def plain(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` convolutions with norm and activation."""
    ones = (1,) * len(kernel)
    first = ConvNormAct(inputs, outputs, kernel, stride, style)
    return nn.Sequential(first, *(ConvNormAct(outputs, outputs, kernel, ones, style) for _ in range(blocks - 1)))


def residual(
    inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], blocks: int, style: Style
) -> nn.Sequential:
    """`blocks` residual blocks (He 2016)."""
    ones = (1,) * len(kernel)
    first = ResidualBlock(inputs, outputs, kernel, stride, style)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, kernel, ones, style) for _ in range(blocks - 1)))


ENCODERS: Mapping[str, BuildStage] = {"plain": plain, "residual": residual}
