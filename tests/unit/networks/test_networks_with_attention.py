"""Every attention by name in whole networks."""

import inspect

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.attention import ATTENTION
from medseg.networks.build import BACKBONES, build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 8, 8), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (1, 1, 1))
CUBE = Topology(3, (4, 8, 8), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (1, 1, 1))
THICK = Topology(
    3, (4, 8, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3)), (1, 1, 1), (5.0, 1.0, 1.0)
)
TOPOLOGIES = {"2d": FLAT, "3d": CUBE, "thick": THICK}
SIZES = {"2d": ((8, 6), (12, 8)), "3d": ((8, 8, 8), (4, 8, 12)), "thick": ((4, 8, 8), (2, 12, 8))}
WITH_ATTENTION = [use for use, build in BACKBONES.items() if "attention" in inspect.signature(build).parameters]
WITHOUT_SKIPS = ["object_boundary", "bisenet", "fcn"]
SHAPES = {"unet": ["2d", "3d", "thick"], "bisenet": ["2d"], "direction_fused": ["3d"]}
CASES = [(use, shape) for use in WITH_ATTENTION for shape in SHAPES.get(use, ["thick"])]


def _build(use: str, topology: Topology, attention: str) -> nn.Module:
    torch.manual_seed(0)
    network = Network(use, topology, options={"attention": attention})
    return build_network(network, channels=1, outputs=2)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("use", "shape"), CASES)
def test_a_network_with_it_takes_two_sizes_and_learns(use: str, shape: str, name: str) -> None:
    if use in WITHOUT_SKIPS and ATTENTION[name].place == "skip":
        with pytest.raises(PlanError, match="gates skips"):
            _build(use, TOPOLOGIES[shape], name)
        return
    network = _build(use, TOPOLOGIES[shape], name)
    for n, p in network.named_parameters():
        if p.dim() == 1 and not p.any():  # gammas and last norms start at 0 and hide what is before them
            nn.init.constant_(p, 0.1)
        elif not p.any():  # and last convolutions
            nn.init.normal_(p, std=0.1)
        elif "squeeze.weight" in n:  # by chance none of its four units is above 0
            p.data.abs_()
    for size in SIZES[shape]:
        logits = network(torch.randn(2, 1, *size)).logits
        assert logits[0].shape == (2, 2, *size)
    torch.manual_seed(1)
    torch.stack([(t * torch.randn_like(t)).sum() for t in logits]).sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in silent if "conv.bias" not in n] == []


@pytest.mark.parametrize("name", ATTENTION)
def test_it_is_there(name: str) -> None:
    plain, other = _build("unet", THICK, "none"), _build("unet", THICK, name)
    count = [sum(t.numel() for t in network.state_dict().values()) for network in (plain, other)]
    assert count[1] > count[0]


@pytest.mark.parametrize("name", ["non_local", "danet_position", "danet_channel", "danet", "botnet", "acmix"])
def test_a_new_network_computes_what_it_does_without(name: str) -> None:
    plain, other = _build("unet", FLAT, "none").eval(), _build("unet", FLAT, name).eval()
    own = plain.state_dict()
    renamed = {k.replace("encoder.2.0.0.", "encoder.2.0."): k for k in other.state_dict() if "encoder.2.0" in k}
    known = {renamed.get(k, k): v for k, v in own.items()}
    other.load_state_dict(known, strict=False)
    image = torch.randn(1, 1, 8, 6)
    torch.testing.assert_close(other(image).logits[0], plain(image).logits[0], rtol=1e-4, atol=1e-5)
