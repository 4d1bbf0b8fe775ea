"""ASPP attention U-Net: gates, the pyramid at the bottom, sizes."""

import pytest
import torch

from medseg.networks.blocks.aspp import Aspp
from medseg.networks.blocks.attention import PassSkip
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (2, 1, 2))
THICK = Topology(
    3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2), (4.0, 1.0, 1.0)
)


@pytest.mark.parametrize(("topology", "size"), [(FLAT, (8, 6)), (THICK, (2, 8, 4))], ids=["2d", "3d"])
def test_it_is_a_unet_with_gates_and_one_pyramid_after_its_coarsest_stage(
    topology: Topology, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = build_network(Network("mel_net", topology), channels=1, outputs=2)
    logits = network(torch.randn(2, 1, *size)).logits
    assert logits[0].shape == (2, 2, *size) and len(logits) == 2
    places = [n for n, m in network.named_modules() if isinstance(m, Aspp)]
    assert len(places) == 1 and places[0].startswith("backbone.encoder.2")
    assert not any(isinstance(g, PassSkip) for g in network.backbone.gates)
    sum(t.square().sum() for t in logits).backward()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith(("conv.bias", "from_coarse.bias"))] == []


def test_the_parameters_are_the_attention_unets_and_those_of_the_pyramid() -> None:
    counts = []
    for use in ("mel_net", "attention_unet"):
        network = build_network(Network(use, FLAT), channels=1, outputs=2)
        counts.append(sum(p.numel() for p in network.parameters()))
    assert counts[0] - counts[1] == sum(p.numel() for p in Aspp(12, 12, (4.0, 2.0)).parameters())


def test_it_predicts_heat_maps() -> None:
    from medseg.types.plan import Step

    plan = Network("mel_net", FLAT, (Step("heatmap", {"points": 3}),))
    output = build_network(plan, channels=1, outputs=0)(torch.randn(1, 1, 8, 6))
    assert output.heatmaps is not None and output.heatmaps.shape == (1, 3, 8, 6)
