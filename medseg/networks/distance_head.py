"""The head "distance": how far every voxel lies from the surface of each class."""

from typing import Literal

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv, initialise
from medseg.types.plan import Topology
from medseg.types.tensors import NetworkOutput

_BOUNDS = ("tanh", "clip")


def distance(
    topology: Topology,
    feature_channels: tuple[int, ...],
    *,
    outputs: int,
    bound: Literal["tanh", "clip"] = "tanh",
) -> nn.Module:
    """A 1x1 convolution on the finest feature whose channel k is the signed distance to the surface of output k.

    Positive inside, negative outside, in units of the truncation of the loss "distance"; such level sets are learnt
    beside the labels (Luo 2021, with the other sign). "tanh" bounds them to (-1, 1); "clip" leaves them linear
    in training, so that gradients never end, and cuts them to [-1, 1] otherwise. Channels are those of the logits,
    background first where classes do not overlap. Raises PlanError for a task without labels.
    """
    if outputs < 1:
        raise PlanError("there are no labels to measure", where="network.heads", hint="leave out the head distance")
    if bound not in _BOUNDS:
        raise PlanError(f'unknown bound "{bound}"', where="network.heads", hint=f"use one of {', '.join(_BOUNDS)}")
    head = DistanceHead(conv(feature_channels[0], outputs, (1,) * topology.ndim), bound)
    initialise(head)
    return head


class DistanceHead(nn.Module):
    """One convolution on the finest feature."""

    def __init__(self, layer: nn.Module, bound: str) -> None:
        super().__init__()
        self.layer = layer
        self.bound = bound

    def forward(self, features: tuple[Tensor, ...]) -> NetworkOutput:
        raw = self.layer(features[0])
        if self.bound == "tanh":
            return NetworkOutput(distances=raw.tanh())
        return NetworkOutput(distances=raw if self.training else raw.clamp(-1, 1))
