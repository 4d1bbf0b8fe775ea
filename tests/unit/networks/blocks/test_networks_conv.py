"""How convolutions start, by closed form; dropout and maxout in a layer; chances that make no sense."""

import math

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import ConvNormAct, Style, conv, initialise, start_at_zero, up_conv


@pytest.mark.parametrize(
    ("kernel", "inputs", "groups"), [((3, 3), 64, 1), ((1, 3, 3), 64, 1), ((3, 3, 3), 32, 1), ((3, 3), 128, 4)]
)
def test_weights_are_normal_with_the_deviation_of_kaiming(kernel: tuple[int, ...], inputs: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = conv(inputs, 128, kernel, groups=groups)
    nn.init.ones_(layer.bias)
    initialise(layer)
    fan_in = inputs // groups * math.prod(kernel)
    std = math.sqrt(2 / ((1 + 0.01**2) * fan_in))
    assert abs(layer.weight.std().item() / std - 1) < 0.02 and abs(layer.weight.mean().item()) < 0.02 * std
    inside = (layer.weight.abs() < std).float().mean().item()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 0.01  # 68 % of a normal, 58 % of a uniform distribution
    assert not layer.bias.any()


def test_activations_keep_their_variance_through_a_deep_stack() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(ConvNormAct(64, 64, (3, 3), (1, 1), Style(norm="none")) for _ in range(8)))
    initialise(layers)
    x = torch.randn(1, 64, 24, 24)
    middle = layers(x)[:, :, 8:-8, 8:-8]  # zeros beyond the border lower it
    assert 0.5 < middle.square().mean() < 2


def test_a_layer_that_starts_at_zero_returns_zero_and_learns() -> None:
    for norm in ("instance", "group", "layer", "switchable", "none"):
        layer = ConvNormAct(3, 4, (3, 3), (1, 1), Style(norm=norm), act=False)
        start_at_zero(layer)
        initialise(layer)
        result = layer(torch.randn(2, 3, 5, 5))
        assert not result.any()
        result.sum().backward()
        (layer(torch.randn(2, 3, 5, 5)) * torch.randn(2, 4, 5, 5)).sum().backward()
        assert any(p.grad.any() for p in layer.parameters() if p.grad is not None)


def test_maxout_widens_its_convolution_and_norm() -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(3, 4, (3, 3), (2, 1), Style(act="maxout"))
    x = torch.randn(2, 3, 6, 5)
    pair = layer.norm(layer.conv(x))
    assert pair.shape == (2, 8, 3, 5)
    torch.testing.assert_close(layer(x), torch.maximum(pair[:, ::2], pair[:, 1::2]))


def test_dropout_drops_channels_after_the_activation_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = ConvNormAct(3, 64, (3, 3), (1, 1), Style(dropout=0.25)), torch.randn(4, 3, 6, 6)
    dropped, whole = layer(x), layer.eval()(x)
    gone = ~dropped.flatten(2).any(2)
    assert 30 < gone.sum() < 100  # of 256, a quarter
    torch.testing.assert_close(dropped[~gone], whole[~gone] / 0.75)


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
@pytest.mark.parametrize("chance", [-0.5, 1.0])
def test_a_chance_outside_0_and_1_is_refused(option: str, chance: float) -> None:
    with pytest.raises(PlanError, match=f"{option} is {chance}"):
        Style(**{option: chance})  # type: ignore[arg-type]


def test_a_transposed_convolution_makes_a_block_of_every_voxel() -> None:
    layer = up_conv(1, 1, (2, 3))
    nn.init.constant_(layer.weight, 2.0), nn.init.zeros_(layer.bias)
    x = torch.tensor([[[[1.0, 3.0]]]])
    assert layer(x).tolist() == [[[[2.0] * 3 + [6.0] * 3] * 2]]
