"""Edges of reference masks: which voxels they are, and which are known well enough to count.

Masks are (b, k, *s), one channel per class or region. Neighbours are those within 3 voxels along every axis, within 1
along axes whose spacing is more than twice the finest, so that edges do not cross thick slices. The spacing may be that
of coarser voxels, to which the edges are brought afterwards.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.errors import PlanError

EdgeKind = Literal["outer", "inner", "both", "canny"]
_KINDS = ("outer", "inner", "both", "canny")
_WEAKEST = 0.1  # a straight edge has a gradient of 0.32 after smoothing
_TIE = 1e-4


def check_kind(kind: str) -> None:
    """Raise PlanError for a kind of edge that there is not."""
    if kind not in _KINDS:
        raise PlanError(f'unknown edge "{kind}"', where="training.losses", hint=f"use one of {', '.join(_KINDS)}")


def reference_masks(target: Tensor, channels: int) -> tuple[Bool[Tensor, "b k *s"], Bool[Tensor, "b k *s"]]:
    """Masks of a target (b, r, *s), and where they are known: of each class (r = 1) or region (r = `channels`)."""
    known = (target >= 0).expand(-1, channels, *target.shape[2:])
    if target.shape[1] == channels:
        return target > 0, known
    classes = torch.arange(channels, device=target.device).view(-1, *[1] * (target.dim() - 2))
    return target == classes, known


def edges_of(
    masks: Bool[Tensor, "b k *s"], known: Bool[Tensor, "b k *s"], spacing: Sequence[float], kind: EdgeKind
) -> tuple[Bool[Tensor, "b k *s"], Bool[Tensor, "b k *s"]]:
    """The edge voxels of `masks`, and which voxels count.

    "outer": outside with a neighbour inside. "inner": inside with a neighbour outside. "both": these two, the
    morphological gradient. "canny" (2D): one pixel wide (Canny 1986; see `canny`). Voxels with an unknown neighbour, or
    one beyond the image, do not count. Raises PlanError for "canny" in 3D.
    """
    flat = [s > 2 * min(spacing) * (1 + 1e-6) for s in spacing]
    counts = _all_neighbours(known, flat, beyond=False)
    if kind == "canny":
        if masks.dim() != 4:
            raise PlanError("canny edges are 2D", where="training.losses", hint='use "both", "inner" or "outer"')
        return canny(masks.float()), counts
    outside = _any_neighbour(masks, flat) & ~masks
    inside = masks & ~_all_neighbours(masks | ~known, flat, beyond=True)
    return {"outer": outside, "inner": inside, "both": outside | inside}[kind], counts


def canny(masks: Float[Tensor, "b k h w"]) -> Bool[Tensor, "b k h w"]:
    """Pixels where the gradient of the smoothed masks is largest across the edge (Canny 1986); of two equal the inner.

    Gaussian of 1 pixel, Sobel gradient, the neighbours along the nearest of 8 directions. Pixels with a gradient below
    a third of a straight edge's are left out; there is no hysteresis, because edges of masks are all equally
    strong.
    """
    dy, dx = _gradient(masks)
    size = torch.hypot(dy, dx)
    steep = math.tan(math.pi / 8)
    toward = torch.sign(dy) * (dy.abs() > steep * dx.abs()), torch.sign(dx) * (dx.abs() > steep * dy.abs())
    found = torch.zeros_like(masks, dtype=torch.bool)
    for y, x in [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]:
        here = (toward[0] == y) & (toward[1] == x)
        found |= here & (size > _moved(size, y, x) + _TIE) & (size >= _moved(size, -y, -x) - _TIE)
    return found & (size >= _WEAKEST)


def at_module(
    masks: Bool[Tensor, "b k *s"], edges: Bool[Tensor, "b k *s"], size: Sequence[int]
) -> tuple[Float[Tensor, "b k *t"], Float[Tensor, "b k *t"]]:
    """Masks as the share of their volume and edges as their maximum, at another size; a thin line never vanishes."""
    if tuple(masks.shape[2:]) == tuple(size):
        return masks.float(), edges.float()
    mean, most = _POOLS[len(size)]
    return mean(masks.float(), tuple(size)), most(edges.float(), tuple(size))


_POOLS: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    2: (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    3: (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
}


def _any_neighbour(x: Tensor, flat: Sequence[bool], *, beyond: bool = False) -> Tensor:
    """Whether the voxel or a neighbour is true; beyond the image all are `beyond`."""
    for axis, alone in enumerate(flat, start=2):
        if not alone:
            pad = [0] * (2 * (x.dim() - 1 - axis)) + [1, 1]
            wide, n = F.pad(x, pad, value=beyond), x.shape[axis]
            x = wide.narrow(axis, 0, n) | x | wide.narrow(axis, 2, n)
    return x


def _all_neighbours(x: Tensor, flat: Sequence[bool], *, beyond: bool) -> Tensor:
    return ~_any_neighbour(~x, flat, beyond=not beyond)


def _gradient(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives per pixel along y and x."""
    places = torch.arange(-4, 5, device=masks.device, dtype=masks.dtype)
    smooth = (-(places**2) / 2).exp()
    smooth = smooth / smooth.sum()
    slope, mean = (masks.new_tensor(row) for row in ((-0.5, 0.0, 0.5), (0.25, 0.5, 0.25)))
    x = _along(_along(masks, smooth, 2), smooth, 3)
    return _along(_along(x, slope, 2), mean, 3), _along(_along(x, mean, 2), slope, 3)


def _along(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Correlation with a 1D kernel along one axis; the outermost pixels go on for ever."""
    half, n = len(kernel) // 2, x.shape[axis]
    wide = F.pad(x, [0, 0, half, half] if axis == 2 else [half, half, 0, 0], mode="replicate")
    return torch.stack([w * wide.narrow(axis, i, n) for i, w in enumerate(kernel)]).sum(0)


def _moved(x: Tensor, y: int, x_step: int) -> Tensor:
    """The neighbour `y` down and `x_step` right of every pixel, 0 beyond."""
    h, w = x.shape[2:]
    return F.pad(x, [1, 1, 1, 1])[:, :, 1 + y : 1 + y + h, 1 + x_step : 1 + x_step + w]
