"""Depthwise-separable convolution, and pooling with learnt weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.networks.blocks.conv import ConvNormAct, Style
from medseg.networks.blocks.resample import resized


class SeparableConv(nn.Module):
    """One kernel per channel, then a 1x1 convolution that mixes them, each with norm and activation (Howard 2017).

    (b, c, *s) to (b, c', *s / stride) with k * c + c * c' weights where a plain convolution has k * c * c'.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        style: Style,
        *,
        dilation: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.depthwise = ConvNormAct(inputs, inputs, kernel, stride, style, groups=inputs, dilation=dilation)
        self.pointwise = ConvNormAct(inputs, outputs, ones, ones, style)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class WeightedPool(nn.Module):
    """The mean over all voxels with learnt weights per channel and place: (b, c, *s) to (b, c, 1, ...).

    The weights are a coarse `grid` that is interpolated to the size of the features, so any size will do; where the
    sizes are equal this is the global depthwise convolution of Chen 2018. It starts as the plain mean.
    """

    def __init__(self, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.ones(1, channels, *grid))

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *ones"]:
        return (x * resized(self.places, x.shape[2:])).mean(tuple(range(2, x.dim())), keepdim=True)
