"""U-Net with unpooling: sizes, parameters, and what reaches the decoder."""

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (1, 3, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (2, 1, 2))
THICK = Topology(3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network("unpool_unet", topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize(("topology", "size", "coarse"), [(FLAT, (6, 10), (3, 5)), (THICK, (2, 4, 8), (2, 2, 4))])
def test_sizes_and_gradients(
    skips: bool, encoder: str, topology: Topology, size: tuple[int, ...], coarse: tuple[int, ...]
) -> None:
    network = _build(topology, skips=skips, encoder=encoder)
    for _ in range(2):  # the last norms of residual blocks start at 0 and hide what is before them
        network.zero_grad()
        logits = network(torch.randn(2, 2, *size)).logits
        sum(t.square().sum() for t in logits).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(network.parameters()), [1e-3 * p.grad for p in network.parameters()])
    assert [tuple(t.shape[2:]) for t in logits] == [size, coarse]
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith("conv.bias")] == []


def test_the_parameters_are_counted() -> None:
    topology = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (2, 1))
    for skips, joined in ((True, 8), (False, 4)):
        layers = [(2, 4), (4, 4), (4, 8), (8, 4), (joined, 4), (4, 4)]
        network = _build(topology, skips=skips).backbone
        assert sum(p.numel() for p in network.parameters()) == sum(9 * i * o + 3 * o for i, o in layers)


def test_without_skips_the_decoder_knows_fine_stages_only_by_the_places_of_their_maxima() -> None:
    network = _build(FLAT, skips=False, norm="none").backbone
    given: list[torch.Tensor] = []
    network.decoder[-1].register_forward_hook(lambda m, x, y: given.append(x[0]))
    kept: list[torch.Tensor] = []
    network.encoder[0].register_forward_hook(lambda m, x, y: kept.append(y))
    network(torch.randn(1, 2, 6, 4))
    fine, (unpooled,) = kept[0], given
    for z in range(0, 6, 2):
        for x in range(0, 4, 2):
            for channel in range(4):
                window = unpooled[0, channel, z : z + 2, x : x + 2].flatten()
                where = fine[0, channel, z : z + 2, x : x + 2].flatten().argmax()
                assert window[where] != 0 and int((window != 0).sum()) == 1


def test_gates_need_skips() -> None:
    assert _build(FLAT, attention="gate")(torch.randn(1, 2, 6, 4)).logits[0].shape == (1, 3, 6, 4)
    with pytest.raises(PlanError, match="gates skips"):
        _build(FLAT, attention="gate", skips=False)
    with pytest.raises(PlanError, match="decoder_blocks"):
        _build(FLAT, decoder_blocks=0)
