"""Fully convolutional networks without a decoder, as baselines (Long 2015)."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.attention import after_stage
from medseg.networks.blocks.conv import ActKind, NormKind, Style, conv, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.blocks.resample import resized
from medseg.networks.unet import Sizes, encoder_stages, refuse_gates
from medseg.types.plan import Topology


def fcn(
    topology: Topology,
    *,
    in_channels: int,
    finest: int = 8,
    width: int = 32,
    encoder: str = "plain",
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """FCN-8s, or -16s, -32s by `finest`: 1x1 convolutions of coarse stages, enlarged linearly and summed.

    Takes part the coarsest stage and every other whose strides come to `finest` or more along some axis. The one
    feature has `width` channels at the image's size; the head's 1x1 convolution makes scores of it, which is the same
    as scores before the sums while there are no more of them than `width`. Takes any image whose size is a multiple of
    `topology.divisor()`; raises PlanError for attention on skips.
    """
    if finest < 1 or width < 1:
        raise PlanError(f"finest is {finest}, width {width}", where="network.options", hint="use 1 or more")
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    refuse_gates(style)
    network = Fcn(encoder_stages(sizes, in_channels, encoder, style), sizes, finest, width, style)
    initialise(network)
    return network


class Fcn(nn.Module):
    """Encoder stages and a 1x1 convolution for each that takes part in the sum."""

    def __init__(self, stages: Sequence[nn.Module], sizes: Sizes, finest: int, width: int, style: Style) -> None:
        super().__init__()
        self.sizes = sizes
        self.feature_channels = (width,)
        self.encoder, self.scores = nn.ModuleList(), nn.ModuleDict()
        total, last = (1,) * len(sizes.divisor), len(stages) - 1
        for k, stage in enumerate(stages):
            more = after_stage(style, sizes.channels[k], sizes.spacings[k], coarsest=k == last)
            self.encoder.append(nn.Sequential(stage, *more))
            total = tuple(t * s for t, s in zip(total, sizes.strides[k], strict=True))
            if k == last or max(total) >= finest:
                self.scores[str(k)] = conv(sizes.channels[k], width, (1,) * len(total))

    def forward(self, image: Tensor) -> tuple[Tensor]:
        self.sizes.check(image.shape[2:])
        x, scores = image, []
        for k, stage in enumerate(self.encoder):
            x = stage(x)
            if str(k) in self.scores:
                scores.append(self.scores[str(k)](x))
        total = scores.pop()
        while scores:
            finer = scores.pop()
            total = finer + resized(total, finer.shape[2:])
        return (resized(total, image.shape[2:]),)
