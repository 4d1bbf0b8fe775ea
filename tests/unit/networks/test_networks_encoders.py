"""Encoder stages by name: sizes per axis, parameters, gradients, and the identities of their papers."""

import math

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.conv import Style, initialise
from medseg.networks.build import build_network
from medseg.networks.encoders import ENCODERS, stage_kind
from medseg.types.plan import Network, Topology

FLAT = Topology(2, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3), (1, 3, 1)), (2, 1, 2))
THICK = Topology(3, (4, 8, 12), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (2, 1, 2))


def _stage(name: str, *sizes: object, style: Style | None = None) -> nn.Module:
    torch.manual_seed(0)
    stage = ENCODERS[name](*sizes, style or Style())  # type: ignore[arg-type]
    initialise(stage)
    return stage


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layer(inputs: int, outputs: int, kernel: tuple[int, ...], groups: int = 1) -> int:
    """Weights of a convolution with bias, and its norm's scale and shift."""
    return math.prod(kernel) * inputs * outputs // groups + 3 * outputs


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize(
    ("kernel", "stride", "size", "small"),
    [
        ((3, 1), (2, 1), (6, 5), (3, 5)),
        ((1, 3, 3), (1, 2, 2), (3, 8, 4), (3, 4, 2)),
        ((3, 3, 3), (1, 1, 1), (2, 3, 5), (2, 3, 5)),
    ],
)
def test_a_stage_obeys_the_stride_of_each_axis(
    name: str, kernel: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, ...], small: tuple[int, ...]
) -> None:
    assert _stage(name, 6, 10, kernel, stride, 2)(torch.randn(2, 6, *size)).shape == (2, 10, *small)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("topology", [FLAT, THICK], ids=["2d", "3d"])
def test_a_unet_of_these_stages_learns_with_every_weight(encoder: str, topology: Topology) -> None:
    torch.manual_seed(0)
    network = build_network(Network("unet", topology, options={"encoder": encoder}), channels=2, outputs=3)
    image = torch.randn(2, 2, *((8, 8) if topology.ndim == 2 else (4, 8, 8)))
    for _ in range(2):  # the last norms of residual blocks start at 0 and hide what is before them
        network.zero_grad()
        logits = network(image).logits
        sum(t.square().sum() for t in logits).backward()
        with torch.no_grad():
            torch._foreach_sub_(list(network.parameters()), [1e-3 * p.grad for p in network.parameters()])
    assert logits[0].shape == (2, 3, *image.shape[2:])
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert [n for n in dead if not n.endswith("conv.bias")] == []  # a norm takes its convolution's bias away


@pytest.mark.parametrize("encoder", sorted(set(ENCODERS) - {"convnext", "poolformer", "repvgg"}))
def test_norm_and_activation_are_those_of_the_style(encoder: str) -> None:
    results = []
    for style in (Style(), Style(norm="batch"), Style(act="silu")):
        stage = _stage(encoder, 6, 6, (3, 3), (2, 2), 2, style=style)
        for weight in (p for p in stage.parameters() if p.dim() == 1):
            nn.init.constant_(weight, 0.5)
        results.append(stage(torch.linspace(-1, 1, 192).sin().reshape(2, 6, 4, 4)))
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(PlanError, match="convnext, dense"):
        stage_kind("vgg")


def test_resnext_has_the_published_parameters_and_its_groups_are_paths() -> None:
    stage = _stage("resnext", 12, 16, (3, 3), (2, 2), 2)
    first = _layer(12, 8, (1, 1)) + _layer(8, 8, (3, 3), 8) + _layer(8, 16, (1, 1)) + _layer(12, 16, (1, 1))
    second = _layer(16, 8, (1, 1)) + _layer(8, 8, (3, 3), 8) + _layer(8, 16, (1, 1))
    assert _count(stage) == first + second


def test_a_grouped_bottleneck_is_the_sum_of_its_paths() -> None:
    from medseg.networks.blocks.grouped import Bottleneck

    torch.manual_seed(0)
    groups, inner = 4, 8
    block = Bottleneck(6, 16, (3, 3), (2, 1), Style(norm="batch"), groups=groups).eval()
    x = torch.randn(2, 6, 6, 5)
    whole = block.layers(x)
    narrow, middle, widen = (layer.conv for layer in block.layers)
    norms = [layer.norm for layer in block.layers]
    paths: Tensor | float = 0.0
    for path in range(groups):  # every path has its own three convolutions on its own channels
        own = slice(path * inner // groups, (path + 1) * inner // groups)
        y = nn.functional.conv2d(x, narrow.weight[own], narrow.bias[own])
        y = nn.functional.leaky_relu(_batch_norm(y, norms[0], own), 0.01)
        y = nn.functional.conv2d(y, middle.weight[own], middle.bias[own], (2, 1), 1)
        y = nn.functional.leaky_relu(_batch_norm(y, norms[1], own), 0.01)
        paths = paths + nn.functional.conv2d(y, widen.weight[:, own])
    paths = _batch_norm(paths + widen.bias[:, None, None], norms[2], slice(None))
    torch.testing.assert_close(whole, paths, rtol=1e-4, atol=1e-5)


def _batch_norm(x: Tensor, norm: nn.Module, own: slice) -> Tensor:
    stats = [t[own] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    return nn.functional.batch_norm(x, *stats, eps=norm.eps)


def test_grouped_residual_convolutions_have_an_eighth_of_the_weights() -> None:
    def wide(groups: int) -> int:
        from medseg.networks.blocks.grouped import GroupedResidualBlock

        block = GroupedResidualBlock(16, 24, (3, 3, 1), (1, 1, 1), Style(), groups=groups)
        return sum(p.numel() for p in block.parameters() if p.dim() == 5 and p.shape[2] == 3)

    assert wide(8) * 8 == wide(1) == 9 * (16 * 24 + 24 * 24)
    assert wide(5) == wide(1)  # 5 divides neither


def test_grouped_residual_blocks_mix_their_groups() -> None:
    stage = _stage("grouped_residual", 8, 8, (3, 3), (1, 1), 1)
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    stage.get_submodule("0.layers")(x)[0, 0, 2, 2].backward()
    assert (x.grad.abs().sum((0, 2, 3)) > 0).all()


def test_dense_stages_have_the_published_parameters_and_keep_what_came_before() -> None:
    stage = _stage("dense", 8, 14, (3, 3, 3), (1, 2, 2), 3)
    layers = [(4, 4), (8, 3), (11, 3)]  # inputs and growth: half of 8, then 10 channels in three parts
    convs = sum(_layer(i, 4 * g, (1, 1, 1)) + _layer(4 * g, g, (3, 3, 3)) for i, g in layers)
    assert _count(stage) == _layer(8, 4, (1, 1, 1)) + convs
    x = torch.randn(1, 8, 2, 4, 4)
    pooled = nn.functional.avg_pool3d(stage.transition(x), (1, 2, 2))
    torch.testing.assert_close(stage(x)[:, :4], pooled)
    torch.testing.assert_close(stage(x)[:, 4:8], stage.layers[0](pooled))


def test_dense_stages_keep_no_concatenation_and_have_the_gradients_of_those_that_do() -> None:
    stage, x = _stage("dense", 8, 14, (3, 3), (1, 1), 3), torch.randn(1, 8, 6, 6)
    y = stage.transition(x)
    for layer in stage.layers:
        y = torch.cat([y, layer(y)], 1)
    weights = list(stage.parameters())
    ours, theirs = (torch.autograd.grad((t * t.detach().cos()).sum(), weights) for t in (stage(x), y))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dense_stages_of_a_given_growth_end_in_the_channels_of_the_topology() -> None:
    from medseg.networks.blocks.dense import DenseStage

    stage = DenseStage(10, 14, (3, 3), (1, 1), 2, Style(), growth=6, theta=0.3)
    convs = [(10, 3, 1), (3, 24, 1), (24, 6, 3), (9, 24, 1), (24, 6, 3), (15, 14, 1)]
    assert _count(stage) == sum(_layer(i, o, (k, k)) for i, o, k in convs)
    assert stage(torch.randn(1, 10, 4, 4)).shape == (1, 14, 4, 4)


def test_mobilenet_blocks_have_the_published_parameters_and_linear_ends() -> None:
    stage = _stage("mobilenet", 4, 6, (3, 3), (2, 2), 2)
    expected = 0
    for inputs in (4, 6):
        wide = 6 * inputs
        expected += _layer(inputs, wide, (1, 1)) + _layer(wide, wide, (3, 3), wide) + _layer(wide, 6, (1, 1))
    assert _count(stage) == expected
    first, second = stage
    x = torch.randn(1, 6, 8, 8)
    assert (first(x[:, :4]) < -0.5).any()  # nothing after the last norm cuts negative values
    for p in second.layers[2].parameters():
        nn.init.zeros_(p)
    torch.testing.assert_close(second(x), x)  # residual where size and channels stay
    for p in first.layers[2].parameters():
        nn.init.zeros_(p)
    assert not first(x[:, :4]).any()


def test_convnext_blocks_have_the_published_parameters_and_are_identities_at_scale_zero() -> None:
    stage = _stage("convnext", 4, 6, (1, 3, 3), (1, 2, 2), 1)
    entry = 2 * 4 + 4 * 4 * 6 + 6
    assert _count(stage) == entry + (49 * 6 + 6) + 2 * 6 + (6 * 24 + 24) + (24 * 6 + 6) + 6
    block = stage[1]
    x = torch.randn(1, 6, 3, 5, 4)
    torch.testing.assert_close(block(x), x, atol=1e-3, rtol=0)
    assert not torch.equal(block(x), x)
    nn.init.zeros_(block.scale)
    assert torch.equal(block(x), x)


def test_a_convnext_block_is_its_formula() -> None:
    from medseg.networks.blocks.convnext import ConvNextBlock

    torch.manual_seed(0)
    block, x = ConvNextBlock(3, (3, 3), scale=0.5), torch.randn(2, 3, 6, 5)
    y = nn.functional.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=3)
    y = y - y.mean(1, keepdim=True)
    y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt()
    y = torch.einsum("oc,bchw->bohw", block.widen.weight[:, :, 0, 0], y) + block.widen.bias[:, None, None]
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    y = torch.einsum("oc,bchw->bohw", block.narrow.weight[:, :, 0, 0], y) + block.narrow.bias[:, None, None]
    expected = x + 0.5 * y
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    weights = list(block.parameters())
    ours, theirs = (torch.autograd.grad(t.square().sum(), weights, allow_unused=True) for t in (block(x), expected))
    for one, other, weight in zip(ours, theirs, weights, strict=True):
        assert (other is None) == (weight is block.scale or weight is block.norm.weight or weight is block.norm.bias)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "size"), [((3, 3), (4, 5)), ((1, 3, 3), (2, 3, 4)), ((3, 3, 3), (1, 2, 3)), ((3, 3), (1, 1))]
)
def test_the_pool_mixer_is_the_mean_of_the_neighbours_that_exist_minus_the_voxel(
    kernel: tuple[int, ...], size: tuple[int, ...]
) -> None:
    from medseg.networks.blocks.poolformer import PoolMixer

    x = torch.randn(1, 2, *size, dtype=torch.float64)
    found = PoolMixer(kernel)(x)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in size)).tolist():
        box = tuple(slice(max(i - k // 2, 0), i + k // 2 + 1) for i, k in zip(place, kernel, strict=True))
        mean = x[(0, slice(None), *box)].flatten(1).mean(1)
        torch.testing.assert_close(found[(0, slice(None), *place)], mean - x[(0, slice(None), *place)])
    torch.testing.assert_close(PoolMixer(kernel)(torch.full_like(x, 3.7)), torch.zeros_like(x))


def test_poolformer_blocks_have_the_published_parameters_and_are_identities_at_scale_zero() -> None:
    stage = _stage("poolformer", 4, 6, (3, 3), (2, 2), 2)
    assert _count(stage) == (9 * 4 * 6 + 6) + 2 * (2 * 12 + (6 * 24 + 24) + (24 * 6 + 6) + 2 * 6)
    block, x = stage[1], torch.randn(1, 6, 4, 4)
    assert not torch.equal(block(x), x)
    for scale in block.scales:
        nn.init.zeros_(scale)
    assert torch.equal(block(x), x)


def test_shuffling_channels_deals_them_like_cards_and_is_undone_by_shuffling() -> None:
    from medseg.networks.blocks.shuffle import channel_shuffle

    x = torch.randn(2, 12, 3, 4)
    for groups in (1, 2, 3, 12):
        shuffled = channel_shuffle(x, groups)
        for group in range(groups):
            for i in range(12 // groups):
                assert torch.equal(shuffled[:, i * groups + group], x[:, group * 12 // groups + i])
        assert torch.equal(channel_shuffle(shuffled, 12 // groups), x)
        torch.testing.assert_close(shuffled, nn.ChannelShuffle(groups)(x))
    with pytest.raises(PlanError, match="12 channels in 5 groups"):
        channel_shuffle(x, 5)


def test_shuffle_units_have_the_published_parameters_and_pass_half_their_channels() -> None:
    stage = _stage("shuffle", 6, 10, (3, 3), (2, 2), 2)
    first = _layer(6, 6, (3, 3), 6) + _layer(6, 5, (1, 1))
    first += _layer(6, 5, (1, 1)) + _layer(5, 5, (3, 3), 5) + _layer(5, 5, (1, 1))
    second = _layer(5, 5, (1, 1)) + _layer(5, 5, (3, 3), 5) + _layer(5, 5, (1, 1))
    assert _count(stage) == first + second
    x = torch.randn(1, 10, 4, 4)
    y = stage[1](x)
    assert torch.equal(y[:, ::2], x[:, :5]) and not torch.equal(y[:, 1::2], x[:, 5:])
    with pytest.raises(PlanError, match="even"):
        _stage("shuffle", 6, 9, (3, 3), (1, 1), 1)


def test_a_convnext_stage_may_be_a_stem_of_patches_of_four() -> None:
    topology = Topology(2, (4, 8), ((1, 1, 1), (1, 4, 4)), ((1, 3, 3),) * 2, (1, 1))
    network = build_network(Network("unet", topology, options={"encoder": "convnext"}), channels=1, outputs=2)
    stem = network.get_submodule("backbone.encoder.1.0.1")
    assert stem.weight.shape == (8, 4, 4, 4) and stem.stride == (4, 4)
    assert network(torch.randn(1, 1, 8, 12)).logits[0].shape == (1, 2, 8, 12)
