"""Strided convolution over blocks that do not overlap."""

from collections.abc import Sequence

from torch import nn


def down_conv(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Convolution whose kernel is its stride, the mirror of `up_conv`: (b, c, *s) to (b, c', *s / stride)."""
    kind = nn.Conv2d if len(stride) == 2 else nn.Conv3d
    return kind(inputs, outputs, tuple(stride), tuple(stride))  # type: ignore[arg-type]
