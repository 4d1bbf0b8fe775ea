"""Grouped residual attention U-Net and attention U-Net: weights by groups, gates on every skip."""

import pytest
import torch
from torch import nn

from medseg.networks.blocks.attention import PassSkip
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (8, 16, 24), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (2, 1, 2))
THICK = Topology(3, (8, 16, 24), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))


def _build(use: str, topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network(use, topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


def _wide(network: nn.Module) -> int:
    """Weights of convolutions wider than 1 that are not the first."""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and max(m.kernel_size) > 1]
    return sum(m.weight.numel() for m in convs if m.in_channels > 2)


@pytest.mark.parametrize("topology", [FLAT, THICK], ids=["2d", "3d"])
def test_wide_convolutions_have_an_eighth_of_the_weights(topology: Topology) -> None:
    grouped, whole = _build("gra_unet", topology), _build("gra_unet", topology, groups=1)
    assert _wide(grouped) * 8 == _wide(whole)
    assert _wide(_build("gra_unet", topology, groups=4)) * 4 == _wide(whole)


@pytest.mark.parametrize("use", ["gra_unet", "attention_unet"])
@pytest.mark.parametrize(("topology", "size"), [(FLAT, (8, 6)), (THICK, (2, 8, 4))], ids=["2d", "3d"])
def test_every_skip_has_a_gate_between_0_and_1_and_every_weight_learns(
    use: str, topology: Topology, size: tuple[int, ...]
) -> None:
    network, image = _build(use, topology), torch.randn(2, 2, *size)
    seen: list[torch.Tensor] = []
    gates = network.backbone.gates
    assert len(gates) == 2 and not any(isinstance(g, PassSkip) for g in gates)
    for gate in gates:
        gate.register_forward_hook(lambda m, given, out: seen.append(out / given[0]))
    logits = network(image).logits
    assert tuple(logits[0].shape[2:]) == size
    for ratio in seen:  # one weight per voxel, the same for every channel
        assert 0 < ratio.min() and ratio.max() < 1
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-4)
    assert [tuple(r.shape[2:]) for r in seen][-1] == size
    sum(t.square().sum() for t in logits).backward()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith(("conv.bias", "from_coarse.bias"))] == []


def test_the_attention_unet_is_the_unet_with_gates() -> None:
    torch.manual_seed(0)
    twin = build_network(Network("unet", FLAT, options={"attention": "gate"}), channels=2, outputs=3)
    image = torch.randn(1, 2, 8, 8)
    ours = _build("attention_unet", FLAT)
    ours.load_state_dict(twin.state_dict())
    assert torch.equal(ours(image).logits[0], twin(image).logits[0])
