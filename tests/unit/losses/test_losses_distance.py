"""Signed distances against scipy and against larger label maps; the loss on half-planes."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.build import build_loss
from medseg.losses.distance import capped_distance, distance, distance_range
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput


def _batch(target: Tensor, spacing: tuple[float, ...] | None = None) -> Batch:
    return Batch(torch.zeros(len(target), 1, *target.shape[2:]), target, spacing=spacing)


def _blobs(size: tuple[int, ...], values: int, seed: int) -> Tensor:
    """Label map (1, 1, *size) of smooth random structures."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 2)
    return torch.from_numpy(np.digitize(noise, np.quantile(noise, np.arange(1, values) / values)))[None, None]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.3), (3.0, 0.5, 0.8)])
def test_capped_distances_are_scipys_up_to_the_cap(spacing: tuple[float, ...]) -> None:
    size = (9, 12, 14)[: len(spacing)]
    source = torch.from_numpy(np.random.default_rng(1).random((2, 2, *size)) < 0.01)
    source[1, 1] = False
    for reach in (0.4, 2.5, 100.0):
        found = capped_distance(source, spacing, reach)
        for i, k in ((0, 0), (0, 1), (1, 0)):
            truth = distance_transform_edt(~source[i, k].numpy(), sampling=spacing) if source[i, k].any() else np.inf
            np.testing.assert_allclose(found[i, k], np.minimum(truth, reach) * np.ones(size), rtol=1e-5)
        assert (found[1, 1] == reach).all()


@pytest.mark.parametrize("regions", [False, True])
def test_what_lies_beyond_the_patch_cannot_contradict_the_range(regions: bool) -> None:
    spacing, reach = (0.5, 1.0), 4.0
    for seed in range(5):
        whole = _blobs((60, 50), 3, seed)
        if regions:
            whole = torch.cat([whole > 0, whole > 1], 1).long()
        low, high = distance_range(whole, 3 - regions, spacing, reach)
        part = (..., slice(20, 44), slice(10, 32))
        patch_low, patch_high = distance_range(whole[part], 3 - regions, spacing, reach)
        assert (patch_low <= low[part] + 1e-6).all() and (patch_high >= high[part] - 1e-6).all()
        inner = (..., slice(8, 16), slice(4, 18))  # the cap away from the patch's edge
        torch.testing.assert_close(patch_low[inner], low[part][inner])
        assert (patch_low[inner] == patch_high[inner]).all()


def test_ignored_voxels_are_as_unknown_as_those_beyond_the_patch() -> None:
    whole, reach = _blobs((40, 40), 2, 3), 3.0
    hidden = whole.clone()
    hidden[..., 15:20, 10:30] = -1
    low, high = distance_range(hidden, 2, (1.0, 1.0), reach)
    sure_low, sure_high = distance_range(whole, 2, (1.0, 1.0), reach)
    seen = (hidden >= 0).expand_as(low)
    assert (low <= sure_low + 1e-6)[seen].all() and (high >= sure_high - 1e-6)[seen].all()
    assert not torch.equal(low[seen], sure_low[seen])
    perfect = (sure_low + sure_high) / 2
    output = NetworkOutput(distances=torch.where(seen, perfect, torch.randn_like(perfect)))
    assert distance(output, _batch(hidden), truncation_mm=reach) == 0


def test_distances_are_positive_inside_and_in_units_of_the_truncation() -> None:
    target = torch.zeros(1, 1, 5, 40, dtype=torch.int64)
    target[..., 20:] = 1
    low, high = distance_range(target, 2, (100.0, 0.5), 4.0)
    row = torch.cat([-torch.arange(20, 0, -1), torch.arange(1, 21)]) * 0.5 / 4
    for found in (low[0, 1, 2], high[0, 1, 2]):
        torch.testing.assert_close(found[12:28], row[12:28].clamp(-1, 1))
    torch.testing.assert_close(low[:, 0], -high[:, 1])


def test_the_loss_is_the_mean_smooth_l1_of_the_distance_to_the_range() -> None:
    target = _blobs((16, 18), 3, 7)
    target[..., :4, :4] = -1
    batch, found = _batch(target, (1.0, 0.5)), torch.randn(1, 3, 16, 18)
    low, high = (t.numpy() for t in distance_range(target, 3, (1.0, 0.5), 2.0))
    costs = []
    for k, y, x in np.ndindex(3, 16, 18):
        if target[0, 0, y, x] >= 0:
            value = float(found[0, k, y, x])
            off = max(low[0, k, y, x] - value, 0.0, value - high[0, k, y, x])
            costs.append(off**2 / 0.6 if off < 0.3 else off - 0.15)
    value = distance(NetworkOutput(distances=found), batch, truncation_mm=2.0, beta=0.3)
    assert float(value) == pytest.approx(np.mean(costs), rel=1e-5)


def test_gradients_lead_to_the_range_and_ignored_voxels_have_none() -> None:
    target = _blobs((12, 12, 12), 2, 5)
    target[..., :3] = -1
    found = torch.zeros(1, 2, 12, 12, 12, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(distance(NetworkOutput(distances=found), _batch(target)), found)
        assert not gradient[..., :3].any()
        with torch.no_grad():
            found -= 200 * gradient
    low, high = distance_range(target, 2, (1.0, 1.0, 1.0), 5.0)
    assert (found[..., 3:] - found[..., 3:].clamp(low[..., 3:], high[..., 3:])).abs().max() < 0.02


def test_a_plan_weighs_the_loss_as_one_term_and_refuses_it_without_its_head() -> None:
    loss = build_loss([LossTerm(0.5, "distance", {"truncation_mm": 3.0})])
    batch = _batch(torch.ones(1, 1, 6, 6, dtype=torch.int64))
    value = loss(NetworkOutput(distances=torch.full((1, 2, 6, 6), -0.9)), batch)
    assert float(value.total) == pytest.approx(0.5 * float(value.terms["distance"]))
    with pytest.raises(PlanError, match="head distance"):
        loss(NetworkOutput(), batch)
    with pytest.raises(PlanError, match="above 0"):
        distance(NetworkOutput(distances=torch.zeros(1, 2, 6, 6)), batch, truncation_mm=0.0)
