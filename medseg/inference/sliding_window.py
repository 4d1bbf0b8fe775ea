"""Cover a volume with overlapping windows, holding the scores of one window's depth at a time."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from medseg.errors import BundleError, PlanError
from medseg.inference.window import shares, tile
from medseg.types.geometry import Box, Size3
from medseg.types.image import Slab
from medseg.types.plan import Inference
from medseg.types.progress import Progress, Report, silent
from medseg.types.sides import Swap

Forward = Callable[[Float[Tensor, "b c z y x"]], Float[Tensor, "b k z y x"]]
_SLAB_BYTES = 64 << 20  # yielded at once


def sliding_window(
    forward: Forward,
    image: Float32[np.ndarray, "c z y x"],
    patch: Size3,
    plan: Inference,
    *,
    outputs: int,
    device: torch.device,
    batch: int = 1,
    report: Report = silent,
) -> Iterator[Slab]:
    """Weighted mean of the logits of all windows, as slabs along z in order, together exactly the image's rows.

    Sums are float32. Only the rows that the present window touches are held (outputs x patch z x y x x); a row is
    yielded as soon as no later window touches it. An image smaller than the patch is padded with 0 on both sides.
    Raises BundleError if the network returns other than `outputs` channels or a number that is not finite, PlanError if
    mirroring exchanges labels: then give a `mirrored` network and a plan without mirror axes.
    """
    if plan.swap_labels and plan.swap_axis in plan.mirror_axes:
        hint = "mirror the network first, with `mirrored`"
        raise PlanError("channels have no names to exchange", where="inference.swap_labels", hint=hint)
    shape, before, padded = _pad(image, patch)
    boxes = tile(_spatial(padded), patch, plan.overlap)
    share = shares(_spatial(padded), patch, plan)
    ring = torch.zeros((outputs, patch[0], *padded.shape[2:]), device=_place(device, outputs, patch, padded))
    network = mirrored(forward, flips(plan, patch))
    row = 0
    for first in range(0, len(boxes), batch):
        group = boxes[first : first + batch]
        scores = network(_windows(padded, group, device))
        if scores.shape != (len(group), outputs, *patch):
            raise BundleError(
                f"the network returned {tuple(scores.shape)}, not {(len(group), outputs, *patch)}",
                hint="the plan's labels or patch do not fit its network",
            )
        for box, score in zip(group, scores, strict=True):
            yield from _flush(ring, row, box.start[0], before, shape)
            row = box.start[0]
            weight = [torch.from_numpy(axis[start]) for axis, start in zip(share, box.start, strict=True)]
            _add(ring, box, score, weight)
        report(Progress("windows", min(first + batch, len(boxes)), len(boxes)))
    yield from _flush(ring, row, row + patch[0], before, shape)


def mirrored(forward: Forward, axes: Sequence[int], swap: Swap | None = None) -> Forward:
    """The mean of the logits over all combinations of flips of `axes` (of z, y, x), in float32.

    `swap` says which channels change places where its axis is flipped, because left becomes right.

    >>> double = mirrored(lambda image: 2 * image, (0, 2))
    >>> double(torch.ones(1, 1, 2, 2, 2)).unique()
    tensor([2.])
    """
    wrong = [axis for axis in axes if axis not in (0, 1, 2)]
    if wrong:
        raise PlanError(f"mirror axes {wrong} do not exist", where="inference.mirror_axes", hint="use 0, 1, 2")
    unique = sorted(set(axes))
    every = [some for n in range(len(unique) + 1) for some in combinations(unique, n)]
    return averaged([_flipped(forward, some, swap) for some in every]) if unique else forward


def averaged(members: Sequence[Forward]) -> Forward:
    """The mean of the logits of several networks, one after another, so that one output and one sum exist at a time."""
    if len(members) == 1:
        return members[0]

    def mean(image: Tensor) -> Tensor:
        total = members[0](image).to(torch.float32, copy=True)
        for member in members[1:]:
            total += member(image)
        return total / len(members)

    return mean


def _flipped(forward: Forward, axes: tuple[int, ...], swap: Swap | None) -> Forward:
    if not axes:
        return forward
    dims = [2 + axis for axis in axes]
    order = list(swap.order) if swap is not None and swap.axis in axes else None

    def flipped(image: Tensor) -> Tensor:
        logits = forward(image.flip(dims)).flip(dims)
        return logits if order is None else logits[:, order]

    return flipped


def flips(plan: Inference, patch: Size3) -> list[int]:
    """The mirror axes along which a patch has more than one voxel."""
    return [axis for axis in plan.mirror_axes if axis not in (0, 1, 2) or patch[axis] > 1]


def _spatial(array: np.ndarray) -> Size3:
    _, z, y, x = array.shape
    return z, y, x


def _pad(image: np.ndarray, patch: Size3) -> tuple[Size3, Size3, np.ndarray]:
    """Shape of the image, voxels added before it per axis, and the image at least as large as a window."""
    shape = _spatial(image)
    lack = [max(0, p - n) for p, n in zip(patch, shape, strict=True)]
    z, y, x = (n // 2 for n in lack)
    if not any(lack):
        return shape, (0, 0, 0), image
    around = [(a, n - a) for a, n in zip((z, y, x), lack, strict=True)]
    return shape, (z, y, x), np.pad(image, [(0, 0), *around])


def _windows(image: np.ndarray, boxes: Sequence[Box], device: torch.device) -> Tensor:
    cuts = [image[(slice(None), *box.slices())] for box in boxes]
    return torch.from_numpy(np.stack(cuts).astype(np.float32, copy=False)).to(device)


def _place(device: torch.device, outputs: int, patch: Size3, image: np.ndarray) -> torch.device:
    """The network's device if it has twice the memory that the sums need, else the host."""
    free = getattr(torch.get_device_module(device), "mem_get_info", None)
    needed = 4 * outputs * patch[0] * image.shape[2] * image.shape[3]
    roomy = free is None or free(device)[0] > 2 * needed
    return device if roomy else torch.from_numpy(image[:0]).device


def _add(ring: Tensor, box: Box, scores: Tensor, weight: Sequence[Tensor]) -> None:
    """Add a window to the ring, whose row for z is z modulo its depth.

    Plane by plane, so that scores of another precision or memory order become float32 planes while in the cache.
    """
    z, y, x = (axis.to(ring.device) for axis in weight)
    share = y[:, None] * x
    scores = scores.to(ring.device)
    depth = ring.shape[1]
    _, rows, columns = box.slices()
    for i in range(depth):
        plane = scores[:, i]
        if plane.dtype != torch.float32 or not plane[0].is_contiguous():
            plane = plane.to(torch.float32, memory_format=torch.contiguous_format)
        ring[:, (box.start[0] + i) % depth, rows, columns].addcmul_(plane, z[i] * share)


def _flush(ring: Tensor, first: int, last: int, before: Size3, shape: Size3) -> Iterator[Slab]:
    """Yield and clear the rows `first <= z < last`, cropped to the image."""
    depth = ring.shape[1]
    _, rows, columns = (slice(a, a + n) for a, n in zip(before, shape, strict=True))
    stop = min(last, before[0] + shape[0])
    row = max(first, before[0])
    rows_at_once = max(1, _SLAB_BYTES // (4 * ring[:, 0].numel()))
    while row < stop:
        inside = row % depth
        count = min(rows_at_once, stop - row, depth - inside)
        part = ring[:, inside : inside + count]
        scores = part[:, :, rows, columns].clone(memory_format=torch.contiguous_format).cpu().numpy()
        if not np.isfinite(scores.sum()) and not np.isfinite(scores).all():
            raise BundleError("the network returned NaN or Inf", hint="predict in fp32, or train again")
        part.zero_()
        yield Slab(row - before[0], scores)
        row += count
