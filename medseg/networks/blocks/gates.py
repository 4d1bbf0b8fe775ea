"""Attention that weighs channels, voxels or skips by numbers between 0 and 1.

Every block takes (b, c, *s) of any size and returns the same shape. `spacing` is that of the voxels, per axis.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import activation
from medseg.networks.blocks.conv import InstanceNorm, Style, conv
from medseg.networks.blocks.extent import window
from medseg.networks.blocks.norms import NORMS
from medseg.networks.blocks.resample import resized


class SkipGate(nn.Module):
    """Attention gate (Oktay 2018): the skip times one weight per voxel, found from the skip and the coarser feature.

    The weight is sigmoid(norm(psi(relu(W_x skip + W_g coarse)))). `coarse` may have any size: its term is resampled
    linearly to the skip's, which is the same as resampling the feature, and cheaper. The norm is over the voxels of a
    sample, because batches hold few samples.
    """

    def __init__(self, channels: int, gate_channels: int, ndim: int) -> None:
        super().__init__()
        inner, ones = max(channels // 2, 1), (1,) * ndim
        self.from_skip = conv(channels, inner, ones, bias=False)
        self.from_coarse = conv(gate_channels, inner, ones)
        self.psi = conv(inner, 1, ones, bias=False)
        self.norm = InstanceNorm(1)

    def forward(self, skip: Tensor, coarse: Tensor) -> Tensor:
        return skip * self.weights(skip, coarse)

    def weights(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """What the skip is multiplied by, (b, 1, *s), between 0 and 1."""
        gate = resized(self.from_coarse(coarse), skip.shape[2:])
        return self.norm(self.psi(F.relu(self.from_skip(skip) + gate))).sigmoid()  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (Hu 2018): every channel times sigmoid(W2 relu(W1 mean)), without biases.

    The inner width is channels / `reduction`, at least 4. After an instance norm the means of a channel hardly differ
    between samples; other norms leave it more to see.
    """

    def __init__(self, channels: int, ndim: int, *, reduction: int = 16) -> None:
        super().__init__()
        inner, ones = max(4, channels // reduction), (1,) * ndim
        self.squeeze = conv(channels, inner, ones, bias=False)
        self.excite = conv(inner, channels, ones, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(mean(x)))).sigmoid()  # type: ignore[no-any-return]


class SqueezeBoth(nn.Module):
    """Concurrent channel and voxel squeeze and excitation, summed (Roy 2018)."""

    def __init__(self, channels: int, ndim: int, *, reduction: int = 2) -> None:
        super().__init__()
        self.channel = SqueezeExcite(channels, ndim, reduction=reduction)
        self.voxel = conv(channels, 1, (1,) * ndim)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(x) + x * self.voxel(x).sigmoid()  # type: ignore[no-any-return]


class EfficientChannel(nn.Module):
    """Efficient channel attention (Wang 2020): a 1D convolution over the channels' means.

    Its kernel is the odd number next to |log2(channels) / 2 + 1/2|.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = int(abs(math.log2(channels) / 2 + 0.5))
        kernel += 1 - kernel % 2
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = mean(x)
        gate = self.conv(pooled.flatten(1).unsqueeze(1)).sigmoid()
        return x * gate.reshape(pooled.shape)  # type: ignore[no-any-return]


class Cbam(nn.Module):
    """Convolutional block attention (Woo 2018): a weight per channel, then a weight per voxel.

    Channels: sigmoid(MLP(mean) + MLP(maximum)). Voxels: sigmoid of a convolution of the mean and the maximum over
    channels, 7 wide, less along axes of wider spacing.
    """

    def __init__(self, channels: int, ndim: int, spacing: Sequence[float], *, reduction: int = 16) -> None:
        super().__init__()
        inner, ones = max(4, channels // reduction), (1,) * ndim
        self.squeeze = conv(channels, inner, ones, bias=False)
        self.excite = conv(inner, channels, ones, bias=False)
        self.voxel = conv(2, 1, window(7, spacing))

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        x = x * (self._mlp(mean(x)) + self._mlp(x.amax(axes, keepdim=True))).sigmoid()
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.voxel(pooled).sigmoid()  # type: ignore[no-any-return]

    def _mlp(self, pooled: Tensor) -> Tensor:
        return self.excite(F.relu(self.squeeze(pooled)))  # type: ignore[no-any-return]


class SelectiveKernel(nn.Module):
    """Selective kernels (Li 2019): two convolutions, 3 wide and 5 wide (3 dilated by 2), mixed per channel.

    The shares of the two sum to 1: a softmax of W_i relu(norm(W mean of their sum)), whose inner width is
    channels / 16, at least 32. Convolutions have up to 32 groups and are 1 wide along axes of more than twice the
    finest spacing; norm and activation after them are those of `style`. The inner norm is over its channels, because
    batches hold few samples.
    """

    def __init__(self, channels: int, ndim: int, spacing: Sequence[float], *, style: Style | None = None) -> None:
        super().__init__()
        style = style or Style()
        inner, ones, kernel = max(channels // 16, 32), (1,) * ndim, window(3, spacing)
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv(channels, channels, kernel, bias=False, groups=math.gcd(channels, 32), dilation=(rate,) * ndim),
                NORMS[style.norm](channels),
                activation(style.act, channels),
            )
            for rate in (1, 2)
        )
        self.squeeze = nn.Sequential(conv(channels, inner, ones, bias=False), nn.GroupNorm(1, inner), nn.ReLU())
        self.select = nn.ModuleList(conv(inner, channels, ones) for _ in self.branches)

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        return sum((u * share for u, share in zip(found, self._shares(found), strict=True)), torch.zeros_like(x))

    def shares(self, x: Tensor) -> Tensor:
        """What every branch counts for, (2, b, c, 1, ...)."""
        return self._shares([branch(x) for branch in self.branches])

    def _shares(self, found: Sequence[Tensor]) -> Tensor:
        inner = self.squeeze(mean(torch.stack(list(found)).sum(0)))
        return torch.stack([select(inner) for select in self.select]).float().softmax(0).to(found[0].dtype)


def mean(x: Tensor) -> Tensor:
    """Mean over all voxels, which stay as axes of length 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)
