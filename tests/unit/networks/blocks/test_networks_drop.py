"""Dropout: what is dropped, and that training and eval agree on average."""

import pytest
import torch

from medseg.errors import PlanError
from medseg.networks.blocks.drop import DropPath, channel_dropout


@pytest.mark.parametrize("size", [(2, 3), (2, 3, 2)])
def test_whole_channels_are_dropped_and_the_mean_stays(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    drop, x = channel_dropout(0.1, len(size)), torch.ones(100, 200, *size)
    y = drop(x)
    per_channel = y.flatten(2)
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))
    torch.testing.assert_close(per_channel[:, :, 0].unique(), torch.tensor([0.0, 1 / 0.9]))
    assert abs(y.mean().item() - 1) < 0.01
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("size", [(2, 3), (2, 3, 2)])
def test_a_dropped_path_is_gone_for_a_sample_and_the_mean_stays(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.2), torch.ones(20000, 1, *size)
    y = drop(x).flatten(1)
    assert torch.equal(y.amin(1), y.amax(1))
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1.25]))
    assert abs(y.mean().item() - 1) < 0.01
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("chance", [-0.1, 1.0, 2.0])
def test_an_impossible_chance_is_refused(chance: float) -> None:
    with pytest.raises(PlanError, match="less than 1"):
        channel_dropout(chance, 2)
    with pytest.raises(PlanError, match="less than 1"):
        DropPath(chance)
