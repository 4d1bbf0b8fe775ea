"""RepVGG: three branches to learn with, one convolution to predict with (Ding 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.networks.blocks.activations import activation
from medseg.networks.blocks.conv import Style, conv, with_weights
from medseg.networks.blocks.drop import channel_dropout
from medseg.networks.blocks.norms import BatchNorm, fold


class RepVggBlock(nn.Module):
    """Sum of a convolution, a 1x1 convolution and, where size and channels stay, the input; each with batch norm.

    The activation follows the sum. The norm is batch norm whatever the style: in eval mode it is an affine map per
    channel, so that `fuse` can make one convolution of the branches; norms that look at the image cannot be fused.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], style: Style) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        ones = (1,) * len(kernel)
        self.wide = nn.ModuleDict({"conv": conv(inputs, outputs, kernel, stride, bias=False)})
        self.point = nn.ModuleDict({"conv": conv(inputs, outputs, ones, stride, bias=False)})
        self.wide["norm"], self.point["norm"] = BatchNorm(outputs), BatchNorm(outputs)
        self.same = BatchNorm(outputs) if inputs == outputs and max(stride) == 1 else None
        self.act = activation(style.act, outputs)
        self.drop = channel_dropout(style.dropout, len(kernel))

    def forward(self, x: Tensor) -> Tensor:
        total = sum(branch["norm"](branch["conv"](x)) for branch in (self.wide, self.point))
        if self.same is not None:
            total = total + self.same(x)
        return self.drop(self.act(total))  # type: ignore[no-any-return]

    def fuse(self) -> nn.Module:
        """One convolution and the activation, which do what the block does in eval mode."""
        weight, bias = fold(self.wide["conv"].weight, None, self.wide["norm"])  # type: ignore[arg-type]
        parts = [fold(self.point["conv"].weight, None, self.point["norm"])]  # type: ignore[arg-type]
        outputs, inputs = weight.shape[:2]
        if self.same is not None:
            eye = torch.eye(outputs, dtype=weight.dtype, device=weight.device)
            parts.append(fold(eye.view(outputs, inputs, *(1,) * len(self.kernel)), None, self.same))
        taps = weight.movedim((0, 1), (-2, -1))
        for point, shift in parts:
            taps[tuple(k // 2 for k in self.kernel)] += point.flatten(1)
            bias = bias + shift
        one = conv(inputs, outputs, self.kernel, self.stride)
        return nn.Sequential(with_weights(one, weight, bias), self.act)
