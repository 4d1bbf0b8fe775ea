"""Options of blocks reach the blocks, from every backbone that takes them, and wrong ones are refused."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.acmix import Acmix
from medseg.networks.blocks.aspp import Aspp, FittedConv
from medseg.networks.blocks.attention import kinds, with_gate
from medseg.networks.blocks.dense import DenseStage
from medseg.networks.blocks.gates import Cbam, SkipGate, SqueezeBoth, SqueezeExcite
from medseg.networks.blocks.options import BlockOptions, check_options, options_of
from medseg.networks.blocks.self_attention import RelativeAttention
from medseg.networks.build import BACKBONES, build_network
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (16, 32, 32), ((1, 1, 1), (1, 2, 2), (1, 2, 2)), ((1, 3, 3),) * 3, (2, 2, 2))
CUBE = Topology(3, (16, 32, 32), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (2, 2, 2))
TAKES = [use for use, build in BACKBONES.items() if "blocks" in inspect.signature(build).parameters]
GATED = ["attention_unet", "gra_unet", "mel_net"]


def _build(use: str, **options: Any) -> nn.Module:
    topology = CUBE if use == "direction_fused" else FLAT
    return build_network(Network(use, topology, options=options), channels=1, outputs=2)


def _all(network: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_all_backbones_but_those_of_monai_take_them() -> None:
    assert set(BACKBONES) - set(TAKES) == {"segresnet", "swin_unetr", "unetr", "mednext"}


@pytest.mark.parametrize("use", TAKES)
def test_every_backbone_hands_them_on(use: str) -> None:
    own = len(_all(_build(use), SqueezeExcite))  # GG-Net's guidance has one
    halves = [
        sum(part.squeeze.out_channels * 2 == part.excite.out_channels for part in _all(network, SqueezeExcite))
        for network in (_build(use, attention="se"), _build(use, attention="se", se_reduction=2))
    ]
    added = len(_all(_build(use, attention="se"), SqueezeExcite)) - own
    assert added > 1 and halves[0] == 0 and halves[1] == added
    (pyramid, *_) = _all(_build(use, attention="aspp", aspp_rates=[2, 5]), Aspp)
    assert [conv.dilation for conv in _all(pyramid, FittedConv)] == [(2, 2), (5, 5)]


def test_pyramids_that_a_network_always_has_take_their_rates() -> None:
    for use in ("mel_net", "gg_net"):
        (pyramid,) = _all(_build(use, aspp_rates=[3]), Aspp)
        assert [conv.dilation for conv in _all(pyramid, FittedConv)] == [(3, 3)]


def test_encoders_take_theirs() -> None:
    dense = _all(_build("unet", encoder="dense", dense_growth=5, dense_theta=0.25), DenseStage)
    assert [layer[1].conv.out_channels for stage in dense for layer in stage.layers] == [5] * 6
    assert [stage.transition.conv.out_channels for stage in dense] == [4, 4, 8]
    wide = {
        expand: max(m.groups for m in _all(_build("unet", encoder="mobilenet", **options), nn.Conv2d))
        for expand, options in ((6, {}), (2, {"mobilenet_expand": 2}))
    }
    assert wide == {6: 6 * 32, 2: 2 * 32}
    for encoder, option in (("resnext", "groups"), ("grouped_residual", "groups"), ("poolformer", "expand")):
        counts = [
            sum(p.numel() for p in _build("unet", encoder=encoder, **more).parameters())
            for more in ({}, {f"{encoder}_{option}": 2})
        ]
        assert counts[0] != counts[1]
    starts = _build("unet", encoder="convnext", convnext_scale=0.5, convnext_expand=2)
    assert {p.unique().item() for name, p in starts.named_parameters() if name.endswith(".scale")} == {0.5}


def test_the_image_pyramid_goes_with_other_encoders() -> None:
    network = _build("multi_scale_unet", encoder="dense", dense_growth=3)
    assert len(_all(network, DenseStage)) == 3
    output = network(torch.randn(2, 1, 8, 12))
    assert [tuple(t.shape[2:]) for t in output.logits] == [(8, 12), (4, 6)]


@pytest.mark.parametrize("use", GATED)
def test_other_attention_stands_beside_the_gates(use: str) -> None:
    alone, both = _build(use), _build(use, attention="cbam+se", cbam_reduction=4)
    assert len(_all(alone, SkipGate)) == len(_all(both, SkipGate)) == 2
    assert len(_all(both, Cbam)) == len(_all(both, SqueezeExcite)) == 3 and not _all(alone, Cbam)
    assert both(torch.randn(2, 1, 8, 8)).logits[0].shape == (2, 2, 8, 8)


def test_self_attention_has_heads_and_a_window() -> None:
    (block,) = _all(_build("unet", attention="botnet", botnet_heads=8), RelativeAttention)
    assert block.heads == 8 and [len(table[0]) for table in block.tables] == [1, 1]
    (default,) = _all(_build("unet", attention="acmix"), Acmix)
    (block,) = _all(_build("unet", attention="acmix", acmix_heads=2, acmix_window=3), Acmix)
    assert (default.heads, default.window) == (4, (7, 7)) and (block.heads, block.window) == (2, (3, 3))
    assert block(torch.randn(1, 32, 5, 6)).shape == (1, 32, 5, 6)
    with pytest.raises(PlanError, match="a window of 4 has no middle"):
        _build("unet", attention="acmix", acmix_window=4)


def test_kinds_are_joined_in_order() -> None:
    assert list(kinds("gate+se")) == ["gate", "se"] and kinds("none") == {}
    assert [with_gate(name) for name in ("none", "gate", "se", "se+gate")] == ["gate", "gate", "gate+se", "gate+se"]
    network = _build("unet", attention="se+scse", scse_reduction=4)
    assert [type(part) for part in network.backbone.encoder[0][1:]] == [SqueezeExcite, SqueezeBoth]
    assert network.backbone.encoder[0][2].channel.squeeze.out_channels == 4
    with pytest.raises(PlanError, match='unknown attention "gaet"'):
        _build("unet", attention="se+gaet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"aspp_rates": []}, "aspp_rates"),
        ({"aspp_rates": [3, 0]}, "aspp_rates"),
        ({"aspp_rates": 3.5}, "aspp_rates"),
        ({"se_reduction": True}, "se_reduction"),
        ({"se_reduction": None}, "se_reduction"),
        ({"dense_theta": 1.5}, "dense_theta"),
        ({"se_redaction": 2}, "no block has the option"),
    ],
)
def test_wrong_ones_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        check_options(options)  # type: ignore[arg-type]


def test_names_belong_to_one_block() -> None:
    check_options({"dense_growth": None, "dense_theta": 0.5, "aspp_rates": (1, 2)})
    everything: BlockOptions = {name: 1 for name in BlockOptions.__annotations__}  # type: ignore[assignment]
    assert set(options_of("grouped_residual", everything)) == {"groups"} and options_of("residual", everything) == {}
    assert set(options_of("se", everything)) == {"reduction"} == set(options_of("scse", everything))
