"""Generalised Dice and Tversky against the written formulas and MONAI."""

import math

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import dice
from medseg.losses.overlap import focal_tversky, generalised_dice, tversky
from medseg.losses.target import overlap_sums
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor) -> tuple[NetworkOutput, Batch]:
    return NetworkOutput((logits,)), Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target)


def _random(rows: int, *, size: tuple[int, ...] = (4, 3, 5)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    target = torch.randint(0, 3 if rows == 1 else 2, (2, rows, *size), generator=rng)
    return 2 * torch.randn(2, 3, *size, generator=rng), target


def test_sums_of_large_classes_lose_no_voxel() -> None:
    """Of three million voxels of 0.9 added one after another in float32 some would be."""
    logits = torch.zeros(1, 2, 2000, 1500)
    logits[:, 1] = math.log(9)
    sums = overlap_sums(logits, torch.ones(1, 1, 2000, 1500, dtype=torch.int64))
    for found, wanted in zip(sums, (2.7e6, 2.7e6, 3e6), strict=True):
        assert found.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("weight", ["square", "simple", "uniform"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_monai_agrees_on_generalised_dice_where_every_class_is_present(
    weight: str, background: bool, batch_dice: bool
) -> None:
    from monai.losses import GeneralizedDiceLoss

    logits, target = _random(1)
    assert all((target[i] == c).any() for i in range(2) for c in range(3))
    oracle = GeneralizedDiceLoss(
        include_background=background, to_onehot_y=True, softmax=True, w_type=weight, batch=batch_dice
    )(logits, target)
    found = generalised_dice(
        *_case(logits, target),
        weight=weight,  # type: ignore[arg-type]
        background=background,
        batch_dice=batch_dice,
    )
    assert found.item() == pytest.approx(oracle.item(), abs=2e-4)  # MONAI smooths sums of another size


def test_generalised_dice_is_the_papers_sum_over_the_classes_present() -> None:
    logits, target = _random(1)
    target[0] = target[0].clamp_max(1)  # class 2 is absent from the first sample
    p = logits.softmax(1)
    scores = []
    for i in range(2):
        above = below = 0.0
        for c in range(3):
            y = (target[i, 0] == c).float()
            if y.any():
                w = 1 / y.sum().item() ** 2
                above += w * (p[i, c] * y).sum().item()
                below += w * (p[i, c] + y).sum().item()
        scores.append(2 * above / below)
    found = generalised_dice(*_case(logits, target), smooth=0.0)
    assert found.item() == pytest.approx(1 - sum(scores) / 2, abs=1e-5)


def test_huge_volumes_do_not_lose_the_weights() -> None:
    target = torch.zeros(1, 1, 400, 400, dtype=torch.int64)
    target[..., :2, :2] = 1
    right = 40.0 * torch.nn.functional.one_hot(target[:, 0], 2).movedim(-1, 1)
    assert generalised_dice(*_case(right, target)).item() == pytest.approx(0, abs=1e-3)
    assert generalised_dice(*_case(-right, target)).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_tversky_counts_what_is_too_much_and_what_is_missed(rows: int, batch_dice: bool) -> None:
    logits, target = _random(rows)
    p = logits.softmax(1) if rows == 1 else logits.sigmoid()
    losses, focused = [], []
    for group in [[0, 1]] if batch_dice else [[0], [1]]:
        for c in range(1, 3) if rows == 1 else range(3):
            truth = torch.stack([target[i, 0] == c if rows == 1 else target[i, c] == 1 for i in group]).float()
            score = p[group, c]
            hits = (score * truth).sum()
            wrong, missed = (score * (1 - truth)).sum(), ((1 - score) * truth).sum()
            losses.append(1 - hits / (hits + 0.2 * wrong + 0.9 * missed))
            focused.append(losses[-1] ** (1 / 2))
    case = _case(logits, target)
    options = {"alpha": 0.2, "beta": 0.9, "batch_dice": batch_dice, "smooth": 0.0}
    torch.testing.assert_close(tversky(*case, **options), torch.stack(losses).mean())  # type: ignore[arg-type]
    found = focal_tversky(*case, gamma=2.0, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack(focused).mean())


@pytest.mark.parametrize("rows", [1, 3])
def test_equal_shares_are_dice(rows: int) -> None:
    case = _case(*_random(rows))
    torch.testing.assert_close(tversky(*case, alpha=0.5, beta=0.5, smooth=0.0), dice(*case, smooth=0.0))
    same = focal_tversky(*case, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0)
    torch.testing.assert_close(same, dice(*case, smooth=0.0))


def test_monai_agrees_on_tversky() -> None:
    from monai.losses import TverskyLoss

    logits, target = _random(1)
    oracle = TverskyLoss(
        include_background=False, to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7, smooth_nr=1e-5, smooth_dr=1e-5
    )(logits, target)
    torch.testing.assert_close(tversky(*_case(logits, target)), oracle)


def test_a_class_that_is_right_has_finite_gradients() -> None:
    target = torch.randint(0, 3, (1, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    logits = (1e4 * torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1)).float().requires_grad_()
    focal_tversky(*_case(logits, target)).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 0.0, "beta": 0.0}, {"gamma": 0.0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        focal_tversky(*_case(*_random(1)), **options)
    with pytest.raises(PlanError):
        generalised_dice(*_case(*_random(1)), weight="cubic")  # type: ignore[arg-type]
