"""Components of all labels at once, against scipy and cc3d; the cleaning steps by volume."""

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medseg.errors import PlanError
from medseg.postprocess.chain import clean
from medseg.postprocess.components import components, drop_small, keep_largest
from medseg.postprocess.fill import fill_holes
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step

LABELS = Labels((Label("a", (1,)), Label("b", (2,)), Label("c", (3,))))


def _map(array, labels=LABELS, spacing=(1.0, 1.0, 1.0)):
    array = np.asarray(array, np.uint8)
    return LabelMap(array, Geometry(array.shape, spacing), labels)


def _row(text):
    return _map([[[int(c) for c in text]]])


def _numbered(found):
    """The components as an array, numbered in order of first appearance."""
    result = np.zeros(int(np.prod(found.shape)), int)
    for number in range(len(found.value)):
        for index in found.indices(np.arange(len(found.value)) == number):
            result[index] = number + 1
    return result.reshape(found.shape)


def _same_partition(one, two):
    pairs = np.unique(np.stack([one.ravel(), two.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)), elements=st.integers(0, 3))
)
@settings(max_examples=60, deadline=None)
def test_components_equal_scipy_per_class(array):
    found = components(array)
    numbered, count, expected = _numbered(found), 0, np.zeros(array.shape, int)
    for value in (1, 2, 3):
        mask, n = ndimage.label(array == value, np.ones((3, 3, 3)))
        expected[mask > 0] = mask[mask > 0] + count
        count += n
    assert len(found.value) == count
    assert _same_partition(numbered, expected)
    faces = components(array == 1, faces_only=True)
    assert _same_partition(_numbered(faces), ndimage.label(array == 1)[0])


def test_components_equal_cc3d_on_noise_with_volumes_and_boxes():
    array = np.random.default_rng(0).integers(0, 4, (20, 30, 40)).astype(np.uint8)
    found = components(array)
    expected, count = cc3d.connected_components(array, connectivity=26, return_N=True)
    assert _same_partition(_numbered(found), expected) and len(found.value) == count
    np.testing.assert_array_equal(np.sort(found.voxels), np.sort(np.bincount(expected.ravel())[1:]))
    first, last = found.boxes()
    numbered = _numbered(found)
    for number, box in enumerate(ndimage.find_objects(numbered)):
        assert [s.start for s in box] == first[number].tolist() and [s.stop for s in box] == last[number].tolist()


def test_an_empty_map_has_no_components_and_is_left_as_it_is():
    empty = _map(np.zeros((2, 3, 4)))
    assert len(components(empty.array).value) == 0
    assert components(empty.array).boxes()[0].shape == (0, 3)
    for step in (keep_largest, fill_holes):
        np.testing.assert_array_equal(step(empty).array, 0)


@pytest.mark.parametrize("fraction", [1 / 3, 0.3333, 0.333])
def test_exactly_a_third_stays_and_less_goes(fraction):
    kept = drop_small(_row("111111011000"), min_fraction=fraction)
    assert "".join(map(str, kept.array.ravel())) == "111111011000"
    dropped = drop_small(_row("111111101100"), min_fraction=1 / 3)
    assert "".join(map(str, dropped.array.ravel())) == "111111100000"


def test_the_largest_is_that_of_the_same_label_and_freed_voxels_become_background():
    result = drop_small(_row("111111201022011"), min_fraction=0.5)
    assert "".join(map(str, result.array.ravel())) == "111111200022000"


def test_volumes_are_in_mm3_and_the_limit_itself_stays():
    eight = np.zeros((4, 9, 4))
    eight[0:2, 0:2, 0:2] = 1
    eight[0, 5, 0] = 1
    labels = _map(eight, spacing=(0.3, 0.3, 0.3))
    assert drop_small(labels, min_mm3=8 * 0.027).array.sum() == 8
    assert drop_small(labels, min_mm3=8 * 0.027 + 0.001).array.sum() == 0


def test_names_limit_a_step_and_may_be_a_list():
    result = drop_small(_row("111010220202"), names=["b"], min_mm3=2)
    assert "".join(map(str, result.array.ravel())) == "111010220000"
    with pytest.raises(PlanError, match="labels are a, b, c"):
        keep_largest(_row("1"), names=["mandible"])


def test_keep_largest_keeps_one_of_equals():
    result = keep_largest(_row("110110220333"))
    assert "".join(map(str, result.array.ravel())) == "110000220333"


def test_a_region_is_cleaned_as_a_whole():
    regions = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
    labels = _map([[[1, 1, 2, 2, 2, 0, 1, 0, 2]]], regions)
    assert keep_largest(labels, names=["whole"]).array.ravel().tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0]


def test_input_is_never_changed():
    labels = _row("1110100")
    before = labels.array.copy()
    drop_small(labels, min_mm3=2)
    np.testing.assert_array_equal(labels.array, before)


def _shell(outer, inner, shape=(16, 16, 16)):
    z, y, x = np.indices(shape)
    r = np.sqrt((z - 7.5) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2)
    return ((r <= outer) & (r > inner)).astype(np.uint8)


@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(2, 5), st.integers(2, 6), st.integers(2, 6)),
        elements=st.sampled_from([0, 1, 1, 1, 2]),
    )
)
@settings(max_examples=60, deadline=None)
def test_fill_holes_equals_scipy_on_background(array):
    ours = fill_holes(_map(array), names=["a"]).array
    filled = ndimage.binary_fill_holes(array == 1)
    np.testing.assert_array_equal(ours, np.where(filled & (array == 0), 1, array))


def test_holes_up_to_a_volume_are_filled():
    array = _shell(6, 2)
    hole = int(((_shell(6, -1) > 0) & (array == 0)).sum())
    full = int(_shell(6, -1).sum())
    assert fill_holes(_map(array)).array.sum() == full
    assert fill_holes(_map(array), max_mm3=float(hole)).array.sum() == full
    assert fill_holes(_map(array), max_mm3=hole - 0.5).array.sum() == array.sum()
    assert fill_holes(_map(array, spacing=(2.0, 2.0, 2.0)), max_mm3=float(hole)).array.sum() == array.sum()


def test_another_label_in_a_hole_stays_and_open_holes_stay():
    array = _shell(6, 3)
    array[7, 7, 7] = 2
    filled = fill_holes(_map(array)).array
    assert filled[7, 7, 7] == 2 and (filled == 1).sum() == _shell(6, -1).sum() - 1
    array[7, 7, 7:] = 0
    assert (fill_holes(_map(array)).array == array).all()


def test_a_ring_is_closed_in_a_2d_image_but_open_in_a_volume():
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    assert fill_holes(_map(ring[None])).array.sum() == 9
    deep = np.zeros((3, 3, 3), np.uint8)
    deep[1] = ring
    assert fill_holes(_map(deep)).array.sum() == 8


def test_clean_runs_steps_in_order_and_refuses_unknown_ones_first():
    steps = (Step("keep_largest", {"names": ["a"]}), Step("drop_small", {"min_mm3": 2.0}))
    assert clean(_row("1101022020"), steps).array.ravel().tolist() == [1, 1, 0, 0, 0, 2, 2, 0, 0, 0]
    with pytest.raises(PlanError, match=r"postprocess.1.*use one of"):
        clean(_row("1"), (steps[0], Step("erode")))
    with pytest.raises(PlanError, match="has no option minimum"):
        clean(_row("1"), (Step("drop_small", {"minimum": 1}),))
