"""Along which axis a volume is predicted slab by slab: the one whose slabs need the least memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from medseg.inference.sliding_window import Forward
from medseg.types.geometry import Geometry
from medseg.types.image import Image
from medseg.types.plan import Plan

_WORTH = 0.9  # a turn that saves less is not made
N = TypeVar("N", int, float)


def turn_to_thinnest(
    prepared: Image, plan: Plan, members: Sequence[Forward]
) -> tuple[Image, Plan, tuple[Forward, ...]]:
    """The same prediction with its axes reordered so that sums of scores are held for the smallest slab.

    A slab is as deep as the patch and as wide as the other two axes of the prepared image. The networks still see
    windows (b, c, z, y, x) as they were trained; the image, its geometry, and topology, patch and mirror axes of the
    plan are in the new order, a view without copies. Nothing changes for 2D networks and where less than 10 % would be
    saved.
    """
    patch = plan.sampling.patch
    padded = [max(n, p) for n, p in zip(prepared.array.shape[1:], patch, strict=True)]
    held = [p * math.prod(padded) // n for n, p in zip(padded, patch, strict=True)]
    first = held.index(min(held))
    if plan.network.topology.ndim == 2 or held[first] > _WORTH * held[0]:
        return prepared, plan, tuple(members)
    order = (first, *(axis for axis in range(3) if axis != first))
    turned = Image(
        prepared.array.transpose(0, *(1 + axis for axis in order)),
        turned_geometry(prepared.geometry, order),
        prepared.channels,
        prepared.source,
        prepared.warnings,
    )
    mirrors = tuple(order.index(axis) for axis in plan.inference.mirror_axes)
    swap = plan.inference.swap_axis
    swap = None if swap is None else order.index(swap)
    topology = plan.network.topology
    topology = replace(
        topology,
        strides=tuple(_in_order(row, order) for row in topology.strides),
        kernels=tuple(_in_order(row, order) for row in topology.kernels),
        spacing_mm=None if topology.spacing_mm is None else _in_order(topology.spacing_mm, order),
    )
    plan = replace(
        plan,
        network=replace(plan.network, topology=topology),
        sampling=replace(plan.sampling, patch=_in_order(patch, order)),
        inference=replace(plan.inference, mirror_axes=mirrors, swap_axis=swap),
    )
    return turned, plan, tuple(_turned(member, order) for member in members)


def turned_geometry(geometry: Geometry, order: Sequence[int]) -> Geometry:
    """The grid of an array whose axes (z, y, x) were put into `order`.

    >>> turned_geometry(Geometry((2, 3, 4), (3.0, 2.0, 1.0)), (1, 0, 2)).spacing_mm
    (2.0, 3.0, 1.0)
    """
    columns = [2 - axis for axis in reversed(order)]
    rows = tuple((row[columns[0]], row[columns[1]], row[columns[2]]) for row in geometry.direction)
    z, y, x = (geometry.spacing_mm[axis] for axis in order)
    return replace(
        geometry,
        shape=_in_order(geometry.shape, order),
        spacing_mm=(z, y, x),
        direction=(rows[0], rows[1], rows[2]),
    )


def _in_order(size: tuple[N, N, N], order: Sequence[int]) -> tuple[N, N, N]:
    z, y, x = (size[axis] for axis in order)
    return z, y, x


def _turned(forward: Forward, order: Sequence[int]) -> Forward:
    """A network that is given windows in the new order and answers in it."""
    there = [0, 1, *(2 + axis for axis in order)]
    back = [0, 1, *(2 + order.index(axis) for axis in range(3))]

    def turned(windows: Tensor) -> Tensor:
        return forward(windows.permute(back).contiguous()).permute(there)

    return turned
