from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ImageError, PlanError
from medseg.preprocess.chain import prepare_image, prepare_labels, prepared_geometry
from medseg.preprocess.native import native_labels
from medseg.preprocess.orientation import orientation_code, reorient
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, LabelMap, Slab
from medseg.types.labels import Label, Labels
from medseg.types.plan import Preprocess, Step

LABELS = Labels((Label("ball", (1,)), Label("smaller", (2,))))
PLAIN = Preprocess((1.0, 1.0, 1.0), (Step("none"),))


def phantom(code="LPS"):
    """Two balls on a tilted grid with three different spacings, stored in any axis order."""
    c, s = float(np.cos(0.3)), float(np.sin(0.3))
    grid = Geometry((24, 40, 36), (1.5, 0.8, 0.9), (-10.0, 20.0, 5.0), ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))
    z, y, x = np.indices(grid.shape) * np.reshape(grid.spacing_mm, (3, 1, 1, 1))
    labels = ((z - 15) ** 2 + (y - 14) ** 2 + (x - 14) ** 2 < 9**2).astype(np.uint8)
    labels[(z - 25) ** 2 + (y - 23) ** 2 + (x - 24) ** 2 < 7**2] = 2
    image = np.random.default_rng(0).normal(1000.0 * labels, 30).astype(np.int16)[None]
    moved, stored = reorient(labels, grid, code)
    return Image(reorient(image, grid, code)[0], stored, ("CT",)), LabelMap(moved, stored, LABELS)


def one_hot(labels):
    scores = np.stack([labels.array == i for i in range(3)]).astype(np.float32)
    return [Slab(z, scores[:, z : z + 5]) for z in range(0, scores.shape[1], 5)]


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL"])
def test_there_and_back_moves_no_voxel_by_more_than_half_a_spacing(code):
    image, labels = phantom(code)
    prepared = prepare_image(image, PLAIN)
    moved = prepare_labels(labels, prepared.geometry)
    back = native_labels(one_hot(moved), prepared.geometry, image.geometry, LABELS)
    for value in (1, 2):
        a, b = back.array == value, labels.array == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
        shift = np.subtract(np.argwhere(a).mean(axis=0), np.argwhere(b).mean(axis=0))
        assert np.abs(shift).max() < 0.1


def test_the_stored_axis_order_does_not_matter():
    first = prepare_image(phantom("LPS")[0], PLAIN)
    for code in ("PIR", "SAL", "RAI"):
        other = prepare_image(phantom(code)[0], PLAIN)
        assert other.geometry.same_grid(first.geometry)
        np.testing.assert_allclose(other.array, first.array, atol=1e-2)


def test_the_result_is_float32_in_memory_of_its_own():
    image, _ = phantom()
    for plan in (PLAIN, replace(PLAIN, spacing_mm=(None, None, None)), replace(PLAIN, image_order=0)):
        before = image.array.copy()
        prepared = prepare_image(image, plan)
        assert prepared.array.dtype == np.float32
        assert prepared.array.flags.c_contiguous
        assert prepared.array.shape == (1, *prepared.geometry.shape)
        prepared.array[:] = 0
        np.testing.assert_array_equal(image.array, before)
    floats = replace(image, array=image.array.astype(np.float32))
    prepare_image(floats, replace(PLAIN, spacing_mm=(None, None, None), intensity=(Step("z_score"),)))
    np.testing.assert_array_equal(floats.array, image.array)


def test_shape_follows_spacing_and_outer_edges_stay():
    image, _ = phantom()
    grid = prepared_geometry(image.geometry, PLAIN)
    assert grid.shape == (36, 32, 32)  # 24 * 1.5, 40 * 0.8, round(36 * 0.9)
    corner = image.geometry.affine() @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(grid.affine() @ [-0.5, -0.5, -0.5, 1], corner)
    assert prepared_geometry(image.geometry, replace(PLAIN, spacing_mm=(None, 1.0, 500.0))).shape == (24, 32, 1)


def test_crop_keeps_everything_that_is_not_zero():
    image, labels = phantom("PIR")
    image = replace(image, array=image.array * (labels.array > 0))
    plan = replace(PLAIN, crop="nonzero", spacing_mm=(None, None, None))
    prepared = prepare_image(image, plan)
    assert prepared.array.size < image.array.size / 2
    assert np.isclose(prepared.array.sum(dtype=float), image.array.sum(dtype=float))
    moved = prepare_labels(labels, prepared.geometry)
    np.testing.assert_array_equal(
        native_labels(one_hot(moved), prepared.geometry, image.geometry, LABELS).array, labels.array
    )


def test_orientation_of_the_plan_decides_what_z_is():
    image, _ = phantom("LPS")
    prepared = prepare_image(image, replace(PLAIN, orientation="SLP"))
    assert orientation_code(prepared.geometry) == "SLP"
    stored = prepare_image(phantom("PIR")[0], replace(PLAIN, orientation="stored"))
    assert orientation_code(stored.geometry) == "PIR"


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["LPS", "PIR", "ASL"]), st.sampled_from(["LPS", "stored"]))
def test_2d_images_stay_2d(code, orientation):
    _, grid = reorient(np.empty((1, 30, 40)), Geometry((1, 30, 40), (1.0, 0.5, 0.5)), "LPS")
    rows = {
        "L": (1.0, 0, 0),
        "P": (0, 1.0, 0),
        "S": (0, 0, 1.0),
        "A": (0, -1.0, 0),
        "I": (0, 0, -1.0),
        "R": (-1.0, 0, 0),
    }
    direction = tuple(tuple(map(float, row)) for row in np.array([rows[c] for c in code], float).T)
    image = Image(np.ones((3, 1, 30, 40), np.uint8), replace(grid, direction=direction), ("r", "g", "b"))
    plan = Preprocess((None, 1.0, 1.0), (Step("rescale"),) * 3, orientation)
    prepared = prepare_image(image, plan)
    assert sorted(prepared.array.shape) == [1, 3, 15, 20]
    assert prepared.array.shape[1] == 1
    np.testing.assert_allclose(prepared.array, 1 / 255)


def test_each_channel_has_its_own_rule():
    image, _ = phantom()
    both = replace(image, array=np.concatenate([image.array, image.array]), channels=("CT", "PET"))
    plan = replace(PLAIN, intensity=(Step("z_score"), Step("rescale", {"low": 0.0, "high": 1000.0})))
    prepared = prepare_image(both, plan)
    assert abs(prepared.array[0].mean()) < 2e-3  # exactly 0 on the scan's own grid
    assert 0 <= prepared.array[1].min() <= prepared.array[1].max() <= 1


def test_what_does_not_fit_the_plan_is_refused():
    image, _ = phantom()
    with pytest.raises(ImageError, match="1 channels, the plan 2"):
        prepare_image(image, replace(PLAIN, intensity=(Step("none"), Step("none"))))
    with pytest.raises(PlanError, match=r"preprocess\.intensity\.0"):
        prepare_image(image, replace(PLAIN, intensity=(Step("whiten"),)))


def test_prepared_geometry_knows_the_crop():
    grid = Geometry((10, 10, 10), (1.0, 1.0, 1.0))
    got = prepared_geometry(grid, replace(PLAIN, spacing_mm=(2.0, 2.0, 2.0)), Box((2, 0, 0), (8, 10, 10)))
    assert got.shape == (3, 5, 5)
    assert got.origin_mm == (0.5, 0.5, 2.5)


def test_pixels_are_no_millimetres():
    scan = Image(np.ones((1, 1, 8, 8), np.uint8), Geometry((1, 8, 8), (1.0, 1.0, 1.0), unit="px"), ("X-ray",))
    plan = Preprocess((None, 0.3, 0.3), (Step("z_score"),), orientation="stored")
    with pytest.raises(ImageError, match=r"no spacing.*--spacing MM"):
        prepare_image(scan, plan)
    assert prepare_image(scan, replace(plan, spacing_mm=(None, None, None))).array.shape == (1, 1, 8, 8)
    halved = replace(plan, spacing_mm=(None, 2.0, 2.0), unit="px")
    assert prepare_image(scan, halved).array.shape == (1, 1, 4, 4)
    measured = replace(scan, geometry=replace(scan.geometry, unit="mm"))
    with pytest.raises(ImageError, match="pictures that state none"):
        prepare_image(measured, halved)


def ellipsoid(spacing=(1.5, 0.8, 0.9), outside=0, seed=0):
    """Smooth tissue of about 500 in an ellipsoid of fixed size in mm; exactly `outside` beyond."""
    shape = tuple(round(60 / s) for s in spacing)
    z, y, x = ((np.indices(shape) + 0.5) * np.reshape(spacing, (3, 1, 1, 1))) - 30
    inside = (z / 22) ** 2 + (y / 26) ** 2 + (x / 24) ** 2 < 1
    tissue = 500 + 40 * np.sin(x / 4) * np.cos(y / 5) + 20 * np.sin(z / 3)
    values = np.where(inside, tissue, outside).astype(np.float32)
    return Image(values[None], Geometry(shape, spacing), ("MR",)), inside


def within(mask):
    """The mask without its outer three voxels."""
    return np.all([np.roll(mask, by, axis) for axis in range(3) for by in (-3, 3)], axis=0) & mask


@pytest.mark.parametrize("spacing", [(1.5, 0.8, 0.9), (2.0, 2.0, 2.0), (0.5, 0.5, 0.5)])
def test_a_mask_by_zeros_stays_one_and_its_numbers_do_not_depend_on_the_voxel_size(spacing):
    plan = replace(PLAIN, intensity=(Step("z_score", {"nonzero": True}),))
    array = prepare_image(ellipsoid(spacing)[0], plan).array[0]
    exact = ellipsoid((1.0, 1.0, 1.0))[1]
    assert (array[~exact] != 0).mean() < 0.03, "no rings around the mask: only its edge may be half a voxel off"
    core = within(exact)
    assert abs(array[core].mean()) < 0.1 and 0.85 < array[core].std() < 1.1


@pytest.mark.parametrize("outside", [-1000, -2048])
def test_padding_does_not_move_the_anchors_where_the_scan_is_resampled(outside):
    plan, spacing = replace(PLAIN, intensity=(Step("anchor_scale"),)), (0.7, 0.45, 0.45)
    stored = prepare_image(ellipsoid(spacing, outside)[0], replace(plan, spacing_mm=(None,) * 3)).array
    moved = prepare_image(ellipsoid(spacing, outside)[0], plan).array
    inside, exact = ellipsoid(spacing)[1], ellipsoid((1.0, 1.0, 1.0))[1]
    assert np.median(moved[0][exact]) == pytest.approx(np.median(stored[0][inside]), abs=0.05)
    assert -1.9 < stored[0][inside].min() and stored[0][inside].max() < 1.9


def test_metal_is_clipped_before_it_can_ring():
    image, _ = ellipsoid((1.5, 0.8, 0.9))
    image.array[0, 20:22, 35:38, 33:36] = 30_000
    plan = replace(PLAIN, intensity=(Step("clip_z_score", {"low": 0.0, "high": 800.0, "mean": 0.0, "std": 1.0}),))
    without, _ = ellipsoid((1.5, 0.8, 0.9))
    change = np.abs(prepare_image(image, plan).array - prepare_image(without, plan).array)[0]
    far = within(ellipsoid((1.0, 1.0, 1.0))[1])
    far[27:37, 25:33, 26:36] = False
    assert change.max() > 200 and change[far].max() < 15


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["anchor_scale", "z_score", "none"])
def test_voxels_that_are_no_number_are_refused_on_any_grid(rule, bad):
    image, _ = ellipsoid((2.0, 2.0, 2.0))
    image.array[0, 15, 15, 15] = bad
    for spacing in ((None,) * 3, (1.0, 1.0, 1.0)):
        with pytest.raises(ImageError, match="NaN or infinity"):
            prepare_image(image, replace(PLAIN, spacing_mm=spacing, intensity=(Step(rule),)))
