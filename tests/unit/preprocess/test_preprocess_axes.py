import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.errors import GeometryError
from medseg.preprocess.axes import (
    along_x,
    along_y,
    axis_positions,
    axis_weights,
    bands,
    inside,
    mixed_cells,
    weights_at,
)
from medseg.types.geometry import Geometry


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([0, 1, 3]), st.integers(0, 99))
def test_weights_equal_scipys_zoom(source, target, order, seed):
    line = np.random.default_rng(seed).normal(size=source)
    wanted = ndimage.zoom(line, target / source, order=order, mode="nearest", grid_mode=True)
    if len(wanted) != target:  # scipy rounds its own way
        return
    tolerance = 3e-6 if order else 0
    weights = axis_weights(source, target, order=order)
    halves = np.isclose(((np.arange(target) + 0.5) * source / target) % 1, 0, atol=1e-9)  # nearest: ties by rounding
    compared = ~halves if order == 0 else np.ones(target, bool)
    np.testing.assert_allclose((weights @ line)[compared], wanted[compared], atol=tolerance, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_spline_weights_reproduce_cubics_inside():
    weights = axis_weights(60, 90, order=3).astype(float)
    at = (np.arange(90) + 0.5) * 60 / 90 - 0.5
    for power in range(4):
        wanted = ((at - 30) / 30) ** power
        np.testing.assert_allclose((weights @ ((np.arange(60.0) - 30) / 30) ** power)[30:60], wanted[30:60], atol=1e-6)


def test_far_outside_is_the_edge_voxel():
    weights = weights_at(np.array([-100.0, 200.0]), 30, order=3)
    np.testing.assert_allclose(weights @ np.arange(30, dtype=np.float32), [0, 29], atol=1e-5)


def test_bands_multiply_like_the_matrix():
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(3, 100, 170)).astype(np.float32)
    wy, wx = axis_weights(100, 150, order=3), axis_weights(170, 90, order=3)
    np.testing.assert_allclose(along_y(planes, bands(wy)), wy @ planes, atol=1e-5)
    np.testing.assert_allclose(along_x(planes, bands(wx)), planes @ wx.T, atol=1e-5)
    assert bands(axis_weights(7, 7, order=3)) is None
    assert max(band.columns.stop - band.columns.start for band in bands(wy)) < 100


def test_positions_follow_millimetres_on_a_tilted_grid():
    turn = np.radians(20)
    direction = ((np.cos(turn), -np.sin(turn), 0.0), (np.sin(turn), np.cos(turn), 0.0), (0.0, 0.0, 1.0))
    source = Geometry((10, 20, 30), (1.0, 0.5, 0.25), (5.0, 6.0, 7.0), direction)
    target = source.with_shape((5, 30, 10))
    for along, n, m in zip(axis_positions(source, target), source.shape, target.shape, strict=True):
        np.testing.assert_allclose(along, (np.arange(m) + 0.5) * n / m - 0.5, atol=1e-7)
        assert inside(along, n).all()
    with pytest.raises(GeometryError, match="parallel"):
        axis_positions(source, Geometry((10, 20, 30), (1.0, 0.5, 0.25)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_mixed_cells_are_those_with_two_labels(seed, rows, columns):
    low, high = (np.random.default_rng(seed).random((2, rows, columns)) < 0.15).astype(np.uint8)
    pad = [np.pad(plane, (0, 1), mode="edge") for plane in (low, high)]
    around = [plane[i : i + rows, j : j + columns] for plane in pad for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(mixed_cells(low, high), np.ptp(around, axis=0) > 0)
