"""Pooling that remembers places, and unpooling, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from medseg.networks.blocks.windows import pool_with_places, unpool

CASES = [((4, 6), (2, 2)), ((6, 4), (3, 1)), ((4, 6, 2), (2, 3, 1)), ((2, 4, 6), (1, 2, 2)), ((3, 5), (1, 1))]


@pytest.mark.parametrize(("size", "step"), CASES)
def test_it_equals_torchs_pooling_and_unpooling(size: tuple[int, ...], step: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    kind = (F.max_pool2d, F.max_unpool2d) if len(size) == 2 else (F.max_pool3d, F.max_unpool3d)
    theirs, flat = kind[0](x, step, step, return_indices=True)
    ours, places = pool_with_places(x, step)
    assert torch.equal(ours, theirs)
    assert torch.equal(unpool(ours, places, step), kind[1](theirs, flat, step, step))


@pytest.mark.parametrize(("size", "step"), CASES)
def test_unpooled_maxima_are_where_they_were_and_zeros_elsewhere(size: tuple[int, ...], step: tuple[int, ...]) -> None:
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1)) - 5  # negative: zeros are no maxima
    back = unpool(*pool_with_places(x, step), step)
    for corner in torch.cartesian_prod(*(torch.arange(0, n, s) for n, s in zip(size, step, strict=True))).tolist():
        box = tuple(slice(i, i + s) for i, s in zip(corner, step, strict=True))
        for channel in range(2):
            window, found = x[(0, channel, *box)], back[(0, channel, *box)]
            expected = torch.where(window == window.max(), window, torch.zeros(()))
            assert torch.equal(found, expected) and int((found != 0).sum()) == 1


def test_of_equal_values_the_first_counts() -> None:
    values, places = pool_with_places(torch.zeros(1, 1, 2, 2), (2, 2))
    assert values.item() == 0 and places.item() == 0


def test_gradients_go_to_the_maxima_and_repeat_bit_for_bit() -> None:
    x = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    step = (2, 1, 2)

    def there_and_back(t: torch.Tensor) -> torch.Tensor:
        values, places = pool_with_places(t, step)
        return unpool(values * 3, places, step)

    assert torch.autograd.gradcheck(there_and_back, (x,))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(there_and_back(x).square().sum(), x)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(*grads)
    assert int((grads[0] != 0).sum()) == x.numel() // 4
