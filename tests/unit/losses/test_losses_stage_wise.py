"""The stage-wise hybrid loss: slow loops, the softmax loss it equals for one class, and weights that sum to 1."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.losses.build import at_scale, build_loss, scale_weights
from medseg.losses.dice import dice, dice_ce
from medseg.losses.stage_wise import bce_batch_dice, binary_cross_entropy, log_others
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput


def _case(k: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(k)
    target = torch.randint(-1, k if rows == 1 else 2, (2, rows, 5, 4), generator=rng)
    return 3 * torch.randn(2, k, 5, 4, generator=rng), target


def _batch(target: Tensor) -> Batch:
    return Batch(torch.zeros(len(target), 1, *target.shape[2:]), target)


def test_every_class_is_told_from_the_rest_voxel_by_voxel() -> None:
    logits, target = _case(4)
    p, costs = logits.double().softmax(1), []
    for i, c, y, x in torch.cartesian_prod(*map(torch.arange, (2, 3, 5, 4))).tolist():
        if target[i, 0, y, x] >= 0:
            one = p[i, c + 1, y, x].item()
            costs.append(-math.log(one if target[i, 0, y, x] == c + 1 else 1 - one))
    assert float(binary_cross_entropy(logits, target)) == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_regions_have_a_sigmoid_each() -> None:
    logits, target = _case(3, rows=3)
    kept = target >= 0
    expected = F.binary_cross_entropy_with_logits(logits[kept], target[kept].float())
    torch.testing.assert_close(binary_cross_entropy(logits, target), expected)


def test_with_one_class_it_is_cross_entropy_and_batch_dice() -> None:
    logits, target = _case(2)
    output, batch = NetworkOutput((logits,)), _batch(target)
    torch.testing.assert_close(bce_batch_dice(output, batch), dice_ce(output, batch, batch_dice=True))
    only = bce_batch_dice(output, batch, bce_weight=0.0, dice_weight=2.0)
    torch.testing.assert_close(only, 2 * dice(output, batch, batch_dice=True))


def test_a_sure_and_wrong_prediction_costs_its_logit_and_has_a_gradient() -> None:
    logits = torch.tensor([60.0, 0.0, -60.0]).view(1, 3, 1, 1).requires_grad_()
    exact = torch.log(1 - logits.detach().double().softmax(1))
    others = log_others(logits)
    torch.testing.assert_close(others.flatten()[1:], exact.float().flatten()[1:])
    assert others.flatten()[0].item() == pytest.approx(-60.0)
    (gradient,) = torch.autograd.grad(binary_cross_entropy(logits, torch.full((1, 1, 1, 1), 2)), logits)
    assert gradient[0, 2, 0, 0] == pytest.approx(-0.5)


def test_stages_weigh_1_together() -> None:
    term = build_loss([LossTerm(1.0, "bce_batch_dice")])
    batch = _batch(torch.randint(0, 3, (2, 1, 8, 8)))
    stages = tuple(torch.randn(2, 3, n, n) for n in (8, 4, 2, 1))
    shares = scale_weights(len(stages))
    assert sum(shares) == pytest.approx(1)
    parts = [bce_batch_dice(NetworkOutput((s,)), at_scale(batch, s.shape[2:])) for s in stages]
    expected = sum(w * p for w, p in zip(shares, parts, strict=True))
    torch.testing.assert_close(term(NetworkOutput(stages), batch).total, expected)
