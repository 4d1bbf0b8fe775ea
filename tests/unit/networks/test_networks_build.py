"""Networks by topology: sizes, scales, plans, users' own backbones."""

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.activations import ACTS
from medseg.networks.blocks.conv import Style, conv
from medseg.networks.blocks.norms import NORMS
from medseg.networks.blocks.residual import ResidualBlock
from medseg.networks.build import build_network, merged
from medseg.types.plan import Network, Step, Topology
from medseg.types.tensors import NetworkOutput

FLAT = Topology(2, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (1, 2, 1))
THICK = Topology(3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))
ALONE = Topology(3, (4,), ((1, 1, 1),), ((3, 3, 3),), (1,))
FAMILY = ["unet", "resenc_unet"]


def _build(use: str, topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network(use, topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", FAMILY)
def test_every_decoder_scale_has_logits_at_its_own_size_and_eval_gives_the_finest(use: str) -> None:
    for topology, size, coarse in ((FLAT, (8, 6), (4, 3)), (THICK, (4, 8, 12), (4, 4, 6))):
        network, image = _build(use, topology), torch.randn(2, 2, *size)
        logits = network(image).logits
        assert [tuple(t.shape) for t in logits] == [(2, 3, *size), (2, 3, *coarse)]
        finest = network.eval()(image).logits
        assert len(finest) == 1
        torch.testing.assert_close(finest[0], logits[0])


@pytest.mark.parametrize("use", FAMILY)
def test_every_weight_learns(use: str) -> None:
    network = _build(use, THICK)
    for _ in range(2):  # the last norms of residual blocks start at 0 and hide what is before them
        network.zero_grad()
        sum(t.square().sum() for t in network(torch.randn(1, 2, 4, 8, 8)).logits).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(network.parameters()), [1e-3 * p.grad for p in network.parameters()])
    assert [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0 and "conv.bias" not in n] == []


@pytest.mark.parametrize("use", FAMILY)
@pytest.mark.parametrize("size", [(2, 4, 4), (2, 8, 12), (6, 4, 20)])
def test_any_multiple_of_the_divisor_fits_and_other_sizes_are_refused(use: str, size: tuple[int, int, int]) -> None:
    network = _build(use, THICK).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 2, *size)).logits[0].shape == (1, 3, *size)
        with pytest.raises(PlanError, match=r"not a multiple of \(2, 4, 4\)"):
            network(torch.randn(1, 2, size[0], size[1], size[2] + 1))


def test_a_flat_network_is_a_thick_one_whose_kernels_are_flat() -> None:
    flat, wide = _build("unet", FLAT).eval(), _build("unet", _as_3d(FLAT)).eval()
    wide.load_state_dict({k: v.unsqueeze(2) if v.dim() == 4 else v for k, v in flat.state_dict().items()})
    image = torch.randn(1, 2, 8, 6)
    torch.testing.assert_close(wide(image[:, :, None]).logits[0][:, :, 0], flat(image).logits[0], rtol=1e-4, atol=1e-4)


def _as_3d(topology: Topology) -> Topology:
    return Topology(3, topology.channels, topology.strides, topology.kernels, topology.blocks)


def test_the_parameters_are_those_of_the_published_network() -> None:
    topology = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (2, 2))
    layers = [(1, 4), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4)]
    convs = sum(9 * i * o + 3 * o for i, o in layers)
    network = build_network(Network("unet", topology), channels=1, outputs=2)
    assert sum(p.numel() for p in network.parameters()) == convs + (8 * 4 * 4 + 4) + (4 * 2 + 2)


def test_the_parameters_of_the_residual_encoder_are_those_of_its_blocks() -> None:
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    topology = Topology(3, (4, 8, 16), strides, kernels, (1, 3, 4))
    network = build_network(Network("resenc_unet", topology), channels=2, outputs=3)

    def layer(taps: int, i: int, o: int) -> int:  # convolution with bias, norm
        return taps * i * o + 3 * o

    stem = layer(9, 2, 4)
    encoder = 2 * layer(9, 4, 4)
    encoder += layer(27, 4, 8) + layer(27, 8, 8) + (4 * 8 + 2 * 8) + 2 * 2 * layer(27, 8, 8)
    encoder += layer(27, 8, 16) + layer(27, 16, 16) + (8 * 16 + 2 * 16) + 3 * 2 * layer(27, 16, 16)
    ups = (8 * 16 * 8 + 8) + (4 * 8 * 4 + 4)
    decoder = layer(27, 16, 8) + layer(9, 8, 4)
    heads = (8 * 3 + 3) + (4 * 3 + 3)
    assert sum(p.numel() for p in network.parameters()) == stem + encoder + ups + decoder + heads


def test_a_residual_block_is_two_convolutions_and_a_pooled_skip_with_its_own_norm() -> None:
    block, x = ResidualBlock(4, 6, (1, 3, 3), (1, 2, 2), Style(norm="instance")), torch.randn(2, 4, 3, 8, 6)
    for name, p in block.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm.weight" in name else 0.0, 0.3)

    def normed(t: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        return torch.nn.functional.instance_norm(t, weight=norm.weight, bias=norm.bias)

    conv3d, leaky = torch.nn.functional.conv3d, torch.nn.functional.leaky_relu
    one = conv3d(x, block.first.conv.weight, block.first.conv.bias, stride=(1, 2, 2), padding=(0, 1, 1))
    two = leaky(normed(one, block.first.norm), 0.01)
    two = normed(conv3d(two, block.second.conv.weight, block.second.conv.bias, padding=(0, 1, 1)), block.second.norm)
    skip = torch.nn.functional.avg_pool3d(x, (1, 2, 2), (1, 2, 2))
    skip = normed(conv3d(skip, block.project.conv.weight), block.project.norm)
    torch.testing.assert_close(block(x), leaky(two + skip, 0.01), rtol=1e-4, atol=1e-4)


def test_convolutions_start_kaiming_normal_without_bias() -> None:
    topology = Topology(2, (64, 64), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (2, 2))
    network = _build("unet", topology)
    weight = network.get_parameter("backbone.encoder.1.1.conv.weight")
    assert abs(weight.std().item() * np.sqrt(64 * 9 / 2 * (1 + 0.01**2)) - 1) < 0.03
    assert all(not p.any() for n, p in network.named_parameters() if n.endswith("conv.bias"))


def test_a_new_residual_block_passes_its_skip() -> None:
    image = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(ResidualBlock(4, 4, (3, 3), (1, 1), Style())(image), image)
    halved = ResidualBlock(4, 4, (3, 3), (2, 1), Style())(image)
    torch.testing.assert_close(halved, (image[:, :, ::2] + image[:, :, 1::2]) / 2)


def _others(known: Iterable[str], name: str, plain: str) -> list[dict[str, object]]:
    return [{name: value} for value in known if value != plain]


@pytest.mark.parametrize(
    "options",
    [
        *_others(NORMS, "norm", "instance"),
        *_others(ACTS, "act", "leaky_relu"),
        {"decoder_blocks": 3},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_options_reach_the_network(options: dict[str, object]) -> None:
    plain, other = _build("resenc_unet", THICK), _build("resenc_unet", THICK, **options)
    image = torch.randn(2, 2, 4, 8, 8)
    assert not torch.equal(plain(image).logits[0], other(image).logits[0])
    for _ in range(2):  # the branches of residual blocks start at 0 and learn from the second step
        found = other(image).logits
        other.zero_grad()
        sum(t.square().mean() for t in found).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(other.parameters()), [1e-3 * p.grad for p in other.parameters()])
    assert [t.shape for t in found] == [t.shape for t in plain(image).logits]
    assert all(torch.isfinite(t).all() for t in found)
    still = [n for n, p in other.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in still if "conv.bias" not in n] == []


def test_a_dropped_branch_leaves_a_sample_its_skip() -> None:
    backbone = _build("resenc_unet", ALONE, drop_path=0.5).get_submodule("backbone.encoder.0.1.0")
    torch.nn.init.ones_(backbone.get_parameter("second.norm.weight"))
    image = torch.rand(40, 4, 3, 3, 3)
    left = [torch.equal(y, x) for y, x in zip(backbone(image), image, strict=True)]
    assert 10 < sum(left) < 30
    assert not any(torch.equal(y, x) for y, x in zip(backbone.eval()(image), image, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ["leaky_relu", "maxout"])
def test_a_new_residual_encoder_is_its_skips_whatever_the_norm(norm: str, act: str) -> None:
    network = _build("resenc_unet", ALONE, norm=norm, act=act)
    stage = network.get_submodule("backbone.encoder.0")
    image = torch.rand(2, 4, 3, 3, 3)
    torch.testing.assert_close(stage[1](image), image)


@pytest.mark.parametrize(
    ("use", "options", "says"),
    [
        ("fnet", {}, "resenc_unet, "),
        ("unet", {"depth": 3}, "no option depth"),
        ("unet", {"norm": "weight"}, "instance, group, batch"),
        ("unet", {"act": "step"}, "leaky_relu"),
        ("unet", {"dropout": 1.0}, "less than 1"),
        ("unet", {"decoder_blocks": 0}, "decoder_blocks"),
        ("nowhere_at_all:net", {}, "cannot import"),
    ],
)
def test_a_wrong_plan_is_refused_when_the_network_is_built(use: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        _build(use, THICK, **options)


def test_a_stride_in_the_first_stage_is_refused() -> None:
    with pytest.raises(PlanError, match="first stride"):
        _build("unet", Topology(2, (4,), ((1, 2, 2),), ((1, 3, 3),), (1,)))


def test_a_network_of_one_stage_works() -> None:
    assert _build("unet", ALONE)(torch.randn(1, 2, 3, 3, 3)).logits[0].shape == (1, 3, 3, 3, 3)


class _Own(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.feature_channels = (width,)
        self.layer = nn.Conv3d(channels, width, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(image),)


def test_a_backbone_of_the_users_own_needs_one_function_and_one_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(topology: Topology, *, in_channels: int, width: int = 5) -> nn.Module:
        return _Own(in_channels, width)

    def silent(topology: Topology, *, in_channels: int) -> nn.Module:
        return nn.Identity()

    monkeypatch.setitem(__import__("sys").modules, "my_lab_nets", SimpleNamespace(own=own, silent=silent))
    network = _build("my_lab_nets:own", THICK, width=6)
    assert network(torch.randn(1, 2, 3, 3, 3)).logits[0].shape == (1, 3, 3, 3, 3)
    with pytest.raises(PlanError, match="feature_channels"):
        _build("my_lab_nets:silent", THICK)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (), (-1.0,), (0.0,)])
def test_a_backbone_that_weighs_its_scales_weighs_all_of_them(
    weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(topology: Topology, *, in_channels: int) -> nn.Module:
        module = _Own(in_channels, 4)
        module.scale_weights = weights  # type: ignore[assignment]
        return module

    monkeypatch.setitem(__import__("sys").modules, "my_lab_nets", SimpleNamespace(own=own))
    with pytest.raises(PlanError, match="weighs its 1 scales"):
        _build("my_lab_nets:own", THICK)


def test_a_head_is_needed_and_must_be_known() -> None:
    for heads, says in (((), "no heads"), ((Step("points"),), "segmentation")):
        with pytest.raises(PlanError, match=says):
            build_network(Network("unet", ALONE, heads), channels=1, outputs=2)


def test_without_deep_supervision_training_sees_the_finest_scale_with_the_same_weights() -> None:
    deep = _build("unet", THICK)
    flat = build_network(Network("unet", THICK), channels=2, outputs=3, deep_supervision=False)
    flat.load_state_dict(deep.state_dict())
    image = torch.randn(1, 2, 2, 4, 4)
    assert len(flat(image).logits) == 1
    torch.testing.assert_close(flat(image).logits[0], deep(image).logits[0])


def test_several_heads_fill_one_record_and_never_the_same_field() -> None:
    logits, points = (torch.zeros(1, 2, 4),), torch.ones(1, 3, 2)
    joint = merged([logits, NetworkOutput(points=points)])
    assert joint.logits[0] is logits[0]
    assert joint.points is points
    with pytest.raises(PlanError, match="two heads return logits"):
        merged([logits, logits])


def test_grouped_dilated_convolutions_have_the_same_finite_gradients_every_time_under_autocast() -> None:
    torch.manual_seed(0)
    layer = conv(8, 8, (3, 3), groups=8, dilation=(2, 2)).to(memory_format=torch.channels_last)
    image = torch.randn(2, 8, 24, 32).contiguous(memory_format=torch.channels_last)
    layer(image).square().sum().backward()
    wanted = layer.weight.grad.clone()
    for number in range(8):
        spoilt = [torch.full((n,), float("nan")) for n in (64, 256, 1024, 4096)]  # what an allocator hands out next
        del spoilt
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer(image + 0 * number)
        found.float().square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-3)
