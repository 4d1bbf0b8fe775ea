"""Norms against loops over samples, channels and voxels, and against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.norms import NORMS, AdaptiveNorm, SwitchableNorm, adapt_style, style_statistics

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
    if name in ("batch", "adaptive"):
        return [(slice(0, b), slice(j, j + 1)) for j in range(c)]
    step = {"instance": 1, "group": 8, "global_layer": c}[name]
    return [(slice(i, i + 1), slice(j, j + step)) for i in range(b) for j in range(0, c, step)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["instance", "group", "batch", "adaptive", "global_layer"])
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


@pytest.mark.parametrize("name", ["batch", "adaptive"])
def test_batch_norm_of_single_values_is_refused_in_training_only(name: str) -> None:
    module = NORMS[name](2)
    with pytest.raises(PlanError, match="one value per channel"):
        module(_random(1, 2, 1, 1))
    assert module.eval()(_random(1, 2, 1, 1)).shape == (1, 2, 1, 1)


@pytest.mark.parametrize("size", SIZES)
def test_adapted_features_have_the_statistics_of_their_style(size: tuple[int, ...]) -> None:
    x, style = 4 * _random(2, 3, *size) + 2, 0.5 * _random(2, 3, 7, 8) - 3
    adapted = adapt_style(x, *style_statistics(style))
    for found, wanted in zip(style_statistics(adapted), style_statistics(style), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for i in range(2):
        for j in range(3):  # an affine map with a positive slope per channel: the order of voxels stays
            assert torch.equal(adapted[i, j].flatten().argsort(), x[i, j].flatten().argsort())


def test_a_constant_channel_becomes_the_mean_of_its_style() -> None:
    x = torch.full((1, 2, 4, 4), 7.0)
    adapted = adapt_style(x, torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(adapted, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand_as(x))


def _adaptive(channels: int, size: tuple[int, ...]) -> AdaptiveNorm:
    """A norm that has seen batches of one style, in eval."""
    module = AdaptiveNorm(channels, momentum=0.5)
    with torch.no_grad():
        module.weight.copy_(_random(channels, 1)[:, 0])
        module.bias.copy_(_random(channels, 2)[:, 0])
    for number in range(3):
        module(3 * _random(number + 2, channels, *size) - 2)
    return module.eval()


@pytest.mark.parametrize("size", SIZES)
def test_adaptive_norm_gives_each_sample_the_running_statistics_before_batch_norm(size: tuple[int, ...]) -> None:
    module, x = _adaptive(3, size), torch.cat([5 * _random(1, 3, *size) + 7, 0.2 * _random(2, 3, *size)])
    style = module.running_mean.double(), module.running_var.double().sqrt()
    expected, per_channel = torch.empty_like(x), (3, *(1,) * len(size))
    for i, sample in enumerate(x.double()):
        rows = zip(sample, *style, strict=True)
        adapted = torch.stack([(c - c.mean()) / c.std(correction=0) * std + mean for c, mean, std in rows])
        torch.testing.assert_close(adapted.flatten(1).mean(1), style[0])
        torch.testing.assert_close(adapted.flatten(1).std(1, correction=0), style[1])
        normed = (adapted - style[0].view(per_channel)) / (style[1] ** 2 + 1e-5).sqrt().view(per_channel)
        expected[i] = normed * module.weight.view(per_channel) + module.bias.view(per_channel)
    torch.testing.assert_close(module(x), expected.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(module(x)[0], F.batch_norm(x, *_running(module), *_scale(module))[0], atol=0.1)


def _running(module: AdaptiveNorm) -> tuple[Tensor, Tensor]:
    return module.running_mean, module.running_var


def _scale(module: AdaptiveNorm) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias


def test_adaptive_norm_learns_as_batch_norm_does() -> None:
    ours, theirs, x = AdaptiveNorm(3), nn.BatchNorm2d(3), 2 * _random(2, 3, 5, 6) + 1
    assert torch.equal(ours(x), theirs(x))
    for found, wanted in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert found[0] == wanted[0] and torch.equal(found[1], wanted[1])


def test_adaptive_norm_is_blind_to_the_contrast_of_another_scanner_and_batch_norm_is_not() -> None:
    module, x = _adaptive(3, (8, 9)), _random(2, 3, 8, 9)
    other = 4 * x + torch.tensor([10.0, -3.0, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(module(other), module(x), rtol=1e-4, atol=1e-4)
    plain = NORMS["batch"](3).eval()
    plain.load_state_dict(module.state_dict())
    assert not torch.allclose(plain(other), plain(x), atol=0.5)


def test_adaptive_norm_of_single_values_is_batch_norm() -> None:
    module, x = _adaptive(3, (5, 6)), 4 * _random(2, 3, 1, 1)
    torch.testing.assert_close(module(x), F.batch_norm(x, *_running(module), *_scale(module)))
    assert not torch.allclose(*module(x), atol=0.1)


def test_style_of_half_precision_is_measured_in_float32() -> None:
    x = 0.01 * _random(1, 2, 40, 50) + 100
    mean, std = style_statistics(x.half())
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.half().double().mean((2, 3)).float(), rtol=1e-6, atol=0)
    assert adapt_style(x.half(), mean, std).dtype == torch.float16
