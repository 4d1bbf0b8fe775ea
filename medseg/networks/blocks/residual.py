"""Residual blocks (He 2016)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import acted, activation
from medseg.networks.blocks.conv import ConvNormAct, Style, conv, start_at_zero
from medseg.networks.blocks.drop import DropPath


class ResidualBlock(nn.Module):
    """Two convolutions and a skip that is average-pooled, then a 1x1 convolution and norm where channels change.

    The last norm before the sum starts at 0 (without norms, the last convolution), so that a new block passes its skip
    unchanged (He 2019). In training the branch may be dropped (`style.drop_path`).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], style: Style) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.act = activation(style.act, outputs)
        self.stride = tuple(stride)
        self.first = ConvNormAct(inputs, outputs, kernel, stride, style)
        self.second = ConvNormAct(outputs, outputs, kernel, ones, style, act=False)
        start_at_zero(self.second)
        self.path = DropPath(style.drop_path)
        self.project: nn.Module | None = None
        if inputs != outputs:
            self.project = ConvNormAct(inputs, outputs, ones, ones, style, act=False)
            self.project.conv = conv(inputs, outputs, ones, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if max(self.stride) > 1:
            pool = F.avg_pool2d if len(self.stride) == 2 else F.avg_pool3d
            skip = pool(x, self.stride, self.stride)
        if self.project is not None:
            skip = self.project(skip)
        return acted(self.act, self.path(self.second(self.first(x))) + skip)
