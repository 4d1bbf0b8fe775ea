"""Max pooling that remembers where, and its inverse, over windows that do not overlap, in 2D and 3D.

Made of reshapes and selections, so that results and gradients repeat bit for bit on every device; torch's own
unpooling, and the gradient of its 3D max pooling, are refused there once deterministic algorithms are asked for.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def pool_with_places(
    x: Float[Tensor, "b c *s"], size: Sequence[int]
) -> tuple[Float[Tensor, "b c *t"], Int[Tensor, "b c *t"]]:
    """The largest value of every window of `size` voxels, and its place in the window, counted in C order.

    Of equal values the first counts. The size of `x` is a multiple of `size`.
    """
    values, places = _windows(x, size).max(-1)
    return values, places


def unpool(x: Float[Tensor, "b c *t"], places: Int[Tensor, "b c *t"], size: Sequence[int]) -> Float[Tensor, "b c *s"]:
    """Every value at its place in a window of `size` voxels, zero elsewhere (Zeiler 2011)."""
    count = 1
    for n in size:
        count *= n
    here = places.unsqueeze(-1) == torch.arange(count, device=x.device)
    windows = torch.where(here, x.unsqueeze(-1), torch.zeros((), dtype=x.dtype, device=x.device))
    return _whole(windows, size)


def _windows(x: Tensor, size: Sequence[int]) -> Tensor:
    """(b, c, *s) as (b, c, *s / size, voxels of a window)."""
    parts = [n for edge, step in zip(x.shape[2:], size, strict=True) for n in (edge // step, step)]
    ndim = len(size)
    order = [0, 1, *range(2, 2 + 2 * ndim, 2), *range(3, 3 + 2 * ndim, 2)]
    return x.reshape(*x.shape[:2], *parts).permute(order).flatten(2 + ndim)


def _whole(windows: Tensor, size: Sequence[int]) -> Tensor:
    ndim = len(size)
    order = [0, 1, *(axis for k in range(ndim) for axis in (2 + k, 2 + ndim + k))]
    parts = windows.reshape(*windows.shape[:-1], *size).permute(order)
    edges = [edge * step for edge, step in zip(windows.shape[2:-1], size, strict=True)]
    return parts.reshape(*windows.shape[:2], *edges)
