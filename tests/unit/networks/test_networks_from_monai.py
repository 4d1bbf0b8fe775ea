"""Adapters: MONAI's own results, any size of the plan, and what is said where MONAI or a stride does not fit."""

import math
import sys

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

NAMES = ["segresnet", "swin_unetr", "mednext"]


def _topology(ndim: int, channels: tuple[int, ...] = (12, 24)) -> Topology:
    flat = (1, 2, 2) if ndim == 2 else (2, 2, 2)
    kernel = (1, 3, 3) if ndim == 2 else (3, 3, 3)
    stages = len(channels)
    return Topology(ndim, channels, ((1, 1, 1), *(flat,) * (stages - 1)), (kernel,) * stages, (1,) * stages)


def _build(use: str, topology: Topology, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network(use, topology, options=options), channels=2, outputs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("use", NAMES)
def test_logits_have_the_size_of_the_image_and_every_weight_learns(use: str, ndim: int) -> None:
    network = _build(use, _topology(ndim))
    size = (4, 6, 2)[:ndim]  # multiples of the plan's divisor, not of what Swin UNETR needs
    finest = network(torch.randn(1, 2, *size)).logits[0]
    assert finest.shape == (1, 3, *size)
    finest.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


SMALL = {"hidden": 24, "heads": 2, "places": 2}


@pytest.mark.parametrize("ndim", [2, 3])
def test_unetr_takes_images_of_any_size_and_every_weight_learns(ndim: int) -> None:
    network = _build("unetr", _topology(ndim), **SMALL)
    image = torch.randn(1, 2, *(20, 8, 6)[:ndim])
    finest = network(image).logits[0]
    assert finest.shape == (1, 3, *image.shape[2:])
    finest.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    with pytest.raises(PlanError, match="heads"):
        _build("unetr", _topology(ndim), hidden=25, heads=2)


def test_unetr_is_monais_at_the_size_of_its_positions_and_moves_them_with_the_size() -> None:
    from monai.networks.nets import UNETR

    network = _build("unetr", _topology(2), **SMALL).eval()
    theirs = UNETR(2, 3, 32, feature_size=12, hidden_size=24, mlp_dim=96, num_heads=2, spatial_dims=2).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if "norm_cross_attn" not in k}
    head = {k: weights.pop(f"out.conv.conv.{k}") for k in ("weight", "bias")}
    positions = weights.pop("vit.patch_embedding.position_embeddings")
    own = {k.replace("patch_embedding.patch_embeddings", "patch_embedding.conv"): v for k, v in weights.items()}
    own["vit.patch_embedding.positions"] = positions.mT.reshape(1, 24, 2, 2)
    network.backbone.network.network.load_state_dict(own)
    network.heads[0].convs[0].load_state_dict(head)
    image = torch.randn(2, 2, 32, 32)
    torch.testing.assert_close(network(image).logits[0], theirs(image), rtol=1e-4, atol=1e-4)
    patches = network.backbone.network.network.vit.patch_embedding
    torch.nn.init.zeros_(patches.conv.weight), torch.nn.init.zeros_(patches.conv.bias)
    patches.positions.data = torch.tensor([0.0, 3.0]).view(1, 1, 2, 1).expand(1, 24, 2, 2)
    tokens = patches(torch.zeros(1, 2, 48, 16))[0, :, 0]  # three places where there were two: ends, and their middle
    torch.testing.assert_close(tokens, torch.tensor([0.0, 1.5, 3.0]))


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_two_offsets_in_a_window_share_their_bias(ndim: int) -> None:
    network = _build("swin_unetr", _topology(ndim), window=3)
    attention = network.get_submodule("backbone.network.swinViT.layers1.0.blocks.0.attn")
    places = torch.cartesian_prod(*[torch.arange(3)] * ndim)
    offsets = {tuple((a - b).tolist()): set() for a in places for b in places}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            offsets[tuple((a - b).tolist())].add(int(attention.relative_position_index[i, j]))
    assert all(len(found) == 1 for found in offsets.values())
    assert (
        len({next(iter(found)) for found in offsets.values()}) == 5**ndim == len(attention.relative_position_bias_table)
    )


@pytest.mark.parametrize("size", [(4, 4), (2, 9), (4, 4, 4), (9, 3, 2)])
def test_a_feature_smaller_than_the_window_keeps_the_bias_of_every_offset(size: tuple[int, ...]) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformerBlock

    network = _build("swin_unetr", _topology(len(size)), window=7)
    block = next(
        part for part in network.modules() if isinstance(part, SwinTransformerBlock) and not any(part.shift_size)
    )
    whole, used = block.attn.relative_position_index, tuple(min(n, 7) for n in size)
    seen: list[torch.Tensor] = []
    handle = block.attn.register_forward_pre_hook(lambda part, _: seen.append(part.relative_position_index))
    block(torch.randn(1, *size, 12), None)
    handle.remove()
    assert block.attn.relative_position_index is whole
    places = torch.cartesian_prod(*[torch.arange(n) for n in used])
    assert seen[0].shape == (len(places), len(places))
    found = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            found.setdefault(tuple((a - b).tolist()), set()).add(int(seen[0][i, j]))
            corner = [int(n) for n in torch.stack([a, b]).T.flatten()]
            strides = [7**k for k in reversed(range(len(size)))]
            there = [sum(s * corner[2 * k + m] for k, s in enumerate(strides)) for m in (0, 1)]
            assert seen[0][i, j] == whole[there[0], there[1]], "the bias of the same two places of a whole window"
    assert all(len(biases) == 1 for biases in found.values())
    assert len({min(biases) for biases in found.values()}) == math.prod(2 * n - 1 for n in used)


@pytest.mark.parametrize("ndim", [2, 3])
def test_mednext_gives_the_features_of_every_decoder_stage(ndim: int) -> None:
    network = _build("mednext", _topology(ndim, (4, 8, 16)))
    sizes = [tuple(t.shape[2:]) for t in network(torch.randn(1, 2, *(8, 4, 4)[:ndim])).logits]
    assert sizes == [(8, 4, 4)[:ndim], (4, 2, 2)[:ndim]]
    assert network.backbone.feature_channels == (4, 8)


@pytest.mark.parametrize("use", ["segresnet", "mednext", "swin_unetr"])
def test_the_numbers_are_those_of_monai(use: str) -> None:
    from monai.networks import nets

    network = _build(use, _topology(2)).eval()
    torch.manual_seed(1)
    kinds = {
        "segresnet": lambda: nets.SegResNet(
            2, 12, 2, 3, norm=("GROUP", {"num_groups": 6}), blocks_down=(1, 1), blocks_up=(1,)
        ),
        "mednext": lambda: nets.MedNeXt(
            2,
            12,
            2,
            3,
            kernel_size=3,
            use_residual_connection=True,
            blocks_down=[1],
            blocks_bottleneck=1,
            blocks_up=[1],
        ),
        "swin_unetr": lambda: nets.SwinUNETR(2, 3, feature_size=12, spatial_dims=2),
    }
    theirs = kinds[use]().eval()
    last = {"segresnet": "conv_final.2.conv", "mednext": "out_0.conv_out", "swin_unetr": "out.conv.conv"}[use]
    weights = theirs.state_dict()
    head = {k: weights.pop(f"{last}.{k}") for k in ("weight", "bias")}
    network.backbone.network.load_state_dict(weights)
    head["weight"] = head["weight"].movedim(0, 1) if use == "mednext" else head["weight"]  # theirs is transposed
    network.heads[0].convs[0].load_state_dict(head)
    size = (224, 224) if use == "swin_unetr" else (32, 64)  # no feature smaller than a window: MONAI errs there
    image = torch.randn(1, 2, *size)
    torch.testing.assert_close(network(image).logits[0], theirs(image), rtol=1e-4, atol=1e-4)


def test_padding_repeats_the_border_and_is_cut_off() -> None:
    network = _build("swin_unetr", _topology(2)).eval()
    image = torch.randn(1, 2, 30, 64)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 2, -1)], 2)
    with torch.inference_mode():
        torch.testing.assert_close(network(image).logits[0], network(padded).logits[0][:, :, :30])


@pytest.mark.parametrize("use", ["segresnet", "mednext"])
def test_strides_that_monais_network_does_not_have_are_refused(use: str) -> None:
    kernels = ((3, 3, 3), (3, 3, 3))
    with pytest.raises(PlanError, match="halves every axis"):
        _build(use, Topology(3, (8, 16), ((1, 1, 1), (1, 2, 2)), kernels, (1, 1)))
    with pytest.raises(PlanError, match="halves every axis"):
        _build(use, Topology(3, (8,), ((1, 1, 1),), ((3, 3, 3),), (1,)))


@pytest.mark.parametrize("use", [*NAMES, "unetr"])
def test_without_monai_the_error_says_what_to_install(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"monai.networks.nets.{use}", None)
    with pytest.raises(PlanError, match=r"needs monai.*medseg\[monai\]"):
        _build(use, _topology(2))


@pytest.mark.parametrize(("channels", "size"), [(4, 12), (12, 12), (32, 36), (48, 48)])
def test_the_feature_size_of_swin_unetr_is_a_multiple_of_twelve(channels: int, size: int) -> None:
    assert _build("swin_unetr", _topology(2, (channels, 24))).backbone.feature_channels == (size,)
