"""What ultrasound augmentation does to brightness, by depth and direction."""

import math

import pytest
import torch

from medseg.augment.ultrasound import attenuation, shadow, time_gain
from medseg.errors import PlanError
from medseg.types.tensors import Patch


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _grey(rows=40, columns=30, low=-2.0):
    """Brightness 1 everywhere but for one black corner, which is the floor."""
    image = torch.full((1, rows, columns), low + 1)
    image[0, 0, 0] = low
    return Patch(image, torch.zeros(1, rows, columns, dtype=torch.int16))


def _height(patch, low=-2.0):
    return patch.image[0] - low


def test_attenuation_is_exponential_with_depth_and_keeps_black() -> None:
    for seed in range(5):
        height = _height(attenuation(_grey(), _generator(seed), p=1.0, decibel=20.0))
        assert height[0, 0] == 0
        column = height[:, 5]
        loss = -20 * torch.log10(column)
        torch.testing.assert_close(loss, torch.linspace(0, 1, 40) * loss[-1], atol=1e-4, rtol=1e-4)
        assert 0 < loss[-1] <= 20
        torch.testing.assert_close(height[7, 1:], column[7].expand(29))


def test_time_gain_is_a_broken_line_of_decibels_within_its_limits() -> None:
    seen = []
    for seed in range(20):
        height = _height(time_gain(_grey(), _generator(seed), p=1.0, decibel=6.0, knots=4))
        gain = 20 * torch.log10(height[:, 5])
        assert gain.abs().max() <= 6.0 + 1e-4
        bends = (gain[2:] - 2 * gain[1:-1] + gain[:-2]).abs() > 1e-3
        assert bends.sum() <= 4  # two inner knots, each between two rows
        seen.append(gain)
    stacked = torch.stack(seen)
    assert stacked.min() < -3 < 3 < stacked.max()


def test_depth_may_run_along_another_axis() -> None:
    height = _height(attenuation(_grey(), _generator(), p=1.0, axis=2))
    assert height[5, 1] > height[5, -1]
    torch.testing.assert_close(height[1:, 7], height[1, 7].expand(39))
    with pytest.raises(PlanError, match="axis 0 of a 2D patch"):
        attenuation(_grey(), _generator(), p=1.0, axis=0)


def test_a_shadow_is_a_sector_below_its_start_seen_from_the_probe() -> None:
    rows, columns, apex = 80, 60, 0.3
    found = 0
    for seed in range(10):
        height = _height(shadow(_grey(rows, columns), _generator(seed), p=1.0, apex=apex, degrees=10.0))
        dark = height < 0.999
        dark[0, 0] = False
        if not dark.any():
            continue
        found += 1
        assert height.min() >= 0
        y, x = dark.nonzero().T
        angle = torch.atan2(x + 0.5 - columns / 2, y + 0.5 + apex * rows)
        reach = torch.hypot(x + 0.5 - columns / 2, y + 0.5 + apex * rows)
        assert angle.max() - angle.min() <= math.radians(2 * 1.5 * 10.0) + 1e-4
        if y.max() < rows - 1:  # it left the picture at a side
            assert x.min() == 0 or x.max() == columns - 1
        middle = (angle - angle.mean()).abs() < math.radians(1.0)
        assert reach[middle].max() > reach[middle].min()
    assert found >= 8


def test_three_dimensions_share_one_shadow() -> None:
    flat = _grey()
    thick = Patch(flat.image[:, None].expand(1, 3, 40, 30).clone(), flat.labels[:, None].expand(1, 3, 40, 30).clone())
    one, many = (shadow(patch, _generator(3), p=1.0) for patch in (flat, thick))
    for z in range(3):
        torch.testing.assert_close(many.image[:, z], one.image)
