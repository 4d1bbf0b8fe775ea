"""Activations by name."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.norm_act import compute_again, recomputed

ActKind = Literal[
    "leaky_relu", "relu", "silu", "swish", "mish", "gelu", "elu", "prelu", "sigmoid", "tanh", "softplus", "maxout"
]  # fmt: skip
SLOPES = {"leaky_relu": 0.01, "relu": 0.0}
_PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


class Activation(nn.Module):
    """A function without weights; (leaky) ReLU works in place where nobody needs its input again."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if self.act in SLOPES:
            return F.leaky_relu(x, SLOPES[self.act], inplace=recomputed(x) is None)
        return _PLAIN[self.act](x)

    def extra_repr(self) -> str:
        return self.act


class PRelu(nn.PReLU):
    """Leaky ReLU with a learnt slope (He 2015), which follows the precision of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight.to(input.dtype))


class Swish(nn.Module):
    """x * sigmoid(beta x) with a learnt beta per channel that starts at 1 (Ramachandran 2017); silu keeps it at 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta.to(x.dtype).view(-1, *(1,) * (x.dim() - 2)) * x)


class Maxout(nn.Module):
    """The largest of every `pieces` channels in a row (Goodfellow 2013): (b, pieces * c, *s) to (b, c, *s).

    Channels in a row come from one group of a grouped convolution, so that depthwise ones stay depthwise.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (x[:, piece :: self.pieces] for piece in range(self.pieces))
        for other in others:
            first = torch.maximum(first, other)
        return first


class ChannelMaxout(nn.Module):
    """The larger of two learnt lines per channel: maxout where no convolution before it can be widened.

    The lines start as those of leaky ReLU, slopes 1 and 0.01.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([[1.0], [0.01]]).repeat(1, channels))
        self.shift = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = (-1, *(1,) * (x.dim() - 2))
        slope, shift = self.slope.to(x.dtype), self.shift.to(x.dtype)
        return torch.maximum(*(torch.addcmul(b.view(size), x, a.view(size)) for a, b in zip(slope, shift, strict=True)))


# Those with weights: function from channels to module.
_LEARNT: Mapping[str, Callable[[int], nn.Module]] = {"prelu": PRelu, "swish": Swish, "maxout": ChannelMaxout}
ACTS = (*SLOPES, *_PLAIN, *_LEARNT)


def activation(act: str, channels: int) -> nn.Module:
    """The activation named `act` for tensors (b, channels, *s), which keep their shape."""
    learnt = _LEARNT.get(act)
    return learnt(channels) if learnt else Activation(act)


def acted(activation: nn.Module, x: Tensor) -> Tensor:
    """The activation of `x`; consumers compute it again from `x`, unless it may work in place."""
    if isinstance(activation, Activation) and activation.act in SLOPES:
        return activation(x)  # type: ignore[no-any-return]
    return compute_again(activation, x)


def pieces(act: str) -> int:
    """How many times wider a convolution is whose activation is `act`; `after_conv` brings the width back.

    >>> pieces("maxout"), pieces("relu")
    (2, 1)
    """
    return 2 if act == "maxout" else 1


def after_conv(act: str, channels: int) -> nn.Module:
    """The activation after a convolution with `channels * pieces(act)` outputs; returns `channels`."""
    return Maxout(pieces(act)) if act == "maxout" else activation(act, channels)
