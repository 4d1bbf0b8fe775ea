"""Changes of place: image, labels and points move together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from medseg.augment.intensity import uniforms
from medseg.errors import PlanError
from medseg.types.tensors import Patch


def affine(
    patch: Patch,
    rng: torch.Generator,
    *,
    p: float = 0.2,
    degrees: float = 30.0,
    scale_low: float = 0.7,
    scale_high: float = 1.4,
    in_plane: bool = False,
    pivot: Sequence[float] = (),
    size: Sequence[int] | None = None,
) -> Patch:
    """Rotate and zoom about the centre, each with chance `p`, in one interpolation, and crop to `size` (z, y, x).

    Rotation is uniform within +-`degrees` about every axis; the scale is uniform below or above 1, and above 1 sees
    more of the scan. `in_plane` leaves the first axis of 3D patches alone. Images are interpolated linearly, labels are
    the largest of the linearly interpolated indicators; outside is 0. Points go where their voxels go, also out of the
    patch. Where neither fires, the patch is only cropped. `pivot` turns about another place than the centre, in shares
    of the patch along the axes that turn: (-0.1, 0.5) is the probe above the middle of an ultrasound frame (y, x).
    """
    ndim = patch.image.ndim - 1
    out = tuple(patch.image.shape[1:]) if size is None else tuple(size)[-ndim:]
    flat = ndim == 2 or in_plane
    matrix = draw_matrix(rng, flat=flat, p=p, degrees=degrees, scale_low=scale_low, scale_high=scale_high)
    if matrix is None:
        return centre_crop(patch, out)
    shift = shift_of(matrix, pivot, out)
    if flat and ndim == 3:
        return _each_slice(centre_crop(patch, (out[0], *patch.image.shape[2:])), matrix, shift, out)
    image, labels = _sample(patch.image[None], patch.labels[None], matrix, out, shift)
    return replace(patch, image=image[0], labels=labels[0], points=_points(patch, matrix, shift, out))


def draw_matrix(
    rng: torch.Generator, *, flat: bool, p: float, degrees: float, scale_low: float, scale_high: float
) -> Tensor | None:
    """What `affine` does to offsets (z, y, x), or (y, x) if `flat`, from the centre; None where nothing fires."""
    turns, zooms, coin, share, *angles = uniforms(rng, 7)
    if turns >= p and zooms >= p:
        return None
    turned = [math.radians(degrees) * (2 * a - 1) if turns < p else 0.0 for a in angles]
    zoom = _zoom(scale_low, scale_high, coin, share) if zooms < p else 1.0
    return rotation(turned[:1] if flat else turned) * zoom


def rotation(angles: Sequence[float]) -> Tensor:
    """Rotation of (z, y, x), about each of its axes in turn, or of (y, x) for a single angle."""
    planes = [(0, 1)] if len(angles) == 1 else [(1, 2), (0, 2), (0, 1)]
    matrix = torch.eye(2 if len(angles) == 1 else 3)
    for angle, (a, b) in zip(angles, planes, strict=True):
        turn = torch.eye(matrix.shape[0])
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def mirror(
    patch: Patch,
    rng: torch.Generator,
    *,
    axes: Sequence[int] = (0, 1, 2),
    p: float = 0.5,
    swap_axis: int | None = None,
    swap_values: Sequence[int] = (),
    swap_points: Sequence[int] = (),
) -> Patch:
    """Flip each of `axes`, counted as (z, y, x) in 2D too, with chance `p`.

    Where `swap_axis` is flipped, the one between left and right, label values and points (by their number) change
    places, two by two: `swap_values` (1, 2, 5, 6) makes 1 of 2, 2 of 1, 5 of 6 and 6 of 5.
    """
    chances = uniforms(rng, 3)
    ndim = patch.image.ndim - 1
    if any(axis not in range(3 - ndim, 3) for axis in axes):
        raise PlanError(f"cannot mirror axes {list(axes)} of a {ndim}D patch", where="mirror", hint="z, y, x = 0, 1, 2")
    if any(len(swaps) % 2 or len(set(swaps)) < len(swaps) for swaps in (swap_values, swap_points)):
        raise PlanError("swaps are no pairs", where="mirror", hint="list every value or point once, partners together")
    dims = [axis - 3 for axis in axes if chances[axis] < p]
    if not dims:
        return patch
    labels, points = patch.labels.flip(dims), patch.points
    if points is not None:
        points = points.clone()
        for dim in dims:
            points[:, dim] = patch.image.shape[dim] - 1 - points[:, dim]
    if swap_axis is not None and swap_axis - 3 in dims:
        labels = _exchanged(labels, swap_values)
        points = points if points is None else points[_order(len(points), swap_points)]
    return replace(patch, image=patch.image.flip(dims), labels=labels, points=points)


def centre_crop(patch: Patch, size: Sequence[int]) -> Patch:
    """The middle `size` voxels (z, y, x) or (y, x); axes that are smaller stay."""
    starts = [max(0, (n - m) // 2) for n, m in zip(patch.image.shape[1:], size, strict=True)]
    box = (slice(None), *(slice(a, a + m) for a, m in zip(starts, size, strict=True)))
    points = None if patch.points is None else patch.points - patch.points.new_tensor(starts)
    return replace(patch, image=patch.image[box], labels=patch.labels[box], points=points)


def _zoom(low: float, high: float, coin: float, share: float) -> float:
    below = low < 1 and (coin < 0.5 or high <= 1)
    start, stop = (low, min(high, 1.0)) if below else (max(low, 1.0), high)
    return start + (stop - start) * share


def shift_of(matrix: Tensor, pivot: Sequence[float], out: Sequence[int]) -> Tensor:
    """What to add to offsets from the centre so that `pivot` stays where it is."""
    if len(pivot) not in (0, len(matrix)):
        what = f"pivot {list(pivot)} for {len(matrix)} axes that turn"
        raise PlanError(what, where="affine", hint="give one share of the patch per axis, or none for the centre")
    if not pivot:
        return torch.zeros(len(matrix))
    still = torch.tensor([(share - 0.5) * n for share, n in zip(pivot, out[-len(matrix) :], strict=True)])
    return still - matrix @ still


def _each_slice(patch: Patch, matrix: Tensor, shift: Tensor, out: Sequence[int]) -> Patch:
    image, labels = _sample(patch.image.transpose(0, 1), patch.labels.transpose(0, 1), matrix, out[1:], shift)
    image, labels = image.transpose(0, 1).contiguous(), labels.transpose(0, 1).contiguous()
    return replace(patch, image=image, labels=labels, points=_points(patch, matrix, shift, out))


def _points(patch: Patch, matrix: Tensor, shift: Tensor, out: Sequence[int]) -> Tensor | None:
    """Where the points of a patch are in the `out` voxels that are sampled at `matrix` times the offset + `shift`."""
    if patch.points is None:
        return None
    points, turned = patch.points.clone(), len(matrix)
    middle = [(n - 1) / 2 for n in patch.image.shape[-turned:]]
    offset = points[:, -turned:] - points.new_tensor(middle) - shift.to(points)
    points[:, -turned:] = offset @ torch.linalg.inv(matrix).T.to(offset)
    points[:, -turned:] += points.new_tensor([(n - 1) / 2 for n in out[-turned:]])
    return points


def _exchanged(labels: Tensor, swaps: Sequence[int]) -> Tensor:
    """Labels whose values have changed places two by two."""
    there = labels.clone()
    for one, other in zip(swaps[::2], swaps[1::2], strict=True):
        there[labels == one] = other
        there[labels == other] = one
    return there


def _order(count: int, swaps: Sequence[int]) -> list[int]:
    if swaps and not 0 <= min(swaps) <= max(swaps) < count:
        raise PlanError(f"swap_points {list(swaps)} of {count} points", where="mirror", hint="count points from 0")
    order = list(range(count))
    for one, other in zip(swaps[::2], swaps[1::2], strict=True):
        order[one], order[other] = other, one
    return order


def _sample(
    image: Tensor, labels: Tensor, matrix: Tensor, out: Sequence[int], shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Image (b, c, *s), labels (b, 1, *s) at `matrix` times the offset from the centre + `shift`, on `out` voxels."""
    place = _places(matrix.to(image.device), image.shape[2:], out)
    return sample_at(image, labels, place if shift is None else place + shift.to(image.device))


def sample_at(image: Tensor, labels: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Image (b, c, *s) and labels (b, 1, *s) at the voxel coordinates `place` (*out, d), 0 outside.

    Images are interpolated linearly, labels are the largest of the linearly interpolated indicators.
    """
    scale = torch.tensor([2.0 / n for n in image.shape[2:]], device=image.device)
    first = torch.tensor([1.0 / n - 1 for n in image.shape[2:]], device=image.device)
    grid = torch.addcmul(first, place, scale).flip(-1).expand(image.shape[0], *[-1] * place.ndim)
    values = _present(labels)
    many = len(values) > _FEW
    fields = _ranks(labels, values) if many else [(labels == value).to(image.dtype) for value in values]
    sampled = grid_sample(torch.cat([image, *fields], 1), grid, padding_mode="zeros", align_corners=False)
    moved, shares = sampled[:, : image.shape[1]], sampled[:, image.shape[1] :]
    found = _largest_of_many(fields[0], shares, place, values) if many else _largest(shares, values)
    return moved, found[:, None].to(labels.dtype)


_FEW = 3  # foreground values up to which one indicator image each is cheaper than looking at corners


def _present(labels: Tensor) -> list[int]:
    """The nonzero values in ascending order."""
    if labels.dtype == torch.uint8 or int(labels.max()) < 256:
        counts = torch.bincount(labels.flatten().to(torch.int32), minlength=256)
        return [value for value in counts.nonzero().flatten().tolist() if value]
    return [value for value in torch.unique(labels).tolist() if value]


def _largest(shares: Tensor, values: Sequence[int]) -> Tensor:
    """The value with the largest share (b, k, *s); what is missing to 1 is background, which wins ties."""
    best = 1 - shares.sum(1)
    found = torch.zeros_like(best, dtype=torch.int32)
    for number, value in enumerate(values):
        found = torch.where(shares[:, number] > best, value, found)
        best = torch.maximum(best, shares[:, number])
    return found


def _ranks(labels: Tensor, values: Sequence[int]) -> list[Tensor]:
    """Each voxel's number in `values` (0 = background) and its square, small enough to be exact."""
    table = torch.tensor([0, *values], device=labels.device, dtype=torch.int32)
    rank = torch.searchsorted(table, labels.to(torch.int32)).float()
    return [rank, rank * rank]


def _largest_of_many(rank: Tensor, moments: Tensor, place: Tensor, values: Sequence[int]) -> Tensor:
    """As `_largest`, for any number of values: where neighbours differ (variance above 0) their corners vote."""
    mean, square = moments[:, 0], moments[:, 1]
    winner = mean.round().long()
    mixed = (square - mean * mean > 0.05).nonzero()
    winner[tuple(mixed.T)] = _vote(rank[:, 0], mixed[:, 0], place[tuple(mixed[:, 1:].T)])
    return torch.tensor([0, *values], device=rank.device, dtype=torch.int32)[winner]


def _places(matrix: Tensor, source: Sequence[int], out: Sequence[int]) -> Tensor:
    """Voxel coordinates (*out, d) in the source, by sums of one column of `matrix` per axis."""
    place = torch.tensor([(n - 1) / 2 for n in source], device=matrix.device)
    for axis, n in enumerate(out):
        steps = torch.arange(n, device=matrix.device) - (n - 1) / 2
        shape = [1] * (len(out) + 1)
        shape[axis], shape[-1] = n, len(out)
        place = place + (steps[:, None] * matrix[:, axis]).reshape(shape)
    return place


def _vote(rank: Tensor, batch: Tensor, place: Tensor) -> Tensor:
    """The rank with the largest linear weight among the corners around each place (m, d).

    Every place has at least one corner inside `rank` (b, *s), so one voxel of padding is enough.
    """
    ndim = place.shape[1]
    padded = pad(rank, [1, 1] * ndim)
    strides = torch.tensor(padded.stride()[1:], device=rank.device)
    corners = torch.tensor(list(product((0, 1), repeat=ndim)), device=rank.device)
    low = place.floor()
    part = (place - low)[None]
    first = ((low.long() + 1) * strides).sum(1) + batch * padded.stride(0)
    value = padded.flatten()[first + (corners * strides).sum(1)[:, None]]
    weight = torch.where(corners[:, None].bool(), part, 1 - part).prod(2)
    support = ((value[:, None] == value) * weight).sum(1)
    return value.gather(0, support.argmax(0, keepdim=True))[0].long()
