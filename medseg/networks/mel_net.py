"""MEL-Net: attention U-Net with a pyramid of dilations at its bottom, as used to find points by heat maps."""

from typing import Unpack

from torch import nn

from medseg.networks.blocks.aspp import Aspp
from medseg.networks.blocks.attention import with_gate
from medseg.networks.blocks.conv import ActKind, NormKind, Style, initialise
from medseg.networks.blocks.options import BlockOptions, options_of
from medseg.networks.unet import Sizes, UNet, encoder_stages
from medseg.types.plan import Topology


def mel_net(
    topology: Topology,
    *,
    in_channels: int,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """U-Net with attention gates on its skips (Oktay 2018) and ASPP of rates 6, 12, 18 after its coarsest stage.

    ASPP is that of Chen 2017, with a rate per axis by spacing; `aspp_rates` are others. Other `attention` is added to
    the gates. Published as six stages of 32 to 1024 channels for one
    heat map; takes any image whose size is a multiple of `topology.divisor()`.
    """
    style, sizes = Style(norm, act, with_gate(attention), dropout, blocks=blocks), Sizes(topology)
    stages = encoder_stages(sizes, in_channels, encoder, style)
    widest = sizes.channels[-1]
    stages[-1] = nn.Sequential(
        stages[-1], Aspp(widest, widest, sizes.spacings[-1], style=style, **options_of("aspp", blocks))
    )
    network = UNet(stages, sizes, decoder_blocks, style)
    initialise(network)
    return network
