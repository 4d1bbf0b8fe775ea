"""Attention of voxels, or channels, to each other.

Every block takes (b, c, *s) of any size, returns the same shape and passes its input unchanged when new. Products and
softmax are float32 under any autocast. Where there are more than 4096 voxels, keys and values are averaged over blocks
of voxels until at most that many remain, so that memory grows with the number of voxels and not with its square. Keys
have no bias: it would move all logits of a query alike, and the softmax takes it out.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import activation
from medseg.networks.blocks.conv import ConvNormAct, Style, conv, initialise
from medseg.networks.blocks.resample import hat, pooled

TOKENS = 4096


class NonLocal(nn.Module):
    """x + W softmax(theta' phi) g, the embedded Gaussian at half the channels (Wang 2018).

    W starts at 0. The paper has a batch norm after it, which starts at 0; a norm over the voxels of a sample would take
    away what attention adds to all of them alike. phi and g are averaged over blocks of voxels above `TOKENS`.
    """

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        inner, ones = max(channels // 2, 1), (1,) * ndim
        self.theta = conv(channels, inner, ones)
        self.phi, self.g = (conv(channels, inner, ones, bias=False) for _ in range(2))
        self.out = silent_conv(inner, channels, ndim)

    def forward(self, x: Tensor) -> Tensor:
        few = pooled(x, TOKENS)
        found = attend(tokens(self.theta(x)), tokens(self.phi(few)), tokens(self.g(few)))
        return x + self.out(grid(found, x))  # type: ignore[no-any-return]


class PositionAttention(nn.Module):
    """x + gamma * softmax(Q K') V over voxels, queries and keys at an eighth of the channels (Fu 2019)."""

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        inner, ones = max(channels // 8, 1), (1,) * ndim
        self.query, self.key = conv(channels, inner, ones), conv(channels, inner, ones, bias=False)
        self.value = conv(channels, channels, ones)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        few = pooled(x, TOKENS)
        found = attend(tokens(self.query(x)), tokens(self.key(few)), tokens(self.value(few)))
        return x + self.gamma * grid(found, x)


class ChannelAttention(nn.Module):
    """x + gamma * softmax(max(E) - E) x with the products of channels E = x x' (Fu 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * mix_channels(channel_products(x), x)


class DualAttention(nn.Module):
    """Attention over voxels and over channels, side by side and summed (Fu 2019)."""

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        self.position, self.channel = PositionAttention(channels, ndim), ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.position(x) + (self.channel(x) - x)  # type: ignore[no-any-return]


class RelativeAttention(nn.Module):
    """Heads of softmax((q k' + q r') / sqrt(d)) v with relative positions r (Vaswani 2017; Shaw 2018; Srinivas 2021).

    r is the sum of one vector per axis, looked up in a table of 2 * `reference` - 1 offsets that is stretched to the
    feature's size, so that any size is taken. Of `heads` there are as many as divide both them and the channels.
    """

    def __init__(self, channels: int, ndim: int, *, heads: int = 4, reference: int = 14) -> None:
        super().__init__()
        self.heads = math.gcd(heads, channels)
        width = channels // self.heads
        ones = (1,) * ndim
        self.query = conv(channels, channels, ones)
        self.key, self.value = (conv(channels, channels, ones, bias=False) for _ in range(2))
        self.tables = nn.ParameterList(
            nn.Parameter(torch.randn(2 * reference - 1, width) / math.sqrt(width)) for _ in range(ndim)
        )

    def forward(self, x: Tensor) -> Tensor:
        few = pooled(x, TOKENS)
        q, k, v = (self._split(t) for t in (self.query(x), self.key(few), self.value(few)))
        with torch.autocast(x.device.type, enabled=False):
            q = q.float() / math.sqrt(q.shape[-1])
            logits = q @ k.float().mT + self.positions(q, x.shape[2:], few.shape[2:])
            found = logits.softmax(-1) @ v.float()
        return grid(found.mT.flatten(1, 2).mT, x)

    def positions(self, q: Tensor, size: Sequence[int], few: Sequence[int]) -> Tensor:
        """q r' of (b, heads, n, d) queries on a grid of `size` to keys on a grid of `few`: (b, heads, n, m)."""
        total = q.new_zeros(())
        for axis, table in enumerate(self.tables):
            r = stretched(table.float(), size[axis], few[axis])
            lines = q.reshape(-1, size[axis], math.prod(size[axis + 1 :]), q.shape[-1]).transpose(0, 1)
            own = torch.bmm(lines.flatten(1, 2), r.mT).reshape(*lines.shape[:3], -1).transpose(0, 1)
            total = total + own.reshape(*q.shape[:3], *(m if a == axis else 1 for a, m in enumerate(few)))
        return total.flatten(3)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, x.shape[1] // self.heads, -1).mT


class BottleneckAttention(nn.Module):
    """A residual bottleneck whose convolution is `RelativeAttention`, at a quarter of the channels (Srinivas 2021).

    After the attention the norm is over all of a sample: over the voxels of a channel it would take away what attention
    adds to all of them alike. The last convolution starts at 0 and has no norm; there is no activation after the sum.
    """

    def __init__(self, channels: int, ndim: int, *, heads: int = 4, style: Style | None = None) -> None:
        super().__init__()
        inner, ones, style = max(channels // 4, 1), (1,) * ndim, style or Style()
        self.reduce = ConvNormAct(channels, inner, ones, ones, style)
        self.attention = RelativeAttention(inner, ndim, heads=heads)
        self.between = nn.Sequential(nn.GroupNorm(1, inner), activation(style.act, inner))
        self.expand = silent_conv(inner, channels, ndim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.between(self.attention(self.reduce(x))))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0) -> Tensor:
    """softmax(scale * q k') v of (b, n, d), (b, m, d) and (b, m, e), in float32, without keeping n x m numbers."""
    wide = max(q.shape[-1], v.shape[-1])
    with torch.autocast(q.device.type, enabled=False):
        query, key, value = (F.pad(t.float(), (0, wide - t.shape[-1])).contiguous()[:, None] for t in (q, k, v))
        found = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return found[:, 0, :, : v.shape[-1]]


def channel_products(x: Tensor) -> Tensor:
    """The products of all pairs of channels, (b, c, c) float32."""
    with torch.autocast(x.device.type, enabled=False):
        flat = x.flatten(2).float()
        return flat @ flat.mT


def mix_channels(energy: Tensor, x: Tensor) -> Tensor:
    """softmax(max - energy) x: every channel a mean of those least like it."""
    with torch.autocast(x.device.type, enabled=False):
        weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return (weights @ x.flatten(2).float()).reshape(x.shape).to(x.dtype)


def stretched(table: Tensor, size: int, few: int) -> Tensor:
    """A table (2w - 1, d) of offsets from -(w - 1) to w - 1, read at those between `size` and `few` places: (n, m, d).

    Places are the centres of equal parts of the axis. The largest offset reads the table's end, none its middle.
    """
    device, half = table.device, len(table) // 2
    places = [(torch.arange(n, device=device) + 0.5) * (size / n) for n in (size, few)]
    offsets = (places[1] - places[0][:, None]) * (half / max(size - 1, 1)) + half
    return hat(offsets, len(table)) @ table


def tokens(x: Tensor) -> Tensor:
    """(b, c, *s) as (b, n, c)."""
    return x.flatten(2).mT


def grid(found: Tensor, like: Tensor) -> Tensor:
    """(b, n, c) with the spatial size and dtype of `like`, as (b, c, *s)."""
    return found.mT.reshape(like.shape[0], -1, *like.shape[2:]).to(like.dtype)


def silent_conv(inputs: int, outputs: int, ndim: int) -> nn.Module:
    """A 1x1 convolution of weight 0, which makes a new residual branch return nothing."""
    layer = conv(inputs, outputs, (1,) * ndim)
    layer.starts_at_zero = True  # type: ignore[assignment]  # for `initialise`
    initialise(layer)
    return layer
