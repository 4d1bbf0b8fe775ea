"""A network with a side output per scale, the fine ones for boundaries and the coarse ones for objects."""

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.attention import after_stage
from medseg.networks.blocks.conv import ActKind, NormKind, Style, conv, initialise
from medseg.networks.blocks.options import BlockOptions
from medseg.networks.blocks.resample import resized
from medseg.networks.unet import Sizes, UNet, encoder_stages, refuse_gates
from medseg.types.plan import Topology
from medseg.types.tensors import Decoded

_TRUNKS = ("encoder", "decoder")


def object_boundary(
    topology: Topology,
    *,
    in_channels: int,
    outputs: int,
    trunk: Literal["encoder", "decoder"] = "encoder",
    encoder: str = "plain",
    decoder_blocks: int = 2,
    norm: NormKind = "instance",
    act: ActKind = "leaky_relu",
    attention: str = "none",
    dropout: float = 0.0,
    **blocks: Unpack[BlockOptions],
) -> nn.Module:
    """Deeply supervised network with attention to boundaries (Mishra 2018).

    A 1x1 convolution makes a side output of every stage of the encoder, or of a U-Net's decoder. Enlarged to the
    image's size they are the one feature, so that the convolution of the head "segmentation" fuses them. They are the
    output's `sides` too: the loss "object_boundary" teaches the fine ones boundaries and the coarse ones regions.
    Raises PlanError for a task without labels.
    """
    if outputs < 1:
        hint = "use the backbone unet for landmarks alone"
        raise PlanError("there are no labels to find", where="network.use", hint=hint)
    if trunk not in _TRUNKS:
        raise PlanError(f'unknown trunk "{trunk}"', where="network.options", hint=f"use one of {', '.join(_TRUNKS)}")
    style, sizes = Style(norm, act, attention, dropout, blocks=blocks), Sizes(topology)
    stages = encoder_stages(sizes, in_channels, encoder, style)
    if trunk == "encoder":
        refuse_gates(style)
        body: nn.Module = Encoder(stages, sizes, style)
        channels = sizes.channels
    else:
        body = UNet(stages, sizes, decoder_blocks, style)
        channels = body.feature_channels
    sides = [conv(width, outputs, (1,) * topology.ndim) for width in channels]
    network = ObjectBoundary(body, sides, outputs)
    initialise(network)
    return network


class Encoder(nn.Module):
    """Encoder stages alone, with their attention: the result of every stage, finest first."""

    def __init__(self, stages: Sequence[nn.Module], sizes: Sizes, style: Style) -> None:
        super().__init__()
        self.sizes = sizes
        last = len(stages) - 1
        self.stages = nn.ModuleList()
        for k, stage in enumerate(stages):
            more = after_stage(style, sizes.channels[k], sizes.spacings[k], coarsest=k == last)
            self.stages.append(nn.Sequential(stage, *more))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self.sizes.check(image.shape[2:])
        found = []
        for stage in self.stages:
            image = stage(image)
            found.append(image)
        return tuple(found)


class ObjectBoundary(nn.Module):
    """Side outputs of a body's features; all of them together, at the finest size, are the feature."""

    def __init__(self, body: nn.Module, sides: Sequence[nn.Module], outputs: int) -> None:
        super().__init__()
        self.body = body
        self.sides = nn.ModuleList(sides)
        self.feature_channels = (len(sides) * outputs,)

    def forward(self, image: Tensor) -> Decoded:
        sides = tuple(side(feature) for side, feature in zip(self.sides, self.body(image), strict=True))
        size = sides[0].shape[2:]
        enlarged = [resized(side, size) for side in sides[1:]]
        return Decoded((torch.cat([sides[0], *enlarged], 1),), sides)
