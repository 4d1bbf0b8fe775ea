"""Activations by value, and maxout against its definition."""

import math

import pytest
import torch
from torch import Tensor, nn

from medseg.networks.blocks.activations import ACTS, ChannelMaxout, Maxout, Swish, activation, after_conv, pieces
from medseg.networks.blocks.conv import ConvNormAct, Style, initialise


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


VALUES = {
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "prelu": lambda x: max(x, 0.25 * x),
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "softplus": _softplus,
    "maxout": lambda x: max(x, 0.01 * x),
}


def test_every_activation_is_tested() -> None:
    assert set(VALUES) == set(ACTS)


@pytest.mark.parametrize("act", ACTS)
def test_values_of_a_new_activation(act: str) -> None:
    points = (-2.0, 0.0, 2.0, 0.5)
    for shape in ((1, 1, 2, 2), (1, 1, 2, 2, 1)):
        found = activation(act, 1)(torch.tensor(points).view(shape))
        assert found.shape == shape
        torch.testing.assert_close(found.flatten(), torch.tensor([VALUES[act](x) for x in points]))


@pytest.mark.parametrize("act", ACTS)
def test_half_precision_stays_half(act: str) -> None:
    x = torch.linspace(-3, 3, 8).view(1, 2, 2, 2)
    rough = activation(act, 2)(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), activation(act, 2)(x.clone()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("act", ACTS)
def test_gradients_are_the_derivatives(act: str) -> None:
    x = torch.tensor([-1.3, -0.2, 0.4, 1.7], dtype=torch.float64).view(1, 2, 2, 1).requires_grad_()
    module = activation(act, 2).double()
    assert torch.autograd.gradcheck(lambda t: module(t * 1.0), (x,))


def test_the_beta_of_swish_leads_from_half_the_input_to_relu() -> None:
    x, swish = torch.tensor([-2.0, 0.0, 2.0]).view(1, 1, 3, 1).expand(1, 2, 3, 1), Swish(2)
    with torch.no_grad():
        swish.beta.copy_(torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(swish(x)[0, :, :, 0], torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 2.0]]))


def _loops(x: Tensor, k: int) -> Tensor:
    c = x.shape[1] // k
    return torch.stack([torch.stack([x[:, j * k + p] for p in range(k)]).amax(0) for j in range(c)], 1)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_maxout_is_the_largest_of_k_convolutions(k: int) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4 * k, 3), torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(Maxout(k)(conv(x)), _loops(conv(x), k))
    if k == 1:
        assert torch.equal(Maxout(1)(x), x)


@pytest.mark.parametrize("groups", [2, 6])
def test_maxout_after_a_grouped_convolution_stays_within_its_groups(groups: int) -> None:
    layer, x = (
        ConvNormAct(6, 6, (3, 3), (1, 1), Style(norm="none", act="maxout"), groups=groups),
        torch.randn(1, 6, 5, 5),
    )
    initialise(layer)
    for channel in range(6):
        (gradient,) = torch.autograd.grad(layer(x.requires_grad_())[:, channel].sum(), x)
        seen = gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
        first = channel // (6 // groups) * (6 // groups)
        assert seen == list(range(first, first + 6 // groups))


def test_the_width_of_a_convolution_before_an_activation() -> None:
    assert [pieces(act) for act in ACTS] == [2 if act == "maxout" else 1 for act in ACTS]
    for act in ACTS:
        assert after_conv(act, 4)(torch.randn(1, 4 * pieces(act), 3, 3)).shape == (1, 4, 3, 3)


def test_maxout_of_its_own_channels_learns_any_convex_line() -> None:
    module = ChannelMaxout(1)
    with torch.no_grad():  # |x - 1|
        module.slope.copy_(torch.tensor([[1.0], [-1.0]]))
        module.shift.copy_(torch.tensor([[-1.0], [1.0]]))
    x = torch.tensor([-2.0, 0.0, 2.0]).view(1, 1, 3, 1)
    torch.testing.assert_close(module(x).flatten(), torch.tensor([3.0, 1.0, 1.0]))
