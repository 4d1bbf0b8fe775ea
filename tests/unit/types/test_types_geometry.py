import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import GeometryError
from medseg.types.geometry import Box, Geometry

ROTATION = ((0.8, -0.6, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))
OBLIQUE = Geometry((4, 6, 8), (3.0, 2.0, 0.5), (10.0, -20.0, 30.0), ROTATION)


def point_by_hand(geometry: Geometry, index: tuple[float, float, float]) -> np.ndarray:
    """origin + sum over axes of index * spacing * direction column, spelled out."""
    z, y, x = index
    sz, sy, sx = geometry.spacing_mm
    columns = np.array(geometry.direction).T
    return np.array(geometry.origin_mm) + x * sx * columns[0] + y * sy * columns[1] + z * sz * columns[2]


@pytest.mark.parametrize("index", list(itertools.product((0, 3), (0, 5), (0, 7))))
def test_affine_maps_array_index_to_patient_point(index):
    assert (OBLIQUE.affine() @ [*index, 1])[:3] == pytest.approx(point_by_hand(OBLIQUE, index))


def test_crop_keeps_every_voxel_where_it_is():
    cropped = OBLIQUE.crop(Box((1, 2, 3), (3, 5, 8)))
    assert cropped.shape == (2, 3, 5)
    assert (cropped.affine() @ [1, 1, 1, 1])[:3] == pytest.approx(point_by_hand(OBLIQUE, (2, 3, 4)))


@given(st.tuples(*[st.integers(1, 20)] * 3))
def test_with_shape_keeps_both_outer_voxel_edges(shape):
    new = OBLIQUE.with_shape(shape)
    for corner in itertools.product((0, 1), repeat=3):
        old_edge = [n * c - 0.5 for n, c in zip(OBLIQUE.shape, corner, strict=True)]
        new_edge = [n * c - 0.5 for n, c in zip(shape, corner, strict=True)]
        assert point_by_hand(new, new_edge) == pytest.approx(point_by_hand(OBLIQUE, old_edge))


def test_same_grid_notices_what_a_patient_would():
    assert OBLIQUE.same_grid(Geometry((4, 6, 8), (3.0, 2.0, 0.5 + 1e-5), (10.0, -20.0, 30.0), ROTATION))
    assert not OBLIQUE.same_grid(Geometry((4, 6, 8), (3.0, 2.0, 0.5), (10.5, -20.0, 30.0), ROTATION))
    assert not OBLIQUE.same_grid(Geometry((4, 6, 8), (3.0, 2.0, 0.5), (10.0, -20.0, 30.0)))
    assert not OBLIQUE.same_grid(Geometry((4, 6, 7), (3.0, 2.0, 0.5), (10.0, -20.0, 30.0), ROTATION))


def test_corner_distance_is_the_farthest_corner():
    shifted = Geometry((4, 6, 8), (3.0, 2.0, 0.5), (10.0, -17.0, 34.0), ROTATION)
    assert OBLIQUE.corner_distance_mm(shifted) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (0, 2, 2), "spacing_mm": (1.0, 1.0, 1.0)},
        {"shape": (2, 2, 2), "spacing_mm": (0.0, 1.0, 1.0)},
        {"shape": (2, 2, 2), "spacing_mm": (float("nan"), 1.0, 1.0)},
        {"shape": (2, 2, 2), "spacing_mm": (1.0, 1.0, 1.0), "origin_mm": (float("inf"), 0.0, 0.0)},
        {
            "shape": (2, 2, 2),
            "spacing_mm": (1.0, 1.0, 1.0),
            "direction": ((1.0, 0.3, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        },
    ],
)
def test_impossible_grids_are_refused(fields):
    with pytest.raises(GeometryError):
        Geometry(**fields)


@given(st.tuples(*[st.floats(-20, 20)] * 3))
def test_points_and_voxels_are_each_others_inverse(index):
    point = point_by_hand(OBLIQUE, index)
    assert OBLIQUE.to_points_mm(np.array([index]))[0] == pytest.approx(point)
    assert OBLIQUE.to_voxels(point[None])[0] == pytest.approx(index, abs=1e-9)


def test_a_landmark_without_a_place_has_no_voxel():
    places = OBLIQUE.to_voxels(np.array([[np.nan] * 3, point_by_hand(OBLIQUE, (1, 2, 3))]))
    assert np.isnan(places[0]).all()
    assert places[1] == pytest.approx((1, 2, 3))
