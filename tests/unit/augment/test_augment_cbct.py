"""What cone-beam augmentation does: where its patterns lie, how high they are, and what a field of view cuts off."""

import pytest
import torch

from medseg.augment.cbct import cupping, metal_streak, offset, ring, truncation
from medseg.types.tensors import Patch

ALL = [cupping, metal_streak, offset, ring]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _patch(*shape, channels=1):
    torch.manual_seed(1)
    return Patch(torch.randn(channels, *shape) * 3 + 5, torch.ones(1, *shape, dtype=torch.int16))


@pytest.mark.parametrize("change", ALL)
def test_patterns_scale_with_the_spread_whatever_the_grey_values_mean(change) -> None:
    patch = _patch(6, 24, 20)
    scaled = Patch(patch.image * 40 - 300, patch.labels)
    one, other = (change(p, _generator(2), p=1.0).image for p in (patch, scaled))
    torch.testing.assert_close(one * 40 - 300, other, rtol=1e-3, atol=1e-2)


def test_a_ring_is_the_same_around_its_axis_and_in_every_slice() -> None:
    patch = _patch(4, 64, 64)
    change = ring(patch, _generator(5), p=1.0, rings=1, height=2.0).image - patch.image
    torch.testing.assert_close(change[0, 0], change[0, 3], atol=1e-4, rtol=0)
    plane = change[0, 0]
    best = max(_share_that_radius_explains(plane, y, x) for y in range(16, 48, 1) for x in range(16, 48, 1))
    assert best > 0.9


def _share_that_radius_explains(plane, y, x):
    rows, columns = plane.shape
    radius = torch.hypot(torch.arange(rows)[:, None] - y + 0.0, torch.arange(columns)[None] - x + 0.0).round().long()
    sums = torch.zeros(radius.max() + 1).scatter_add_(0, radius.flatten(), plane.flatten())
    counts = torch.zeros(radius.max() + 1).scatter_add_(0, radius.flatten(), torch.ones(plane.numel()))
    expected = (sums / counts)[radius]
    return 1 - float((plane - expected).square().sum() / plane.square().sum())


def test_cupping_is_a_smooth_bowl_without_mean() -> None:
    patch = _patch(3, 32, 40)
    change = (cupping(patch, _generator(1), p=1.0, height=0.5).image - patch.image)[0]
    torch.testing.assert_close(change[0], change[2], atol=1e-4, rtol=0)
    bends_y = change[0, 2:] - 2 * change[0, 1:-1] + change[0, :-2]
    torch.testing.assert_close(bends_y, bends_y[:1, :1].expand_as(bends_y), atol=1e-3, rtol=0)
    assert abs(change.mean()) < 1e-3
    assert change.abs().max() <= 0.5 * patch.image.std() + 1e-4


def test_streaks_start_at_the_brightest_voxel_and_fade_with_distance_and_slices() -> None:
    patch = Patch(torch.randn(1, 9, 48, 48) * 0.1, torch.zeros(1, 9, 48, 48, dtype=torch.int16))
    patch.image[0, 3:6, 18:22, 28:32] = 50.0  # more than the share that may be metal
    change = (metal_streak(patch, _generator(), p=1.0).image - patch.image)[0].abs()
    near, far = change[3:6, 12:28, 22:38], change[3:6, 40:, :10]
    assert near.mean() > 3 * far.mean()
    assert change[3:6].mean() > 5 * change[0].mean()


def test_offset_moves_every_channel_by_one_number() -> None:
    patch = _patch(16, 16, channels=2)
    change = offset(patch, _generator(), p=1.0, height=1.0).image - patch.image
    for channel in change:
        torch.testing.assert_close(channel, channel.mean().expand_as(channel), atol=1e-4, rtol=0)
    assert abs(change[0].mean() - change[1].mean()) > 1e-3


@pytest.mark.parametrize("shape", [(60, 50), (4, 60, 50)])
def test_beyond_the_field_of_view_there_is_nothing_to_see_to_label_or_to_find(shape) -> None:
    patch = _patch(*shape)
    corner, middle = [0.0] * len(shape), [n / 2 for n in shape]
    out = truncation(
        Patch(patch.image, patch.labels, torch.tensor([corner, middle])), _generator(1), p=1.0, smallest=0.5
    )
    gone = out.labels[0] == 0
    assert 0.01 < gone.float().mean() < 0.7
    assert (out.image[0][gone] == patch.image.min()).all()
    torch.testing.assert_close(out.image[0][~gone], patch.image[0][~gone])
    assert out.points is not None
    assert out.points[0].isnan().all()
    torch.testing.assert_close(out.points[1], torch.tensor(middle))
    assert gone[..., 0, 0].all()
    assert not gone[..., shape[-2] // 2, shape[-1] // 2].any()
