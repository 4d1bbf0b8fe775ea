"""Every attention by name: sizes, identity when new, gradients, and its place in a network."""

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.blocks.activations import ACTS, Activation
from medseg.networks.blocks.attention import ATTENTION, PassSkip, after_stage, on_skip
from medseg.networks.blocks.conv import InstanceNorm, Style

ALONE = [name for name, kind in ATTENTION.items() if kind.place != "skip"]
IDENTITY = ["adain", "non_local", "danet_position", "danet_channel", "danet", "botnet", "acmix"]
SPACINGS = {"2d": (1.0, 1.0), "3d": (1.0, 1.0, 1.0), "thick": (4.0, 1.0, 1.0)}


def _build(name: str, spacing: tuple[float, ...], channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    (block,) = after_stage(Style(attention=name), channels, spacing, coarsest=True)
    return block


def _sizes(spacing: tuple[float, ...]) -> list[tuple[int, ...]]:
    return [(3, 6, 5)[-len(spacing) :], (2, 3, 9)[-len(spacing) :]]


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
@pytest.mark.parametrize("name", ALONE)
def test_two_sizes_pass_and_every_weight_learns(name: str, spacing: tuple[float, ...]) -> None:
    block = _build(name, spacing)
    for p in block.parameters():
        if not p.any():  # gammas and last norms start at 0 and hide what is before them
            nn.init.constant_(p, 0.1)
    for size in _sizes(spacing):
        x = torch.randn(2, 8, *size, requires_grad=True)
        assert block(x).shape == x.shape
    torch.manual_seed(1)
    (block(x) * torch.randn_like(x)).sum().backward()
    silent = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in silent if not n.endswith("conv.bias")] == []  # those are subtracted by a norm


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
@pytest.mark.parametrize("name", IDENTITY)
def test_a_new_block_passes_its_input(name: str, spacing: tuple[float, ...]) -> None:
    for size in _sizes(spacing):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(_build(name, spacing)(x), x)


@pytest.mark.parametrize("name", ALONE)
def test_a_feature_of_one_voxel_passes(name: str) -> None:
    x = torch.randn(2, 8, 1, 1, 1)
    assert torch.isfinite(_build(name, (1.0, 1.0, 1.0))(x)).all()


@pytest.mark.parametrize("name", ALONE)
def test_no_weight_has_the_size_of_the_image(name: str) -> None:
    block = _build(name, (1.0, 1.0))
    before = [p.shape for p in block.parameters()]
    block(torch.randn(1, 8, 11, 13))
    assert [p.shape for p in block.parameters()] == before


@pytest.mark.parametrize("name", ALONE)
def test_samples_of_a_batch_do_not_see_each_other(name: str) -> None:
    block, x = _build(name, (1.0, 1.0)), torch.randn(3, 8, 5, 6)
    for p in block.parameters():
        if not p.any():
            nn.init.constant_(p, 0.1)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["aspp", "botnet", "sk"])
def test_layers_of_attention_follow_the_style_of_the_network(name: str) -> None:
    style = Style(norm="group", act="mish", attention=name)
    (block,) = after_stage(style, 8, (1.0, 1.0), coarsest=True)
    assert any(isinstance(part, nn.GroupNorm) for part in block.modules())
    assert not any(isinstance(part, InstanceNorm) for part in block.modules())
    assert "mish" in {part.act for part in block.modules() if isinstance(part, Activation)}


@pytest.mark.parametrize("name", ["aspp", "botnet", "sk"])
@pytest.mark.parametrize("act", ACTS)
def test_every_activation_fits_into_attention(name: str, act: str) -> None:
    (block,) = after_stage(Style(act=act, attention=name), 8, (1.0, 1.0), coarsest=True)  # type: ignore[arg-type]
    assert block(torch.randn(2, 8, 6, 5)).shape == (2, 8, 6, 5)


def test_attention_sits_where_its_place_says() -> None:
    spacing = (1.0, 1.0)
    assert after_stage(Style(attention="none"), 8, spacing, coarsest=True) == ()
    assert after_stage(Style(attention="danet"), 8, spacing, coarsest=False) == ()
    assert len(after_stage(Style(attention="danet"), 8, spacing, coarsest=True)) == 1
    assert len(after_stage(Style(attention="se"), 8, spacing, coarsest=False)) == 1
    assert after_stage(Style(attention="gate"), 8, spacing, coarsest=True) == ()
    skip, coarse = torch.randn(1, 4, 6, 6), torch.randn(1, 8, 3, 3)
    assert isinstance(on_skip("se", 4, 8, 2), PassSkip)
    assert on_skip("none", 4, 8, 2)(skip, coarse) is skip
    gated: Tensor = on_skip("gate", 4, 8, 2)(skip, coarse)
    assert (gated.abs() < skip.abs()).all()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="cbam") as error:
        after_stage(Style(attention="cbma"), 8, (1.0, 1.0), coarsest=True)
    assert "danet_position" in str(error.value)
