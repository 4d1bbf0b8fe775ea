"""Norms by name for 2D and 3D."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.norm_act import instance_norm_act

NormKind = Literal[
    "instance", "group", "batch", "layer", "global_layer", "switchable", "switchable_no_bn", "none"
]  # fmt: skip


class InstanceNorm(nn.Module):
    """Zero mean and unit variance per sample and channel, then scale and shift (Ulyanov 2016)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_act(x, self.weight, self.bias, eps=self.eps)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Statistics per channel over the batch in training, running ones in eval (Ioffe 2015); any number of axes.

    Raises PlanError in training where a channel has a single value.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if self.training and input.numel() == input.shape[1]:
            raise PlanError(
                "batch norm has one value per channel to learn from",
                where="network.options",
                hint="use another norm, a larger batch or a larger patch",
            )


class ChannelLayerNorm(nn.Module):
    """Statistics over the channels of each voxel (Ba 2016; Liu 2022), so any size; then scale and shift per channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).movedim(-1, 1)


class SwitchableNorm(nn.Module):
    """A learnt mixture of instance, layer and, unless `batch` is false, batch statistics (Luo 2019).

    Means and variances have a softmax each, which start at equal shares. Layer statistics are over all channels and
    voxels of a sample. In eval the batch's are running averages; for batches of a few samples leave them out.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, batch: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.batch, self.eps, self.momentum = batch, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean_share = nn.Parameter(torch.zeros(3 if batch else 2))
        self.var_share = nn.Parameter(torch.zeros(3 if batch else 2))
        if batch:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        var, mean = torch.var_mean(wide, tuple(range(2, x.dim())), correction=0)
        kinds = [(mean, var), _pooled(mean, var, 1)]
        if self.batch:
            kinds.append(self._batch_statistics(mean, var))
        mean = _mixed(self.mean_share, [kind[0] for kind in kinds])
        var = _mixed(self.var_share, [kind[1] for kind in kinds])
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        size = (*mean.shape, *(1,) * (x.dim() - 2))
        return torch.addcmul(shift.view(size), wide, scale.view(size)).to(x.dtype)

    def _batch_statistics(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean[None], self.running_var[None]
        mean, var = _pooled(mean, var, 0)
        with torch.no_grad():
            self.running_mean.lerp_(mean[0].to(self.running_mean), self.momentum)
            self.running_var.lerp_(var[0].to(self.running_var), self.momentum)
        return mean, var


def _pooled(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Statistics of the union of equally large groups: E[x^2] - E[x]^2 without the cancellation."""
    spread, centre = torch.var_mean(mean, axis, correction=0, keepdim=True)
    return centre, var.mean(axis, keepdim=True) + spread


def _mixed(share: Tensor, kinds: list[Tensor]) -> Tensor:
    total = torch.zeros_like(kinds[0])
    for weight, kind in zip(share.softmax(0), kinds, strict=True):
        total = total + weight * kind
    return total


class NoNorm(nn.Identity):
    """Leaves its input alone; `weight` is None, so there is none to start at 0."""

    weight = None


@torch.no_grad()
def fold(weight: Tensor, bias: Tensor | None, norm: BatchNorm, *, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what it and the batch norm after it do in eval mode.

    `axis` is that of the outputs: 1 in transposed convolutions.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    folded = weight.double() * scale.view([-1 if a == axis else 1 for a in range(weight.dim())])
    return folded.to(weight.dtype), shift.to(weight.dtype)


def _group_norm(channels: int) -> nn.Module:
    """Groups of 8 channels or more, at most 32 of them, all of the same size (Wu 2018)."""
    most = max(1, min(32, channels // 8))
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def _global_layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _switchable_no_bn(channels: int) -> nn.Module:
    return SwitchableNorm(channels, batch=False)


def _none(channels: int) -> nn.Module:
    return NoNorm()


# Name: function from channels to module. "layer" looks at the channels of a voxel, "global_layer" at a whole sample.
NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "instance": InstanceNorm,
    "group": _group_norm,
    "batch": BatchNorm,
    "layer": ChannelLayerNorm,
    "global_layer": _global_layer_norm,
    "switchable": SwitchableNorm,
    "switchable_no_bn": _switchable_no_bn,
    "none": _none,
}
