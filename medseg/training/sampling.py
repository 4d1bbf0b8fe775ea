"""Where a training patch is taken from: a function of (seed, step, index) and the case, nothing else."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int32

from medseg.io.cache import CachedCase
from medseg.types.geometry import Box, Size3
from medseg.types.labels import Label, Labels
from medseg.types.tensors import Patch

TRAIN, VALIDATE, MIX = 0, 1, 3  # streams of random numbers; 2 is that of the layers


def generators(seed: int, stream: int, step: int, index: int) -> tuple[np.random.Generator, torch.Generator]:
    """Independent generators of sample `index` of `step`: one to place the patch, one to augment it.

    >>> a, _ = generators(0, TRAIN, 7, 1); b, _ = generators(0, TRAIN, 7, 1); int(a.integers(9)) == int(b.integers(9))
    True
    """
    root = np.random.SeedSequence((seed, stream, step, index))
    place = np.random.Generator(np.random.Philox(root))
    augment = torch.Generator().manual_seed(int(root.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return place, augment


def is_forced(step: int, index: int, batch: int, fraction: float) -> bool:
    """Whether sample `index` of `step` must show foreground: the last round(batch * fraction), at least one of two.

    A batch of one shows it in that share of the steps, evenly spread.

    >>> [is_forced(0, i, 2, 0.33) for i in range(2)], sum(is_forced(0, i, 9, 0.33) for i in range(9))
    ([False, True], 3)
    >>> [is_forced(step, 0, 1, 0.33) for step in range(4)]
    [False, False, False, True]
    """
    if fraction <= 0:
        return False
    if batch == 1:
        return int((step + 1) * fraction) > int(step * fraction)
    return index >= batch - max(round(batch * fraction), 1)


def draw_voxel(rng: np.random.Generator, foreground: Mapping[int, np.ndarray], labels: Labels) -> Size3 | None:
    """A stored voxel of a class drawn uniformly among those the case has; None where it has none."""
    present = [item for item in labels.items if has_class(foreground, item)]
    return draw_of(rng, foreground, present[rng.integers(len(present))]) if present else None


def has_class(foreground: Mapping[int, np.ndarray], item: Label) -> bool:
    """Whether a case has stored voxels of a class or region."""
    return any(len(foreground.get(value, ())) for value in item.values)


def draw_of(rng: np.random.Generator, foreground: Mapping[int, np.ndarray], item: Label) -> Size3:
    """A stored voxel of a class or region that the case has."""
    voxels = np.concatenate([foreground[value] for value in item.values if len(foreground.get(value, ()))])
    z, y, x = (int(v) for v in voxels[rng.integers(len(voxels))])
    return z, y, x


def draw_point(rng: np.random.Generator, case: CachedCase) -> Size3 | None:
    """The voxel of one of the landmarks that lie in the scan; None where there are none."""
    if case.points is None:
        return None
    voxels = np.rint(case.points[~np.isnan(case.points).any(axis=1)]).astype(int)
    voxels = voxels[((voxels >= 0) & (voxels < case.shape)).all(axis=1)]
    return _size(int(v) for v in voxels[rng.integers(len(voxels))]) if len(voxels) else None


def draw_box(rng: np.random.Generator, shape: Size3, patch: Size3, voxel: Size3 | None) -> Box:
    """A patch box with `voxel` in the middle, or anywhere if it is None; may hang out of `shape`.

    Small scans are centred; a box around a voxel may reach beyond the far end (Isensee 2021).
    """
    starts = []
    for axis, (n, m) in enumerate(zip(shape, patch, strict=True)):
        lack = max(0, m - n)
        first, last = -(lack // 2), n + lack // 2 + lack % 2 - m
        if voxel is None:
            starts.append(int(rng.integers(first, max(first, last) + 1)))
        else:
            starts.append(max(first, voxel[axis] - m // 2))
    return _box(starts, patch)


def centred_box(rng: np.random.Generator, shape: Size3, patch: Size3, inside: Int32[np.ndarray, "n 3"]) -> Box:
    """A patch box around one of the positions `inside`, moved into the scan where it would hang out."""
    middle = inside[rng.integers(len(inside))]
    starts = []
    for n, m, voxel in zip(shape, patch, middle, strict=True):
        lack = max(0, m - n)
        first, last = -(lack // 2), n + lack // 2 + lack % 2 - m
        starts.append(int(min(max(first, voxel - m // 2), max(first, last))))
    return _box(starts, patch)


def grow(box: Box, size: Size3) -> Box:
    """A box of `size` voxels around `box`, so that a centre crop gives it back."""
    starts = [a - (n - m) // 2 for a, n, m in zip(box.start, size, box.shape, strict=True)]
    return _box(starts, size)


def read_patch(case: CachedCase, box: Box, *, ndim: int, across: int = 0) -> Patch:
    """The voxels of `box`, zeros outside the scan; for `ndim` 2 the single slice across an axis, (c, y, x) of z.

    Points are those of the case in the voxels of the box, also outside of it; of a slice only those that lie in it.
    """
    image, labels = case.read(box)
    grey = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    values = torch.from_numpy(labels.astype(np.int16 if labels.dtype == np.uint8 else np.int32))[None]
    points = None
    if case.points is not None:
        points = torch.from_numpy((case.points - box.start).astype(np.float32))
    if ndim == 3:
        return Patch(grey, values, points, rater=case.rater)
    if points is not None:
        points = points[:, 1:].masked_fill(points[:, :1].abs() > 0.5, torch.nan)
    return Patch(grey.squeeze(1 + across), values.squeeze(1 + across), points, rater=case.rater)


def _box(starts: Sequence[int], size: Size3) -> Box:
    return Box(_size(starts), _size(a + n for a, n in zip(starts, size, strict=True)))


def _size(numbers: Iterable[int]) -> Size3:
    z, y, x = numbers
    return z, y, x
