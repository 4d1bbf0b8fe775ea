"""Focal loss against the written formula and MONAI."""

import math

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import cross_entropy
from medseg.losses.focal import focal
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor) -> tuple[NetworkOutput, Batch]:
    return NetworkOutput((logits,)), Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target)


def _random(rows: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    target = torch.randint(0, 3 if rows == 1 else 2, (2, rows, 4, 5), generator=rng)
    return 2 * torch.randn(2, 3, 4, 5, generator=rng), target


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (3.5, 0.9)])
def test_regions_have_the_binary_formula(gamma: float, alpha: float) -> None:
    logits, target = _random(3)
    terms = []
    for z, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        inside = -alpha * y * (1 - p) ** gamma * math.log(p)
        terms.append(inside - (1 - alpha) * (1 - y) * p**gamma * math.log(1 - p))
    found = focal(*_case(logits, target), gamma=gamma, alpha=alpha)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_two_classes_are_one_region_with_the_difference_of_logits() -> None:
    logits, target = _random(1)
    target = target.clamp_max(1)
    classes = focal(*_case(logits[:, :2], target), alpha=0.3)
    region = focal(*_case(logits[:, 1:2] - logits[:, :1], target), alpha=0.3)
    torch.testing.assert_close(classes, region)


@pytest.mark.parametrize("rows", [1, 3])
def test_without_focus_and_weights_it_is_cross_entropy(rows: int) -> None:
    case = _case(*_random(rows))
    torch.testing.assert_close(focal(*case, gamma=0.0, alpha=None), cross_entropy(*case))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_monai_agrees(alpha: float | None) -> None:
    from monai.losses import FocalLoss

    logits, target = _random(3)
    oracle = FocalLoss(gamma=2.0, alpha=alpha)(logits, target.float())
    torch.testing.assert_close(focal(*_case(logits, target), alpha=alpha), oracle)
    logits, target = _random(1)
    oracle = FocalLoss(gamma=2.0, alpha=alpha, to_onehot_y=True, use_softmax=True, reduction="none")(logits, target)
    torch.testing.assert_close(focal(*_case(logits, target), alpha=alpha), oracle.sum(1).mean())


def test_a_list_weighs_every_class_by_itself() -> None:
    logits, target = _random(1)
    weights = [0.5, 2.0, 3.0]
    p = logits.softmax(1).gather(1, target)
    slow = (torch.tensor(weights)[target] * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(focal(*_case(logits, target), alpha=weights), slow)
    logits, target = _random(3)
    p = torch.where(target > 0, logits, -logits).sigmoid()
    inside = torch.tensor([0.1, 0.6, 0.9]).reshape(1, 3, 1, 1)
    slow = (torch.where(target > 0, inside, 1 - inside) * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(focal(*_case(logits, target), alpha=[0.1, 0.6, 0.9]), slow)


def test_easy_voxels_count_less_than_with_cross_entropy() -> None:
    case = _case(torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[0]]]))
    share = focal(*case, alpha=None) / cross_entropy(*case)
    assert share.item() == pytest.approx((1 - 1 / (1 + math.exp(-3))) ** 2, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_extreme_logits_keep_finite_losses_and_gradients(rows: int) -> None:
    _, target = _random(rows)
    logits = torch.full((2, 3, 4, 5), 200.0)
    logits[:, 1] = -200.0
    logits.requires_grad_()
    value = focal(*_case(logits, target))
    value.backward()
    assert torch.isfinite(value) and logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("rows", "options"), [(1, {"gamma": -1.0}), (3, {"alpha": 1.5}), (1, {"alpha": [1.0, 2.0]})])
def test_options_that_mean_nothing_are_refused(rows: int, options: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        focal(*_case(*_random(rows)), **options)  # type: ignore[arg-type]
