"""Grouped, dilated and depthwise-separable convolution against loops; pooling with learnt weights."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from medseg.networks.blocks.conv import Style, conv
from medseg.networks.blocks.separable import SeparableConv, WeightedPool


def _loops(x: Tensor, layer: nn.Module, kernel: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> Tensor:
    """Convolution by definition: voxel by voxel, group by group, zeros outside."""
    weight, bias, size = layer.weight, layer.bias, x.shape[2:]
    outputs, per_group = weight.shape[:2]
    y = torch.zeros(x.shape[0], outputs, *size)
    for o, place in itertools.product(range(outputs), itertools.product(*map(range, size))):
        first = o // (outputs // groups) * per_group
        total = bias[o].expand(x.shape[0])
        for tap in itertools.product(*map(range, kernel)):
            at = [p + (t - k // 2) * d for p, t, k, d in zip(place, tap, kernel, dilation, strict=True)]
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                total = total + (
                    x[(slice(None), slice(first, first + per_group), *at)] * weight[(o, slice(None), *tap)]
                ).sum(1)
        y[(slice(None), o, *place)] = total
    return y


@pytest.mark.parametrize(
    ("kernel", "dilation", "groups"),
    [((3, 3), (1, 1), 2), ((3, 3), (2, 1), 1), ((1, 3), (1, 3), 4), ((1, 3, 3), (1, 1, 2), 2)],
)
def test_groups_and_dilation_per_axis(kernel: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    layer = conv(4, 8, kernel, groups=groups, dilation=dilation)
    size = (5, 4) if len(kernel) == 2 else (2, 3, 4)
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(layer(x), _loops(x, layer, kernel, dilation, groups), rtol=1e-4, atol=1e-5)
    assert layer.weight.numel() == math.prod(kernel) * 4 * 8 // groups


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 2)), ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))])
def test_a_separable_convolution_is_a_kernel_per_channel_then_a_mixture(
    kernel: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    block, x = (
        SeparableConv(4, 6, kernel, stride, Style(norm="none", act="relu")),
        torch.randn(2, 4, *(4,) * len(kernel)),
    )
    depthwise, pointwise = block.depthwise.conv, block.pointwise.conv
    steps = tuple(slice(None, None, s) for s in stride)
    inner = _loops(x, depthwise, kernel, (1,) * len(kernel), 4)[(slice(None), slice(None), *steps)].relu()
    mixed = torch.einsum("oc,bc...->bo...", pointwise.weight.flatten(1), inner)
    expected = (mixed + pointwise.bias.view(-1, *(1,) * len(kernel))).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert depthwise.weight.numel() + pointwise.weight.numel() == math.prod(kernel) * 4 + 4 * 6


@pytest.mark.parametrize("grid", [(3, 2), (2, 3, 2)])
def test_weighted_pooling_is_a_depthwise_convolution_the_size_of_the_features(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pool, x = WeightedPool(4, grid), torch.randn(2, 4, *grid)
    torch.testing.assert_close(pool(x), x.mean(tuple(range(2, x.dim())), keepdim=True))
    nn.init.normal_(pool.places)
    kind = nn.functional.conv2d if len(grid) == 2 else nn.functional.conv3d
    expected = kind(x, pool.places.movedim(0, 1), groups=4) / math.prod(grid)
    torch.testing.assert_close(pool(x), expected)


def test_weighted_pooling_takes_any_size_and_starts_as_the_mean() -> None:
    pool = WeightedPool(3, (7, 7))
    for size in ((2, 3), (7, 7), (20, 9)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(pool(x), x.mean((2, 3), keepdim=True))
