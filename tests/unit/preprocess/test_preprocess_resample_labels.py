from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.preprocess.axes import axis_positions
from medseg.preprocess.resample_labels import resample_labels
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

LABELS = Labels(tuple(Label(str(i), (i,)) for i in range(1, 6)), ignore=255)


def oracle(array, source, target):
    """Every label's indicator, linearly interpolated; the largest wins, ties go to the nearest voxel's label."""
    sums = {}
    positions = axis_positions(source, target)
    for value in np.unique(array):
        line = (array == value).astype(np.float64)
        for axis, along in enumerate(positions):
            p = np.clip(along, 0, array.shape[axis] - 1)
            low = np.floor(p).astype(int)
            f = (p - low).reshape([-1 if a == axis else 1 for a in range(3)])
            line = line.take(low, axis) * (1 - f) + line.take(np.minimum(low + 1, array.shape[axis] - 1), axis) * f
        sums[value] = line
    stack = np.stack(list(sums.values()))
    tied = stack >= stack.max(axis=0) - 1e-6
    near = [np.clip(np.floor(p + 0.5).astype(int), 0, n - 1) for p, n in zip(positions, array.shape, strict=True)]
    nearest = array[np.ix_(*near)]
    values = np.array(list(sums))
    near_tied = (tied & (values[:, None, None, None] == nearest)).any(axis=0)
    return np.where(near_tied, nearest, values[tied.argmax(axis=0)])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 13)] * 3), st.integers(2, 6), st.integers(0, 9999)
)
def test_equals_the_slow_way_for_any_labels_and_grids(old, new, count, seed):
    array = np.random.default_rng(seed).integers(0, count, old).astype(np.uint8)
    grid = Geometry(old, (1.0, 2.0, 3.0), (7.0, 8.0, 9.0))
    target = grid.with_shape(new)
    got = resample_labels(LabelMap(array, grid, LABELS), target)
    np.testing.assert_array_equal(got.array, oracle(array, grid, target))
    assert got.array.dtype == np.uint8


def test_a_halved_grid_is_all_ties_and_takes_the_nearest_label():
    array = np.zeros((2, 2, 4), np.uint16)
    array[1] = 3  # four against four in each new voxel
    grid = Geometry(array.shape, (1.0, 1.0, 1.0))
    got = resample_labels(LabelMap(array, grid, LABELS), grid.with_shape((1, 1, 2)))
    assert got.array.tolist() == [[[3, 3]]]
    assert got.array.dtype == np.uint16


def test_a_sphere_keeps_its_volume_and_place():
    z, y, x = np.indices((40, 40, 40))
    array = ((z - 18) ** 2 + (y - 20) ** 2 + (x - 22) ** 2 < 12**2).astype(np.uint8)
    grid = Geometry(array.shape, (0.5, 0.5, 0.5))
    target = grid.with_shape((29, 51, 33))
    got = resample_labels(LabelMap(array, grid, LABELS), target)
    assert abs(got.array.sum() * target.voxel_mm3() / (array.sum() * grid.voxel_mm3()) - 1) < 0.02
    centre = target.affine() @ [*np.argwhere(got.array).mean(axis=0), 1]
    np.testing.assert_allclose(centre[:3], [11, 10, 9], atol=0.1)
    back = resample_labels(got, grid).array
    assert 2 * (back & array).sum() / (back.sum() + array.sum()) > 0.95


def test_order_0_takes_the_nearest_voxel():
    array = np.random.default_rng(0).integers(0, 6, (6, 7, 8)).astype(np.uint8)
    grid = Geometry(array.shape, (1.0, 1.0, 1.0))
    got = resample_labels(LabelMap(array, grid, LABELS), grid.with_shape((18, 21, 24)), order=0)
    np.testing.assert_array_equal(got.array, array.repeat(3, 0).repeat(3, 1).repeat(3, 2))


@pytest.mark.parametrize("order", [0, 1])
def test_beyond_the_label_map_lies_background(order):
    grid = Geometry((4, 4, 4), (1.0, 1.0, 1.0))
    labels = LabelMap(np.full(grid.shape, 2, np.uint8), grid, LABELS)
    wide = Geometry((8, 8, 8), (1.0, 1.0, 1.0), (-2.0, -2.0, -2.0))
    got = resample_labels(labels, wide, order=order).array
    np.testing.assert_array_equal(got, np.pad(labels.array, 2))


def test_turned_grids_find_the_same_places():
    array = np.zeros((30, 30, 30), np.uint8)
    array[5:15, 8:20, 10:25] = 4
    grid = Geometry(array.shape, (1.0, 1.0, 1.0))
    c, s = float(np.cos(0.2)), float(np.sin(0.2))
    target = replace(grid, direction=((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))
    for order in (0, 1):
        got = resample_labels(LabelMap(array, grid, LABELS), target, order=order)
        assert set(np.unique(got.array)) == {0, 4}
        assert abs(int(np.count_nonzero(got.array)) / 1800 - 1) < 0.05
