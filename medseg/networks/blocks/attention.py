"""Attention by name, and where in an encoder-decoder it sits.

Several kinds are joined by "+", as in "gate+se"; after a stage they follow one another in that order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.acmix import AcmixBlock
from medseg.networks.blocks.aspp import Aspp
from medseg.networks.blocks.conv import Style
from medseg.networks.blocks.gates import Cbam, EfficientChannel, SelectiveKernel, SkipGate, SqueezeBoth, SqueezeExcite
from medseg.networks.blocks.options import options_of
from medseg.networks.blocks.rater_code import RaterCode
from medseg.networks.blocks.self_attention import (
    BottleneckAttention,
    ChannelAttention,
    DualAttention,
    NonLocal,
    PositionAttention,
)
from medseg.networks.blocks.style import AdaptiveInstanceNorm


@dataclass(frozen=True)
class Attention:
    """A kind of attention.

    "stage": `build(channels, ndim, spacing)` after every encoder stage; "bottom": the same after the coarsest only;
    "skip": `build(channels, gate_channels, ndim)` on every skip, called with the skip and the coarser decoder feature.
    `spacing` is that of the feature's voxels per axis. Further keywords are options: see `blocks.options`. What is
    `styled` is also given the `style` of the network, for layers like its own.
    """

    place: Literal["stage", "bottom", "skip"]
    build: Callable[..., nn.Module]
    styled: bool = False


def gate(channels: int, gate_channels: int, ndim: int) -> nn.Module:
    """Attention gate on a skip, led by the coarser decoder feature (Oktay 2018)."""
    return SkipGate(channels, gate_channels, ndim)


def se(channels: int, ndim: int, spacing: Sequence[float], *, reduction: int = 16) -> nn.Module:
    """Squeeze and excitation: a weight per channel (Hu 2018)."""
    return SqueezeExcite(channels, ndim, reduction=reduction)


def scse(channels: int, ndim: int, spacing: Sequence[float], *, reduction: int = 2) -> nn.Module:
    """Squeeze and excitation of channels and of voxels, summed (Roy 2018)."""
    return SqueezeBoth(channels, ndim, reduction=reduction)


def sk(channels: int, ndim: int, spacing: Sequence[float], *, style: Style | None = None) -> nn.Module:
    """Selective kernels: two reaches, mixed per channel (Li 2019)."""
    return SelectiveKernel(channels, ndim, spacing, style=style)


def cbam(channels: int, ndim: int, spacing: Sequence[float], *, reduction: int = 16) -> nn.Module:
    """Convolutional block attention: a weight per channel, then per voxel (Woo 2018)."""
    return Cbam(channels, ndim, spacing, reduction=reduction)


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


def botnet(
    channels: int, ndim: int, spacing: Sequence[float], *, heads: int = 4, style: Style | None = None
) -> nn.Module:
    """Residual bottleneck with multi-head self-attention and relative positions (Srinivas 2021)."""
    return BottleneckAttention(channels, ndim, heads=heads, style=style)


def acmix(
    channels: int, ndim: int, spacing: Sequence[float], *, heads: int = 4, window: int | None = None
) -> nn.Module:
    """Self-attention in a local window and a convolution that share their projections (Pan 2022)."""
    return AcmixBlock(channels, ndim, spacing, heads=heads, reach=window)


def aspp(
    channels: int,
    ndim: int,
    spacing: Sequence[float],
    *,
    rates: Sequence[int] = (6, 12, 18),
    style: Style | None = None,
) -> nn.Module:
    """Atrous spatial pyramid pooling with a dilation per axis (Chen 2017)."""
    return Aspp(channels, channels, spacing, rates=rates, style=style)


def rater_code(channels: int, ndim: int, spacing: Sequence[float], *, raters: int = 1, size: int = 16) -> nn.Module:
    """A learnt code of who annotated the scan, added to the coarsest features (Li 2021)."""
    return RaterCode(channels, raters=raters, size=size)


def adain(channels: int, ndim: int, spacing: Sequence[float]) -> nn.Module:
    """Adaptive instance norm: in prediction, features with the mean and deviation of training (Huang 2017)."""
    return AdaptiveInstanceNorm(channels)


ATTENTION: Mapping[str, Attention] = {
    "gate": Attention("skip", gate),
    "se": Attention("stage", se),
    "scse": Attention("stage", scse),
    "sk": Attention("stage", sk, styled=True),
    "cbam": Attention("stage", cbam),
    "eca": Attention("stage", eca),
    "adain": Attention("stage", adain),
    "non_local": Attention("bottom", non_local),
    "danet_position": Attention("bottom", danet_position),
    "danet_channel": Attention("bottom", danet_channel),
    "danet": Attention("bottom", danet),
    "botnet": Attention("bottom", botnet, styled=True),
    "acmix": Attention("bottom", acmix),
    "aspp": Attention("bottom", aspp, styled=True),
    "rater_code": Attention("bottom", rater_code),
}


class PassSkip(nn.Module):
    """The skip as it is."""

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        return skip


def after_stage(style: Style, channels: int, spacing: Sequence[float], *, coarsest: bool) -> tuple[nn.Module, ...]:
    """What follows an encoder stage of the kinds in the style's `attention`, or nothing."""
    places = ("stage", "bottom") if coarsest else ("stage",)
    return tuple(
        kind.build(
            channels,
            len(spacing),
            tuple(spacing),
            **({"style": style} if kind.styled else {}),
            **options_of(name, style.blocks),
        )
        for name, kind in kinds(style.attention).items()
        if kind.place in places
    )


def on_skip(attention: str, channels: int, gate_channels: int, ndim: int) -> nn.Module:
    """What a skip passes, as a module of (skip, coarse)."""
    for kind in kinds(attention).values():
        if kind.place == "skip":
            return kind.build(channels, gate_channels, ndim)
    return PassSkip()


def with_gate(attention: str) -> str:
    """`attention` with gates on the skips as well.

    >>> with_gate("none"), with_gate("se")
    ('gate', 'gate+se')
    """
    return "+".join(dict.fromkeys(["gate", *kinds(attention)]))


def kinds(attention: str) -> dict[str, Attention]:
    """The kinds that `attention` joins by "+", in order; none for "none". Raises PlanError for an unknown one."""
    names = [name for name in attention.split("+") if name != "none"]
    unknown = [name for name in names if name not in ATTENTION]
    if unknown:
        hint = f'use none, or one or several (joined by "+") of {", ".join(sorted(ATTENTION))}'
        raise PlanError(f'unknown attention "{unknown[0]}"', where="network.options", hint=hint)
    return {name: ATTENTION[name] for name in names}
