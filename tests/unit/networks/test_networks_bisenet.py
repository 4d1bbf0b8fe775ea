"""BiSeNet: sizes, gates, what each path sees, and what it refuses."""

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.losses.build import at_scale, build_loss
from medseg.networks.bisenet import Fusion, Refinement, bisenet
from medseg.networks.blocks.conv import Style
from medseg.networks.blocks.norms import BatchNorm, NoNorm
from medseg.networks.build import build_network
from medseg.types.plan import LossTerm, Network, Topology
from medseg.types.tensors import Batch, NetworkOutput

DEEP = Topology(2, (4, 6, 8, 10, 12, 14), ((1, 1, 1),) + ((1, 2, 2),) * 5, ((1, 3, 3),) * 6, (1,) * 6)
SHORT = Topology(2, (4, 6, 8), ((1, 1, 1), (1, 2, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 1), (1, 3, 3)), (1, 2, 1))


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network("bisenet", topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("topology", "size", "sizes"),
    [
        (DEEP, (64, 96), [(64, 96), (8, 12), (4, 6)]),
        (DEEP, (32, 64), [(32, 64), (4, 8), (2, 4)]),
        (SHORT, (12, 6), [(12, 6), (6, 6), (6, 6)]),
    ],
)
def test_the_paths_meet_at_an_eighth_and_the_logits_have_the_size_of_the_image(
    topology: Topology, size: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    network = _build(topology)
    image = torch.randn(2, 2, *size)
    assert [tuple(t.shape[2:]) for t in network(image).logits] == sizes
    torch.testing.assert_close(network.eval()(image).logits[0], network.train()(image).logits[0])


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"pooling": "weighted"}, {"encoder": "mobilenet"}], ids=str)
def test_every_weight_learns(options: dict[str, object]) -> None:
    network = _build(SHORT, **options)
    for _ in range(2):  # the last norms of residual blocks start at 0 and hide what is before them
        network.zero_grad()
        sum(t.square().sum() for t in network(torch.randn(2, 2, 16, 8)).logits).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(network.parameters()), [1e-3 * p.grad for p in network.parameters()])
    assert [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0 and "conv.bias" not in n] == []


def test_both_auxiliary_heads_are_taught_as_much_as_the_main_one() -> None:
    network, batch = _build(DEEP), Batch(torch.randn(2, 2, 64, 64), torch.randint(0, 3, (2, 1, 64, 64)))
    output = network(batch.image)
    term = build_loss([LossTerm(1.0, "cross_entropy")])
    each = [term(NetworkOutput((logits,)), at_scale(batch, logits.shape[2:])).total for logits in output.logits]
    total = term(output, batch).total
    torch.testing.assert_close(total, sum(each) / 3)
    total.backward()
    assert all(layer.weight.grad.any() for layer in network.heads[0].convs)
    finest = network.eval()(batch.image)
    assert finest.scale_weights == () and len(finest.logits) == 1


@pytest.mark.parametrize(("norm", "kind"), [("batch", BatchNorm), ("instance", NoNorm)])
def test_pooled_features_have_norms_that_one_value_can_have(norm: str, kind: type) -> None:
    network = _build(SHORT, norm=norm)
    pooled = network.get_submodule("backbone.tail.1")
    gates = [network.get_submodule(f"backbone.refine.{k}.gate") for k in (0, 1)]
    assert [type(layer.norm) for layer in (pooled, *gates)] == [kind] * 3
    x = torch.randn(1, pooled.conv.in_channels, 1, 1)
    assert not torch.allclose(pooled.eval()(x), pooled(2 * x)), "what was pooled is not lost"


def test_gates_lie_between_0_and_1_and_weigh_whole_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5)
    refinement = Refinement(4, 6, (3, 3), "mean", Style())
    weights = refinement.weights(refinement.conv(x))
    assert weights.shape == (2, 6, 1, 1) and 0 < weights.min() and weights.max() < 1
    torch.testing.assert_close(refinement(x), refinement.conv(x) * weights)
    fusion = Fusion(8, 6, "mean", Style())
    mixed = fusion.mix(torch.cat([x, -x], 1))
    gate = fusion.weights(mixed)
    assert gate.shape == (2, 6, 1, 1) and 0 < gate.min() and gate.max() < 1
    torch.testing.assert_close(fusion(x, -x), mixed * (1 + gate))


def test_a_voxel_reaches_far_through_context_and_near_through_the_spatial_path() -> None:
    network = bisenet(DEEP, in_channels=1, norm="none").eval()
    image = torch.randn(8, 1, 96, 96)  # several, since rectifiers may silence all channels of a voxel in one
    other = image.clone()
    other[:, 0, 0, 0] += 1
    with torch.inference_mode():
        moved = (network.spatial(image) - network.spatial(other)).abs().sum((0, 1)) > 0
        assert moved.any() and not moved[2:].any() and not moved[:, 2:].any()
        features = zip(network(image), network(other), strict=True)
        assert all(((a - b).abs().sum((0, 1)) > 0).all() for a, b in features)


def test_what_it_cannot_be_is_refused() -> None:
    three = Topology(3, DEEP.channels, DEEP.strides, DEEP.kernels, DEEP.blocks)
    two = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3),) * 2, (1, 1))
    for topology, options, says in (
        (three, {}, "two dimensions"),
        (two, {}, "three stages"),
        (DEEP, {"pooling": "max"}, "mean or weighted"),
        (DEEP, {"encoder": "vgg"}, "unknown encoder"),
    ):
        with pytest.raises(PlanError, match=says):
            _build(topology, **options)
    with pytest.raises(PlanError, match="not a multiple"):
        _build(DEEP)(torch.randn(1, 2, 48, 32))
