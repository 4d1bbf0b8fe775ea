"""Coarse-to-fine stacked networks: each sees the image and what the one before it proposed."""

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ActKind, NormKind, conv, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.unet import unet
from medseg.types.plan import Topology
from medseg.types.tensors import Decoded

_JOINS = ("concat", "sum")


def cascade(
    topology: Topology,
    *,
    in_channels: int,
    outputs: int,
    levels: int = 2,
    join: Literal["concat", "sum"] = "concat",
    stop_gradient: bool = False,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """`levels` U-Nets of one topology in a row, trained together (Zhang 2016).

    The logits of all but the last are the output's `sides`; the loss "side" teaches them. Their sigmoids reach the next
    network beside the image ("concat"), or through a 1x1 convolution added to it ("sum"). With
    `stop_gradient` a network learns from its own loss alone. Raises PlanError for a task without labels.
    """
    if outputs < 1:
        hint = "use the backbone unet for landmarks alone"
        raise PlanError("there are no labels to propose", where="network.use", hint=hint)
    if levels < 2 or join not in _JOINS:
        hint = f"use 2 levels or more, joined by {' or '.join(_JOINS)}"
        raise PlanError(f'{levels} levels joined by "{join}"', where="network.options", hint=hint)
    style = {"norm": norm, "act": act, "attention": attention, "dropout": dropout}
    more = outputs if join == "concat" else 0
    nets = [
        unet(
            topology,
            in_channels=in_channels + (more if level else 0),
            encoder=encoder,
            decoder_blocks=decoder_blocks,
            **style,  # type: ignore[arg-type]
            **blocks,
        )
        for level in range(levels)
    ]
    point = (1,) * topology.ndim
    proposals = [conv(topology.channels[0], outputs, point) for _ in nets[1:]]
    joins = [conv(outputs, in_channels, point, bias=False) if join == "sum" else nn.Identity() for _ in nets[1:]]
    network = Cascade(nets, proposals, joins, stop_gradient=stop_gradient)
    for part in (*proposals, *joins):
        initialise(part)
    return network


class Cascade(nn.Module):
    """Networks in a row; the features are the last one's."""

    def __init__(
        self,
        nets: Sequence[nn.Module],
        proposals: Sequence[nn.Module],
        joins: Sequence[nn.Module],
        *,
        stop_gradient: bool,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.proposals = nn.ModuleList(proposals)
        self.joins = nn.ModuleList(joins)
        self.stop_gradient = stop_gradient
        self.feature_channels = nets[-1].feature_channels

    def forward(self, image: Tensor) -> Decoded:
        features, sides = self.nets[0](image), []
        for net, propose, join in zip(self.nets[1:], self.proposals, self.joins, strict=True):
            sides.append(propose(features[0]))
            maps = sides[-1].detach() if self.stop_gradient else sides[-1]
            joined = join(maps.sigmoid())
            whole = isinstance(join, nn.Identity)
            features = net(torch.cat([image, joined.to(image.dtype)], 1) if whole else image + joined)
        return Decoded(tuple(features), tuple(sides))
