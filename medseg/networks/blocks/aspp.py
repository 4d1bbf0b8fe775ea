"""Atrous spatial pyramid pooling (Chen 2017)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import pieces
from medseg.networks.blocks.conv import ConvNormAct, Style, conv
from medseg.networks.blocks.extent import dilations
from medseg.networks.blocks.gates import mean
from medseg.networks.blocks.wide_kernels import convolve


class Aspp(nn.Module):
    """Branches of one convolution each, joined by a 1x1 convolution: 1x1, 3-wide at every rate, and the mean.

    A rate counts voxels of the finest axis; along an axis of wider spacing the dilation is smaller by that much, at
    least 1. Where the dilated kernel would be wider than the feature, it is dilated just so far that it fits: beyond,
    only its middle would see anything. The branch of the mean has no norm, which would leave nothing of one voxel.
    Takes (b, c, *s) of any size and returns (b, outputs, *s).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spacing: Sequence[float],
        *,
        rates: Sequence[int] = (6, 12, 18),
        style: Style | None = None,
    ) -> None:
        super().__init__()
        style, ones = style or Style(), (1,) * len(spacing)
        self.point = ConvNormAct(inputs, outputs, ones, ones, style)
        self.rates = nn.ModuleList()
        for rate in rates:
            branch = ConvNormAct(inputs, outputs, ones, ones, style)
            branch.conv = FittedConv(inputs, outputs * pieces(style.act), dilations(rate, spacing))
            self.rates.append(branch)
        self.mean = conv(inputs, outputs, ones)
        self.join = ConvNormAct((2 + len(rates)) * outputs, outputs, ones, ones, style)

    def forward(self, x: Tensor) -> Tensor:
        everywhere = F.relu(self.mean(mean(x))).expand(-1, -1, *x.shape[2:])
        found = [self.point(x), *(branch(x) for branch in self.rates), everywhere]
        return self.join(torch.cat(found, 1))  # type: ignore[no-any-return]


class FittedConv(nn.Module):
    """A convolution 3 wide whose taps are `dilation` voxels apart, or as far as the feature allows."""

    def __init__(self, inputs: int, outputs: int, dilation: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, (3,) * len(dilation), bias=False)
        self.dilation = tuple(dilation)

    def forward(self, x: Tensor) -> Tensor:
        fitted, ones = fitting(self.dilation, x.shape[2:]), (1,) * len(self.dilation)
        weights: tuple[Any, Any] = self.conv.weight, self.conv.bias  # of a norm that was folded in
        return convolve(x, *weights, stride=ones, padding=fitted, dilation=fitted, groups=1)


def fitting(dilation: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """`dilation`, but at most what keeps a kernel of 3 taps within `size`, and at least 1.

    >>> fitting((2, 6, 18), (3, 32, 32))
    (1, 6, 15)
    """
    return tuple(max(1, min(d, (n - 1) // 2)) for d, n in zip(dilation, size, strict=True))
