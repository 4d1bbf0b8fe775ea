"""The lean norm and activation against torch's own, in values, gradients and kept memory."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.blocks.activations import ACTS, SLOPES, acted, activation
from medseg.networks.blocks.conv import ConvNormAct, Style, conv
from medseg.networks.blocks.norm_act import concatenate, instance_norm_act, keep_recipe, recomputed
from medseg.networks.build import channels_last


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def _torchs(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), slope)


@pytest.mark.parametrize("slope", [0.01, 0.0, 1.0])
@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_it_equals_torch_in_values_and_gradients(slope: float, size: tuple[int, ...], last: bool) -> None:
    x = 3 * _random(2, 4, *size) + 1
    if last:
        x = x.contiguous(memory_format=channels_last(len(size)))
    weight, bias = _random(4) + 0.1, _random(4) - 0.5
    results = []
    for function in (lambda *a: instance_norm_act(*a, slope=slope), lambda *a: _torchs(*a, slope)):
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
        y = function(*leaves)
        (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum().backward()
        results.append([y.detach(), *(t.grad for t in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_its_gradient_is_the_derivative() -> None:
    args = [_random(2, 3, 2, 3, 2, dtype=torch.float64), _random(3, dtype=torch.float64), _random(3).double()]
    args = [a.requires_grad_() for a in args]
    assert torch.autograd.gradcheck(lambda *a: instance_norm_act(*a, slope=0.01), args)


def test_a_norm_of_weight_zero_still_learns() -> None:
    x, weight, bias = _random(2, 3, 4, 4), torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    instance_norm_act(x, weight, bias, slope=0.01).square().sum().backward()
    (instance_norm_act(x, weight, bias, slope=0.01) * x).sum().backward()
    assert weight.grad is not None and weight.grad.abs().min() > 0


def _kept_bytes(run: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages that autograd keeps, weights left out."""
    seen: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    own = {p.untyped_storage().data_ptr() for p in run.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = run(x)
    return sum(n for place, n in seen.items() if place not in own) + 0 * y.numel()


def test_a_chain_of_layers_keeps_one_tensor_per_layer_and_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    style, x = Style(), _random(2, 8, 12, 12)
    lean = nn.Sequential(*(ConvNormAct(8, 8, (3, 3), (1, 1), style) for _ in range(4)))
    plain = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.01, inplace=True)
            )
            for _ in range(4)
        )
    )
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    lean(x).square().mean().backward()
    plain(x).square().mean().backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    layer = x.nbytes
    assert _kept_bytes(lean, x) < 5.2 * layer  # the input and one per layer; torch keeps two
    assert _kept_bytes(plain, x) > 7.8 * layer


def test_an_activation_is_freed_once_its_consumer_has_run() -> None:
    first, second = (ConvNormAct(2, 2, (3, 3), (1, 1), Style()) for _ in range(2))
    between = first(_random(1, 2, 6, 6))
    alive = weakref.ref(between)
    result = second(between)
    del between
    assert alive() is None
    result.sum().backward()


def test_a_concatenation_is_recomputed_from_its_parts() -> None:
    x = _random(1, 2, 4, 4).requires_grad_()
    weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    plain = _random(1, 2, 4, 4)
    joined = concatenate(plain, instance_norm_act(x, weight, bias, slope=0.01))
    again = recomputed(joined)
    assert again is not None
    torch.testing.assert_close(again(), joined.detach())
    assert recomputed(concatenate(plain, plain)) is None


def test_what_was_written_into_is_not_computed_again_as_it_was() -> None:
    """A network of one's own may have an activation in place between a layer and its convolution."""
    layer, after = ConvNormAct(2, 2, (3, 3), (1, 1), Style(), act=False), _random(3, 2, 1, 1)
    x, grads = _random(1, 2, 6, 6), []
    for inplace in (True, False):
        y = torch.relu_(layer(x)) if inplace else torch.relu(layer(x))
        weight = after.clone().requires_grad_()
        with keep_recipe(y):
            result = nn.functional.conv2d(y, weight)
        grads += torch.autograd.grad(result.square().sum(), [weight])
    torch.testing.assert_close(*grads)


def test_without_gradients_nothing_is_noted() -> None:
    with torch.inference_mode():
        assert recomputed(ConvNormAct(1, 2, (3, 3), (1, 1), Style())(_random(1, 1, 4, 4))) is None


def test_bf16_stays_close_to_float32() -> None:
    x = _random(1, 4, 8, 8)
    exact = instance_norm_act(x, torch.ones(4), torch.zeros(4), slope=0.01)
    rough = instance_norm_act(x.bfloat16(), torch.ones(4), torch.zeros(4), slope=0.01)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0.02)


def test_a_convolution_keeps_size_and_refuses_even_kernels() -> None:
    from medseg.errors import PlanError

    assert conv(1, 2, (1, 3, 5))(_random(1, 1, 4, 5, 6)).shape == (1, 2, 4, 5, 6)
    with pytest.raises(PlanError, match="odd"):
        conv(1, 2, (2, 2))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_under_autocast_an_activation_is_computed_again_in_the_same_precision(act: str, norm: str) -> None:
    first, second = ConvNormAct(2, 4, (3, 3), (1, 1), Style(norm=norm, act=act)), conv(4, 2, (3, 3))  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        between = first(_random(2, 2, 6, 6)) + 1.0  # no recipe: the sum is another tensor
        recipes = [first(_random(2, 2, 6, 6)), acted(activation(act, 4), between.float())]
        result = [second(t) for t in recipes]
    for t in recipes:
        again = recomputed(t)
        assert again is None or (again().dtype == t.dtype and torch.equal(again(), t))
    sum(t.float().square().sum() for t in result).backward()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_activations_that_are_computed_again_give_the_same_gradients_and_are_freed(act: str, norm: str) -> None:
    torch.manual_seed(0)
    style = Style(norm=norm, act=act)  # type: ignore[arg-type]
    first, second = ConvNormAct(2, 3, (3, 3), (1, 1), style), conv(3, 2, (3, 3))
    x, weights = _random(2, 2, 6, 6), [*first.parameters(), *second.parameters()]
    between = first(x)
    alive = weakref.ref(between)
    lean = second(between)
    del between
    assert alive() is None or (norm != "instance" and act in SLOPES)  # in place elsewhere: one tensor as well
    plain = second(first(x) * 1)  # the product carries no recipe
    grads = [torch.autograd.grad((t * t.detach().cos()).sum(), weights) for t in (lean, plain)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
