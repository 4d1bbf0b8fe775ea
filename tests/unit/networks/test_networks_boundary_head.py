"""Boundary modules: the identity of their mask, kernels per axis, scales."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.errors import PlanError
from medseg.networks.boundary_head import boundary, detected
from medseg.networks.build import build_network
from medseg.types.plan import Network, Step, Topology

FLAT = Topology(2, (4, 8, 8), ((1, 1, 1), (1, 2, 2), (1, 2, 2)), ((1, 3, 3),) * 3, (1, 1, 1))
THICK = Topology(
    3, (4, 8, 8), ((1, 1, 1), (1, 2, 2), (1, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3)), (1, 1, 1), (5.0, 1.0, 1.0)
)


@pytest.mark.parametrize(("kernel", "size"), [((3, 3), (5, 4)), ((3, 3, 3), (3, 4, 5)), ((1, 3, 3), (3, 4, 5))])
def test_the_mask_is_f_plus_its_edge_and_that_is_f_dilated(kernel: tuple[int, ...], size: tuple[int, ...]) -> None:
    f = torch.randn(2, 3, *size)
    found = detected(f, kernel)
    slow = np.stack([[ndimage.grey_dilation(c, size=kernel, mode="nearest") for c in b] for b in f.numpy()])
    torch.testing.assert_close(found.mask, torch.from_numpy(slow))
    torch.testing.assert_close(f + found.edge, found.mask)
    assert found.edge.min() == 0


def test_the_edge_of_a_mask_is_the_ring_around_it() -> None:
    mask = torch.zeros(1, 1, 7, 7)
    mask[:, :, 2:5, 2:4] = 1
    ring = torch.zeros_like(mask)
    ring[:, :, 1:6, 1:5] = 1
    torch.testing.assert_close(detected(mask, (3, 3)).edge, ring - mask)


def test_a_mask_that_touches_the_border_has_no_edge_there() -> None:
    assert detected(torch.ones(1, 1, 4, 4), (3, 3)).edge.any().item() is False


def test_edges_do_not_cross_slices_while_these_are_thick() -> None:
    head = boundary(THICK, (4, 8), outputs=2)
    assert [head.kernel((8, 16, 16), size) for size in ((8, 16, 16), (8, 8, 8))] == [(1, 3, 3), (1, 3, 3)]
    deep = Topology(
        3,
        (4, 8, 8, 8),
        ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)),
        ((3, 3, 3),) * 4,
        (1,) * 4,
        (5.0, 1.0, 1.0),
    )
    sizes = [(8, 16, 16), (8, 8, 8), (8, 4, 4)]  # 5 mm: 1, 2, 4 mm
    assert [boundary(deep, (4, 8, 8), outputs=2).kernel(sizes[0], s) for s in sizes] == [
        (1, 3, 3),
        (1, 3, 3),
        (3, 3, 3),
    ]
    assert boundary(FLAT, (4, 8), outputs=2).kernel((16, 16), (8, 8)) == (3, 3)


def test_a_backbone_may_leave_scales_out() -> None:
    strides = ((1, 1, 1), (1, 2, 1), (1, 2, 1), (1, 2, 2), (1, 2, 2))
    topology = Topology(2, (4, 4, 4, 4, 4), strides, ((1, 3, 3),) * 5, (1,) * 5)
    network = build_network(
        Network("bisenet", topology, (Step("segmentation"), Step("boundary"))), channels=1, outputs=2
    )
    seen: list[tuple[int, ...]] = []
    network.heads[1].register_forward_hook(
        lambda head, given, _: seen.extend(head.kernel(given[0][0].shape[2:], x.shape[2:]) for x in given[0])
    )
    network(torch.randn(2, 1, 32, 8))
    assert seen == [(3, 3), (1, 3), (1, 3)]  # 1 by 1, 8 by 2 and 8 by 2 pixels


@pytest.mark.parametrize(("topology", "size"), [(FLAT, (8, 12)), (THICK, (2, 8, 12))])
def test_every_decoder_scale_has_a_module_beside_the_logits(topology: Topology, size: tuple[int, ...]) -> None:
    network = build_network(Network("unet", topology, (Step("segmentation"), Step("boundary"))), channels=1, outputs=3)
    output = network(torch.randn(2, 1, *size))
    shapes = [tuple(t.shape) for t in output.logits]
    assert len(shapes) == 2
    assert (
        [tuple(b.edge.shape) for b in output.boundaries] == [tuple(b.mask.shape) for b in output.boundaries] == shapes
    )
    sum(b.edge.sum() + b.mask.sum() for b in output.boundaries).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.heads[1].parameters())
    finest = network.eval()(torch.randn(1, 1, *size))
    assert len(finest.boundaries) == len(finest.logits) == 1


def test_edges_are_float32_under_autocast() -> None:
    head = boundary(FLAT, (4,), outputs=2)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = head((torch.randn(1, 4, 5, 5),)).boundaries
    assert found.edge.dtype == found.mask.dtype == torch.float32


def test_a_task_without_labels_has_no_boundaries() -> None:
    with pytest.raises(PlanError, match="no labels"):
        boundary(FLAT, (4,), outputs=0)
