"""Losses of a backbone's own logits: regions, boundary bands, balance, fading."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.build import at_scale, build_loss
from medseg.losses.dice import dice_ce
from medseg.losses.sides import balanced_cross_entropy, band_target, object_boundary, region_target, side
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput


def _batch(target: Tensor, spacing: tuple[float, ...] | None = None) -> Batch:
    return Batch(torch.zeros(len(target), 1, *target.shape[2:]), target, spacing=spacing)


def _square(size: int = 12) -> Tensor:
    target = torch.zeros(1, 1, size, size, dtype=torch.int64)
    target[..., 3:9, 4:8] = 1
    return target


def test_the_side_loss_is_the_mean_of_dice_and_cross_entropy_at_their_sizes() -> None:
    batch = _batch(torch.randint(-1, 3, (2, 1, 8, 8)))
    sides = (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4))
    parts = [dice_ce(NetworkOutput((s,)), at_scale(batch, s.shape[2:]), batch_dice=True) for s in sides]
    found = side(NetworkOutput(sides=sides), batch, batch_dice=True)
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)


def _slow_band(target: Tensor, value: int) -> Tensor:
    """Voxels with a neighbour of the other kind, also across corners, within one voxel."""
    inside = (target[0, 0] == value).tolist()
    rows, columns = len(inside), len(inside[0])
    band = torch.zeros(rows, columns, dtype=torch.bool)
    for y in range(rows):
        for x in range(columns):
            near = [
                inside[j][i]
                for j in range(y - 1, y + 2)
                for i in range(x - 1, x + 2)
                if 0 <= j < rows and 0 <= i < columns
            ]
            band[y, x] = any(near) and not all(near)
    return band


def test_shallow_targets_are_the_edge_band_and_deep_ones_the_region() -> None:
    target = _square()
    band, counts = band_target(_batch(target), 2, (12, 12))
    assert counts.all()
    assert torch.equal(band[0, 1], _slow_band(target, 1)) and torch.equal(band[0, 0], band[0, 1])
    region, _ = region_target(_batch(target), 2, (6, 6))
    assert torch.equal(region[0, 1], target[0, 0, 1::2, 1::2] == 1)
    assert torch.equal(region[0, 0], ~region[0, 1])


def test_a_thin_line_survives_at_a_coarse_size() -> None:
    line = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    line[..., 5, :] = 1
    assert not region_target(_batch(line), 2, (4, 4))[0][0, 1].any()
    assert band_target(_batch(line), 2, (4, 4))[0][0, 1, 1].all()


def test_no_band_along_an_axis_with_thick_slices_and_none_at_ignored_voxels() -> None:
    block = torch.zeros(1, 1, 6, 8, 8, dtype=torch.int64)
    block[:, :, 2:4, 2:6, 2:6] = 1
    thick, _ = band_target(_batch(block, (3.0, 1.0, 1.0)), 2, (6, 8, 8))
    assert not thick[0, 1, [0, 1, 4, 5]].any() and thick[0, 1, 2].sum() == 6 * 6 - 2 * 2
    even, _ = band_target(_batch(block, (2.0, 1.0, 1.0)), 2, (6, 8, 8))
    assert even[0, 1, 1].any()
    hidden = block.clone()
    hidden[..., :4] = -1
    band, counts = band_target(_batch(hidden), 2, (6, 8, 8))
    assert not band[..., :4].any() and not counts[..., :4].any() and counts[..., 4:].all()


def test_both_sides_of_a_rare_class_weigh_the_same() -> None:
    logits = torch.randn(2, 1, 5, 5)
    inside = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    inside[0, 0, 1, 1] = inside[1, 0, 2, 3] = True
    counts = torch.ones_like(inside)
    counts[:, :, 4] = False
    costs: dict[bool, list[float]] = {True: [], False: []}
    for i, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        p = 1 / (1 + math.exp(-logits[i, 0, y, x]))
        hit = bool(inside[i, 0, y, x])
        costs[hit].append(-math.log(p if hit else 1 - p))
    expected = sum(sum(part) / len(part) for part in costs.values()) / 2
    assert float(balanced_cross_entropy(logits, inside, counts)) == pytest.approx(expected, rel=1e-5)


def _sides(batch: Batch, wanted: list[str]) -> tuple[Tensor, ...]:
    """Logits that are sure of a band or of a region, at sizes 12, 6, 3."""
    kinds = {"band": band_target, "region": region_target}
    made = [kinds[name](batch, 2, (12 >> i,) * 2)[0] for i, name in enumerate(wanted)]
    return tuple(20.0 * inside.float() - 10 for inside in made)


def test_the_fine_half_learns_bands_unless_told_otherwise() -> None:
    batch = _batch(_square())
    first = NetworkOutput(sides=_sides(batch, ["band", "region", "region"]))
    two = NetworkOutput(sides=_sides(batch, ["band", "band", "region"]))
    assert object_boundary(first, batch) < 1e-3 < 1 < object_boundary(two, batch)
    assert object_boundary(two, batch, shallow=2) < 1e-3 < 1 < object_boundary(first, batch, shallow=2)


def test_it_fades_with_the_progress_of_the_training() -> None:
    batch = _batch(_square())
    output = NetworkOutput((torch.randn(1, 2, 12, 12),), sides=(torch.randn(1, 2, 12, 12), torch.randn(1, 2, 6, 6)))
    whole = float(object_boundary(output, batch, decay=2.0))
    half = build_loss([LossTerm(1.0, "object_boundary", {"decay": 2.0})])(output, replace(batch, progress=0.5))
    assert float(half.total) == pytest.approx(whole / 4, rel=1e-5)
    assert float(object_boundary(output, replace(batch, progress=1.0), decay=2.0)) == 0
    assert float(object_boundary(output, replace(batch, progress=0.5))) == pytest.approx(whole, rel=1e-6)


def test_backbones_without_logits_of_their_own_and_wrong_options_are_refused() -> None:
    batch = _batch(_square())
    for term in (side, object_boundary):
        with pytest.raises(PlanError, match="no logits of its own"):
            term(NetworkOutput((torch.zeros(1, 2, 12, 12),)), batch)
    for options in ({"shallow": 3}, {"shallow": -1}, {"decay": -1.0}):
        with pytest.raises(PlanError, match="shallow up to"):
            object_boundary(NetworkOutput(sides=_sides(batch, ["band", "region"])), batch, **options)
