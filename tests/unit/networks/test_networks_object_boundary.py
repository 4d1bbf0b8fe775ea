"""Side outputs per scale, and the fused logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 6, 8), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3),) * 3, (1, 1, 1))
THICK = Topology(3, (4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (1, 1, 1))


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(
        Network("object_boundary", topology, options=options),  # type: ignore[arg-type]
        channels=1,
        outputs=2,
    )


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [(FLAT, [(8, 12), (4, 6), (2, 6)]), (THICK, [(4, 8, 12), (4, 4, 6), (2, 2, 3)])],
)
@pytest.mark.parametrize("trunk", ["encoder", "decoder"])
def test_every_scale_has_a_side_output_and_the_fused_logits_have_the_images_size(
    topology: Topology, sizes: list[tuple[int, ...]], trunk: str
) -> None:
    output = _build(topology, trunk=trunk)(torch.randn(2, 1, *sizes[0]))
    expected = sizes if trunk == "encoder" else sizes[:2]
    assert [tuple(s.shape) for s in output.sides] == [(2, 2, *size) for size in expected]
    assert [tuple(s.shape) for s in output.logits] == [(2, 2, *sizes[0])]


def test_the_logits_are_a_weighted_sum_of_the_enlarged_side_outputs() -> None:
    network = _build(FLAT).eval()
    output = network(torch.randn(1, 1, 8, 12))
    layer = network.heads[0].convs[0]
    expected = layer.bias.view(1, 2, 1, 1)
    for number, side in enumerate(output.sides):
        weight = layer.weight[:, 2 * number : 2 * number + 2, 0, 0]
        large = F.interpolate(side, (8, 12), mode="bilinear", align_corners=False)
        expected = expected + torch.einsum("oc,bcyx->boyx", weight, large)
    torch.testing.assert_close(output.logits[0], expected)


@pytest.mark.parametrize("trunk", ["encoder", "decoder"])
def test_every_weight_learns_from_the_fused_logits(trunk: str) -> None:
    network = _build(THICK, trunk=trunk)
    network(torch.randn(1, 1, 4, 8, 8)).logits[0].square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in silent if "conv.bias" not in n] == []


def test_what_it_cannot_build_is_refused() -> None:
    with pytest.raises(PlanError, match="encoder, decoder"):
        _build(FLAT, trunk="stem")
    with pytest.raises(PlanError, match="no labels"):
        build_network(Network("object_boundary", FLAT), channels=1, outputs=0)
    with pytest.raises(PlanError, match="multiple"):
        _build(FLAT)(torch.randn(1, 1, 7, 8))
