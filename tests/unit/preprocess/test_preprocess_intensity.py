import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.errors import PlanError
from medseg.plugins import resolve
from medseg.preprocess import intensity
from medseg.preprocess.fan import fan_mask
from medseg.preprocess.intensity import INTENSITY, anchor_scale, clip_z_score, fan_z_score, rescale, z_score


def cbct(seed=0, shape=(24, 64, 64)):
    """Air, soft tissue and bone with noise, and zero padding outside a round field of view."""
    rng = np.random.default_rng(seed)
    _, y, x = np.indices(shape)
    radius = np.hypot(y - shape[1] / 2, x - shape[2] / 2)
    scan = np.where(radius < 25, 1000.0, 50.0) + rng.normal(0, 40, shape)
    scan[(np.abs(y - 32) < 6) & (np.abs(x - 32) < 12)] += 900
    scan[radius > 31] = -500
    return scan.astype(np.float32)


def fan(shape=(1, 120, 160)):
    """A sector with speckle and a black vessel, text in a corner and a line above it."""
    rng = np.random.default_rng(0)
    _, y, x = np.indices(shape)
    angle, depth = np.degrees(np.arctan2(x - 80, y + 20)), np.hypot(x - 80, y + 20)
    inside = (np.abs(angle) < 30) & (depth > 30) & (depth < 125)
    image = inside * rng.rayleigh(60, shape)
    image[(y - 60) ** 2 + (x - 80) ** 2 < 12**2] = 0
    image[:, 4:10, 4:30] = 200 * (rng.random((1, 6, 26)) > 0.5)
    image[:, 100:101, :] = 255
    return image.clip(0, 255).astype(np.float32), inside


def test_z_score_and_its_foreground_variant():
    array = np.random.default_rng(0).normal(300, 50, (4, 5, 6)).astype(np.float32)
    out = z_score(array.copy())
    assert abs(out.mean()) < 1e-6
    assert abs(out.std() - 1) < 1e-5
    array[:, :2] = 0
    out = z_score(array.copy(), nonzero=True)
    assert np.all(out[:, :2] == 0)
    assert abs(out[:, 2:].mean()) < 1e-5
    assert abs(out[:, 2:].std() - 1) < 1e-5


def test_constant_and_empty_scans_give_zeros():
    for name in ("z_score", "anchor_scale", "fan_z_score"):
        assert np.all(INTENSITY[name](np.full((1, 12, 12), 7, np.float32)) == 0)
    assert np.all(z_score(np.zeros((2, 3, 4), np.float32), nonzero=True) == 0)


def test_clip_z_score_and_rescale_by_hand():
    array = np.array([[[-2000, 0, 100, 4000]]], np.float32)
    out = clip_z_score(array.copy(), low=-1000.0, high=1000.0, mean=100.0, std=200.0)
    np.testing.assert_allclose(out, [[[-5.5, -0.5, 0, 4.5]]])
    np.testing.assert_allclose(rescale(np.array([[[0, 51, 255, 300]]], np.float32)), [[[0, 0.2, 1, 1]]])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 20), st.floats(-3000, 3000), st.sampled_from(["z_score", "anchor_scale", "fan_z_score"]))
def test_gain_and_offset_of_the_scanner_do_not_matter(gain, offset, name):
    scan = cbct() if name != "fan_z_score" else fan()[0]
    steps = np.round(scan)  # whole numbers, so that float32 holds both scans to about 1e-7
    plain = INTENSITY[name](steps.astype(np.float32))
    changed = INTENSITY[name]((steps.astype(np.float64) * gain + offset).astype(np.float32))
    if name == "z_score":
        np.testing.assert_allclose(changed, plain, atol=1e-3)
    else:
        np.testing.assert_allclose(changed, plain, atol=5e-5 * max(1, abs(offset) / gain / 300))


def test_anchors_scale_exactly_under_exact_gain_and_offset():
    steps = np.round(cbct())
    np.testing.assert_allclose(anchor_scale(steps * 4 + 1024), anchor_scale(steps.copy()), atol=1e-5)


@pytest.mark.parametrize(("count", "tolerance"), [(20, 0.001), (1000, 0.01)])
@pytest.mark.parametrize("value", [4_000, 30_000, 1e6])
def test_metal_changes_next_to_nothing(count, tolerance, value):
    scan = cbct()
    where = np.random.default_rng(1).choice(np.flatnonzero(scan > 500), count, replace=False)
    metal = scan.copy()
    metal.ravel()[where] = value
    clean, seen = anchor_scale(scan.copy()), anchor_scale(metal.copy())
    rest = np.ones(scan.size, bool)
    rest[where] = False
    assert np.abs(clean - seen).ravel()[rest & (scan.ravel() > -500)].max() < tolerance
    assert seen.max() <= 5
    if value == 1e6:  # the usual rule follows the metal
        assert np.abs(z_score(scan.copy()) - z_score(metal)).ravel()[rest].max() > 0.5


def test_padding_outside_the_field_of_view_does_not_move_the_anchors():
    scan = cbct()
    padded = np.pad(scan, ((0, 0), (30, 30), (30, 30)), constant_values=-500)
    np.testing.assert_array_equal(anchor_scale(padded)[:, 30:-30, 30:-30], anchor_scale(scan.copy()))


def test_the_fan_is_found_without_text_lines_and_with_its_dark_vessel():
    image, inside = fan()
    mask = fan_mask(image)
    assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.93
    assert mask[0, 60, 80]
    assert not mask[0, 4:10, 4:30].any()
    out = fan_z_score(image.copy())
    assert np.all(out[~mask] == 0)
    assert abs(out[mask].mean()) < 1e-4
    assert abs(out[mask].std() - 1) < 1e-3


def test_more_black_border_changes_nothing_inside_the_fan():
    image, _ = fan()
    wide = np.pad(image, ((0, 0), (20, 30), (40, 10)))
    np.testing.assert_allclose(fan_z_score(wide)[:, 20:-30, 40:-10], fan_z_score(image.copy()), atol=0.02)


def test_an_image_without_borders_is_all_fan():
    tissue = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1, 60, 70)), (0, 2, 2))
    tissue = (120 + 200 * tissue).astype(np.float32)
    assert fan_mask(tissue).mean() > 0.98


def test_wrong_options_are_refused():
    with pytest.raises(PlanError, match="needs option"):
        resolve("clip_z_score", INTENSITY, {"low": 0.0}, where="preprocess.intensity.0")
    array = np.zeros((1, 2, 2), np.float32)
    with pytest.raises(PlanError):
        clip_z_score(array, low=1.0, high=0.0, mean=0.0, std=1.0)
    with pytest.raises(PlanError):
        rescale(array, low=1.0, high=1.0)
    with pytest.raises(PlanError):
        anchor_scale(array, low=50.0, high=20.0)


def test_anchors_of_large_scans_are_those_of_a_part_of_their_voxels(monkeypatch):
    scan = np.random.default_rng(0).gamma(2.0, 100.0, (40, 42, 44)).astype(np.float32)
    scan[:, :6] = -1000  # padding
    whole = intensity.anchor_scale(scan.copy())
    monkeypatch.setattr(intensity, "_SORTED", 9_000)
    part = intensity.anchor_scale(scan.copy())
    assert not np.array_equal(part, whole)
    np.testing.assert_allclose(part[:, 6:], whole[:, 6:], rtol=0.1, atol=0.05)
