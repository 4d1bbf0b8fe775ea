"""Dice and cross-entropy against slow loops and against MONAI."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import cross_entropy, dice, dice_ce
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor) -> tuple[NetworkOutput, Batch]:
    return NetworkOutput((logits,)), Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target)


def _random(k: int, *, rows: int = 1, ignore: bool = False, size: tuple[int, ...] = (3, 4, 2)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(k + rows)
    target = torch.randint(-1 if ignore else 0, k if rows == 1 else 2, (2, rows, *size), generator=rng)
    return 2 * torch.randn(2, k, *size, generator=rng), target


def _slow_dice(logits: Tensor, target: Tensor, *, batch_dice: bool, smooth: float = 1e-5) -> float:
    """Sums voxel by voxel, class by class."""
    regions = logits.shape[1] == target.shape[1]
    p = logits.sigmoid() if regions else logits.softmax(1)
    scores = []
    groups = [range(len(p))] if batch_dice else [[i] for i in range(len(p))]
    for group in groups:
        for c in range(0 if regions else 1, p.shape[1]):
            both = predicted = reference = 0.0
            for i in group:
                truth = target[i, c] if regions else target[i, 0]
                for score, value in zip(p[i, c].flatten().tolist(), truth.flatten().tolist(), strict=True):
                    hit = value == (1 if regions else c)
                    both, reference = both + score * hit, reference + hit
                    predicted += score * (value >= 0)
            if reference:
                scores.append((2 * both + smooth) / (predicted + reference + smooth))
    return 1 - float(np.mean(scores)) if scores else 0.0


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(("k", "rows"), [(2, 1), (5, 1), (3, 3), (1, 1)])
def test_dice_is_the_slow_sum(batch_dice: bool, ignore: bool, k: int, rows: int) -> None:
    logits, target = _random(k, rows=rows, ignore=ignore)
    if k == 1:
        target = target.clamp_max(1) + torch.randint(0, 2, target.shape, generator=torch.Generator().manual_seed(0))
    value = dice(*_case(logits, target), batch_dice=batch_dice)
    assert value.item() == pytest.approx(_slow_dice(logits, target, batch_dice=batch_dice), abs=1e-5)


def test_a_class_without_a_reference_voxel_is_left_out_of_its_sample_only() -> None:
    logits, target = _random(3)
    target[0] = target[0].clamp_max(1)  # class 2 is absent from the first sample
    logits[1] = logits[0]
    changed = logits.clone()
    alone = dice(*_case(logits[:1], target[:1]))
    only_first = target[:1].clamp_max(1)
    assert alone.item() == pytest.approx(_slow_dice(logits[:1], only_first, batch_dice=False), abs=1e-5)
    changed[:, 2] += 1.0
    assert dice(*_case(changed, target), batch_dice=True) != dice(*_case(logits, target), batch_dice=True)


def test_perfect_scores_lose_nothing_and_wrong_ones_everything() -> None:
    target = torch.randint(0, 3, (2, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    right = 50.0 * torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1)
    assert dice(*_case(right, target)).item() == pytest.approx(0, abs=1e-4)
    assert dice_ce(*_case(right, target)).item() == pytest.approx(0, abs=1e-4)
    assert dice(*_case(right, (target + 1) % 3)).item() == pytest.approx(1, abs=1e-4)


def test_cross_entropy_is_the_mean_over_counted_voxels() -> None:
    logits, target = _random(4, ignore=True)
    total = count = 0.0
    for i, voxel in np.ndenumerate(target[:, 0].numpy()):
        if voxel >= 0:
            row = logits[(i[0], slice(None), *i[1:])].tolist()
            total += math.log(sum(map(math.exp, row))) - row[voxel]
            count += 1
    assert cross_entropy(*_case(logits, target)).item() == pytest.approx(total / count, rel=1e-5)


def test_region_cross_entropy_is_binary_and_masks_each_channel() -> None:
    logits, target = _random(3, rows=3)
    target[:, 1, :1] = -1
    p = logits.sigmoid()
    kept = target >= 0
    slow = -(torch.where(target == 1, p, 1 - p).log())[kept].mean()
    assert cross_entropy(*_case(logits, target)).item() == pytest.approx(slow.item(), rel=1e-5)


def test_ignored_voxels_change_nothing() -> None:
    for k, rows in ((3, 1), (3, 3)):
        logits, target = _random(k, rows=rows)
        target[:, :, 1] = -1
        other = logits.clone()
        other[:, :, 1] = 37.0
        for term in (dice, cross_entropy, dice_ce):
            assert term(*_case(logits, target)) == pytest.approx(term(*_case(other, target)).item(), rel=1e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_monai_agrees_where_every_class_is_present(batch_dice: bool) -> None:
    from monai.losses import DiceCELoss, DiceLoss

    logits, target = _random(3)
    options = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": batch_dice}
    smooth = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
    case = _case(logits, target)
    assert dice(*case, batch_dice=batch_dice).item() == pytest.approx(
        DiceLoss(**options, **smooth)(logits, target).item(), abs=1e-5
    )
    assert dice_ce(*case, batch_dice=batch_dice).item() == pytest.approx(
        DiceCELoss(**options, **smooth)(logits, target).item(), abs=1e-5
    )


def test_weights_add_up() -> None:
    case = _case(*_random(3))
    mixed = dice_ce(*case, dice_weight=0.25, ce_weight=2.0)
    torch.testing.assert_close(mixed, 0.25 * dice(*case) + 2.0 * cross_entropy(*case))


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(("k", "rows"), [(3, 1), (2, 2)])
@pytest.mark.parametrize("term", [dice, cross_entropy, dice_ce])
def test_empty_and_wholly_ignored_patches_have_finite_gradients(value: int, k: int, rows: int, term: object) -> None:
    logits = torch.randn(2, k, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = term(*_case(logits, torch.full((2, rows, 4, 4), value)))  # type: ignore[operator]
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    if value == -1:
        assert loss == 0 and not logits.grad.any()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 2, 512, 512, dtype=torch.float16)
    target = torch.ones(1, 1, 512, 512, dtype=torch.int64)
    value = dice_ce(*_case(logits, target))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1 / 3 + math.log(2), abs=1e-4)


def test_gradients_are_derivatives() -> None:
    for k, rows in ((3, 1), (2, 2)):
        logits, target = _random(k, rows=rows, ignore=True, size=(3, 2))
        logits.requires_grad_()
        dice_ce(*_case(logits, target)).backward()
        step = torch.zeros_like(logits)
        step[1, 1, 2, 0] = 1e-2
        with torch.no_grad():
            rise = dice_ce(*_case(logits + step, target)) - dice_ce(*_case(logits - step, target))
        assert logits.grad is not None
        assert logits.grad[1, 1, 2, 0].item() == pytest.approx(rise.item() / 2e-2, rel=2e-2, abs=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match="do not fit"):
        dice(*_case(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int64)))
