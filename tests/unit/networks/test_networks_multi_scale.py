"""U-Net on an image pyramid: sizes, parameters, and that every level of the pyramid counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (1, 3, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (2, 1, 2))
THICK = Topology(3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))


def _build(topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    net = Network("multi_scale_unet", topology, options=options)  # type: ignore[arg-type]
    return build_network(net, channels=2, outputs=3)


@pytest.mark.parametrize(("topology", "size", "coarse"), [(FLAT, (6, 10), (3, 5)), (THICK, (2, 4, 8), (2, 2, 4))])
def test_sizes_and_gradients(topology: Topology, size: tuple[int, ...], coarse: tuple[int, ...]) -> None:
    network = _build(topology)
    logits = network(torch.randn(2, 2, *size)).logits
    assert [tuple(t.shape[2:]) for t in logits] == [size, coarse]
    sum(t.square().sum() for t in logits).backward()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith("conv.bias")] == []


def test_the_parameters_are_counted() -> None:
    topology = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (2, 1))
    layers = [(2, 4), (4, 4), (2, 8), (4 + 8, 8), (8, 4), (4, 4)]
    expected = sum(9 * i * o + 3 * o for i, o in layers) + (8 * 4 * 4 + 4)
    assert sum(p.numel() for p in _build(topology).backbone.parameters()) == expected


@pytest.mark.parametrize("level", [0, 1])
def test_without_one_level_of_the_pyramid_the_result_is_another(level: int) -> None:
    network, image = _build(THICK), torch.randn(1, 2, 4, 8, 8)
    before = network(image).logits[0]
    given: list[torch.Tensor] = []
    hook = network.backbone.pyramid[level].register_forward_hook(lambda m, x, y: given.append(x[0]))
    network(image)
    hook.remove()
    steps = ((1, 2, 2), (2, 4, 4))[level]
    torch.testing.assert_close(given[0], F.avg_pool3d(image, steps), rtol=1e-4, atol=1e-5)
    network.backbone.pyramid[level].register_forward_hook(lambda m, x, y: torch.zeros_like(y))
    assert (network(image).logits[0] - before).abs().max() > 1e-3
