"""Overlap and surface distances: known shapes, empties, and MONAI as second opinion."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from medseg.metrics.overlap import dice, iou, lesions
from medseg.metrics.surface import hd95_mm, mean_surface_mm, nsd

SPACING = (2.0, 0.8, 0.5)
pytestmark = pytest.mark.filterwarnings("ignore:monai.metrics:FutureWarning")


def _ball(centre, radius, shape=(14, 24, 30), spacing=SPACING):
    axes = np.indices(shape)
    return sum(((a - c) * s) ** 2 for a, c, s in zip(axes, centre, spacing, strict=True)) <= radius**2


def _cube(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def test_a_shifted_cube_has_known_overlap_and_distances():
    one = _cube((10, 10, 20), (2, 2, 2), (8, 8, 8))
    two = _cube((10, 10, 20), (2, 2, 5), (8, 8, 11))
    assert dice(one, two) == 0.5 and iou(one, two) == pytest.approx(1 / 3)
    assert hd95_mm(one, two, (1.0, 1.0, 0.5)) == pytest.approx(1.5)
    assert hd95_mm(one, two, (1.0, 1.0, 2.0)) <= 6.0
    assert nsd(one, one, SPACING) == 1.0 and mean_surface_mm(one, one, SPACING) == 0.0 == hd95_mm(one, one, SPACING)


@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees(seed):
    rng = np.random.default_rng(seed)
    one = _ball((7, 12, 14), 7.0)
    two = _ball((7 + rng.integers(-1, 2), 13, 14 + rng.integers(-3, 4)), 6.0) | _ball((2, 3, 25), 1.5)
    pair = [torch.from_numpy(np.stack([~m, m]))[None] for m in (one, two)]
    options = {"include_background": False, "spacing": SPACING}
    assert hd95_mm(one, two, SPACING) == pytest.approx(
        compute_hausdorff_distance(*pair, percentile=95, **options).item(), abs=1e-5
    )
    assert mean_surface_mm(one, two, SPACING) == pytest.approx(
        compute_average_surface_distance(*pair, symmetric=True, **options).item(), abs=1e-5
    )
    for tolerance in (0.5, 1.0, 2.0):
        expected = compute_surface_dice(*pair, class_thresholds=[tolerance], **options).item()
        assert nsd(one, two, SPACING, tolerance) == pytest.approx(expected, abs=1e-6)


def test_flat_images_are_measured_in_their_plane():
    one, two = (_ball((0, 12, c), 5.0, (1, 24, 30)) for c in (12, 16))
    pair = [torch.from_numpy(np.stack([~m[0], m[0]]))[None] for m in (one, two)]
    expected = compute_hausdorff_distance(*pair, percentile=95, spacing=SPACING[1:]).item()
    assert hd95_mm(one, two, SPACING) == pytest.approx(expected, abs=1e-5)
    assert hd95_mm(one, two, (99.0, *SPACING[1:])) == pytest.approx(expected, abs=1e-5)


def test_masks_at_the_edge_of_the_scan_have_a_surface_there():
    full = np.ones((4, 4, 4), bool)
    core = _cube((4, 4, 4), (1, 1, 1), (3, 3, 3))
    assert hd95_mm(full, core, (1.0, 1.0, 1.0)) == pytest.approx(math.sqrt(3))


def test_empty_masks_have_stated_values():
    none, some = np.zeros((4, 4, 4), bool), _cube((4, 4, 4), (1, 1, 1), (3, 3, 3))
    for metric in (dice, iou):
        assert math.isnan(metric(none, none)) and metric(some, none) == metric(none, some) == 0.0
    for distance in (hd95_mm, mean_surface_mm):
        assert math.isnan(distance(none, none, SPACING))
        assert distance(some, none, SPACING) == distance(none, some, SPACING) == math.inf
    assert math.isnan(nsd(none, none, SPACING)) and nsd(some, none, SPACING) == nsd(none, some, SPACING) == 0.0


def test_lesions_touch_or_are_missed_or_false():
    reference, prediction = np.zeros((3, 9, 9), bool), np.zeros((3, 9, 9), bool)
    reference[0, 0, 0] = reference[1, 1, 1] = True  # one lesion, through the corner
    reference[1, 6, 6] = True
    prediction[1, 1, 1:3] = True
    prediction[2, 8, 0] = True
    assert lesions(prediction, reference) == (2, 1, 1)
