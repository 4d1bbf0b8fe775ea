"""Sums of indices per value against counting voxel by voxel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medseg.io.moments import Moment, class_sums, placed, value_sums
from medseg.types.labels import Label, Labels

MAPS = arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 3))


@given(MAPS)
def test_sums_are_those_of_every_voxel(array):
    found = value_sums(array)
    assert len(found) >= array.max() + 1
    for value in range(1, len(found)):
        index = np.argwhere(array == value)
        assert found[value].tolist() == [len(index), *index.sum(axis=0)]


@pytest.mark.parametrize("dtype", [">i2", np.uint16, np.float32])
def test_any_type_and_memory_order_will_do(dtype):
    array = np.random.default_rng(0).integers(0, 300, (3, 20, 30))
    slices = (plane[::2, ::-1] for plane in array.astype(dtype))
    np.testing.assert_array_equal(value_sums(slices), value_sums(np.ascontiguousarray(array[:, ::2, ::-1])))


def test_runs_do_not_reach_over_the_end_of_a_row():
    table = value_sums(np.ones((2, 3, 4), np.uint8))
    assert table[1].tolist() == [24, 12, 24, 36]


def test_a_region_is_all_of_its_values():
    labels = Labels((Label("whole", (1, 2)), Label("core", (2,)), Label("none", (7,))))
    sums = class_sums(value_sums(np.array([[[1, 1, 0, 2]]], np.uint8)), labels)
    assert sums.tolist() == [[3, 0, 0, 4], [1, 0, 0, 3], [0, 0, 0, 0]]
    whole, core, none = placed(sums, np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    assert whole == Moment(3, 6.0, (4 / 3, 0.0, 0.0)) and core.centroid_mm == (3.0, 0.0, 0.0)
    assert none == Moment(0, 0.0, None)
