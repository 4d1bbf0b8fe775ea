"""The losses of boundary modules, voxel by voxel."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.boundary import boundary, gg_net
from medseg.losses.build import build_loss
from medseg.losses.edges import at_module, edges_of, reference_masks
from medseg.networks.blocks.resample import maximum
from medseg.networks.boundary_head import boundary as boundary_head
from medseg.networks.boundary_head import detected
from medseg.types.plan import LossTerm, Topology
from medseg.types.tensors import Batch, Boundary, NetworkOutput


def _output(channels: int, *sizes: tuple[int, ...], seed: int = 0) -> NetworkOutput:
    rng = torch.Generator().manual_seed(seed)
    modules = [
        Boundary(torch.rand(2, channels, *s, generator=rng), 2 * torch.randn(2, channels, *s, generator=rng))
        for s in sizes
    ]
    return NetworkOutput(boundaries=tuple(modules))


def _batch(
    k: int, rows: int, size: tuple[int, ...], *, ignore: bool = False, spacing: tuple[float, ...] | None = None
) -> Batch:
    rng = torch.Generator().manual_seed(7)
    target = torch.randint(0, k if rows == 1 else 2, (2, rows, *size), generator=rng)
    if k == 1:
        target = target + torch.randint(0, 2, target.shape, generator=rng)
    if ignore:
        target[:, :, -2:] = -1
    return Batch(torch.zeros(2, 1, *size), target, spacing=spacing)


def _slow(output: NetworkOutput, batch: Batch, edge: str) -> float:
    """Sum over modules, with one number per voxel, class and sample at a time."""
    total, k = 0.0, output.boundaries[0].mask.shape[1]
    masks, known = reference_masks(batch.target, k)
    spacing = batch.spacing or (1.0,) * (batch.target.dim() - 2)
    first = 0 if batch.target.shape[1] == k else 1
    for module in output.boundaries:
        size = module.mask.shape[2:]
        steps = [s * old / new for s, old, new in zip(spacing, batch.target.shape[2:], size, strict=True)]
        edges, sure = edges_of(masks, known, steps, edge)  # type: ignore[arg-type]
        share, line = at_module(masks & known, edges & sure, size)
        part, _ = at_module(known, known, size)
        certain, _ = at_module(sure, sure, size)
        squares, bces, misses = [], [], []
        for b, c in np.ndindex(2, k):
            both = sizes = reference = 0.0
            for place in np.ndindex(*size):
                at = (b, c, *place)
                if certain[at] >= 0.5:
                    squares.append((module.edge[at] - line[at]).item() ** 2)
                if part[at] >= 0.5:
                    y, p = (share[at] / part[at]).item(), module.mask[at].sigmoid().item()
                    bces.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
                    both, sizes, reference = both + p * y, sizes + p + y, reference + y
            if c >= first and reference > 0:
                misses.append(1 - (2 * both + 1e-5) / (sizes + 1e-5))
        total += 10 * float(np.mean(squares)) + float(np.mean(bces)) + float(np.mean(misses))
    return total


@pytest.mark.parametrize("edge", ["outer", "inner", "both"])
@pytest.mark.parametrize(("k", "rows"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("ignore", [False, True])
def test_the_total_is_the_slow_sum(edge: str, k: int, rows: int, ignore: bool) -> None:
    batch = _batch(k, rows, (8, 6), ignore=ignore)
    output = _output(k, (8, 6), (4, 3))
    assert gg_net(output, batch, edge=edge).item() == pytest.approx(_slow(output, batch, edge), rel=1e-4)  # type: ignore[arg-type]


def test_thick_slices_in_3d() -> None:
    batch = _batch(2, 1, (4, 6, 4), spacing=(5.0, 1.0, 1.0))
    output = _output(2, (4, 6, 4), (2, 3, 2))
    thick = gg_net(output, batch).item()
    assert thick == pytest.approx(_slow(output, batch, "both"), rel=1e-4)
    assert thick != pytest.approx(gg_net(output, replace(batch, spacing=None)).item(), rel=1e-3)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
def test_the_head_can_make_the_edges_that_the_loss_asks_for(spacing: tuple[float, float, float]) -> None:
    target = torch.zeros(1, 1, 8, 20, 20, dtype=torch.int64)
    target[:, :, 2:6, 4:16, 4:16] = 1
    batch = Batch(torch.zeros(1, 1, 8, 20, 20), target, spacing=spacing)
    strides = ((1, 1, 1), (1, 2, 2), (1, 1, 1))
    head = boundary_head(Topology(3, (1,) * 3, strides, ((3, 3, 3),) * 3, (1,) * 3, spacing), (1, 1), outputs=1)
    modules = []
    for size in ((8, 20, 20), (8, 10, 10)):
        mask = torch.nn.functional.adaptive_max_pool3d(target.float(), size)
        f = -maximum(-mask, head.kernel((8, 20, 20), size))
        modules.append(detected(f, head.kernel((8, 20, 20), size)))
        torch.testing.assert_close(modules[-1].mask, mask)
    output = NetworkOutput(boundaries=tuple(modules))
    regions = replace(batch, target=target)
    assert boundary(output, regions, edge="inner").item() == 0
    modules[1] = detected(-maximum(-mask, (1, 1, 3)), (1, 1, 3))
    assert boundary(NetworkOutput(boundaries=tuple(modules)), regions, edge="inner").item() > 0.01


def test_canny_edges_are_a_choice_in_2d() -> None:
    output, batch = _output(2, (8, 8)), _batch(2, 1, (8, 8))
    assert gg_net(output, batch, edge="canny").item() == pytest.approx(_slow(output, batch, "canny"), rel=1e-4)
    with pytest.raises(PlanError, match="2D"):
        gg_net(_output(2, (4, 4, 4)), _batch(2, 1, (4, 4, 4)), edge="canny")


def _perfect(target: Tensor, k: int, edge: str) -> NetworkOutput:
    masks, known = reference_masks(target, k)
    edges, _ = edges_of(masks, known, (1.0,) * (target.dim() - 2), edge)  # type: ignore[arg-type]
    return NetworkOutput(boundaries=(Boundary(edges.float(), 60 * masks.float() - 30),))


def test_perfect_modules_lose_nothing() -> None:
    target = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    target[:, :, 3:6, 2:7] = 1
    for edge in ("outer", "inner", "both"):
        output, batch = _perfect(target, 2, edge), Batch(torch.zeros(1, 1, 9, 9), target)
        assert gg_net(output, batch, edge=edge).item() == pytest.approx(0, abs=1e-4)  # type: ignore[arg-type]
        assert boundary(output, batch, edge=edge).item() == 0  # type: ignore[arg-type]
        other = "outer" if edge == "inner" else "inner"
        assert boundary(output, batch, edge=other).item() > 0.05  # type: ignore[arg-type]


def test_ignored_voxels_and_the_border_change_nothing() -> None:
    batch = _batch(2, 1, (8, 8))
    batch.target[:, :, 4:, :4] = -1
    output = _output(2, (8, 8))
    other = _output(2, (8, 8))
    other.boundaries[0].edge[:, :, 4:, :4] = 9.0
    other.boundaries[0].mask[:, :, 4:, :4] = 9.0
    other.boundaries[0].edge[:, :, 0] = 9.0
    assert gg_net(other, batch).item() == pytest.approx(gg_net(output, batch).item(), rel=1e-5)
    assert boundary(other, batch).item() == pytest.approx(boundary(output, batch).item(), rel=1e-5)


def test_a_batch_without_anything_known_costs_nothing() -> None:
    batch = _batch(2, 1, (4, 4))
    batch.target.fill_(-1)
    assert gg_net(_output(2, (4, 4)), batch).item() == 0


def test_the_edge_loss_is_a_mean_over_modules() -> None:
    batch, output = _batch(3, 1, (8, 8)), _output(3, (8, 8), (4, 4))
    one = [boundary(NetworkOutput(boundaries=(module,)), batch).item() for module in output.boundaries]
    assert boundary(output, batch).item() == pytest.approx(sum(one) / 2, rel=1e-5)
    masks, known = reference_masks(batch.target, 3)
    edges, sure = edges_of(masks, known, (1.0, 1.0), "both")
    e, y = output.boundaries[0].edge[sure], edges[sure].float()
    assert one[0] == pytest.approx((e - y).square().mean().item(), rel=1e-5)
    chance = 1 - torch.exp(-e)
    slow = torch.nn.functional.binary_cross_entropy(chance, y).item()
    assert boundary(NetworkOutput(boundaries=output.boundaries[:1]), batch, kind="bce").item() == pytest.approx(
        slow, rel=1e-4
    )


def test_edges_of_zero_and_very_large_ones_have_finite_gradients() -> None:
    batch = _batch(2, 1, (6, 6))
    edge = torch.zeros(2, 2, 6, 6)
    edge[:, :, 3:] = 80.0
    edge.requires_grad_()
    loss = boundary(NetworkOutput(boundaries=(Boundary(edge, edge),)), batch, kind="bce")
    loss.backward()
    assert torch.isfinite(loss) and edge.grad is not None and torch.isfinite(edge.grad).all()


def test_gradients_reach_edge_and_mask() -> None:
    batch, output = _batch(2, 1, (8, 8)), _output(2, (8, 8), (4, 4))
    for module in output.boundaries:
        module.edge.requires_grad_()
        module.mask.requires_grad_()
    gg_net(output, batch).backward()
    assert all(m.edge.grad.any() and m.mask.grad.any() for m in output.boundaries)  # type: ignore[union-attr]


def test_in_a_plan_they_stand_beside_the_loss_of_labels() -> None:
    batch, output = _batch(2, 1, (8, 8)), replace(_output(2, (8, 8)), logits=(torch.randn(2, 2, 8, 8),))
    both = build_loss([LossTerm(1.0, "dice_ce"), LossTerm(0.5, "gg_net", {"edge": "inner"})])(output, batch)
    assert set(both.terms) == {"dice", "cross_entropy", "gg_net"}
    assert both.terms["gg_net"].item() == pytest.approx(gg_net(output, batch, edge="inner").item())
    parts = both.terms["dice"] + both.terms["cross_entropy"] + 0.5 * both.terms["gg_net"]
    assert both.total.item() == pytest.approx(parts.item())


def test_without_the_head_the_loss_says_what_to_add() -> None:
    for term in (gg_net, boundary):
        with pytest.raises(PlanError, match="head boundary"):
            term(NetworkOutput(), _batch(2, 1, (4, 4)))
    with pytest.raises(PlanError, match="mse or bce"):
        boundary(_output(2, (4, 4)), _batch(2, 1, (4, 4)), kind="l1")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="outer, inner, both, canny"):
        gg_net(_output(2, (4, 4)), _batch(2, 1, (4, 4)), edge="ring")  # type: ignore[arg-type]
