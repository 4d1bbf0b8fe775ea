"""Self-attention in a local window and a convolution that share their projections (Pan 2022)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import conv
from medseg.networks.blocks.extent import window
from medseg.networks.blocks.self_attention import silent_conv
from medseg.networks.blocks.wide_kernels import convolve


class Acmix(nn.Module):
    """0.5 * attention + 0.5 * convolution of the same queries, keys and values; both factors are learnt.

    Attention: per head, softmax over a window around each voxel of q (k + p) / sqrt(d), where p is linear in the
    offset divided by the window's radius; voxels outside the image are left out. The window is `reach` voxels wide (7
    in 2D and 5 in 3D unless given). Convolution: the heads of q, k and v are mixed to one map per tap of a 3-wide
    kernel, and a grouped convolution, which starts as the shift of each map by its tap, sums them. Both are narrower
    along axes of wider spacing. Of `heads` there are as many as divide both them and the channels. Takes (b, c, *s) of
    any size. Raises PlanError for a window without a middle.
    """

    def __init__(
        self, channels: int, ndim: int, spacing: Sequence[float], *, heads: int = 4, reach: int | None = None
    ) -> None:
        super().__init__()
        reach = reach or (7 if ndim == 2 else 5)
        if reach % 2 == 0:
            raise PlanError(f"a window of {reach} has no middle", where="network.options", hint="an odd acmix_window")
        ones, self.heads = (1,) * ndim, math.gcd(heads, channels)
        self.width = channels // self.heads
        self.query, self.key, self.value = (conv(channels, channels, ones) for _ in range(3))
        self.window, self.kernel = window(reach, spacing), window(3, spacing)
        taps = math.prod(self.kernel)
        self.position = nn.Parameter(torch.randn(self.width, ndim) / math.sqrt(self.width))
        self.mix = nn.Parameter(torch.randn(taps, 3 * self.heads) * math.sqrt(2 / (3 * self.heads)))
        shifts = torch.eye(taps).reshape(1, taps, *self.kernel)
        self.shift = nn.Parameter(shifts.repeat(channels, *(1,) * (ndim + 1)))
        self.shares = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        attended = self.attention(q, k, v).to(x.dtype)
        return self.shares[0] * attended + self.shares[1] * self.convolution(q, k, v)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention branch of (b, heads, d, *s), as (b, c, *s) float32."""
        axes = tuple(range(-len(self.window), 0))
        with torch.autocast(q.device.type, enabled=False):
            q = q.float() / math.sqrt(self.width)
            near = self._windows(k.float())
            places = torch.einsum("bhd...,dp->bhp...", q, self.position.float() @ self._offsets(q))
            logits = (q[(...,) + (None,) * len(axes)] * near).sum(2)
            logits = logits + places.movedim(2, -1).reshape(logits.shape)
            inside = self._windows(torch.ones_like(q[:1, :1, 0])) > 0
            logits = logits.masked_fill(~inside, -torch.inf)
            weights = logits.flatten(axes[0]).softmax(-1).reshape(logits.shape)
            return (weights.unsqueeze(2) * self._windows(v.float())).sum(axes).flatten(1, 2)

    def convolution(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The convolution branch of (b, heads, d, *s), as (b, c, *s)."""
        maps = torch.einsum("th,bhd...->bdt...", self.mix, torch.cat([q, k, v], 1)).flatten(1, 2)
        padding, ones = tuple(k // 2 for k in self.kernel), (1,) * len(self.kernel)
        return convolve(maps, self.shift, None, stride=ones, padding=padding, dilation=ones, groups=self.width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, self.width, *x.shape[2:])

    def _windows(self, x: Tensor) -> Tensor:
        """The window of every voxel as new last axes, 0 outside: (..., *s, *window), a view."""
        pads = [n // 2 for n in reversed(self.window) for _ in range(2)]
        x, first = F.pad(x, pads), x.dim() - len(self.window)
        for axis, n in enumerate(self.window):
            x = x.unfold(first + axis, n, 1)
        return x

    def _offsets(self, like: Tensor) -> Tensor:
        """Every offset of the window divided by its radius, (ndim, voxels of the window)."""
        axes = [torch.linspace(-1, 1, n, device=like.device) if n > 1 else like.new_zeros(1) for n in self.window]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


class AcmixBlock(nn.Module):
    """x + W Acmix(x); W starts at 0, so that a new block passes its input unchanged."""

    def __init__(
        self, channels: int, ndim: int, spacing: Sequence[float], *, heads: int = 4, reach: int | None = None
    ) -> None:
        super().__init__()
        self.acmix = Acmix(channels, ndim, spacing, heads=heads, reach=reach)
        self.out = silent_conv(channels, channels, ndim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.acmix(x))  # type: ignore[no-any-return]
