"""ShuffleNet units (Zhang 2018, Ma 2018)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ConvNormAct, Style


class ShuffleUnit(nn.Module):
    """Half the channels pass, half go through 1x1, depthwise and 1x1 convolutions; then the halves are interleaved.

    Where size or channels change, both halves are computed from all inputs: the first by a depthwise and a 1x1
    convolution (Ma 2018). Raises PlanError for an odd number of channels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], style: Style) -> None:
        super().__init__()
        if outputs % 2:
            raise PlanError(f"{outputs} channels", where="network.topology.channels", hint="use even numbers")
        half, ones = outputs // 2, (1,) * len(kernel)
        self.splits = inputs == outputs and max(stride) == 1
        entry = half if self.splits else inputs
        self.passing: nn.Module = nn.Identity()
        if not self.splits:
            self.passing = nn.Sequential(
                ConvNormAct(inputs, inputs, kernel, stride, style, act=False, groups=inputs),
                ConvNormAct(inputs, half, ones, ones, style),
            )
        self.working = nn.Sequential(
            ConvNormAct(entry, half, ones, ones, style),
            ConvNormAct(half, half, kernel, stride, style, act=False, groups=half),
            ConvNormAct(half, half, ones, ones, style),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1) if self.splits else (x, x)
        return channel_shuffle(torch.cat([self.passing(first), self.working(second)], 1), 2)


def channel_shuffle(x: Float[Tensor, "b c *s"], groups: int) -> Float[Tensor, "b c *s"]:
    """Channels (group, i) in the order (i, group), so that the next groups see all of these (Zhang 2018).

    `channel_shuffle(channel_shuffle(x, g), c // g)` is `x`. Raises PlanError where `groups` does not divide channels.

    >>> channel_shuffle(torch.arange(6.0).reshape(1, 6, 1), 2).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    if x.shape[1] % groups:
        hint = "use channels that are a multiple of the groups"
        raise PlanError(f"{x.shape[1]} channels in {groups} groups", where="network.topology.channels", hint=hint)
    return x.reshape(len(x), groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
