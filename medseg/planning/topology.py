"""Encoder-decoder shape that fits a patch: which axes to halve, how often, with which kernels."""

import math
from typing import Literal

from medseg.planning.presets import Preset
from medseg.types.geometry import Size3, Vec3
from medseg.types.plan import Topology

EDGE = 4  # smallest feature map along an axis
SIMILAR = 2.0  # axes within this ratio of the finest spacing are treated alike


def topology_for(
    patch: Size3, spacing_mm: Vec3, *, ndim: Literal[2, 3], preset: Preset, base: int | None = None
) -> tuple[Topology, Size3]:
    """Topology for a patch (z, y, x) and the patch padded to a multiple of the topology's strides.

    Axes are halved while they keep at least 4 voxels and their spacing is within twice the finest of those that can
    still be halved; kernels are 1 along an axis until its spacing is within twice the finest (Isensee 2021). Of a
    rigid preset, every stage but the first halves every axis.

    >>> from medseg.planning.presets import PRESETS
    >>> topology, padded = topology_for((36, 50, 35), (1.0, 1.0, 1.0), ndim=3, preset=PRESETS["unet"])
    >>> topology.channels, padded
    ((32, 64, 128, 256), (40, 56, 40))
    """
    axes = [1, 2] if ndim == 2 else [0, 1, 2]
    strides, kernels = _rigid(axes, preset) if preset.rigid else _grown(patch, spacing_mm, axes, preset)
    stages = len(strides)
    channels = preset.stage_channels(stages, ndim=ndim, base=base or preset.base_channels)
    topology = Topology(ndim, channels, tuple(strides), tuple(kernels), preset.stage_blocks(stages), spacing_mm)
    padded = [-(-n // step) * step for n, step in zip(patch, topology.divisor(), strict=True)]
    return topology, _three(padded)


def _grown(patch: Size3, spacing_mm: Vec3, axes: list[int], preset: Preset) -> tuple[list[Size3], list[Size3]]:
    """Strides and kernels of as many stages as the patch allows."""
    spacing, size = list(spacing_mm), list(patch)
    kernel = [1, 1, 1]
    strides: list[Size3] = [(1, 1, 1)]
    kernels: list[Size3] = []
    while True:
        _widen(kernel, spacing, axes)
        kernels.append(_three(kernel))
        halved = _halvable(size, spacing, axes)
        if not halved or len(strides) == preset.stages:
            break
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = -(-size[axis] // 2)
        strides.append(_three([2 if axis in halved else 1 for axis in range(3)]))
    kernels[-1] = _three([3 if axis in axes else 1 for axis in range(3)])
    return strides, kernels


def _rigid(axes: list[int], preset: Preset) -> tuple[list[Size3], list[Size3]]:
    stages = preset.stages or 1
    halving = _three([2 if axis in axes else 1 for axis in range(3)])
    kernel = _three([3 if axis in axes else 1 for axis in range(3)])
    return [(1, 1, 1), *[halving] * (stages - 1)], [kernel] * stages


def shrink(patch: Size3, median: Vec3, spacing_mm: Vec3, *, ndim: Literal[2, 3], preset: Preset) -> Size3 | None:
    """The next smaller patch: one pooling multiple less along the axis largest relative to the median scan.

    None where no axis can give any more: 32 voxels per axis in 3D and 64 in 2D, or what the scan has if less.
    """
    least = 64 if ndim == 2 else 32
    axes = [axis for axis in ((1, 2) if ndim == 2 else (0, 1, 2)) if patch[axis] > least]
    for axis in sorted(axes, key=lambda axis: -patch[axis] / median[axis]):
        smaller = _try(patch, axis, spacing_mm, ndim, preset)
        if smaller[axis] >= least and math.prod(smaller) < math.prod(patch):
            return smaller
    return None


def _try(patch: Size3, axis: int, spacing_mm: Vec3, ndim: Literal[2, 3], preset: Preset) -> Size3:
    """Subtract the multiple that the smaller patch needs, not the larger one's, so that steps stay small."""
    topology, _ = topology_for(patch, spacing_mm, ndim=ndim, preset=preset)
    smaller = _less(patch, axis, topology.divisor()[axis])
    topology, _ = topology_for(smaller, spacing_mm, ndim=ndim, preset=preset)
    return topology_for(_less(patch, axis, topology.divisor()[axis]), spacing_mm, ndim=ndim, preset=preset)[1]


def _less(patch: Size3, axis: int, step: int) -> Size3:
    return _three([max(1, n - step) if index == axis else n for index, n in enumerate(patch)])


def _widen(kernel: list[int], spacing: list[float], axes: list[int]) -> None:
    finest = min(spacing[axis] for axis in axes)
    for axis in axes:
        if spacing[axis] / finest < SIMILAR:
            kernel[axis] = 3


def _halvable(size: list[int], spacing: list[float], axes: list[int]) -> list[int]:
    large = [axis for axis in axes if size[axis] >= 2 * EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    alike = [axis for axis in large if spacing[axis] / finest < SIMILAR]
    if len(alike) == 1 and size[alike[0]] < 3 * EDGE:
        return []
    return alike


def _three(values: list[int]) -> Size3:
    z, y, x = values
    return z, y, x
