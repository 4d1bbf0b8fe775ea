"""Attention by name, and where in an encoder-decoder it sits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.acmix import AcmixBlock
from medseg.networks.blocks.aspp import Aspp
from medseg.networks.blocks.gates import Cbam, EfficientChannel, SelectiveKernel, SkipGate, SqueezeBoth, SqueezeExcite
from medseg.networks.blocks.self_attention import (
    BottleneckAttention,
    ChannelAttention,
    DualAttention,
    NonLocal,
    PositionAttention,
)


@dataclass(frozen=True)
class Attention:
    """A kind of attention.

    "stage": `build(channels, ndim, spacing)` after every encoder stage; "bottom": the same after the coarsest only;
    "skip": `build(channels, gate_channels, ndim)` on every skip, called with the skip and the coarser decoder feature.
    `spacing` is that of the feature's voxels per axis.
    """

    place: Literal["stage", "bottom", "skip"]
    build: Callable[..., nn.Module]


def gate(channels: int, gate_channels: int, ndim: int) -> nn.Module:
    """Attention gate on a skip, led by the coarser decoder feature (Oktay 2018)."""
    return SkipGate(channels, gate_channels, ndim)


def se(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Squeeze and excitation: a weight per channel (Hu 2018)."""
    return SqueezeExcite(channels, ndim)


def scse(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Squeeze and excitation of channels and of voxels, summed (Roy 2018)."""
    return SqueezeBoth(channels, ndim)


def sk(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Selective kernels: two reaches, mixed per channel (Li 2019)."""
    return SelectiveKernel(channels, ndim, spacing)


def cbam(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Convolutional block attention: a weight per channel, then per voxel (Woo 2018)."""
    return Cbam(channels, ndim, spacing)


def eca(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Efficient channel attention: a weight per channel from its neighbours' means (Wang 2020)."""
    return EfficientChannel(channels)


def non_local(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Non-local block: every voxel sees every other (Wang 2018)."""
    return NonLocal(channels, ndim)


def danet_position(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Position attention of DANet (Fu 2019)."""
    return PositionAttention(channels, ndim)


def danet_channel(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Channel attention of DANet (Fu 2019)."""
    return ChannelAttention()


def danet(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Position and channel attention of DANet, summed (Fu 2019)."""
    return DualAttention(channels, ndim)


def botnet(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Residual bottleneck with multi-head self-attention and relative positions (Srinivas 2021)."""
    return BottleneckAttention(channels, ndim)


def acmix(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Self-attention in a local window and a convolution that share their projections (Pan 2022)."""
    return AcmixBlock(channels, ndim, spacing)


def aspp(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Atrous spatial pyramid pooling with a dilation per axis (Chen 2017)."""
    return Aspp(channels, channels, spacing)


ATTENTION: Mapping[str, Attention] = {
    "gate": Attention("skip", gate),
    "se": Attention("stage", se),
    "scse": Attention("stage", scse),
    "sk": Attention("stage", sk),
    "cbam": Attention("stage", cbam),
    "eca": Attention("stage", eca),
    "non_local": Attention("bottom", non_local),
    "danet_position": Attention("bottom", danet_position),
    "danet_channel": Attention("bottom", danet_channel),
    "danet": Attention("bottom", danet),
    "botnet": Attention("bottom", botnet),
    "acmix": Attention("bottom", acmix),
    "aspp": Attention("bottom", aspp),
}


class PassSkip(nn.Module):
    """The skip as it is."""

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        return skip


def after_stage(name: str, channels: int, spacing: Sequence[float], *, coarsest: bool) -> tuple[nn.Module, ...]:
    """What follows an encoder stage: the attention `name`, or nothing."""
    kind = _known(name)
    if kind is None or kind.place == "skip" or (kind.place == "bottom" and not coarsest):
        return ()
    return (kind.build(channels, len(spacing), tuple(spacing)),)


def on_skip(name: str, channels: int, gate_channels: int, ndim: int) -> nn.Module:
    """What a skip passes, as a module of (skip, coarse)."""
    kind = _known(name)
    return kind.build(channels, gate_channels, ndim) if kind is not None and kind.place == "skip" else PassSkip()


def _known(name: str) -> Attention | None:
    if name == "none":
        return None
    if name not in ATTENTION:
        hint = f"use none or one of {', '.join(sorted(ATTENTION))}"
        raise PlanError(f'unknown attention "{name}"', where="network.options", hint=hint)
    return ATTENTION[name]
