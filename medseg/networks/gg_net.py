"""GG-Net, 2D or 3D by topology: global guidance in a U-Net."""

from typing import Unpack

import torch
from torch import Tensor, nn

from medseg.networks.blocks.aspp import Aspp
from medseg.networks.blocks.conv import ActKind, ConvNormAct, NormKind, Style, initialise
from medseg.networks.blocks.guidance import Guidance, GuidanceMode
from medseg.networks.blocks.norm_act import concatenate
from medseg.networks.blocks.options import BlockOptions, options_of
from medseg.networks.blocks.resample import resized
from medseg.networks.unet import Sizes, UNet, encoder_stages
from medseg.types.plan import Topology


def gg_net(
    topology: Topology,
    *,
    in_channels: int,
    guidance: GuidanceMode = "logit-sum",
    encoder: str = "residual",
    decoder_blocks: int = 1,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """Global guidance network (Xue 2021) as a U-Net: ASPP after the encoder, and attention led by a guidance map.

    The map is made of four encoder stages, resized to the second of them: those whose strides come to 4, 8, 16 and 32
    as in the published network, or the four coarsest where there are fewer than six stages. It leads attention over
    voxels and channels of the decoder feature of that size. The published network has boundary modules and their loss
    as well: head "boundary" and loss "gg_net", beside head "segmentation" and loss "dice_ce". `guidance` is how
    weights of feature and map are joined, "logit-sum" or, as in the published code, "released" (see
    `blocks.guidance`). Takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    body = UNet(encoder_stages(sizes, in_channels, encoder, style), sizes, decoder_blocks, style)
    network = GGNet(body, sizes, guidance, style)
    initialise(network)
    return network


class GGNet(nn.Module):
    """A U-Net whose coarsest feature passes ASPP and whose decoder passes a guidance block."""

    def __init__(self, body: UNet, sizes: Sizes, mode: GuidanceMode, style: Style) -> None:
        super().__init__()
        self.body = body
        self.feature_channels = body.feature_channels
        channels = sizes.channels
        first = min(2, max(len(channels) - 4, 0))
        self.levels = tuple(range(first, min(first + 4, len(channels))))
        self.level = self.levels[min(1, len(self.levels) - 1)]
        width, kernel = channels[self.level], sizes.kernels[self.level]
        ones = (1,) * len(kernel)
        self.aspp = Aspp(
            channels[-1], channels[-1], sizes.spacings[-1], style=style, **options_of("aspp", style.blocks)
        )
        self.guide = nn.Sequential(
            ConvNormAct(sum(channels[k] for k in self.levels), width, ones, ones, style),
            ConvNormAct(width, width, kernel, ones, style),
            ConvNormAct(width, width, kernel, ones, style),
        )
        self.guidance = Guidance(width, width, len(kernel), mode=mode)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        skips = self.body.encode(image)
        guide = self.guide(self._levels(skips))
        x, features, last = self.aspp(skips[-1]), [], len(skips) - 1
        if self.level == last:
            x = self.guidance(x, guide)
        steps = zip(range(last - 1, -1, -1), self.body.gates, self.body.ups, self.body.decoder, strict=True)
        for k, gate, up, convs in steps:
            x = convs(concatenate(up(x), gate(skips[k], x)))
            if k == self.level:
                x = self.guidance(x, guide)
            features.append(x)
        return tuple(reversed(features)) or (x,)

    def _levels(self, skips: list[Tensor]) -> Tensor:
        """The stages that make the guidance map, at the size of one."""
        size = skips[self.level].shape[2:]
        return torch.cat([resized(skips[k], size) for k in self.levels], 1)
