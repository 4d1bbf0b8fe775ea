"""MobileNetV2's inverted residual blocks (Sandler 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.networks.blocks.conv import ConvNormAct, Style


class InvertedResidual(nn.Module):
    """1x1 convolution to `expand` times the channels, depthwise convolution, linear 1x1 convolution to `outputs`.

    The input is added where neither size nor channels change.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        style: Style,
        *,
        expand: int = 6,
    ) -> None:
        super().__init__()
        wide, ones = expand * inputs, (1,) * len(kernel)
        self.adds = max(stride) == 1 and inputs == outputs
        self.layers = nn.Sequential(
            ConvNormAct(inputs, wide, ones, ones, style),
            ConvNormAct(wide, wide, kernel, stride, style, groups=wide),
            ConvNormAct(wide, outputs, ones, ones, style, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)  # type: ignore[no-any-return]
