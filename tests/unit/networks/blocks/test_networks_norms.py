"""Norms against loops over samples, channels and voxels, and against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.norms import NORMS, SwitchableNorm

SIZES = [(5, 6), (3, 4, 5)]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _norm(name: str, channels: int) -> nn.Module:
    """A norm with a scale, a shift and, where it has them, shares that are not those of the start."""
    module = NORMS[name](channels)
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(_random(number + 2, parameter.numel())[0])
    return module


def _groups(name: str, shape: torch.Size) -> list[tuple[slice, slice]]:
    """Samples and channels that share statistics over all voxels."""
    b, c = shape[:2]
    if name == "batch":
        return [(slice(0, b), slice(j, j + 1)) for j in range(c)]
    step = {"instance": 1, "group": 8, "global_layer": c}[name]
    return [(slice(i, i + 1), slice(j, j + step)) for i in range(b) for j in range(0, c, step)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["instance", "group", "batch", "global_layer"])
def test_statistics_are_those_of_the_norms_groups(name: str, size: tuple[int, ...]) -> None:
    x, module = 3 * _random(2, 24, *size) + 1, _norm(name, 24)
    expected = torch.empty_like(x)
    for samples, channels in _groups(name, x.shape):
        part = x[samples, channels]
        expected[samples, channels] = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
    scale, shift = (p.detach().view(24, *(1,) * len(size)) for p in (module.weight, module.bias))
    torch.testing.assert_close(module(x), expected * scale + shift, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 1), (12, 1), (20, 2), (48, 6), (100, 10), (320, 32)])
def test_groups_have_eight_channels_or_more_and_are_at_most_32(channels: int, groups: int) -> None:
    assert _norm("group", channels).num_groups == groups


@pytest.mark.parametrize("size", SIZES)
def test_layer_norm_looks_at_the_channels_of_one_voxel(size: tuple[int, ...]) -> None:
    x, module = _random(2, 6, *size), _norm("layer", 6)
    y = module(x)
    for place in ((0, 0), (2, 1)):
        voxel = x[(1, slice(None), *place, *(0,) * (len(size) - 2))]
        expected = F.layer_norm(voxel, (6,), module.weight, module.bias)
        torch.testing.assert_close(y[(1, slice(None), *place, *(0,) * (len(size) - 2))], expected)


@pytest.mark.parametrize("size", SIZES)
def test_none_changes_nothing(size: tuple[int, ...]) -> None:
    x = _random(2, 3, *size)
    assert NORMS["none"](3)(x) is x
    assert NORMS["none"](3).weight is None


def _switched(x: Tensor, module: SwitchableNorm) -> Tensor:
    """The definition, in loops: shares of E[x] and of E[x^2] - E[x]^2 of every kind."""
    b, c = x.shape[:2]
    x, y = x.double(), torch.empty_like(x, dtype=torch.float64)
    parts = lambda i, j: [x[i, j], x[i]] + ([x[:, j]] if module.batch else [])  # noqa: E731
    share_mean, share_var = module.mean_share.double().softmax(0), module.var_share.double().softmax(0)
    for i in range(b):
        for j in range(c):
            mean = sum(w * p.mean() for w, p in zip(share_mean, parts(i, j), strict=True))
            var = sum(w * ((p**2).mean() - p.mean() ** 2) for w, p in zip(share_var, parts(i, j), strict=True))
            y[i, j] = (x[i, j] - mean) / (var + 1e-5).sqrt() * module.weight[j] + module.bias[j]
    return y.float().detach()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["switchable", "switchable_no_bn"])
def test_switchable_norm_mixes_instance_layer_and_batch_statistics(name: str, size: tuple[int, ...]) -> None:
    x, module = 2 * _random(3, 4, *size) - 1, _norm(name, 4)
    assert isinstance(module, SwitchableNorm)
    torch.testing.assert_close(module(x), _switched(x, module), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "same"), [(0, "instance"), (1, "global_layer"), (2, "batch")])
def test_switchable_norm_can_become_each_of_its_parts(kind: int, same: str) -> None:
    x, module = _random(3, 4, 5, 6), SwitchableNorm(4)
    with torch.no_grad():
        module.mean_share[kind] = module.var_share[kind] = 50.0
    torch.testing.assert_close(module(x), NORMS[same](4)(x), rtol=1e-4, atol=1e-4)


def test_switchable_norm_keeps_running_batch_statistics_and_uses_them_in_eval() -> None:
    module = SwitchableNorm(4, momentum=0.1)
    with torch.no_grad():
        module.mean_share[2] = module.var_share[2] = 50.0
    x = 2 * _random(3, 4, 5, 6) + 1
    module(x)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(module.running_mean, 0.1 * mean)
    torch.testing.assert_close(module.running_var, 0.9 + 0.1 * var)
    alone = module.eval()(x[:1])
    expected = (x[:1] - module.running_mean.view(4, 1, 1)) / (module.running_var.view(4, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module(x)[:1], alone)


def test_switchable_norm_without_batch_statistics_has_no_memory_of_the_batch() -> None:
    x, module = _random(3, 4, 5, 6), SwitchableNorm(4, batch=False)
    assert list(module.buffers()) == []
    torch.testing.assert_close(module(x)[:1], module(x[:1]))
    torch.testing.assert_close(module.eval()(x), module.train()(x))


def test_switchable_norms_gradient_is_the_derivative() -> None:
    module = SwitchableNorm(3).double()
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, given, strict=True)), (x,))

    inputs = [_random(2, 3, 2, 3).double().requires_grad_(), *(v.detach().requires_grad_() for v in values)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_every_norm_keeps_the_dtype_and_takes_two_sizes(name: str) -> None:
    module = NORMS[name](6)
    for size in ((4, 4), (2, 6)):
        assert module(_random(2, 6, *size)).shape == (2, 6, *size)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(_random(2, 6, 4, 4).bfloat16())
    torch.testing.assert_close(rough.float(), module(_random(2, 6, 4, 4)), rtol=0.05, atol=0.05)


def test_batch_norm_of_single_values_is_refused_in_training_only() -> None:
    module = NORMS["batch"](2)
    with pytest.raises(PlanError, match="one value per channel"):
        module(_random(1, 2, 1, 1))
    assert module.eval()(_random(1, 2, 1, 1)).shape == (1, 2, 1, 1)
