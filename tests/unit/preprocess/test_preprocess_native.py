from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import GeometryError
from medseg.preprocess.axes import axis_positions, inside
from medseg.preprocess.native import most_probable, native_labels, native_probabilities
from medseg.preprocess.orientation import match_axes, reorient
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Slab
from medseg.types.labels import Label, Labels

CLASSES = Labels((Label("a", (3,)), Label("b", (1,)), Label("c", (7,))))
REGIONS = Labels((Label("whole", (1, 2, 4), write=9), Label("core", (2, 4)), Label("edge", (4,))))
SIZES = st.tuples(*[st.integers(1, 6)] * 3)


def interpolate(scores, prepared, oriented):
    """Every class on the native grid, in float64, edges clamped."""
    for axis, along in enumerate(axis_positions(prepared, oriented)):
        n = scores.shape[axis + 1]
        p = np.clip(along, 0, n - 1)
        low = np.floor(p).astype(int)
        f = (p - low).reshape([-1 if a == axis + 1 else 1 for a in range(4)])
        scores = scores.take(low, axis + 1) * (1 - f) + scores.take(np.minimum(low + 1, n - 1), axis + 1) * f
    return scores


def decide(scores, labels):
    values = np.array([0, *(item.written for item in labels.items)])
    if not labels.are_regions():
        return values[scores.argmax(axis=0)]
    result = np.zeros(scores.shape[1:], int)
    for score, value in zip(scores, values[1:], strict=True):
        result[score > 0] = value
    return result


def oracle(scores, prepared, native, labels):
    """The slow way: interpolate every class everywhere, then decide, then undo the axes."""
    _, oriented = match_axes(np.empty(native.shape), native, prepared)
    result = decide(interpolate(scores.astype(np.float64), prepared, oriented), labels)
    within = [inside(p, n) for p, n in zip(axis_positions(prepared, oriented), prepared.shape, strict=True)]
    result[~np.logical_and.outer(np.logical_and.outer(within[0], within[1]), within[2])] = 0
    return match_axes(result, oriented, native)[0]


def slabs(scores, cuts):
    """The planes of `scores` in slabs whose memory is overwritten as soon as the next one is asked for."""
    edges = sorted({0, scores.shape[1], *(c for c in cuts if c < scores.shape[1])})
    for a, b in pairwise(edges):
        part = scores[:, a:b].copy()
        yield Slab(a, part)
        part[:] = np.nan


@settings(max_examples=80, deadline=None)
@given(SIZES, st.sampled_from([CLASSES, REGIONS]), st.integers(0, 9999), st.sets(st.integers(1, 5)), st.booleans())
def test_equals_the_slow_way_bit_for_bit_even_where_scores_tie(shape, labels, seed, cuts, smooth):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (labels.outputs(), *shape)).astype(np.float32)
    if smooth:
        scores[1] += 3  # mostly one class, so that the short cut is taken
    prepared = Geometry(shape, (2.0, 2.0, 2.0))
    native = prepared.with_shape(tuple(2 * n for n in shape))  # weights 1/4 and 3/4: exact in float32
    got = native_labels(slabs(scores, cuts), prepared, native, labels)
    np.testing.assert_array_equal(got.array, oracle(scores, prepared, native, labels))
    assert got.array.dtype == np.uint8
    assert got.geometry == native


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.sampled_from(["LPS", "RAI", "SPL", "AIR"]), st.sampled_from([CLASSES, REGIONS]),
       st.integers(0, 9999), st.booleans())  # fmt: skip
def test_equals_the_slow_way_on_any_grid(shape, native_shape, code, labels, seed, cropped):
    rng = np.random.default_rng(seed)
    stored = Geometry(native_shape, (1.0, 0.7, 1.3), (5.0, 6.0, 7.0))
    _, native = reorient(np.empty(native_shape), stored, code)
    whole = stored
    if cropped:
        start = tuple(int(rng.integers(0, n)) for n in native_shape)
        stop = tuple(int(rng.integers(a + 1, n + 1)) for a, n in zip(start, native_shape, strict=True))
        whole = stored.crop(Box(start, stop))
    prepared = whole.with_shape(shape)
    scores = rng.normal(size=(labels.outputs(), *shape)).astype(np.float32)
    got = native_labels(slabs(scores, {1, 3}), prepared, native, labels).array
    assert got.shape == native.shape
    np.testing.assert_array_equal(got, oracle(scores, prepared, native, labels))


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_probabilities_sum_to_one_and_lead_to_the_same_labels(labels):
    rng = np.random.default_rng(1)
    native = Geometry((7, 8, 9), (1.0, 1.0, 1.0), direction=((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
    _, oriented = reorient(np.empty(native.shape), native, "LPS")
    prepared = oriented.crop(Box((1, 1, 0), tuple(n - 1 for n in oriented.shape))).with_shape((5, 4, 6))
    scores = rng.normal(size=(labels.outputs(), *prepared.shape)).astype(np.float32)
    found = native_probabilities(slabs(scores, {2}), prepared, native, labels)
    wanted = interpolate(scores.astype(np.float64), prepared, oriented)
    wanted = 1 / (1 + np.exp(-wanted)) if labels.are_regions() else np.exp(wanted) / np.exp(wanted).sum(axis=0)
    back = match_axes(found.array, native, prepared)[0]
    within = [slice(1, n - 1) for n in oriented.shape[:2]] + [slice(0, oriented.shape[2] - 1)]
    np.testing.assert_allclose(back[(slice(None), *within)], wanted[(slice(None), *within)], atol=1e-6)
    if not labels.are_regions():
        np.testing.assert_allclose(found.array.sum(axis=0), 1, atol=1e-6)
        assert np.all(back[0, 0] == 1)
    expected = native_labels(slabs(scores, {2}), prepared, native, labels)
    np.testing.assert_array_equal(most_probable(found).array, expected.array)


def test_large_values_need_more_than_one_byte():
    labels = Labels((Label("tooth", (1,), write=300),))
    grid = Geometry((1, 2, 2), (1.0, 1.0, 1.0))
    scores = np.stack([np.zeros(grid.shape), np.ones(grid.shape)]).astype(np.float32)
    got = native_labels([Slab(0, scores)], grid, grid, labels)
    assert got.array.dtype == np.uint16
    assert np.all(got.array == 300)


def test_memory_does_not_grow_with_classes_times_native_voxels():
    import tracemalloc

    labels = Labels(tuple(Label(str(i), (i,)) for i in range(1, 40)))
    prepared = Geometry((30, 24, 24), (1.0, 1.0, 1.0))
    native = prepared.with_shape((90, 72, 72))

    def stream():
        rng = np.random.default_rng(0)
        for z in range(30):
            plane = np.zeros((40, 1, 24, 24), np.float32)
            plane[rng.integers(40), :, :12] = 5
            yield Slab(z, plane)

    tracemalloc.start()
    native_labels(stream(), prepared, native, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 40 * 90 * 72 * 72 / 25


def test_gaps_wrong_shapes_and_nan_are_refused():
    grid = Geometry((4, 2, 2), (1.0, 1.0, 1.0))
    plane = np.zeros((4, 2, 2, 2), np.float32)
    for bad in ([Slab(0, plane)], [Slab(0, plane), Slab(3, plane)], [Slab(0, plane[:3])], [Slab(0, plane)] * 2):
        with pytest.raises(GeometryError, match="prepared grid"):
            native_labels(bad, grid, grid, CLASSES)
    plane[1, 1, 1, 1] = np.nan
    with pytest.raises(GeometryError, match="NaN"):
        native_labels([Slab(0, plane), Slab(2, plane)], grid, grid, CLASSES)
