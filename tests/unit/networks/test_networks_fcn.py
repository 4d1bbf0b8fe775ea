"""FCN baselines: which stages are summed, and how."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

DEEP = Topology(2, (2, 3, 4, 5, 6, 7), ((1, 1, 1), *[(1, 2, 2)] * 5), ((1, 3, 3),) * 6, (1,) * 6)
THICK = Topology(3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network("fcn", topology, options=options), channels=1, outputs=2).eval()  # type: ignore[arg-type]


def _larger(x: Tensor, times: int) -> Tensor:
    return F.interpolate(x, scale_factor=times, mode="bilinear")


@pytest.mark.parametrize(("finest", "stages"), [(32, [5]), (16, [4, 5]), (8, [3, 4, 5])])
def test_the_sum_is_that_of_strides_8_16_and_32(finest: int, stages: list[int]) -> None:
    network = _build(DEEP, finest=finest, width=3)
    found: dict[str, Tensor] = {}
    for name, score in network.backbone.scores.items():
        score.register_forward_hook(lambda m, x, y, name=name: found.update({name: y}))
    feature = network.backbone(torch.randn(1, 1, 64, 96))[0]
    assert sorted(map(int, found)) == stages
    total = found["5"]
    for k in reversed(stages[:-1]):
        total = _larger(total, 2) + found[str(k)]
    torch.testing.assert_close(feature, _larger(total, finest), rtol=1e-4, atol=1e-5)


def test_the_head_after_the_sum_scores_like_one_before_it() -> None:
    network = _build(DEEP, finest=16, width=3)
    image = torch.randn(1, 1, 32, 32)
    conv = network.heads[0].convs[0]
    score = conv.weight.flatten(1)
    scored = [p.clone() for p in conv.parameters()]
    expected = network(image).logits[0]
    for part in network.backbone.scores.values():  # fold the head into each stage's convolution
        folded = torch.einsum("kw,wcyx->kcyx", score, part.weight.data)
        bias = score @ part.bias.data
        part.weight.data[:], part.bias.data[:] = 0, 0
        part.weight.data[:2], part.bias.data[:2] = folded, bias
    feature = network.backbone(image)[0][:, :2] + scored[1].view(1, 2, 1, 1)
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_three_axes_and_a_shallow_topology_work() -> None:
    network = _build(THICK).train()
    logits = network(torch.randn(2, 1, 2, 8, 4)).logits
    assert [tuple(t.shape) for t in logits] == [(2, 2, 2, 8, 4)]
    logits[0].square().sum().backward()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith("conv.bias")] == []


def test_the_parameters_are_counted() -> None:
    layers = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    convs = sum(9 * i * o + 3 * o for i, o in layers)
    scores = (5 + 6 + 7) * 32 + 3 * 32
    assert sum(p.numel() for p in _build(DEEP).backbone.parameters()) == convs + scores


def test_what_makes_no_network_is_refused() -> None:
    with pytest.raises(PlanError, match="gates skips"):
        _build(DEEP, attention="gate")
    with pytest.raises(PlanError, match="width 0"):
        _build(DEEP, width=0)
