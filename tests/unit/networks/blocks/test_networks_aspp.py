"""ASPP: branches, dilations per axis, and features smaller than the kernel."""

import pytest
import torch
from torch import Tensor, nn

from medseg.networks.blocks.aspp import Aspp, FittedConv, fitting


def _reach(layer: nn.Module, x: Tensor, middle: tuple[int, ...]) -> list[list[int]]:
    """Per axis, the places that the voxel in the middle sees."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x)[(0, slice(None), *middle)].sum(), x)
    seen = grad.abs().sum((0, 1)).nonzero()
    return [seen[:, axis].unique().tolist() for axis in range(seen.shape[1])]


def test_taps_are_as_far_apart_in_mm_along_every_axis() -> None:
    block = Aspp(2, 2, (3.0, 1.0, 1.0), rates=(3, 6))
    x = torch.randn(1, 2, 7, 15, 13)
    assert _reach(block.rates[0].conv, x, (3, 7, 6)) == [[2, 3, 4], [4, 7, 10], [3, 6, 9]]
    assert _reach(block.rates[1].conv, x, (3, 7, 6)) == [[1, 3, 5], [1, 7, 13], [0, 6, 12]]


def test_a_kernel_wider_than_the_feature_is_dilated_just_so_that_it_fits() -> None:
    layer = FittedConv(2, 2, (6, 18))
    x = torch.randn(1, 2, 9, 5)
    assert _reach(layer, x, (4, 2)) == [[0, 4, 8], [0, 2, 4]]
    assert fitting((6, 18), (1, 2)) == (1, 1)


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (3, 6, 5), (1, 8, 8)])
def test_it_is_the_joined_branches(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block, x = Aspp(3, 4, (1.0,) * len(size), rates=(2, 4)), torch.randn(2, 3, *size)
    functions = {2: nn.functional.conv2d, 3: nn.functional.conv3d}
    parts = [block.point(x)]
    for rate, branch in zip((2, 4), block.rates, strict=True):
        d = [max(1, min(rate, (n - 1) // 2)) for n in size]
        raw = functions[len(size)](x, branch.conv.conv.weight, padding=d, dilation=d)
        axes = tuple(range(2, x.dim()))
        centred = raw - raw.mean(axes, keepdim=True)
        parts.append(
            nn.functional.leaky_relu(centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt(), 0.01)
        )
    pooled = block.mean.weight.flatten(1) @ x.flatten(2).mean(2).T + block.mean.bias[:, None]
    parts.append(pooled.T.relu().reshape(2, 4, *(1,) * len(size)).expand(2, 4, *size))
    torch.testing.assert_close(block(x), block.join(torch.cat(parts, 1)), rtol=1e-3, atol=1e-4)


def test_the_mean_of_the_image_reaches_the_result() -> None:
    torch.manual_seed(0)
    block = Aspp(2, 3, (1.0, 1.0), rates=(1,))
    x = torch.randn(1, 2, 9, 9)
    assert _reach(block, x, (0, 0))[0] == list(range(9))
    pooled = block.mean(x.mean((2, 3), keepdim=True))
    assert pooled.abs().sum() > 0  # a norm of one voxel would leave nothing


def test_both_sizes_use_the_same_weights() -> None:
    block = Aspp(2, 2, (1.0, 1.0))
    assert [tuple(block(torch.randn(1, 2, *size)).shape[2:]) for size in ((4, 6), (40, 38))] == [(4, 6), (40, 38)]
