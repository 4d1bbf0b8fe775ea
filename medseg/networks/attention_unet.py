"""Attention U-Net, 2D or 3D by topology (Oktay 2018)."""

from torch import nn

from medseg.networks.blocks.conv import ActKind, NormKind
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
    dropout: float = 0.0,
) -> nn.Module:
    """U-Net with an attention gate on every skip, led by the coarser decoder feature: `unet` with attention "gate"."""
    return unet(
        topology,
        in_channels=in_channels,
        encoder=encoder,
        decoder_blocks=decoder_blocks,
        norm=norm,
        act=act,
        attention="gate",
        dropout=dropout,
    )
