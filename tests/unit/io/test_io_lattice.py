from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.errors import GeometryError
from medseg.io.lattice import move
from medseg.types.geometry import Box, Geometry
from tests.dicom_phantoms import OBLIQUE, grid

WHOLE = grid((6, 9, 11), axes=OBLIQUE)
ARRAY = np.random.default_rng(0).integers(0, 3, (2, 6, 9, 11)).astype(np.uint8)


def by_itk(array, own, onto):
    def image(geometry, voxels):
        made = sitk.GetImageFromArray(voxels)
        made.SetSpacing(geometry.spacing_mm[::-1])
        made.SetOrigin(geometry.origin_mm)
        made.SetDirection(np.ravel(geometry.direction).tolist())
        return made

    reference = image(onto, np.zeros(onto.shape, np.uint8))
    moved = [sitk.Resample(image(own, one), reference, sitk.Transform(), sitk.sitkNearestNeighbor) for one in array]
    return np.stack([sitk.GetArrayFromImage(one) for one in moved])


def turned(geometry, order, flips):
    """The same voxel centres with axes (z, y, x) taken in another order and direction."""
    matrix = geometry.affine()
    columns = matrix[:3, :3][:, order] * np.where(flips, -1, 1)
    corner = matrix @ [*(np.where(flips, np.array(geometry.shape)[order] - 1, 0)[np.argsort(order)]), 1]
    spacing = np.linalg.norm(columns, axis=0)
    direction = (columns / spacing)[:, ::-1]
    shape = tuple(int(n) for n in np.array(geometry.shape)[order])
    rows = tuple(tuple(float(v) for v in row) for row in direction)
    return Geometry(shape, tuple(spacing.tolist()), tuple(corner[:3].tolist()), rows)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
@pytest.mark.parametrize("flips", [[False] * 3, [True, False, False], [True, False, True]])
def test_axes_in_any_order_and_direction(order, flips):
    other = turned(WHOLE, order, flips)
    moved = move(ARRAY, WHOLE, other)
    expected = ARRAY.transpose(0, *(axis + 1 for axis in order))
    for axis in np.flatnonzero(flips):
        expected = np.flip(expected, axis + 1)
    assert np.array_equal(moved, expected)
    assert np.array_equal(moved, by_itk(ARRAY, WHOLE, other))
    assert np.array_equal(move(moved, other, WHOLE), ARRAY)


def test_a_part_is_put_in_its_place():
    box = Box((1, 3, 2), (4, 8, 11))
    part = WHOLE.crop(box)
    moved = move(ARRAY[:, 1:4, 3:8, 2:11], part, WHOLE)
    expected = np.zeros_like(ARRAY)
    expected[:, 1:4, 3:8, 2:11] = ARRAY[:, 1:4, 3:8, 2:11]
    assert np.array_equal(moved, expected)


def test_what_lies_outside_must_be_empty():
    part = WHOLE.crop(Box((1, 0, 0), (4, 9, 11)))
    inside = np.zeros_like(ARRAY)
    inside[:, 1:4] = ARRAY[:, 1:4]
    assert np.array_equal(move(inside, WHOLE, part), ARRAY[:, 1:4])
    with pytest.raises(GeometryError, match="beyond the image"):
        move(ARRAY, WHOLE, part)
    away = replace(WHOLE, origin_mm=tuple(float(v) for v in (WHOLE.affine() @ [50, 0, 0, 1])[:3]))
    with pytest.raises(GeometryError, match="beyond the image"):
        move(ARRAY, away, WHOLE)


@pytest.mark.parametrize(
    "other",
    [
        replace(WHOLE, origin_mm=(-20.0, 35.7, 101.25)),
        replace(WHOLE, spacing_mm=(2.5, 0.7, 0.41)),
        grid((6, 9, 11)),
    ],
)
def test_other_voxel_centres_are_refused(other):
    with pytest.raises(GeometryError, match="do not coincide"):
        move(ARRAY, other, WHOLE)
