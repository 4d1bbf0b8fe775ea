"""GG-Net: where guidance comes from and goes to."""

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.networks.gg_net import gg_net
from medseg.types.plan import Network, Step, Topology

HALVES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2))
FLAT = Topology(2, (4, 8, 8, 8, 8), HALVES, ((1, 3, 3),) * 5, (1,) * 5)
THICK = Topology(
    3,
    (4, 8, 8, 8),
    ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 1)),
    ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
    (1,) * 4,
    (4.0, 1.0, 1.0),
)
SMALL = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (1, 1))
ALONE = Topology(2, (4,), ((1, 1, 1),), ((1, 3, 3),), (1,))
CASES = [(FLAT, (16, 32)), (THICK, (4, 8, 8)), (SMALL, (4, 2, 6)), (ALONE, (5, 3))]


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    heads = (Step("segmentation"), Step("boundary"))
    return build_network(Network("gg_net", topology, heads, options), channels=1, outputs=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", ["logit-sum", "released"])
@pytest.mark.parametrize(("topology", "size"), CASES)
def test_it_takes_two_sizes_and_every_weight_learns(topology: Topology, size: tuple[int, ...], guidance: str) -> None:
    network = _build(topology, guidance=guidance)
    for n, p in network.named_parameters():
        if p.dim() == 1 and not p.any():  # gammas and last norms start at 0 and hide what is before them
            nn.init.constant_(p, 0.1)
        elif "squeeze.weight" in n:  # by chance none of its four units is above 0
            p.data.abs_()
    for factor in (2, 1):
        output = network(torch.randn(1, 1, *(n * factor for n in size)))
        assert output.logits[0].shape[2:] == output.boundaries[0].mask.shape[2:]
        assert tuple(output.logits[0].shape) == (1, 2, *(n * factor for n in size))
    scores = [*output.logits, *(b.edge for b in output.boundaries), *(b.mask for b in output.boundaries)]
    torch.stack([(t * torch.randn_like(t)).sum() for t in scores]).sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in silent if "conv.bias" not in n] == []


def test_the_map_is_made_of_the_four_coarsest_stages_at_the_size_of_the_second() -> None:
    network = gg_net(FLAT, in_channels=1)
    assert (network.levels, network.level) == ((1, 2, 3, 4), 2)
    skips = network.body.encode(torch.randn(1, 1, 32, 48))
    joined = network._levels(skips)
    assert tuple(joined.shape) == (1, 32, 8, 12)  # 4 stages of 8 channels, a quarter of the image
    torch.testing.assert_close(joined[:, 8:16], skips[2])
    torch.testing.assert_close(joined[:, :8], nn.functional.avg_pool2d(skips[1], 2))  # linear at half the size


def test_in_a_deep_network_the_map_stays_at_an_eighth_of_the_image() -> None:
    halves = ((1, 1, 1), *((1, 2, 2),) * 6)
    network = gg_net(Topology(2, (2,) * 7, halves, ((1, 3, 3),) * 7, (1,) * 7), in_channels=1)
    assert (network.levels, network.level) == ((2, 3, 4, 5), 3)
    skips = network.body.encode(torch.randn(1, 1, 64, 64))
    assert tuple(network._levels(skips).shape) == (1, 8, 8, 8)


def test_guidance_changes_the_decoder_only_once_its_gammas_move() -> None:
    network = gg_net(FLAT, in_channels=1).eval()
    image = torch.randn(1, 1, 16, 16)
    seen: list[tuple[torch.Size, torch.Size]] = []
    network.guidance.register_forward_hook(lambda m, given, out: seen.append((given[0].shape, given[1].shape)))
    before = network(image)
    assert seen == [((1, 8, 4, 4), (1, 8, 4, 4))]
    torch.nn.init.constant_(network.guidance.position.gamma, 1.0)
    torch.nn.init.constant_(network.guidance.channel.gamma, 1.0)
    after = network(image)
    torch.testing.assert_close(after[3], before[3])  # coarser than the guided level
    assert all(not torch.allclose(a, b) for a, b in zip(after[:3], before[:3], strict=True))


def test_aspp_sees_the_coarsest_feature_with_dilations_of_its_spacing() -> None:
    network = gg_net(THICK, in_channels=1)  # 8 mm between slices and 4 mm or 8 mm within, at the bottom
    assert [branch.conv.dilation for branch in network.aspp.rates] == [(3, 3, 6), (6, 6, 12), (9, 9, 18)]


def test_options_reach_it() -> None:
    assert sum(p.numel() for p in _build(FLAT, guidance="released").parameters()) > sum(
        p.numel() for p in _build(FLAT).parameters()
    )
    with pytest.raises(PlanError, match="logit-sum or released"):
        _build(FLAT, guidance="sum")
    assert len(_build(FLAT, attention="gate").backbone.body.gates[0].state_dict()) > 0
