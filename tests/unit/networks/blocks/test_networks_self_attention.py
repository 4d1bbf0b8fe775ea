"""Attention of voxels and channels, against loops."""

import math

import pytest
import torch
from torch import Tensor

from medseg.networks.blocks import self_attention
from medseg.networks.blocks.self_attention import (
    BottleneckAttention,
    ChannelAttention,
    DualAttention,
    NonLocal,
    PositionAttention,
    RelativeAttention,
    attend,
    stretched,
)

SIZES = [(3, 4), (2, 3, 2)]


def _project(conv: torch.nn.Module, x: Tensor) -> list[list[float]]:
    """The vector of every voxel after a 1x1 convolution, in C order."""
    weight, flat = conv.weight.flatten(1), x[0].flatten(1)
    bias = 0 if conv.bias is None else conv.bias
    return [(weight @ flat[:, i] + bias).tolist() for i in range(flat.shape[1])]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _attended(q: list[list[float]], k: list[list[float]], v: list[list[float]], scale: float = 1.0) -> Tensor:
    """softmax(scale * q k') v, voxel by voxel: (n, d)."""
    rows = []
    for query in q:
        weights = [math.exp(scale * _dot(query, key)) for key in k]
        rows.append(
            [sum(w * value[d] for w, value in zip(weights, v, strict=True)) / sum(weights) for d in range(len(v[0]))]
        )
    return torch.tensor(rows)


def test_attention_is_a_softmax_over_keys_and_a_weighted_sum_of_values() -> None:
    q, k, v = torch.randn(1, 5, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 6)
    slow = _attended(q[0].tolist(), k[0].tolist(), v[0].tolist(), 0.7)
    torch.testing.assert_close(attend(q, k, v, scale=0.7)[0], slow)


@pytest.mark.parametrize("last", [True, False])
def test_attention_keeps_no_matrix_of_all_pairs(last: bool) -> None:
    q, k, v = (torch.randn(1, 512, d, requires_grad=True) for d in (2, 2, 16))
    if not last:
        q, k, v = (t.detach().mT.contiguous().mT.requires_grad_() for t in (q, k, v))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        attend(q, k, v)
    assert sum(kept) < 512 * 512 / 2


@pytest.mark.parametrize("size", SIZES)
def test_position_attention_adds_gamma_times_what_it_finds(size: tuple[int, ...]) -> None:
    block, x = PositionAttention(8, len(size)), torch.randn(1, 8, *size)
    torch.nn.init.constant_(block.gamma, 0.5)
    slow = _attended(_project(block.query, x), _project(block.key, x), _project(block.value, x))
    torch.testing.assert_close(block(x), x + 0.5 * slow.T.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_channel_attention_mixes_the_channels_least_alike(size: tuple[int, ...]) -> None:
    block, x = ChannelAttention(), 0.5 * torch.randn(1, 4, *size)
    torch.nn.init.constant_(block.gamma, 2.0)
    flat = x[0].flatten(1).tolist()
    rows = []
    for own in flat:
        energy = [_dot(own, other) for other in flat]
        weights = [math.exp(max(energy) - e) for e in energy]
        rows.append([sum(w * f[i] for w, f in zip(weights, flat, strict=True)) / sum(weights) for i in range(len(own))])
    torch.testing.assert_close(block(x), x + 2 * torch.tensor(rows).reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_dual_attention_is_the_sum_of_what_both_add() -> None:
    block, x = DualAttention(8, 2), torch.randn(2, 8, 3, 4)
    torch.nn.init.constant_(block.position.gamma, 0.5)
    torch.nn.init.constant_(block.channel.gamma, 0.2)
    added = (block.position(x) - x) + (block.channel(x) - x)
    torch.testing.assert_close(block(x), x + added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_non_local_block_is_an_embedded_gaussian(size: tuple[int, ...]) -> None:
    block, x = NonLocal(4, len(size)), torch.randn(1, 4, *size)
    torch.nn.init.normal_(block.out.weight)
    found = _attended(_project(block.theta, x), _project(block.phi, x), _project(block.g, x))
    slow = block.out.weight.flatten(1) @ found.T
    torch.testing.assert_close(block(x), x + slow.reshape(x.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [NonLocal, BottleneckAttention])
def test_what_attention_adds_to_all_voxels_alike_is_kept(kind: type[NonLocal | BottleneckAttention]) -> None:
    block, x = kind(8, 2), torch.randn(2, 8, 3, 4)
    alike = block.theta if isinstance(block, NonLocal) else block.attention.query
    for p in alike.parameters():
        torch.nn.init.zeros_(p)
    torch.nn.init.normal_((block.out if isinstance(block, NonLocal) else block.expand).weight)
    added = block(x) - x
    assert added.abs().mean() > 0.05
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=1e-4, atol=1e-5)


def _slow_relative(block: RelativeAttention, x: Tensor) -> Tensor:
    """Heads, queries and keys one by one; needs a feature of the tables' own size, where no offset is in between."""
    size, out = tuple(x.shape[2:]), []
    places = torch.ones(size).nonzero().tolist()
    projected = [_project(layer, x) for layer in (block.query, block.key, block.value)]
    width = len(projected[0][0]) // block.heads
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = ([row[part] for row in rows] for rows in projected)
        rows = []
        for i, here in enumerate(places):
            weights = []
            for j, there in enumerate(places):
                offsets = [t - h + len(table) // 2 for t, h, table in zip(there, here, block.tables, strict=True)]
                r = sum(table[o] for table, o in zip(block.tables, offsets, strict=True)).tolist()
                weights.append(math.exp((_dot(q[i], k[j]) + _dot(q[i], r)) / math.sqrt(width)))
            rows.append([sum(w * u[d] for w, u in zip(weights, v, strict=True)) / sum(weights) for d in range(width)])
        out.append(torch.tensor(rows))
    return torch.cat(out, 1).T.reshape(x.shape)


@pytest.mark.parametrize("size", [(3, 3), (2, 2, 2)])
def test_relative_attention_is_its_formula(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block, x = RelativeAttention(8, len(size), reference=size[0]), torch.randn(1, 8, *size)
    assert block.heads == 4
    torch.testing.assert_close(block(x), _slow_relative(block, x), rtol=1e-4, atol=1e-5)


def test_a_table_of_offsets_is_stretched_to_the_size() -> None:
    table = torch.arange(-3.0, 4.0)[:, None]  # value = offset at size 4
    same = stretched(table, 4, 4)[..., 0]
    torch.testing.assert_close(same, torch.arange(4.0) - torch.arange(4.0)[:, None])
    wide = stretched(table, 7, 7)[..., 0]
    torch.testing.assert_close(wide, (torch.arange(7.0) - torch.arange(7.0)[:, None]) / 2)
    assert stretched(table, 1, 1).item() == 0
    half = stretched(table, 4, 2)[..., 0]  # two keys, each the mean of two places
    torch.testing.assert_close(half, torch.tensor([0.5, 2.5]) - torch.arange(4.0)[:, None])


def test_every_pair_of_offsets_has_its_own_position() -> None:
    block = RelativeAttention(4, 2, reference=3)
    logits = block.positions(torch.randn(1, 4, 1, 1).expand(1, 4, 9, 1), (3, 3), (3, 3))[0, 0]
    places = torch.ones(3, 3).nonzero()
    offsets = {tuple((there - here).tolist()) for here in places for there in places}
    assert len(offsets) == 5 * 5
    assert len({round(v, 6) for v in logits.flatten().tolist()}) == 5 * 5


@pytest.mark.parametrize("size", [(7, 9), (3, 5, 4)])
@pytest.mark.parametrize("kind", ["non_local", "danet_position", "botnet"])
def test_many_voxels_attend_to_averages(kind: str, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg.networks.blocks.attention import ATTENTION

    monkeypatch.setattr(self_attention, "TOKENS", 10)
    seen: list[int] = []
    real = self_attention.pooled
    monkeypatch.setattr(self_attention, "pooled", lambda x, limit: (seen.append(limit), real(x, limit))[1])
    block, x = ATTENTION[kind].build(8, len(size), (1.0,) * len(size)), torch.randn(1, 8, *size)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1)
    coarse = block(x)
    assert coarse.shape == x.shape and seen == [10]
    monkeypatch.setattr(self_attention, "TOKENS", 4096)
    exact = block(x)
    assert not torch.equal(coarse, exact)
    same = torch.ones_like(x)  # where all voxels are alike, averages are the voxels
    monkeypatch.setattr(self_attention, "TOKENS", 10)
    if kind != "botnet":
        few = block(same)
        monkeypatch.setattr(self_attention, "TOKENS", 4096)
        torch.testing.assert_close(few, block(same), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [NonLocal, PositionAttention, DualAttention, BottleneckAttention])
def test_products_are_float32_under_autocast(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    block, x = kind(8, 2), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.05)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = block(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)
    large = 200 * torch.ones(1, 4, 2, dtype=torch.bfloat16)  # products of 80000 are beyond float16
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(large, large, large).dtype == torch.float32
