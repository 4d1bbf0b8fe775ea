"""Residual blocks with grouped convolutions."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import acted, activation
from medseg.networks.blocks.conv import ConvNormAct, Style


class Bottleneck(nn.Module):
    """1x1 convolution to half of `outputs`, a grouped one with the stride, 1x1 to `outputs`, plus the input.

    As many groups as divide both `groups` and the half: each is one of the paths of the paper, whose results are
    summed (Xie 2017). Where size or channels change the input goes through a strided 1x1 convolution (He 2016).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        style: Style,
        *,
        groups: int = 32,
    ) -> None:
        super().__init__()
        inner, ones = max(outputs // 2, 1), (1,) * len(kernel)
        self.layers = nn.Sequential(
            ConvNormAct(inputs, inner, ones, ones, style),
            ConvNormAct(inner, inner, kernel, stride, style, groups=math.gcd(groups, inner)),
            ConvNormAct(inner, outputs, ones, ones, style, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or max(stride) > 1:
            self.shortcut = ConvNormAct(inputs, outputs, ones, stride, style, act=False)
        self.act = activation(style.act, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return acted(self.act, self.layers(x) + self.shortcut(x))


class GroupedResidualBlock(nn.Module):
    """Grouped convolution with the stride, 1x1 convolution that mixes the groups, grouped convolution, plus the input.

    A convolution has `groups` groups where they divide its channels, else one. Where size or channels change the input
    is averaged over the stride and goes through a 1x1 convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        style: Style,
        *,
        groups: int = 8,
    ) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.stride = tuple(stride)
        entry = groups if inputs % groups == 0 and outputs % groups == 0 else 1
        self.layers = nn.Sequential(
            ConvNormAct(inputs, outputs, kernel, stride, style, groups=entry),
            ConvNormAct(outputs, outputs, ones, ones, style),
            ConvNormAct(outputs, outputs, kernel, ones, style, act=False, groups=1 if outputs % groups else groups),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = ConvNormAct(inputs, outputs, ones, ones, style, act=False)
        self.act = activation(style.act, outputs)

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if max(self.stride) > 1:
            pool = F.avg_pool2d if len(self.stride) == 2 else F.avg_pool3d
            skip = pool(x, self.stride, self.stride)
        return acted(self.act, self.layers(x) + self.shortcut(skip))
