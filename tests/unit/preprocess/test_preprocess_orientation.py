import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import GeometryError, PlanError
from medseg.preprocess.orientation import orientation_code, reorient, restore
from medseg.types.geometry import Geometry

CODES = [
    "".join(pair[s] for pair, s in zip(order, signs, strict=True))
    for order in itertools.permutations(("RL", "AP", "IS"))
    for signs in itertools.product((0, 1), repeat=3)
]


def rotation(seed, degrees=12.0):
    axis = np.random.default_rng(seed).normal(size=3)
    axis /= np.linalg.norm(axis)
    k = np.cross(np.eye(3), axis)
    a = np.radians(degrees)
    return np.eye(3) + np.sin(a) * k + (1 - np.cos(a)) * k @ k


def geometry(code, shape=(3, 4, 5), seed=0):
    rows = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    direction = rotation(seed) @ np.array([rows[letter] for letter in code], dtype=float).T
    return Geometry(shape, (2.5, 0.5, 0.75), (10.0, -20.0, 30.0), tuple(tuple(map(float, row)) for row in direction))


def places(array, grid):
    """Point in mm of every voxel, by voxel value."""
    index = np.indices(array.shape).reshape(3, -1)
    points = (grid.affine() @ np.vstack([index, np.ones(index.shape[1])]))[:3].T
    return points[np.argsort(array.ravel())]


def test_there_are_48_codes_and_each_is_recognised_on_a_tilted_grid():
    assert len(set(CODES)) == 48
    assert all(orientation_code(geometry(code)) == code for code in CODES)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODES), st.sampled_from(CODES), st.integers(0, 50))
def test_reorient_moves_no_voxel_in_mm_and_restore_undoes_it(stored, wanted, seed):
    grid = geometry(stored, seed=seed)
    array = np.arange(60).reshape(grid.shape)
    view, moved = reorient(array, grid, wanted)
    assert orientation_code(moved) == wanted
    assert view.shape == moved.shape
    assert np.shares_memory(view, array)
    np.testing.assert_allclose(places(view, moved), places(array, grid), atol=1e-9)
    np.testing.assert_array_equal(restore(view, moved, grid), array)
    back, again = reorient(view, moved, stored)
    np.testing.assert_array_equal(back, array)
    assert again.same_grid(grid, tol_mm=1e-9)


def test_spacing_follows_its_axis_and_channels_stay():
    grid = geometry("PIR")
    view, moved = reorient(np.zeros((2, *grid.shape)), grid, "LPS")
    assert view.shape == (2, *moved.shape)
    assert moved.spacing_mm == (0.5, 0.75, 2.5)
    assert moved.shape == (4, 5, 3)
    assert moved.frame_of_reference_uid == grid.frame_of_reference_uid


def test_restore_serves_arrays_of_another_size():
    grid = geometry("PIR")
    _, moved = reorient(np.zeros(grid.shape), grid, "LPS")
    finer = moved.with_shape((8, 10, 6))
    assert restore(np.zeros((8, 10, 6)), finer, grid).shape == (6, 8, 10)


def test_stored_changes_nothing():
    grid = geometry("PIR")
    array = np.zeros(grid.shape)
    view, same = reorient(array, grid, "stored")
    assert view is array
    assert same is grid


def test_the_slice_of_a_2d_image_stays_z():
    grid = geometry("PIR", shape=(1, 4, 5))
    array = np.arange(20).reshape(1, 4, 5)
    view, moved = reorient(array, grid, "LPS")
    assert moved.shape[0] == 1
    assert orientation_code(moved) == "PSL"
    np.testing.assert_allclose(places(view, moved), places(array, grid), atol=1e-9)


def test_wrong_input_is_refused():
    grid = geometry("LPS")
    with pytest.raises(PlanError, match="LPX"):
        reorient(np.zeros(grid.shape), grid, "LPX")
    with pytest.raises(PlanError):
        reorient(np.zeros(grid.shape), grid, "LRS")
    with pytest.raises(GeometryError, match="not on the grid"):
        reorient(np.zeros((1, 2, 3)), grid, "LPS")
    with pytest.raises(GeometryError, match="parallel"):
        restore(np.zeros(grid.shape), grid, geometry("LPS", seed=3))
