"""One 2D network along three axes: slice by slice references, symmetry, memory, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

CUBE = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1), (1.0, 1.0, 1.0))
FLAT = replace(CUBE, strides=((1, 1, 1), (1, 2, 2)), kernels=((1, 3, 3), (3, 3, 3)), spacing_mm=(2.0, 1.0, 1.0))


def _build(topology: Topology = CUBE, channels: int = 1, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(
        Network("direction_fused", topology, options=options),  # type: ignore[arg-type]
        channels=channels,
        outputs=2,
    )


def _slow(network: nn.Module, image: Tensor, axis: int) -> Tensor:
    """Features of one axis, one slice at a time."""
    plane, size = network.backbone.plane, image.shape[axis]
    found = []
    for i in range(size):
        near = [image.select(axis, min(max(j, 0), size - 1)) for j in (i - 1, i, i + 1)]
        stacked = torch.stack(near, 2).flatten(1, 2)  # channel 0 of the three slices, then channel 1
        found.append(plane(stacked)[0])
    return torch.stack(found, axis)


@pytest.mark.parametrize("fuse", ["concat", "mean"])
def test_features_are_those_of_every_slice_with_its_neighbours(fuse: str) -> None:
    network, image = _build(channels=2, fuse=fuse, slices_at_once=5).eval(), torch.randn(2, 2, 4, 6, 8)
    along = [_slow(network, image, axis) for axis in (2, 3, 4)]
    for axis, expected in zip((2, 3, 4), along, strict=True):
        torch.testing.assert_close(network.backbone.along(image, axis), expected, rtol=1e-4, atol=1e-5)
    fused = sum(along) / 3 if fuse == "mean" else network.backbone.fusion(torch.cat(along, 1))
    torch.testing.assert_close(network.backbone(image)[0], fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_the_mean_of_a_turned_scan_is_the_turned_mean_where_the_plane_is_not_turned(order: tuple[int, ...]) -> None:
    network = _build(fuse="mean", slices=1).eval()
    for module in network.backbone.plane.modules():  # kernels that look alike transposed
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data = (module.weight.data + module.weight.data.mT) / 2
    image = torch.randn(1, 1, 8, 6, 4)
    there = (0, 1, *(2 + axis for axis in order))
    expected = network(image).logits[0].permute(there)
    torch.testing.assert_close(network(image.permute(there)).logits[0], expected, rtol=1e-4, atol=1e-4)


def test_a_scan_that_only_changes_across_one_axis_differs_in_every_direction() -> None:
    network = _build().eval()
    image = torch.randn(1, 1, 6, 1, 1).expand(1, 1, 6, 6, 6).contiguous()
    flat = torch.zeros_like(image)
    for axis in (2, 3, 4):
        assert not torch.allclose(network.backbone.along(image, axis), network.backbone.along(flat, axis))


def test_recomputing_changes_neither_logits_nor_gradients() -> None:
    image, results = torch.randn(1, 1, 4, 6, 4), []
    for options in ({"recompute": True, "slices_at_once": 3}, {"recompute": False}):
        network = _build(**options).train()
        output = network(image).logits[0]
        output.square().mean().backward()
        results.append((output, {n: p.grad for n, p in network.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert all(grad is not None for grad in results[0][1].values())
    for name, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    kept = {}
    for again in (True, False):
        network, sizes = _build(recompute=again, slices_at_once=4).train(), []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            network(torch.randn(1, 1, 8, 8, 8))
        kept[again] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_sizes_that_the_shared_strides_do_not_divide_are_padded() -> None:
    network = _build(FLAT).eval()
    assert network(torch.randn(1, 1, 3, 4, 6)).logits[0].shape == (1, 2, 3, 4, 6)
    with pytest.raises(PlanError, match="multiple"):
        network(torch.randn(1, 1, 3, 5, 6))


def test_every_weight_learns() -> None:
    network = _build(fuse_blocks=2).train()
    network(torch.randn(1, 1, 4, 4, 4)).logits[0].square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in silent if "conv.bias" not in n] == []


@pytest.mark.parametrize(
    ("topology", "options", "says"),
    [
        (replace(CUBE, spacing_mm=(2.1, 1.0, 1.0)), {}, "anisotropic"),
        (Topology(2, (4,), ((1, 1, 1),), ((1, 3, 3),), (1,)), {}, "3D"),
        (CUBE, {"norm": "batch"}, "mixes"),
        (CUBE, {"encoder": "repvgg"}, "mixes"),
        (CUBE, {"slices": 2}, "odd"),
        (CUBE, {"fuse": "max"}, "concat, mean"),
    ],
)
def test_what_it_cannot_do_is_refused(topology: Topology, options: dict[str, object], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        _build(topology, **options)
