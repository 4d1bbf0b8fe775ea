import numpy as np
import pytest

from medseg.io.dicom_tilt import unshear
from medseg.types.geometry import Geometry

ROTATED = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))


def field(points):
    return 500 + points @ [3.0, -5.0, 7.0]


@pytest.mark.parametrize("direction", [((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), ROTATED])
@pytest.mark.parametrize("shear", [(0.9, 0.0), (-0.35, 0.0), (0.0, 0.2), (0.55, -0.15)])
def test_a_linear_field_stays_where_it_was(shear, direction):
    """Every voxel that lies within a slice holds the field's value at its own place in the patient."""
    grid = Geometry((5, 9, 11), (2.0, 0.7, 0.4), (-20.0, 35.5, 101.25), direction)
    k, j, i = np.indices(grid.shape)
    beside = np.stack([k, j + k * shear[0] / 0.7, i + k * shear[1] / 0.4, np.ones_like(k)])
    sheared = field(np.moveaxis(np.tensordot(grid.affine(), beside, axes=1)[:3], 0, -1))
    array, straight = unshear(sheared[np.newaxis].astype(np.float32), grid, shear)
    assert straight.spacing_mm == grid.spacing_mm
    assert straight.direction == grid.direction
    assert straight.shape[0] == 5
    k, j, i = np.indices(straight.shape)
    here = np.tensordot(straight.affine(), np.stack([k, j, i, np.ones_like(k)]), axes=1)[:3]
    first = np.tensordot(np.linalg.inv(grid.affine()), np.stack([*here, np.ones_like(k)]), axes=1)
    rows, columns = first[1] - k * shear[0] / 0.7, first[2] - k * shear[1] / 0.4
    inside = (rows > -1e-6) & (rows < 8 + 1e-6) & (columns > -1e-6) & (columns < 10 + 1e-6)
    assert inside.sum() > 0.7 * 5 * 9 * 11
    np.testing.assert_allclose(array[0][inside], field(np.moveaxis(here, 0, -1))[inside], atol=1e-2)


def test_what_no_slice_reaches_has_the_lowest_value():
    array = np.full((1, 4, 6, 6), 50, np.int16)
    array[0, 2, 3, 3] = -1000
    made, grid = unshear(array, Geometry((4, 6, 6), (1.0, 1.0, 1.0)), (1.0, 0.0))
    assert made.dtype == np.int16
    assert grid.shape == (4, 9, 6)
    for k in range(4):
        assert (made[0, k, :k] == -1000).all()
        assert (made[0, k, k + 6 :] == -1000).all()
        assert np.array_equal(made[0, k, k : k + 6], array[0, k])


def test_colours_move_together():
    array = np.random.default_rng(0).integers(0, 255, (3, 4, 6, 6)).astype(np.int16)
    array[:, 0, 0, 0] = 0
    grid = Geometry((4, 6, 6), (1.0, 1.0, 1.0))
    together, _ = unshear(array, grid, (0.5, 0.25))
    for channel in range(3):
        alone, _ = unshear(array[[channel]], grid, (0.5, 0.25))
        assert np.array_equal(together[channel], alone[0])
