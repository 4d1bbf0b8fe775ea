"""The guidance block in both modes, against loops."""

import math

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.networks.blocks import guidance
from medseg.networks.blocks.guidance import Guidance, GuidedChannel, GuidedPosition
from medseg.networks.blocks.self_attention import attend

SIZES = [(3, 3), (2, 2, 2)]


def _rows(conv: torch.nn.Module, x: Tensor) -> list[list[float]]:
    weight, flat = conv.weight.flatten(1), x[0].flatten(1)
    return [(weight @ flat[:, i] + (0 if conv.bias is None else conv.bias)).tolist() for i in range(flat.shape[1])]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _softmax(row: list[float]) -> list[float]:
    exps = [math.exp(v) for v in row]
    return [e / sum(exps) for e in exps]


def _weights(mode: str, own: list[list[float]], lead: list[list[float]], scale: float) -> list[list[float]]:
    """Weights of keys per query from the products of queries and keys of feature and guide."""
    if mode == "released":
        own, lead = [_softmax(row) for row in own], [_softmax(row) for row in lead]
        n = len(lead)
        return [_softmax([sum(row[m] * lead[m][j] for m in range(n)) for j in range(n)]) for row in own]
    return [_softmax([scale * (a + b) for a, b in zip(x, y, strict=True)]) for x, y in zip(own, lead, strict=True)]


@pytest.mark.parametrize("mode", ["logit-sum", "released"])
@pytest.mark.parametrize("size", SIZES)
def test_voxels_attend_by_the_weights_of_feature_and_guide(mode: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block = GuidedPosition(16, 6, len(size), mode=mode)  # type: ignore[arg-type]
    torch.nn.init.constant_(block.gamma, 0.5)
    x, guide = 0.5 * torch.randn(1, 16, *size), 0.5 * torch.randn(1, 6, *size)
    q, k, v = (_rows(layer, x) for layer in (block.query, block.key, block.value))
    g, h = (_rows(layer, guide) for layer in (block.lead_query, block.lead_key))
    own, lead = ([[_dot(a, b) for b in keys] for a in queries] for queries, keys in ((q, k), (g, h)))
    weights = torch.tensor(_weights(mode, own, lead, 1 / math.sqrt(len(q[0]))))
    slow = (weights @ torch.tensor(v)).T.reshape(x.shape)
    torch.testing.assert_close(block(x, guide), x + 0.5 * slow, rtol=1e-4, atol=1e-5)
    assert len(q[0]) == (16 if mode == "released" else 2)


@pytest.mark.parametrize("mode", ["logit-sum", "released"])
@pytest.mark.parametrize("size", SIZES)
def test_channels_attend_by_the_weights_of_feature_and_guide(mode: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block = GuidedChannel(4, 6, len(size), mode=mode)  # type: ignore[arg-type]
    torch.nn.init.constant_(block.gamma, 0.5)
    x, guide = torch.randn(1, 4, *size), torch.randn(1, 6, *size)
    flat, lead = x[0].flatten(1).tolist(), block.excite(block.fit(guide))[0].flatten(1).tolist()
    own, other = ([[_dot(a, b) for b in rows] for a in rows] for rows in (flat, lead))
    if mode == "released":
        own, other = [_softmax(row) for row in own], [_softmax(row) for row in other]
        energy = [[sum(row[m] * other[m][j] for m in range(4)) for j in range(4)] for row in own]
    else:
        scale = 1 / math.sqrt(len(flat[0]))
        energy = [[scale * (own[i][j] + other[i][j]) for j in range(4)] for i in range(4)]
    weights = torch.tensor([_softmax([max(row) - e for e in row]) for row in energy])
    slow = (weights @ torch.tensor(flat)).reshape(x.shape)
    torch.testing.assert_close(block(x, guide), x + 0.5 * slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["logit-sum", "released"])
def test_a_new_block_is_the_identity_and_channels_see_what_voxels_found(mode: str) -> None:
    block = Guidance(8, 8, 2, mode=mode)  # type: ignore[arg-type]
    x, guide = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 4, 5)
    torch.testing.assert_close(block(x, guide), x)
    torch.nn.init.constant_(block.position.gamma, 1.0)
    torch.nn.init.constant_(block.channel.gamma, 1.0)
    torch.testing.assert_close(block(x, guide), block.channel(block.position(x, guide), guide))
    assert not torch.allclose(block(x, guide), block(x, guide.flip(-1)))


def test_the_released_product_hardly_tells_voxels_apart() -> None:
    """Entropy of the weights over its maximum, for strong random features."""
    torch.manual_seed(0)
    n, d = 256, 64
    q, k, g, h = torch.randn(4, 1, n, d)
    eye = torch.eye(n)[None]
    released = guidance._released(q, k, g, h, eye)
    product = attend(torch.cat([q, g], 2), torch.cat([k, h], 2), eye, scale=1 / math.sqrt(d))
    entropy = [-(w * w.clamp_min(1e-30).log()).sum(-1).mean().item() / math.log(n) for w in (released, product)]
    assert released.max().item() < math.e / n
    assert entropy[0] > 0.999 > 0.95 > entropy[1]
    assert product.max().item() * n > 20


@pytest.mark.parametrize("mode", ["logit-sum", "released"])
def test_many_voxels_attend_to_averages(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x, guide = GuidedPosition(8, 4, 3, mode=mode), torch.randn(1, 8, 3, 4, 5), torch.randn(1, 4, 3, 4, 5)  # type: ignore[arg-type]
    torch.nn.init.constant_(block.gamma, 1.0)
    exact = block(x, guide)
    monkeypatch.setattr(guidance, "TOKENS", 9)
    coarse = block(x, guide)
    assert coarse.shape == x.shape and not torch.allclose(coarse, exact)
    assert 0 < (coarse - exact).std() < 0.5 * x.std()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(PlanError, match="logit-sum or released"):
        Guidance(4, 4, 2, mode="product")  # type: ignore[arg-type]
