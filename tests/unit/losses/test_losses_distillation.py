"""Two-term distillation against torch's distributions and its limits."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from medseg.errors import PlanError
from medseg.losses.dice import dice_ce
from medseg.losses.distillation import distillation, divergence
from medseg.types.tensors import Batch, NetworkOutput


def _random(rows: int, *, size: tuple[int, ...] = (4, 5)) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    target = torch.randint(-1, 3 if rows == 1 else 2, (2, rows, *size), generator=rng)
    logits = 3 * torch.randn(2, 2, 3, *size, generator=rng)
    return logits[0], logits[1], target


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 2)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_is_torchs_over_the_voxels_that_count(size: tuple[int, ...], temperature: float) -> None:
    student, teacher, target = _random(1, size=size)
    t, s = (Categorical(logits=(x / temperature).movedim(1, -1)) for x in (teacher, student))
    expected = kl_divergence(t, s)[target[:, 0] >= 0].mean()
    torch.testing.assert_close(divergence(student, teacher, target, temperature=temperature), expected)
    student, teacher, target = _random(3, size=size)
    t, s = (Bernoulli(logits=x / temperature) for x in (teacher, student))
    expected = kl_divergence(t, s)[target >= 0].mean()
    torch.testing.assert_close(divergence(student, teacher, target, temperature=temperature), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_two_terms_add_up(rows: int) -> None:
    student, teacher, target = _random(rows)
    labelled = dice_ce(NetworkOutput((student,)), Batch(student, target))
    torch.testing.assert_close(distillation(student, teacher, target, alpha=0.0), labelled)
    soft = divergence(student, teacher, target, temperature=3.0)
    found = distillation(student, teacher, target, alpha=0.3, temperature=3.0)
    torch.testing.assert_close(found, 0.3 * 9 * soft + 0.7 * labelled)
    assert distillation(student, student, target, alpha=1.0).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_keeps_its_size_at_any_temperature() -> None:
    """T^2 undoes the 1 / T^2 of the softened gradient (Hinton 2015): nearly equal for small logits."""
    student, teacher, target = (0.01 * torch.randn(1, 3, 8, 8), 0.01 * torch.randn(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    sizes = []
    for temperature in (1.0, 8.0):
        own = student.clone().requires_grad_()
        distillation(own, teacher, target.long(), alpha=1.0, temperature=temperature).backward()
        assert own.grad is not None
        sizes.append(own.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_the_teacher_is_not_taught() -> None:
    student, teacher, target = _random(1)
    teacher.requires_grad_()
    distillation(student.requires_grad_(), teacher, target).backward()
    assert teacher.grad is None and student.grad is not None


def test_easy_background_does_not_count() -> None:
    teacher = torch.tensor([[[6.0, 6.0, 0.1, 6.0], [0.0, 0.0, 0.0, 0.0]]])
    target = torch.tensor([[[0, 1, 0, -1]]])
    student = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
    kept = divergence(student[:, :, 1:3], teacher[:, :, 1:3], target[:, :, 1:3])
    torch.testing.assert_close(divergence(student, teacher, target, easy_background=0.9), kept)
    regions = divergence(-student[:, :1], -teacher[:, :1], target, easy_background=0.9)
    expected = divergence(-student[:, :1, 1:3], -teacher[:, :1, 1:3], target[:, :, 1:3])
    torch.testing.assert_close(regions, expected)


def test_extreme_logits_stay_finite() -> None:
    student, teacher = torch.full((1, 2, 4), 300.0), torch.full((1, 2, 4), -300.0)
    student[:, 0], teacher[:, 1] = -300.0, 300.0
    for target in (torch.ones(1, 1, 4, dtype=torch.int64), torch.ones(1, 2, 4, dtype=torch.int64)):
        assert math.isfinite(distillation(student, teacher, target).item())


@pytest.mark.parametrize("options", [{"alpha": 1.1}, {"alpha": -0.1}, {"temperature": 0.0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        distillation(*_random(1), **options)
