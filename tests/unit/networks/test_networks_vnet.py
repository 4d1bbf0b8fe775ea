"""V-Net: strides per axis, residual sums, published parameters; MONAI's as second opinion on the stage."""

import math

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import Style
from medseg.networks.build import build_network
from medseg.networks.vnet import ResidualStage
from medseg.types.plan import Network, Topology

THICK = Topology(3, (4, 8, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (1, 2, 3))
FLAT = Topology(2, (4, 6), ((1, 1, 1), (1, 2, 1)), ((1, 3, 3), (1, 3, 1)), (1, 2))


def _build(topology: Topology, channels: int = 1, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network("vnet", topology, options=options), channels=channels, outputs=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("topology", "size", "coarse"), [(THICK, (2, 8, 4), (2, 4, 2)), (FLAT, (6, 5), None)])
def test_strides_differ_per_axis(
    channels: int, topology: Topology, size: tuple[int, ...], coarse: tuple[int, ...] | None
) -> None:
    network = _build(topology, channels)
    logits = network(torch.randn(2, channels, *size)).logits
    assert [tuple(t.shape[2:]) for t in logits] == [size] + ([coarse] if coarse else [])


def test_every_weight_learns() -> None:
    network = _build(THICK, 2)
    sum(t.square().sum() for t in network(torch.randn(2, 2, 2, 8, 8)).logits).backward()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith("conv.bias")] == []


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (1, 6)])
def test_a_stage_whose_weights_are_zero_is_the_activation_of_its_input(inputs: int, outputs: int) -> None:
    stage = ResidualStage(inputs, outputs, (1, 5, 5), 3, Style(act="prelu"))
    for name, weight in stage.named_parameters():
        if not name.startswith("act"):
            nn.init.zeros_(weight)
    x = torch.randn(2, inputs, 2, 4, 3)
    torch.testing.assert_close(stage(x), torch.where(x > 0, x, x / 4).expand(-1, outputs, -1, -1, -1))


def test_kernels_are_five_wide_except_along_axes_where_the_topologys_are_one() -> None:
    def kernels(**options: int) -> set[tuple[int, ...]]:
        network = _build(THICK, **options)
        convs = (m for m in network.backbone.modules() if isinstance(m, torch.nn.Conv3d))
        return {tuple(m.kernel_size) for m in convs if max(m.padding) > 0}

    assert kernels() == {(1, 5, 5), (5, 5, 5)}
    assert kernels(kernel_size=3) == {(1, 3, 3), (3, 3, 3)}


def test_the_parameters_are_those_of_the_published_network() -> None:
    """Milletari 2016: 1, 2, 3, 3, 3 convolutions of 5^3 to 16 2^i channels, the decoder mirrored."""
    channels, blocks = (16, 32, 64, 128, 256), (1, 2, 3, 3, 3)
    topology = Topology(3, channels, ((1, 1, 1), *[(2, 2, 2)] * 4), ((3, 3, 3),) * 5, blocks)
    with torch.device("meta"):
        network = _build(topology, norm="none").backbone

    def stage(inputs: int, outputs: int, count: int) -> int:
        convs = 125 * (inputs * outputs + (count - 1) * outputs**2) + count * outputs
        return convs + count  # PReLU with one slope per channel is counted below

    expected = stage(1, 16, 1)
    for k in range(1, 5):
        expected += 8 * channels[k - 1] * channels[k] + channels[k] + stage(channels[k], channels[k], blocks[k])
    coarse = channels[4]
    for k in range(3, -1, -1):
        expected += 8 * coarse * channels[k] + channels[k] + stage(2 * channels[k], 2 * channels[k], blocks[k])
        coarse = 2 * channels[k]
    slopes = [p for m in network.modules() if isinstance(m, nn.PReLU) for p in m.parameters()]
    weights = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in slopes)
    assert weights == expected - sum(blocks) - sum(blocks[:4])
    assert len(slopes) == sum(blocks) + sum(blocks[:4]) + 4 + 4  # after each layer, and after the sum for the last


def test_monais_stage_without_the_extra_activation_before_the_sum_agrees() -> None:
    vnet = pytest.importorskip("monai.networks.nets.vnet")
    theirs = vnet.DownTransition(3, 4, 2, "relu")
    topology = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (1, 2))
    ours = _build(topology, norm="batch", act="relu").backbone.encoder[1]
    pairs = [(ours[0].conv, theirs.down_conv), (ours[0].norm, theirs.bn1)]
    for layer, other in zip(ours[1].layers, theirs.ops, strict=True):
        pairs += [(layer.conv, other.conv_block.conv), (layer.norm, other.conv_block.adn.N)]
    theirs.ops[1].act_function = nn.Identity()
    for mine, other in pairs:
        mine.weight.data.copy_(other.weight.data)
    x = torch.randn(2, 4, 4, 6, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_decoder_blocks_and_attention_are_options() -> None:
    count = [sum(p.numel() for p in _build(THICK, decoder_blocks=n).parameters()) for n in (1, 2)]
    layer = math.prod((1, 5, 5)) * 8 * 8 + 3 * 8 + 8, math.prod((5, 5, 5)) * 16 * 16 + 3 * 16 + 16
    assert count[1] - count[0] == sum(layer)
    image = torch.randn(1, 1, 2, 8, 8)
    plain, gated = _build(THICK), _build(THICK, attention="gate")
    assert gated(image).logits[0].shape == plain(image).logits[0].shape
    assert sum(p.numel() for p in gated.parameters()) > sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("options", [{"kernel_size": 4}, {"decoder_blocks": 0}])
def test_options_that_make_no_network_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="odd kernel"):
        _build(THICK, **options)
