"""Grouped residual attention U-Net, 2D or 3D by topology."""

from functools import partial
from typing import Unpack

from torch import nn

from medseg.networks.blocks.attention import with_gate
from medseg.networks.blocks.conv import ActKind, NormKind, Style, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.encoders import grouped_residual
from medseg.networks.unet import Sizes, UNet, stages_of
from medseg.types.plan import Topology


def gra_unet(
    topology: Topology,
    *,
    in_channels: int,
    groups: int = 8,
    decoder_blocks: int = 1,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """U-Net of residual blocks with grouped convolutions (Xie 2017) and an attention gate on every skip (Oktay 2018).

    Convolutions wider than 1 have `groups` groups where these divide their channels, so an eighth of the weights; 1x1
    convolutions mix the groups. Other `attention` is added to the gates. Takes any image whose size is a multiple of
    `topology.divisor()`.
    """
    style, sizes = Style(norm, act, with_gate(attention), dropout, blocks=blocks), Sizes(topology)
    build = partial(grouped_residual, groups=groups)
    network = UNet(stages_of(build, sizes, in_channels, style), sizes, decoder_blocks, style, decoder=build)
    initialise(network)
    return network
