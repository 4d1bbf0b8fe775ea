"""DenseNet stages (Huang 2017)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.conv import ConvNormAct, Style
from medseg.networks.blocks.norm_act import concatenate


class DenseStage(nn.Module):
    """Layers that each see all channels before them and add some of their own, `outputs` in the end.

    A stage starts with the transition: a 1x1 convolution to `theta` times the channels, averaged over `stride`. The
    layers, a 1x1 and a full convolution each, add evenly what is missing to `outputs`; given `growth` they add that
    many channels each, and a 1x1 convolution makes `outputs` of the sum. Unlike in the paper norm and activation come
    after each convolution, not before.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        blocks: int,
        style: Style,
        *,
        growth: int | None = None,
        theta: float = 0.5,
    ) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.stride = tuple(stride)
        width = max(int(theta * inputs), 1)
        self.transition = ConvNormAct(inputs, width, ones, ones, style)
        rows = [growth] * blocks if growth else _shares(outputs - width, blocks)
        self.layers = nn.ModuleList()
        for row in rows:
            self.layers.append(
                nn.Sequential(
                    ConvNormAct(width, 4 * row, ones, ones, style), ConvNormAct(4 * row, row, kernel, ones, style)
                )
            )
            width += row
        self.close = None if width == outputs else ConvNormAct(width, outputs, ones, ones, style)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(x)
        if max(self.stride) > 1:
            pool = F.avg_pool2d if len(self.stride) == 2 else F.avg_pool3d
            x = pool(x, self.stride, self.stride)
        for layer in self.layers:
            x = concatenate(x, layer(x))
        return x if self.close is None else self.close(x)


def _shares(missing: int, blocks: int) -> list[int]:
    """`missing` channels in `blocks` parts that differ by at most 1; at least 1 each.

    >>> _shares(10, 3), _shares(0, 2)
    ([4, 3, 3], [1, 1])
    """
    return [max((missing - n - 1) // blocks + 1, 1) for n in range(blocks)]
