"""Features at other sizes, made of products and sums, so that gradients repeat bit for bit on every device.

torch's own 3D interpolation and pooling add up gradients in any order on GPUs.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (b, c, *s) between voxel centres to `size`; beyond the outer centres values stay."""
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if old != new:
            places = (torch.arange(new, device=x.device) + 0.5) * (old / new) - 0.5
            weights = hat(places.clamp(0, old - 1), old).to(x.dtype)
            x = (x.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return x


def hat(places: Tensor, count: int) -> Tensor:
    """Weights of linear interpolation at `places` among values at 0, 1, ... count - 1, as a new last axis."""
    return (1 - (places[..., None] - torch.arange(count, device=places.device)).abs()).clamp_min(0)


def pooled(x: Tensor, limit: int) -> Tensor:
    """(b, c, *s) averaged over blocks of voxels, so that at most `limit` remain; `x` itself where it has no more.

    Blocks are as near to cubes of places as the size allows; those at the far end may be smaller.
    """
    size = x.shape[2:]
    blocks, left = [1] * len(size), list(size)
    while math.prod(left) > limit:
        axis = left.index(max(left))
        blocks[axis] += 1
        left[axis] = -(-size[axis] // blocks[axis])
    if max(blocks) == 1:
        return x
    return _block_means(x, blocks) / _block_means(x.new_ones(1, 1, *size), blocks)


def maximum(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The largest value of (b, c, *s) within an odd `kernel` around every voxel; there are none beyond the image."""
    for axis, n in enumerate(kernel, start=2):
        if n > 1:
            pad = [0] * (2 * (x.dim() - 1 - axis)) + [n // 2] * 2
            wide = F.pad(x, pad, value=-torch.inf)
            found = wide.narrow(axis, 0, x.shape[axis])
            for start in range(1, n):
                found = torch.maximum(found, wide.narrow(axis, start, x.shape[axis]))
            x = found
    return x


def around(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The mean of (b, c, *s) within an odd `kernel` around every voxel, over the voxels that exist."""
    for axis, n in enumerate(kernel, start=2):
        if n > 1:
            count = _sums(x.new_ones([x.shape[axis] if a == axis else 1 for a in range(x.dim())]), axis, n)
            x = _sums(x, axis, n) / count
    return x


def _sums(x: Tensor, axis: int, n: int) -> Tensor:
    wide = F.pad(x, [0] * (2 * (x.dim() - 1 - axis)) + [n // 2] * 2)
    total = wide.narrow(axis, 0, x.shape[axis])
    for start in range(1, n):
        total = total + wide.narrow(axis, start, x.shape[axis])
    return total


def _block_means(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """Means, with 0 beyond the image: sums would leave the range of fp16."""
    for axis, n in enumerate(blocks, start=2):
        if n > 1:
            missing = -x.shape[axis] % n
            x = F.pad(x, [0] * (2 * (x.dim() - 1 - axis)) + [0, missing])
            x = x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :]).mean(axis + 1)
    return x
