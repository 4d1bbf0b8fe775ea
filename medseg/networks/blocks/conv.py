"""Convolution, norm and activation for 2D and 3D."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from medseg.errors import PlanError
from medseg.networks.blocks.activations import ACTS, SLOPES, ActKind, acted, after_conv, pieces
from medseg.networks.blocks.drop import channel_dropout, check_chance
from medseg.networks.blocks.norm_act import instance_norm_act, keep_recipe
from medseg.networks.blocks.norms import NORMS, BatchNorm, InstanceNorm, NoNorm, NormKind, fold
from medseg.networks.blocks.options import BlockOptions, check_options
from medseg.networks.blocks.wide_kernels import convolve, convolve_up

__all__ = [
    "ActKind",
    "ConvNormAct",
    "InstanceNorm",
    "NormKind",
    "Style",
    "conv",
    "initialise",
    "start_at_zero",
    "up_conv",
]


@dataclass(frozen=True)
class Style:
    """What every layer of a network shares.

    `norm`, `act` and `attention` name entries of `blocks.norms.NORMS`, `blocks.activations.ACTS` and
    `blocks.attention.ATTENTION`; `dropout` is the chance to drop a channel, `drop_path` that to drop the branch of a
    `ResidualBlock`. `blocks` are options of the chosen blocks.
    """

    norm: NormKind = "instance"
    act: ActKind = "leaky_relu"
    attention: str = "none"
    dropout: float = 0.0
    drop_path: float = 0.0
    blocks: BlockOptions = field(default_factory=BlockOptions)

    def __post_init__(self) -> None:
        for name, value, known in (("norm", self.norm, NORMS), ("act", self.act, ACTS)):
            if value not in known:
                raise PlanError(
                    f'unknown {name} "{value}"', where="network.options", hint=f"use one of {', '.join(known)}"
                )
        check_chance(self.dropout, "dropout")
        check_chance(self.drop_path, "drop_path")
        check_options(self.blocks)


class ConvNormAct(nn.Module):
    """Convolution, norm and, unless `act` is false, activation and dropout; (b, c, *s) to (b, c', *s / stride).

    For maxout the convolution and its norm are twice as wide.
    """

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
        dilation: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        width = outputs * pieces(style.act) if act else outputs
        self.conv = conv(inputs, width, kernel, stride, groups=groups, dilation=dilation)
        self.norm = NORMS[style.norm](width)
        self.act = after_conv(style.act, outputs) if act else None
        self.drop = channel_dropout(style.dropout, len(kernel)) if act and style.dropout > 0 else None
        self.slope = SLOPES.get(style.act) if act else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.norm, InstanceNorm) and self.slope is not None:
            x = instance_norm_act(x, self.norm.weight, self.norm.bias, eps=self.norm.eps, slope=self.slope)
        else:
            x = self.norm(x)
            x = x if self.act is None else acted(self.act, x)
        return x if self.drop is None else self.drop(x)

    def fuse(self) -> nn.Module:
        """The layer, its batch norm made part of the convolution as eval mode has it; other norms stay."""
        if isinstance(self.norm, BatchNorm):
            layer = next(part for part in self.conv.modules() if isinstance(part, _ConvNd))
            axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
            with_weights(layer, *fold(layer.weight, layer.bias, self.norm, axis=axis))
            self.norm = NoNorm()
        return self


def start_at_zero(layer: ConvNormAct) -> None:
    """Let a layer without activation return 0 until it has learnt: the weight of its norm, or else its convolution."""
    weight = getattr(layer.norm, "weight", None)
    if isinstance(weight, Tensor):
        nn.init.zeros_(weight)
    else:
        layer.conv.starts_at_zero = True  # type: ignore[assignment]  # for `initialise`


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
    kind: type[nn.Conv2d | nn.Conv3d] = _Conv2d if len(kernel) == 2 else _Conv3d
    ones = (1,) * len(kernel)
    steps, apart = tuple(stride or ones), tuple(dilation or ones)
    padding = tuple(k // 2 * d for k, d in zip(kernel, apart, strict=True))
    if groups > 1 and max(apart) > 1 and len(kernel) == 2:
        kind = _Float32Conv2d
    return kind(inputs, outputs, tuple(kernel), steps, padding, apart, groups, bias)  # type: ignore[arg-type]


def with_weights(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """A convolution that has been given these, in place."""
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def up_conv(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Transposed convolution whose kernel is its stride: every voxel becomes a block of voxels."""
    kind = _Up2d if len(stride) == 2 else _Up3d
    return kind(inputs, outputs, tuple(stride), tuple(stride))  # type: ignore[arg-type]


def initialise(network: nn.Module) -> None:
    """Kaiming normal for the slope 0.01 and zero bias in every convolution (He 2015); 0 after `start_at_zero`.

    For transposed convolutions torch counts a fan-in of outputs * kernel, as nnU-Net has it: their weights start
    smaller than those of convolutions with as many inputs.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if getattr(module, "starts_at_zero", False):
                nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def adopt(network: nn.Module) -> None:
    """Let convolutions of torch's own classes compute as those made by `conv` do; weights and their names stay."""
    for module in network.modules():
        module.__class__ = _OWN.get(type(module), type(module))


def _convolved(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    with keep_recipe(x):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return layer._conv_forward(x, layer.weight, layer.bias)  # type: ignore[no-any-return]
        steps = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return convolve(x, layer.weight, layer.bias, **steps, groups=layer.groups)


def _convolved_up(layer: nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor) -> Tensor:
    steps = {"stride": layer.stride, "dilation": layer.dilation}
    ends = {"padding": layer.padding, "output_padding": layer.output_padding}
    with keep_recipe(x):
        return convolve_up(x, layer.weight, layer.bias, **steps, **ends, groups=layer.groups)  # type: ignore[arg-type]


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x)


class _Float32Conv2d(_Conv2d):
    """Grouped and dilated, always in float32: in bfloat16, torch 2.13 on CPUs gives its weights gradients that are not
    the same twice and sometimes not finite (channels-last order).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


class _Conv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return _convolved(self, x)


class _Up2d(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolved_up(self, x) if output_size is None else super().forward(x, output_size)


class _Up3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _convolved_up(self, x) if output_size is None else super().forward(x, output_size)


_OWN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.ConvTranspose2d: _Up2d,
    nn.ConvTranspose3d: _Up3d,
}
