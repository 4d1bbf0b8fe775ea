"""Convolution, norm and activation for 2D and 3D."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.norm_act import instance_norm_act, keep_recipe, recomputed

NormKind = Literal["instance", "group", "batch"]
ActKind = Literal["leaky_relu", "relu", "silu"]
_SLOPES = {"leaky_relu": 0.01, "relu": 0.0}


@dataclass(frozen=True)
class Style:
    """What every layer of a network shares.

    `attention` names an entry of `blocks.attention.ATTENTION`; `dropout` is the chance to drop a channel.
    """

    norm: NormKind = "instance"
    act: ActKind = "leaky_relu"
    attention: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("norm", self.norm, _NORMS), ("act", self.act, _ACTS)):
            if value not in known:
                raise PlanError(
                    f'unknown {name} "{value}"', where="network.options", hint=f"use one of {', '.join(known)}"
                )


class ConvNormAct(nn.Module):
    """Convolution, norm and, unless `act` is false, activation; (b, c, *s) to (b, c', *s / stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        style: Style,
        *,
        act: bool = True,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, stride, groups=groups)
        self.norm = _NORMS[style.norm](outputs)
        self.act = style.act if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.norm, InstanceNorm) and self.act in (None, *_SLOPES):
            slope = 1.0 if self.act is None else _SLOPES[self.act]
            return instance_norm_act(x, self.norm.weight, self.norm.bias, eps=self.norm.eps, slope=slope)
        x = self.norm(x)
        return x if self.act is None else activate(x, self.act)


class InstanceNorm(nn.Module):
    """Zero mean and unit variance per sample and channel, then scale and shift (Ulyanov 2016)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, self.weight, self.bias, eps=self.eps)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm for any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        return


def conv(
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    *,
    bias: bool = True,
    groups: int = 1,
    dilation: Sequence[int] | None = None,
) -> nn.Module:
    """Convolution that keeps the size (divided by `stride`); raises PlanError for an even kernel."""
    if any(k % 2 == 0 for k in kernel):
        raise PlanError(f"kernel {tuple(kernel)} is even", where="network.topology.kernels", hint="use odd sizes")
    kind = _Conv2d if len(kernel) == 2 else _Conv3d
    ones = (1,) * len(kernel)
    steps, apart = tuple(stride or ones), tuple(dilation or ones)
    padding = tuple(k // 2 * d for k, d in zip(kernel, apart, strict=True))
    return kind(inputs, outputs, tuple(kernel), steps, padding, apart, groups, bias)  # type: ignore[arg-type]


def up_conv(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Transposed convolution whose kernel is its stride: every voxel becomes a block of voxels."""
    kind = _Up2d if len(stride) == 2 else _Up3d
    return kind(inputs, outputs, tuple(stride), tuple(stride))  # type: ignore[arg-type]


def activate(x: Tensor, act: ActKind) -> Tensor:
    """The activation, in place where its backward pass allows."""
    return F.silu(x) if act == "silu" else F.leaky_relu(x, _SLOPES[act], inplace=True)


def initialise(network: nn.Module) -> None:
    """Kaiming normal for the slope 0.01 and zero bias in every convolution (He 2015)."""
    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if recomputed(x) is None:
            return super().forward(x)
        with keep_recipe(x):
            return super().forward(x)


class _Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        if recomputed(x) is None:
            return super().forward(x)
        with keep_recipe(x):
            return super().forward(x)


class _Up2d(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if recomputed(x) is None:
            return super().forward(x, output_size)
        with keep_recipe(x):
            return super().forward(x, output_size)


class _Up3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if recomputed(x) is None:
            return super().forward(x, output_size)
        with keep_recipe(x):
            return super().forward(x, output_size)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"instance": InstanceNorm, "group": _group_norm, "batch": _BatchNorm}
_ACTS = (*_SLOPES, "silu")
