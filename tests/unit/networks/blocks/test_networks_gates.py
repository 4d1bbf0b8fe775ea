"""Gates against loops over channels and voxels."""

import math

import pytest
import torch
from torch import nn

from medseg.networks.blocks.gates import Cbam, EfficientChannel, SelectiveKernel, SkipGate, SqueezeBoth, SqueezeExcite

SIZES = [(5, 3), (3, 4, 2)]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _mlp(block: SqueezeExcite | Cbam, values: list[float]) -> list[float]:
    first, second = block.squeeze.weight.flatten(1).tolist(), block.excite.weight.flatten(1).tolist()
    inner = [max(0.0, sum(w * v for w, v in zip(row, values, strict=True))) for row in first]
    return [sum(w * v for w, v in zip(row, inner, strict=True)) for row in second]


@pytest.mark.parametrize("size", SIZES)
def test_the_gate_is_one_weight_per_voxel_from_skip_and_coarse(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate, skip, coarse = SkipGate(4, 6, len(size)), torch.randn(1, 4, *size), torch.randn(1, 6, *size)
    w_x, w_g = gate.from_skip.weight.flatten(1), gate.from_coarse.weight.flatten(1)
    raw = torch.empty(size)
    for place in torch.ones(size).nonzero().tolist():
        at = (0, slice(None), *place)
        inner = (w_x @ skip[at] + w_g @ coarse[at] + gate.from_coarse.bias).clamp_min(0)
        raw[tuple(place)] = gate.psi.weight.flatten() @ inner
    slow = ((raw - raw.mean()) / (raw.var(correction=0) + 1e-5).sqrt()).sigmoid()
    torch.testing.assert_close(gate(skip, coarse)[0], skip[0] * slow)


@pytest.mark.parametrize("coarse", [(2, 2), (1, 1), (3, 2), (10, 6)])
def test_the_gating_signal_may_have_any_size(coarse: tuple[int, int]) -> None:
    gate, skip = SkipGate(4, 6, 2), torch.randn(2, 4, 5, 3)
    signal = torch.randn(2, 6, *coarse)
    found = gate.weights(skip, signal)
    assert found.shape == (2, 1, 5, 3)
    assert 0 < found.min() and found.max() < 1
    wide = nn.functional.interpolate(signal, (5, 3), mode="bilinear")
    torch.testing.assert_close(found, gate.weights(skip, wide))


@pytest.mark.parametrize("size", SIZES)
def test_squeeze_and_excitation_is_its_formula(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block, x = SqueezeExcite(6, len(size)), torch.randn(2, 6, *size)
    assert sum(p.numel() for p in block.parameters()) == 2 * 6 * 4  # no biases, 4 inner channels
    for i in range(2):
        weights = [_sigmoid(w) for w in _mlp(block, x[i].flatten(1).mean(1).tolist())]
        for c, w in enumerate(weights):
            torch.testing.assert_close(block(x)[i, c], x[i, c] * w)


def test_monai_agrees_on_squeeze_and_excitation() -> None:
    from monai.networks.blocks import ChannelSELayer

    ours, theirs = SqueezeExcite(32, 3, reduction=8), ChannelSELayer(3, 32, r=8)
    with torch.no_grad():
        for mine, other in ((ours.squeeze, theirs.fc[0]), (ours.excite, theirs.fc[2])):
            other.weight.copy_(mine.weight.flatten(1))
            other.bias.zero_()
    x = torch.randn(2, 32, 3, 2, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_squeezing_voxels_is_added_to_squeezing_channels() -> None:
    block, x = SqueezeBoth(6, 2), torch.randn(1, 6, 4, 3)
    weigh, bias = block.voxel.weight.flatten(), block.voxel.bias
    slow = block.channel(x)
    for i in range(4):
        for j in range(3):
            slow[0, :, i, j] += x[0, :, i, j] * (weigh @ x[0, :, i, j] + bias).sigmoid()
    torch.testing.assert_close(block(x), slow)


@pytest.mark.parametrize(("channels", "kernel"), [(4, 1), (8, 3), (32, 3), (64, 3), (256, 5), (320, 5), (1, 1)])
def test_efficient_channel_attention_has_an_odd_kernel_that_grows_with_the_channels(channels: int, kernel: int) -> None:
    block = EfficientChannel(channels)
    assert block.conv.kernel_size == (kernel,)
    x = torch.rand(2, channels, 3, 2, 2)
    means, taps = x.flatten(2).mean(2), block.conv.weight.flatten().tolist()
    for c in range(channels):
        total = sum(
            w * means[1, c + k - kernel // 2].item() for k, w in enumerate(taps) if 0 <= c + k - kernel // 2 < channels
        )
        torch.testing.assert_close(block(x)[1, c], x[1, c] * _sigmoid(total))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 1.0), (4.0, 1.0, 1.0)])
def test_cbam_weighs_channels_then_voxels(spacing: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    ndim = len(spacing)
    block, x = Cbam(5, ndim, spacing), torch.randn(1, 5, *(4, 3, 2)[:ndim])
    flat = x[0].flatten(1)
    pairs = zip(_mlp(block, flat.mean(1).tolist()), _mlp(block, flat.amax(1).tolist()), strict=True)
    y = x[0] * torch.tensor([_sigmoid(a + b) for a, b in pairs]).reshape(-1, *(1,) * ndim)
    pooled = torch.stack([y.mean(0), y.amax(0)])
    kernel = block.voxel.weight[0]
    assert kernel.shape[1:] == ((3, 7, 7) if max(spacing) > 1 else (7,) * ndim)
    slow = torch.zeros(y.shape[1:])
    for place in torch.ones(y.shape[1:]).nonzero().tolist():
        total = block.voxel.bias.item()
        for tap in torch.ones(kernel.shape[1:]).nonzero().tolist():
            at = [p + t - k // 2 for p, t, k in zip(place, tap, kernel.shape[1:], strict=True)]
            if all(0 <= a < n for a, n in zip(at, y.shape[1:], strict=True)):
                total += sum(kernel[(c, *tap)].item() * pooled[(c, *at)].item() for c in range(2))
        slow[tuple(place)] = _sigmoid(total)
    torch.testing.assert_close(block(x)[0], y * slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (4.0, 1.0, 1.0)])
def test_selective_kernels_share_out_one_per_channel(spacing: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    block, x = SelectiveKernel(6, len(spacing), spacing), torch.randn(2, 6, *(3, 5, 4)[-len(spacing) :])
    shares = block.shares(x)
    assert shares.shape[:3] == (2, 2, 6)
    torch.testing.assert_close(shares.sum(0), torch.ones_like(shares[0]))
    branches = [branch(x) for branch in block.branches]
    squeezed = torch.stack(branches).sum(0).flatten(2).mean(2)
    inner = squeezed @ block.squeeze[0].weight.flatten(1).T
    inner = ((inner - inner.mean(1, keepdim=True)) / (inner.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).relu()
    logits = [(inner @ select.weight.flatten(1).T + select.bias).exp() for select in block.select]
    first = logits[0] / (logits[0] + logits[1])
    torch.testing.assert_close(shares[0].flatten(1), first)
    slow = branches[0] * shares[0] + branches[1] * (1 - shares[0])
    torch.testing.assert_close(block(x), slow, rtol=1e-4, atol=1e-5)


def test_the_second_selective_kernel_reaches_two_voxels_but_not_across_thick_slices() -> None:
    block = SelectiveKernel(4, 3, (4.0, 1.0, 1.0))
    x = torch.zeros(1, 4, 5, 7, 7, requires_grad=True)
    for branch, reach in zip(block.branches, (1, 2), strict=True):
        (grad,) = torch.autograd.grad(branch[0](x)[0, :, 2, 3, 3].sum(), x)
        seen = grad.abs().sum((0, 1)).nonzero()
        assert seen[:, 0].unique().tolist() == [2]
        assert seen[:, 1].unique().tolist() == [3 - reach, 3, 3 + reach]
