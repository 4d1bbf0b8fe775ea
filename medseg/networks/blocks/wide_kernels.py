"""Convolutions whose kernel is wider than the feature, with right gradients.

On CPUs torch 2.13 gives the weights of such convolutions gradients made of memory that nobody wrote, and may write past
its buffers: in bfloat16 with kernels of 3 over 2 voxels, of 5 over 2 to 4, of 7 over 2 to 6, and with kernels of 7 and
a stride of 2 in float32, too. Zeros that are written around the feature, or cut off the result of a transposed
convolution, leave the result as it is and avoid this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVS: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}
_UP_CONVS: dict[int, Callable[..., Tensor]] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`F.conv2d` or `F.conv3d` of (b, c, *s) or (c, *s), zeros written out where a kernel is wider than `x`."""
    run = _CONVS[len(stride)]
    if _learns() and any(
        p and d == 1 and n <= k
        for n, k, p, d in zip(x.shape[-len(stride) :], weight.shape[2:], padding, dilation, strict=True)
    ):
        x, padding = F.pad(x, [p for each in reversed(padding) for p in (each, each)]), (0,) * len(padding)
    return run(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def convolve_up(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`F.conv_transpose2d` or `3d` of (b, c, *s), made whole and cut where a kernel is wider than `x` is."""
    run, size, kernel = _UP_CONVS[len(stride)], x.shape[-len(stride) :], weight.shape[2:]
    parts = list(zip(size, kernel, stride, padding, output_padding, strict=True))
    whole = _learns() and max(dilation) == 1 and all(e <= p for _, _, _, p, e in parts)
    if not (whole and any(p and n <= k for n, k, _, p, _ in parts)):
        return run(x, weight, bias, tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation))
    y = run(x, weight, bias, tuple(stride), 0, 0, groups)
    inner: tuple[Any, ...] = (..., *(slice(p, (n - 1) * s + k - p + e) for n, k, s, p, e in parts))
    return y[inner]


def _learns() -> bool:
    """Whether gradients will be asked for; not while a graph is recorded, which must not depend on sizes."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()
