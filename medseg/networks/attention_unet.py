"""Attention U-Net, 2D or 3D by topology (Oktay 2018)."""

from typing import Unpack

from torch import nn

from medseg.networks.blocks.attention import with_gate
from medseg.networks.blocks.conv import ActKind, NormKind
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.unet import unet
from medseg.types.plan import Topology


def attention_unet(
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
    """U-Net with an attention gate on every skip, led by the coarser decoder feature: `unet` with attention "gate".

    Other `attention` is added to the gates.
    """
    return unet(
        topology,
        in_channels=in_channels,
        encoder=encoder,
        decoder_blocks=decoder_blocks,
        norm=norm,
        act=act,
        attention=with_gate(attention),
        dropout=dropout,
        **blocks,
    )
