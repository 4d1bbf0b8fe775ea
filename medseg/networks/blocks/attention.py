"""Attention by name, and where in an encoder-decoder it sits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medseg.errors import PlanError


@dataclass(frozen=True)
class Attention:
    """A kind of attention.

    "stage": `build(channels, ndim, spacing)` after every encoder stage; "bottom": the same after the coarsest only;
    "skip": `build(channels, gate_channels, ndim)` on every skip, called with the skip and the coarser decoder feature.
    `spacing` is that of the feature's voxels per axis.
    """

    place: Literal["stage", "bottom", "skip"]
    build: Callable[..., nn.Module]


ATTENTION: Mapping[str, Attention] = {}


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
