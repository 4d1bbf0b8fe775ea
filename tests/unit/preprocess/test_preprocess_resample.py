from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medseg.errors import ImageError, PlanError
from medseg.preprocess.orientation import reorient
from medseg.preprocess.resample import axis_orders, resample_image
from medseg.types.geometry import Geometry
from medseg.types.image import Image

SHAPES = [
    ((20, 30, 40), (15, 23, 30)),
    ((20, 30, 40), (27, 37, 51)),
    ((1, 30, 40), (1, 20, 60)),
    ((3, 4, 5), (9, 3, 5)),
]


def scan(shape, seed=0, dtype=np.int16, **grid):
    array = np.random.default_rng(seed).normal(0, 900, (1, *shape)).astype(dtype)
    return Image(array, Geometry(shape, (0.3, 0.3, 0.3), **grid), ("CT",))


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return ((float(c), float(-s), 0.0), (float(s), float(c), 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_equals_scipys_zoom(old, new, order):
    image = scan(old)
    zoom = [m / n for m, n in zip(new, old, strict=True)]
    wanted = ndimage.zoom(image.array[0].astype(float), zoom, order=order, mode="nearest", grid_mode=True)
    wanted = wanted.clip(image.array.min(), image.array.max())
    got = resample_image(image, image.geometry.with_shape(new), order=order, coarse_order=3)
    assert got.array.shape == (1, *new)
    assert got.array.dtype == (np.int16 if order == 0 else np.float32)
    assert np.abs(got.array[0] - wanted).max() < (1e-9 if order == 0 else 0.005)  # grey levels, of some thousands


@pytest.mark.parametrize("order", [1, 3])
def test_a_voxel_much_larger_than_those_of_the_scan_is_their_mean(order):
    image = scan((20, 40, 30))
    for new, parts in (((20, 16, 30), (1, 3, 1)), ((10, 40, 12), (2, 1, 3))):
        fine = tuple(n * m for n, m in zip(new, parts, strict=True))
        whole = resample_image(image, image.geometry.with_shape(fine), order=order, coarse_order=3).array[0]
        blocks = whole.reshape(new[0], parts[0], new[1], parts[1], new[2], parts[2]).mean((1, 3, 5))
        found = resample_image(image, image.geometry.with_shape(new), order=order, coarse_order=3).array[0]
        np.testing.assert_allclose(found, blocks, atol=40)  # the finer grid clips what overshoots
        assert np.abs(found - blocks).mean() < 1


@pytest.mark.parametrize("degrees", [0, 20])
def test_sampling_down_averages_noise_and_keeps_what_is_constant(degrees):
    image = scan((40, 44, 48), direction=turned(0))
    coarse = image.geometry.with_shape((16, 18, 19))
    target = replace(coarse, direction=turned(degrees))
    found = resample_image(image, target).array[0][3:-3, 5:-5, 5:-5]
    assert found.std() < 0.4 * image.array.std()  # of points: 0.8 or more
    assert resample_image(image, target, order=0).array[0][3:-3, 5:-5, 5:-5].std() > 0.9 * image.array.std()
    flat = resample_image(replace(image, array=np.full_like(image.array, 700)), target).array[0][3:-3, 5:-5, 5:-5]
    np.testing.assert_allclose(flat, 700, rtol=1e-5)


def test_many_slabs_and_both_orders_of_axes_change_nothing(monkeypatch):
    image = scan((40, 30, 20))
    for new in ((33, 45, 18), (61, 21, 31)):
        whole = resample_image(image, image.geometry.with_shape(new)).array
        monkeypatch.setattr("medseg.preprocess.resample._SLAB_BYTES", 1)
        np.testing.assert_allclose(resample_image(image, image.geometry.with_shape(new)).array, whole, atol=2e-3)
        monkeypatch.undo()


def test_simpleitk_agrees_on_a_tilted_reference_grid_of_other_extent():
    image = scan((24, 26, 28), origin_mm=(4.0, -3.0, 2.0), direction=turned(15))
    inner = image.geometry.with_shape((20, 31, 25))
    target = replace(inner, shape=(12, 20, 15), origin_mm=tuple((inner.affine() @ [3, 4, 5, 1])[:3].tolist()))
    ours = resample_image(image, target, order=3, coarse_order=3).array[0]
    theirs = _sitk(image, target, sitk.sitkBSpline)
    centre = (slice(3, -3),) * 3  # the boundary rules of the splines differ
    assert np.abs(ours - theirs)[centre].max() < 0.5
    ours = resample_image(image, target, order=1).array[0]
    np.testing.assert_allclose(ours, _sitk(image, target, sitk.sitkLinear), atol=0.01)


def test_grids_turned_against_each_other_are_resampled_in_space():
    image = scan((24, 26, 28))
    smooth = replace(image, array=ndimage.gaussian_filter(image.array.astype(np.float32), (0, 3, 3, 3)))
    target = replace(image.geometry, direction=turned(10), origin_mm=(1.0, 0.0, 0.0), shape=(20, 20, 20))
    for order, kind in ((1, sitk.sitkLinear), (0, sitk.sitkNearestNeighbor)):
        got = resample_image(smooth, target, order=order)
        np.testing.assert_allclose(got.array[0], _sitk(smooth, target, kind, smooth.array.min()), atol=0.01)
        assert got.geometry == target
    assert resample_image(smooth, target, order=3).array.max() <= smooth.array.max()


def test_flipped_and_permuted_axes_stay_exact():
    image = scan((10, 12, 14))
    array, grid = reorient(image.array, image.geometry, "PIR")
    turned_back = resample_image(replace(image, array=array, geometry=grid), image.geometry, order=3)
    np.testing.assert_array_equal(turned_back.array, image.array)


def _sitk(image, target, kind, outside=0.0):
    volume = sitk.GetImageFromArray(image.array[0].astype(np.float32))
    volume.SetSpacing(image.geometry.spacing_mm[::-1])
    volume.SetOrigin(image.geometry.origin_mm)
    volume.SetDirection(np.ravel(image.geometry.direction).tolist())
    like = sitk.Image(*target.shape[::-1], sitk.sitkFloat32)
    like.SetSpacing(target.spacing_mm[::-1])
    like.SetOrigin(target.origin_mm)
    like.SetDirection(np.ravel(target.direction).tolist())
    return sitk.GetArrayFromImage(sitk.Resample(volume, like, sitk.Transform(), kind, float(outside)))


def test_a_constant_scan_stays_constant_and_no_grey_value_is_invented():
    image = scan((15, 16, 17))
    target = image.geometry.with_shape((22, 11, 19))
    flat = replace(image, array=np.full_like(image.array, -777))
    assert np.all(resample_image(flat, target).array == -777)
    moved = resample_image(image, target).array
    assert image.array.min() <= moved.min()
    assert moved.max() <= image.array.max()


def test_an_unchanged_grid_returns_the_voxels_themselves():
    image = scan((4, 5, 6))
    assert resample_image(image, image.geometry).array is image.array


def test_the_thick_axis_has_its_own_order():
    assert axis_orders((5.0, 0.5, 0.5), (1.0, 1.0, 1.0), 3, 1) == (1, 3, 3)
    assert axis_orders((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 3, 0) == (3, 0, 3)
    assert axis_orders((5.0, 5.0, 0.5), (1.0, 1.0, 1.0), 3, 1) == (3, 3, 3)
    assert axis_orders((1.5, 0.5, 0.5), (1.0, 1.0, 1.0), 3, 1) == (3, 3, 3)
    assert axis_orders((5.0, 0.5, 0.5), (1.0, 1.0, 1.0), 1, 0) == (1, 1, 1)
    step = np.zeros((1, 8, 6, 6), np.float32)
    step[:, 4:] = 100
    thick = Image(step, Geometry((8, 6, 6), (4.0, 0.5, 0.5)), ("MR",))
    profile = resample_image(thick, thick.geometry.with_shape((32, 6, 6))).array[0, :, 3, 3]
    assert np.all(np.diff(profile) >= 0)  # linear: no ringing
    np.testing.assert_allclose(profile[14:18], [12.5, 37.5, 62.5, 87.5])


def test_bad_voxels_and_orders_are_refused():
    image = scan((4, 5, 6), dtype=np.float32)
    target = image.geometry.with_shape((3, 3, 3))
    image.array[0, 1, 1, 1] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        resample_image(image, target)
    with pytest.raises(PlanError, match="order 2"):
        resample_image(image, target, order=2)
