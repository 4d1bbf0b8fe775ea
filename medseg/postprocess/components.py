"""Connected components of all values at once, over run lengths; clean label maps by component volume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.errors import PlanError
from medseg.types.geometry import Size3
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

_BLOCK = 4_000_000  # voxels that are addressed one by one at a time


@dataclass(frozen=True, eq=False)
class Components:
    """Components 0 to n - 1 of an array (z, y, x), as runs of equal voxels along x.

    `value` and `voxels` have one entry per component; `run_start` (index into the flat array), `run_length` and
    `run_component` one per run, in array order.
    """

    shape: Size3
    value: Int64[np.ndarray, " n"]
    voxels: Int64[np.ndarray, " n"]
    run_start: Int64[np.ndarray, " r"]
    run_length: Int64[np.ndarray, " r"]
    run_component: Int64[np.ndarray, " r"]

    def boxes(self) -> tuple[Int64[np.ndarray, "n 3"], Int64[np.ndarray, "n 3"]]:
        """First voxel, and one past the last, of every component (z, y, x)."""
        first = np.stack(np.unravel_index(self.run_start, self.shape), axis=1)
        last = first + 1
        last[:, 2] = first[:, 2] + self.run_length
        order = np.argsort(self.run_component, kind="stable")
        heads = np.searchsorted(self.run_component[order], np.arange(len(self.value)))
        if not len(heads):
            return np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)
        return np.minimum.reduceat(first[order], heads), np.maximum.reduceat(last[order], heads)

    def indices(self, chosen: Bool[np.ndarray, " n"]) -> Iterator[Int64[np.ndarray, " v"]]:
        """Flat indices of the voxels of the chosen components, in blocks of bounded size."""
        runs = chosen[self.run_component]
        start, length = self.run_start[runs], self.run_length[runs]
        for part in np.array_split(np.arange(len(start)), 1 + int(length.sum()) // _BLOCK):
            yield _ranges(start[part], length[part])


def components(array: Shaped[np.ndarray, "z y x"], *, faces_only: bool = False) -> Components:
    """Connected components of every value but 0, all values in one pass; different values never join.

    Voxels that touch by face, edge or corner are connected (26 neighbours, 8 where z = 1); by face only on request
    (6 or 4). Takes any integer or bool array.

    >>> found = components(np.array([[[1, 1, 0, 2], [0, 0, 1, 2]]]))
    >>> found.value, found.voxels
    (array([1, 2]), array([3, 2]))
    """
    start, length, value = _runs(array)
    one, two = _touching(array.shape, start, length, value, 0 if faces_only else 1)
    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(start), len(start)))
    count, component = connected_components(links, directed=False) if len(start) else (0, np.zeros(0, np.int64))
    component = component.astype(np.int64)
    values = np.zeros(count, np.int64)
    values[component] = value
    voxels = np.bincount(component, weights=length, minlength=count).astype(np.int64)
    z, y, x = array.shape
    return Components((z, y, x), values, voxels, start, length, component)


def drop_small(
    labels: LabelMap, *, names: Sequence[str] = (), min_mm3: float = 0.0, min_fraction: float = 0.0
) -> LabelMap:
    """Remove components below `min_mm3`, or below `min_fraction` of the largest of their label; they become 0.

    A component of exactly the limit stays: fractions are compared as whole numbers (`min_fraction` is taken as the
    nearest fraction with a denominator up to 1000, so 0.3333 is one third). `names` are the labels to clean, all if
    empty. On a grid without physical spacing, mm3 means voxels. Raises PlanError for a name that is no label.
    """
    share = Fraction(min_fraction).limit_denominator(1000)

    def small(found: Components, largest: np.ndarray) -> np.ndarray:
        below = found.voxels * share.denominator < largest * share.numerator
        below |= found.voxels * labels.geometry.voxel_mm3() < min_mm3 * (1 - 1e-9)
        return np.asarray(below)

    return _drop(labels, names, small)


def keep_largest(labels: LabelMap, *, names: Sequence[str] = ()) -> LabelMap:
    """One component per label: the largest, of equal ones the first in array order; the rest becomes 0.

    `names` are the labels to clean, all if empty. Raises PlanError for a name that is no label.
    """

    def other(found: Components, largest: np.ndarray) -> np.ndarray:
        candidates = np.flatnonzero(found.voxels == largest)
        _, first = np.unique(found.value[candidates], return_index=True)
        drop = np.ones(len(found.value), bool)
        drop[candidates[first]] = False
        return drop

    return _drop(labels, names, other)


def chosen(labels: Labels, names: Sequence[str]) -> tuple[Label, ...]:
    """The labels called `names`, all if empty; raises PlanError for a name that is no label."""
    unknown = sorted(set(names) - set(labels.names()))
    if unknown:
        known = ", ".join(labels.names())
        raise PlanError(f"no label is called {', '.join(unknown)}", where="names", hint=f"labels are {known}")
    return tuple(item for item in labels.items if not names or item.name in names)


def voxel_values(label: Label) -> tuple[int, ...]:
    """The values that belong to a label in a label map that medseg wrote: one, or all of a region's."""
    return label.stored


def _drop(labels: LabelMap, names: Sequence[str], unwanted: Callable[[Components, np.ndarray], np.ndarray]) -> LabelMap:
    items = chosen(labels.labels, names)
    array = labels.array.copy()
    groups = [items] if not labels.labels.are_regions() else [(item,) for item in items]
    for group in groups:
        found = components(_only(array, group, labels.labels))
        largest = np.zeros(int(found.value.max(initial=0)) + 1, np.int64)
        np.maximum.at(largest, found.value, found.voxels)
        for index in found.indices(unwanted(found, largest[found.value])):
            array.reshape(-1)[index] = 0
    return replace(labels, array=array)


def _only(array: np.ndarray, group: Sequence[Label], labels: Labels) -> np.ndarray:
    """The array with the values of `group` alone: as they are, or as one mask where the group is a region."""
    table = np.zeros(np.iinfo(array.dtype).max + 1, array.dtype)
    for label in group:
        for value in voxel_values(label):
            if value < len(table):  # a region's values may be too large for a map of what is written for it
                table[value] = 1 if labels.are_regions() else value
    everything = len(group) == len(labels.items) and not labels.are_regions()
    return array if everything else table[array]


def _runs(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat start, length and value of every run of equal non-zero voxels within a row, in array order."""
    change = np.empty(array.shape, bool)
    change[..., 0] = True
    np.not_equal(array[..., 1:], array[..., :-1], out=change[..., 1:])
    start = np.flatnonzero(change)
    value = array.reshape(-1)[start].astype(np.int64)
    length = np.diff(start, append=array.size)
    inside = value != 0
    return start[inside], length[inside], value[inside]


def _touching(
    shape: tuple[int, ...], start: np.ndarray, length: np.ndarray, value: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs of one value in neighbouring rows that overlap, or with `reach` 1 also meet at a corner.

    Runs are placed on a line where rows are two voxels apart and slices a row apart, so that a shifted run can only
    meet runs of the one row it is shifted to.
    """
    _, rows, width = shape
    row, column = np.divmod(start, width)
    pitch = width + 2
    first = (row + row // rows) * pitch + column
    last = first + length
    pairs_one, pairs_two = [], []
    steps = ((0, 1), (1, -1), (1, 0), (1, 1)) if reach else ((0, 1), (1, 0))
    for dz, dy in steps:
        shift = (dz * (rows + 1) + dy) * pitch
        low = np.searchsorted(last, first + (shift - reach), side="right")
        high = np.searchsorted(first, last + (shift + reach), side="left")
        count = np.maximum(high - low, 0)
        one = np.repeat(np.arange(len(first)), count)
        two = _ranges(low, count)
        equal = value[one] == value[two]
        pairs_one.append(one[equal])
        pairs_two.append(two[equal])
    return np.concatenate(pairs_one), np.concatenate(pairs_two)


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """All of `range(start[0], start[0] + length[0])`, then of the next, as one array."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(start - (ends - length), length) + np.arange(total)
