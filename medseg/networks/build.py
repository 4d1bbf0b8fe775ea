"""The tables of backbones and heads, and the one function that builds a network from a plan."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks import landmark_heads
from medseg.networks.attention_unet import attention_unet
from medseg.networks.bisenet import bisenet
from medseg.networks.blocks.conv import adopt
from medseg.networks.blocks.rater_code import RaterCode
from medseg.networks.boundary_head import boundary
from medseg.networks.cascade import cascade
from medseg.networks.direction_fused import direction_fused
from medseg.networks.distance_head import distance
from medseg.networks.fcn import fcn
from medseg.networks.from_monai import mednext, segresnet, swin_unetr, unetr
from medseg.networks.gg_net import gg_net
from medseg.networks.gra_unet import gra_unet
from medseg.networks.heads import segmentation
from medseg.networks.mel_net import mel_net
from medseg.networks.multi_scale import multi_scale_unet
from medseg.networks.object_boundary import object_boundary
from medseg.networks.unet import resenc_unet, unet
from medseg.networks.unpool import unpool_unet
from medseg.networks.vnet import vnet
from medseg.plugins import resolve
from medseg.types.plan import Network
from medseg.types.tensors import Decoded, NetworkOutput

BuildBackbone = Callable[..., nn.Module]
BuildHead = Callable[..., nn.Module]
BACKBONES: Mapping[str, BuildBackbone] = {
    "unet": unet,
    "resenc_unet": resenc_unet,
    "cascade": cascade,
    "object_boundary": object_boundary,
    "direction_fused": direction_fused,
    "segresnet": segresnet,
    "swin_unetr": swin_unetr,
    "unetr": unetr,
    "mednext": mednext,
    "bisenet": bisenet,
    "vnet": vnet,
    "attention_unet": attention_unet,
    "gra_unet": gra_unet,
    "unpool_unet": unpool_unet,
    "multi_scale_unet": multi_scale_unet,
    "mel_net": mel_net,
    "fcn": fcn,
    "gg_net": gg_net,
}
HEADS: Mapping[str, BuildHead] = {
    "segmentation": segmentation,
    "dsnt": landmark_heads.dsnt,
    "heatmap": landmark_heads.heatmap,
    "distance": distance,
    "boundary": boundary,
}


class HeadedNetwork(nn.Module):
    """Backbone and heads; the only module type the rest of medseg sees.

    In training heads see the features of every decoder scale, finest first; in eval mode, or without deep
    supervision, only the finest. Weights are the same either way.
    """

    def __init__(self, backbone: nn.Module, heads: Sequence[nn.Module], *, deep_supervision: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.deep_supervision = deep_supervision
        self.scale_weights = tuple(getattr(backbone, "scale_weights", ()))
        self.channels_last = False
        self.rater_codes = tuple(module for module in backbone.modules() if isinstance(module, RaterCode))

    def forward(self, image: Float[Tensor, "b c *s"], raters: Int[Tensor, " b"] | None = None) -> NetworkOutput:
        """What all heads return; `raters` says whose annotation each image is to get, where the network has codes."""
        for code in self.rater_codes:
            code.raters = raters
        if self.channels_last:
            image = image.contiguous(memory_format=channels_last(image.dim() - 2))
        found = self.backbone(image)
        found = found if isinstance(found, Decoded) else Decoded(tuple(found))
        scales = found.features if self.training and self.deep_supervision else found.features[:1]
        codes = torch.cat([code.codes for code in self.rater_codes], 1) if self.rater_codes else None
        weights = self.scale_weights if len(scales) > 1 else ()
        own = NetworkOutput(sides=found.sides, scale_weights=weights, rater_codes=codes)
        return merged([own, *(head(scales) for head in self.heads)])

    def taught_by(self, raters: Sequence[int]) -> None:
        """Say whose annotations will be learnt, by number; the mean of their codes is what nobody's images get."""
        for code in self.rater_codes:
            code.taught(raters)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "HeadedNetwork":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return arrange(self, channels_last=next(self.parameters()).device.type == "cpu")


def merged(parts: Sequence[NetworkOutput | tuple[Tensor, ...]]) -> NetworkOutput:
    """What several heads return as one record; a head that returns a tuple of tensors returns logits.

    Raises PlanError if two heads fill the same field.
    """
    filled: dict[str, Any] = {}
    for part in parts:
        output = part if isinstance(part, NetworkOutput) else NetworkOutput(tuple(part))
        own = {f.name: getattr(output, f.name) for f in fields(output)}
        own = {name: value for name, value in own.items() if value is not None and value != ()}
        if twice := sorted(filled.keys() & own.keys()):
            raise PlanError(f"two heads return {', '.join(twice)}", where="network.heads", hint="keep one of them")
        filled |= own
    return NetworkOutput(**filled)


def build_network(network: Network, *, channels: int, outputs: int, deep_supervision: bool = True) -> HeadedNetwork:
    """The network of a plan for `channels` image channels and `outputs` logits, initialised, on the CPU.

    On the CPU weights are in channels-last order (see `arrange`): make them contiguous before writing them to a
    file. Raises PlanError for unknown names and options, or a backbone without `feature_channels`.
    """
    build = resolve(network.use, BACKBONES, network.options, where="network.use")
    more = {"outputs": outputs} if "outputs" in inspect.signature(build).parameters else {}
    backbone = build(network.topology, in_channels=channels, **more)
    features = getattr(backbone, "feature_channels", None)
    if not features or not all(isinstance(n, int) for n in features):
        raise PlanError(
            f'"{network.use}" does not say how many channels its features have',
            where="network.use",
            hint="give the module an attribute feature_channels, a tuple of int, finest first",
        )
    weights = getattr(backbone, "scale_weights", features)
    if len(weights) != len(features) or min(weights) < 0 or not any(weights):
        what = f'"{network.use}" weighs its {len(features)} scales by {tuple(weights)}'
        raise PlanError(what, where="network.use", hint="give scale_weights a number from 0 per feature, not all 0")
    if not network.heads:
        raise PlanError("no heads", where="network.heads", hint="give at least one")
    heads = [
        resolve(step.use, HEADS, step.options, where=f"network.heads[{number}]")(
            network.topology, tuple(features), outputs=outputs
        )
        for number, step in enumerate(network.heads)
    ]
    whole = HeadedNetwork(backbone, heads, deep_supervision=deep_supervision)
    adopt(whole)
    return arrange(whole, channels_last=True)


def arrange(network: HeadedNetwork, *, channels_last: bool) -> HeadedNetwork:
    """Put convolution weights, and from now on images, in channels-last order or in plain order, in place.

    A network does this whenever it is moved: channels-last is a fifth to a third faster on CPUs; on GPUs the plain
    order lets one kernel normalise a whole batch.
    """
    network.channels_last = channels_last
    for weight in network.parameters():
        if weight.dim() > 3:
            order = _ORDERS[weight.dim()] if channels_last else torch.contiguous_format
            weight.data = weight.data.contiguous(memory_format=order)
    return network


_ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(ndim: int) -> torch.memory_format:
    """The memory order in which a voxel's channels are neighbours.

    >>> channels_last(3)
    torch.channels_last_3d
    """
    return _ORDERS[ndim + 2]
