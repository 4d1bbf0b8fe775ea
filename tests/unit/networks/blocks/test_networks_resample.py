"""Sizes of features, against torch's own interpolation and pooling."""

import pytest
import torch
import torch.nn.functional as F

from medseg.networks.blocks.extent import dilations, window
from medseg.networks.blocks.resample import maximum, pooled, resized


@pytest.mark.parametrize(("old", "new"), [((4, 7), (8, 5)), ((1, 3), (4, 3)), ((3, 4, 5), (5, 2, 10))])
def test_it_interpolates_linearly_between_voxel_centres(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *old)
    mode = "bilinear" if len(old) == 2 else "trilinear"
    torch.testing.assert_close(resized(x, new), F.interpolate(x, new, mode=mode, align_corners=False))


def test_the_same_size_is_the_same_tensor() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert resized(x, (3, 4)) is x


@pytest.mark.parametrize(
    ("size", "limit", "left"), [((9, 4), 12, (3, 4)), ((5, 7, 3), 20, (2, 3, 3)), ((1, 9), 4, (1, 3))]
)
def test_blocks_are_averaged_until_few_voxels_remain(size: tuple[int, ...], limit: int, left: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    few = pooled(x, limit)
    assert tuple(few.shape[2:]) == left
    blocks = [-(-n // m) for n, m in zip(size, left, strict=True)]
    pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
    torch.testing.assert_close(few, pool(x, blocks, ceil_mode=True, count_include_pad=False))


def test_few_voxels_are_left_alone() -> None:
    x = torch.randn(1, 2, 4, 4)
    assert pooled(x, 16) is x


def test_pooling_stays_in_the_range_of_half_precision() -> None:
    x = torch.full((1, 1, 16, 16, 16), 300.0, dtype=torch.float16)
    assert pooled(x, 1).tolist() == [[[[[300.0]]]]]


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (5, 3), (1, 3, 3), (3, 3, 1)])
def test_the_maximum_is_that_of_max_pooling(kernel: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 4, 5, 2)[..., : 2 if len(kernel) == 3 else 1].reshape(2, 3, 4, 5, *(2,) * (len(kernel) - 2))
    pool = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    torch.testing.assert_close(maximum(x, kernel), pool(x, kernel, 1, [k // 2 for k in kernel]))


@pytest.mark.parametrize(
    ("spacing", "wide", "apart"),
    [((1.0, 1.0), (3, 3), (6, 6)), ((2.0, 1.0, 1.0), (3, 3, 3), (3, 6, 6)), ((2.01, 1.0, 1.0), (1, 3, 3), (3, 6, 6))],
)
def test_an_axis_of_more_than_twice_the_spacing_has_kernel_1(
    spacing: tuple[float, ...], wide: tuple[int, ...], apart: tuple[int, ...]
) -> None:
    assert window(3, spacing) == wide
    assert dilations(6, spacing) == apart


def test_doubling_a_spacing_by_a_stride_is_exactly_twice() -> None:
    assert window(3, (0.7 * 2, 0.7)) == (3, 3)
    assert window(3, (0.1 + 0.2, 0.15)) == (3, 3)
