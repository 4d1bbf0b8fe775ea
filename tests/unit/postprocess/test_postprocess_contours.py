"""Contours smoothed in three directions: a slow reference, jagged spheres, neighbours that must not leak."""

import math

import numpy as np
import pytest

from medseg.errors import PlanError
from medseg.metrics.surface import nsd
from medseg.postprocess.chain import clean
from medseg.postprocess.contours import refine_contours, voted
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step

LABELS = Labels((Label("a", (1,)), Label("b", (2,))))


def _map(array, spacing=(1.0, 1.0, 1.0), labels=LABELS):
    array = np.asarray(array, np.uint8)
    return LabelMap(array, Geometry(array.shape, spacing), labels)


def _sphere(shape, spacing, radius_mm, centre=None):
    centre = (np.array(shape) - 1) / 2 if centre is None else np.array(centre)
    grid = np.stack(np.indices(shape), -1)
    return np.linalg.norm((grid - centre) * spacing, axis=-1) <= radius_mm


def _jagged(sphere, seed, share=0.5):
    """Half of the voxels at the surface, on either side, flipped at random."""
    near = np.zeros(sphere.shape, bool)
    for axis in range(3):
        edge = np.diff(sphere, axis=axis)
        low = [slice(None)] * 3
        low[axis] = slice(None, -1)
        high = [slice(None)] * 3
        high[axis] = slice(1, None)
        near[tuple(low)] |= edge
        near[tuple(high)] |= edge
    return sphere ^ (near & (np.random.default_rng(seed).random(sphere.shape) < share))


def _slow_slice(mask, sigma):
    """Blur by adding up neighbours one by one, the edge repeated, and cut at one half."""
    rows, columns = mask.shape
    reach = [int(4 * s + 0.5) for s in sigma]
    weight = [[math.exp(-0.5 * (i / s) ** 2) for i in range(-r, r + 1)] for r, s in zip(reach, sigma, strict=True)]
    total, found = sum(weight[0]) * sum(weight[1]), np.zeros(mask.shape, bool)
    for y in range(rows):
        for x in range(columns):
            value = 0.0
            for j in range(-reach[0], reach[0] + 1):
                for i in range(-reach[1], reach[1] + 1):
                    here = mask[min(max(y + j, 0), rows - 1), min(max(x + i, 0), columns - 1)]
                    value += here * weight[0][j + reach[0]] * weight[1][i + reach[1]]
            found[y, x] = value / total > 0.5 - (1e-5 if mask[y, x] else -1e-5)
    return found


def test_votes_are_those_of_slices_smoothed_one_by_one():
    mask = _jagged(_sphere((5, 7, 8), (2.0, 1.0, 0.8), 3.0), 0)
    spacing, sigma = (2.0, 1.0, 0.8), 0.9
    votes = np.zeros(mask.shape, int)
    for axis in range(3):
        plane = [sigma / s for i, s in enumerate(spacing) if i != axis]
        for i in range(mask.shape[axis]):
            index = [slice(None)] * 3
            index[axis] = i
            votes[tuple(index)] += _slow_slice(mask[tuple(index)], plane)
    np.testing.assert_array_equal(voted(mask, spacing, sigma), votes >= 2)
    np.testing.assert_array_equal(refine_contours(_map(mask, spacing), sigma_mm=sigma).array, votes >= 2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.75, 0.75)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_jagged_sphere_is_closer_to_the_sphere_and_keeps_its_volume(spacing, seed):
    shape = tuple(round(34 / s) for s in spacing)
    sphere = _sphere(shape, spacing, 12.0)
    jagged = _jagged(sphere, seed)
    fine = refine_contours(_map(jagged, spacing), sigma_mm=1.2, largest=True).array.astype(bool)
    before, after = nsd(jagged, sphere, spacing, 0.75), nsd(fine, sphere, spacing, 0.75)
    assert before < 0.9 and after > before + 0.05
    assert abs(fine.sum() / sphere.sum() - 1) < 0.04
    assert 2 * (fine & sphere).sum() / (fine.sum() + sphere.sum()) > 2 * (jagged & sphere).sum() / (
        jagged.sum() + sphere.sum()
    )


def test_a_smooth_sphere_stays_within_a_voxel():
    sphere = _sphere((30, 30, 30), (1.0, 1.0, 1.0), 11.0)
    fine = refine_contours(_map(sphere), sigma_mm=1.0).array.astype(bool)
    assert nsd(fine, sphere, (1.0, 1.0, 1.0), 1.0) == 1.0
    assert (fine ^ sphere).sum() < 0.02 * sphere.sum()


def test_what_is_smoothed_is_measured_in_mm():
    bump = np.zeros((9, 24, 24), np.uint8)
    bump[:, 12:] = 1
    bump[:, 9:12, 9:13] = 1
    small = refine_contours(_map(bump, (0.25, 0.25, 0.25)), sigma_mm=1.0).array
    large = refine_contours(_map(bump, (2.0, 2.0, 2.0)), sigma_mm=1.0).array
    assert not small[:, 9:11].any() and large[:, 9:11].sum() > 0.8 * bump[:, 9:11].sum()


def test_labels_never_leak_into_others_and_leave_no_gap_between_them():
    shape = (24, 24, 24)
    ball = _sphere(shape, (1.0, 1.0, 1.0), 11.0)
    wall = 12 + np.random.default_rng(3).integers(-1, 2, (24, 24))  # a jagged wall between the halves
    left = np.arange(24) < wall[..., None]
    array = np.where(ball, np.where(left, 1, 2), 0)
    fine = refine_contours(_map(array)).array
    inner = _sphere(shape, (1.0, 1.0, 1.0), 6.0)  # where the background is out of reach
    assert (fine[inner] > 0).all()
    only = refine_contours(_map(array), names=["a"]).array
    np.testing.assert_array_equal(only == 2, array == 2)
    assert set(np.unique(fine)) == {0, 1, 2}
    assert (fine[..., :9] != 2).all() and (fine[..., 15:] != 1).all()


def test_nested_regions_are_smoothed_each_by_itself():
    regions = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
    shape = (20, 20, 20)
    whole, core = _jagged(_sphere(shape, (1.0,) * 3, 8.0), 0), _jagged(_sphere(shape, (1.0,) * 3, 4.0), 1)
    array = np.where(core, 2, np.where(whole, 1, 0))
    fine = refine_contours(_map(array, labels=regions)).array
    np.testing.assert_array_equal(fine > 0, voted(array > 0, (1.0,) * 3, 1.0) | voted(core, (1.0,) * 3, 1.0))
    np.testing.assert_array_equal(fine == 2, voted(core, (1.0,) * 3, 1.0))
    only = refine_contours(_map(array, labels=regions), names=["core"]).array
    np.testing.assert_array_equal(only > 0, array > 0)


def test_one_slice_is_smoothed_in_its_plane_and_scan_edges_do_not_erode():
    disc = _sphere((1, 40, 40), (1.0,) * 3, 14.0)
    jagged = _jagged(disc, 4) & True
    fine = refine_contours(_map(jagged), sigma_mm=1.5).array.astype(bool)
    assert nsd(fine, disc, (1.0,) * 3, 0.9) > nsd(jagged, disc, (1.0,) * 3, 0.9)
    half = np.zeros((8, 8, 8), np.uint8)
    half[:, :, :4] = 1
    np.testing.assert_array_equal(refine_contours(_map(half), sigma_mm=2.0).array, half)


def test_a_label_that_would_vanish_stays_and_fragments_go_on_request():
    array = np.zeros((9, 9, 9), np.uint8)
    array[4, 4, :] = 1
    np.testing.assert_array_equal(refine_contours(_map(array)).array, array)
    two = np.zeros((12, 12, 30), np.uint8)
    two[2:10, 2:10, 2:10] = two[4:9, 4:9, 20:25] = 1
    assert refine_contours(_map(two)).array[:, :, 20:].any()
    assert not refine_contours(_map(two), largest=True).array[:, :, 20:].any()


def test_it_is_a_cleaning_step_and_never_changes_its_input():
    array = _jagged(_sphere((12, 12, 12), (1.0,) * 3, 4.5), 5).astype(np.uint8)
    labels, before = _map(array), array.copy()
    found = clean(labels, [Step("refine_contours", {"names": ["a"], "sigma_mm": 1.0, "largest": True})])
    assert not np.array_equal(found.array, before)
    np.testing.assert_array_equal(labels.array, before)
    empty = _map(np.zeros((3, 3, 3)))
    np.testing.assert_array_equal(refine_contours(empty).array, 0)
    with pytest.raises(PlanError, match="labels are a, b"):
        refine_contours(labels, names=["c"])
    with pytest.raises(PlanError, match="not positive"):
        refine_contours(labels, sigma_mm=0.0)
