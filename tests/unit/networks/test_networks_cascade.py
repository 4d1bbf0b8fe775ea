"""Stacked networks: what each sees, and whose loss teaches it."""

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.losses.build import build_loss
from medseg.networks.build import build_network
from medseg.types.plan import LossTerm, Network, Topology
from medseg.types.tensors import Batch

FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (1, 1))
THICK = Topology(3, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (3, 3, 3)), (1, 1))


def _build(topology: Topology = FLAT, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network("cascade", topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


def _first_input(net: nn.Module) -> int:
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)).in_channels


@pytest.mark.parametrize(("topology", "size"), [(FLAT, (6, 10)), (THICK, (3, 4, 6))])
@pytest.mark.parametrize("levels", [2, 3])
def test_every_later_network_sees_the_image_and_the_proposals(
    topology: Topology, size: tuple[int, ...], levels: int
) -> None:
    network = _build(topology, levels=levels)
    assert [_first_input(net) for net in network.backbone.nets] == [2] + [2 + 3] * (levels - 1)
    output = network(torch.randn(2, 2, *size))
    assert [s.shape for s in (*output.logits, *output.sides)] == [(2, 3, *size)] * levels


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_it_is_the_second_network_of_the_image_and_the_sigmoid_of_the_first(join: str) -> None:
    network, image = _build(join=join).eval(), torch.randn(1, 2, 6, 8)
    (first, second), (propose,) = network.backbone.nets, network.backbone.proposals
    side = propose(first(image)[0])
    maps = 1 / (1 + torch.exp(-side))
    if join == "concat":
        seen = torch.cat([image, maps], 1)
    else:
        seen = image + torch.einsum("ck,bkyx->bcyx", network.backbone.joins[0].weight[:, :, 0, 0], maps)
    output = network(image)
    torch.testing.assert_close(output.sides[0], side)
    torch.testing.assert_close(output.logits[0], network.heads[0](second(seen))[0])


@pytest.mark.parametrize("stop", [False, True])
def test_a_stopped_gradient_leaves_the_first_network_its_own_loss_alone(stop: bool) -> None:
    network = _build(stop_gradient=stop)
    batch = Batch(torch.randn(2, 2, 8, 8), torch.randint(0, 3, (2, 1, 8, 8)))

    def gradient(*terms: LossTerm) -> torch.Tensor:
        network.zero_grad()
        build_loss(terms)(network(batch.image), batch).total.backward()
        grads = [p.grad for p in network.backbone.nets[0].parameters() if p.grad is not None]
        return torch.cat([g.flatten() for g in grads]) if grads else torch.zeros(1)

    last, side = LossTerm(1.0, "dice_ce"), LossTerm(0.5, "side")
    assert gradient(last).any() != stop
    alone, both = gradient(side), gradient(last, side)
    assert alone.any() and torch.allclose(alone, both) == stop


def test_every_weight_learns_from_the_last_logits() -> None:
    for join in ("concat", "sum"):
        network = _build(join=join)
        network(torch.randn(2, 2, 8, 8)).logits[0].square().sum().backward()
        silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert [n for n in silent if "conv.bias" not in n and "heads.0.convs.1" not in n] == []


@pytest.mark.parametrize("options", [{"levels": 1}, {"join": "multiply"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="levels"):
        _build(**options)


def test_a_task_without_labels_is_refused() -> None:
    with pytest.raises(PlanError, match="no labels"):
        build_network(Network("cascade", FLAT), channels=1, outputs=0)
