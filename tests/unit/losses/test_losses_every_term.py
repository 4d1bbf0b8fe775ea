"""What holds for every term of one decoder scale, in 2D and 3D, for classes and regions."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from medseg.losses.build import LOSSES, build_loss
from medseg.losses.cldice import cldice
from medseg.losses.cross_entropy import pixel_cross_entropy, weighted_cross_entropy
from medseg.losses.dice import cross_entropy, dice, dice_ce
from medseg.losses.focal import focal
from medseg.losses.ohem import ohem
from medseg.losses.overlap import focal_tversky, generalised_dice, tversky
from medseg.losses.stage_wise import bce_batch_dice
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput

TERMS = {
    "dice": (dice, {}),
    "dice over the batch": (dice, {"batch_dice": True}),
    "cross_entropy": (cross_entropy, {}),
    "dice_ce": (dice_ce, {}),
    "balanced": (weighted_cross_entropy, {}),
    "weighted": (weighted_cross_entropy, {"weights": [1.0, 2.0, 3.0]}),
    "gaps": (pixel_cross_entropy, {"sigma_mm": 1.0}),
    "edges": (pixel_cross_entropy, {"place": "edges", "weights": [1.0, 2.0, 3.0]}),
    "focal": (focal, {}),
    "focal with a list": (focal, {"alpha": [0.2, 0.5, 0.8]}),
    "generalised": (generalised_dice, {}),
    "generalised over the batch": (generalised_dice, {"batch_dice": True}),
    "tversky": (tversky, {}),
    "focal_tversky": (focal_tversky, {}),
    "ohem": (ohem, {"share": 0.3, "min_kept": 3}),
    "ohem below a score": (ohem, {"threshold": 0.5, "min_kept": 3}),
    "bce_batch_dice": (bce_batch_dice, {}),
    "cldice": (cldice, {"iterations": 2}),
    "cldice of one": (cldice, {"classes": [2], "iterations": 1}),
}
SHAPES = [(6, 7), (4, 5, 6)]
every_term = pytest.mark.parametrize("name", TERMS)


def _value(name: str, logits: Tensor, target: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    term, options = TERMS[name]
    batch = Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target, spacing=spacing)
    return term(NetworkOutput((logits,)), batch, **options)


def _random(size: tuple[int, ...], *, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(len(size) + rows)
    target = torch.randint(0, 3 if rows == 1 else 2, (2, rows, *size), generator=rng)
    return (2 * torch.randn(2, 3, *size, generator=rng)).to(dtype), target


@every_term
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", SHAPES)
def test_ignored_voxels_change_nothing_and_get_no_gradient(name: str, rows: int, size: tuple[int, ...]) -> None:
    logits, target = _random(size, rows=rows)
    target[:, :, -2:] = -1
    other = logits.clone()
    other[:, :, -2:] = 37.0 * torch.randn(other[:, :, -2:].shape, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    value = _value(name, logits, target)
    value.backward()
    assert value.item() == pytest.approx(_value(name, other, target).item(), rel=1e-5)
    assert logits.grad is not None and logits.grad.any() and not logits.grad[:, :, -2:].any()


@every_term
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("value", [0, -1])
def test_patches_of_background_and_ignored_ones_have_finite_gradients(name: str, rows: int, value: int) -> None:
    logits = (50 * torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = _value(name, logits, torch.full((2, rows, 5, 4), value))
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    if value == -1:
        assert loss == 0 and not logits.grad.any()


@every_term
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", SHAPES)
def test_right_scores_lose_less_than_unsure_ones_and_those_less_than_wrong_ones(
    name: str, rows: int, size: tuple[int, ...]
) -> None:
    _, target = _random(size, rows=rows)
    truth = torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1) if rows == 1 else target
    towards = truth * 2.0 - 1
    right, unsure, wrong = (_value(name, scale * towards, target).item() for scale in (20.0, 0.1, -20.0))
    assert right == pytest.approx(0, abs=2e-2)
    assert right < unsure < wrong


@every_term
@pytest.mark.parametrize("rows", [1, 3])
def test_half_precision_logits_are_summed_in_float32(name: str, rows: int) -> None:
    logits, target = _random((6, 7), rows=rows, dtype=torch.float16)
    value = _value(name, logits, target)
    assert value.dtype == torch.float32 and value == _value(name, logits.float(), target)


@pytest.mark.parametrize("name", [name for name in TERMS if not name.startswith(("ohem", "cldice"))])  # have kinks
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_are_derivatives(name: str, rows: int) -> None:
    logits, target = _random((3, 4), rows=rows)
    logits.requires_grad_()
    _value(name, logits, target).backward()
    step = torch.zeros_like(logits)
    step[1, 1, 2, 0] = 1e-2
    with torch.no_grad():
        rise = _value(name, logits + step, target) - _value(name, logits - step, target)
    assert logits.grad is not None
    assert logits.grad[1, 1, 2, 0].item() == pytest.approx(rise.item() / 2e-2, rel=2e-2, abs=2e-5)


@every_term
@pytest.mark.parametrize("rows", [1, 3])
def test_the_memory_planner_can_run_it_without_data(name: str, rows: int) -> None:
    with FakeTensorMode():
        logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
        target = torch.randint(3 if rows == 1 else 2, (2, rows, 8, 8, 8))
        _value(name, logits, target, (2.0, 1.0, 1.0)).backward()
        assert logits.grad is not None and logits.grad.shape == logits.shape


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_term_teaches_all_scales_of_anisotropic_patches(name: str, rows: int) -> None:
    term, options = TERMS[name]
    use = next(key for key, function in LOSSES.items() if function is term)
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3 if rows == 1 else 2, (2, rows, 4, 8, 8), generator=rng)
    sizes = ((4, 8, 8), (4, 4, 4), (2, 2, 2))
    logits = tuple(torch.randn(2, 3, *size, generator=rng).requires_grad_() for size in sizes)
    loss = build_loss([LossTerm(0.5, use, options)])  # type: ignore[arg-type]
    value = loss(NetworkOutput(logits), Batch(torch.zeros(2, 1, 4, 8, 8), target, spacing=(3.0, 1.0, 1.0)))
    value.total.backward()
    assert torch.isfinite(value.total)
    assert [part.grad is not None and bool(part.grad.any()) for part in logits] == [True, True, False]


def test_every_built_in_term_is_tried_here_or_has_its_own_tests() -> None:
    tried = {function for function, _ in TERMS.values()}
    assert {name for name, function in LOSSES.items() if function not in tried} == {"distillation"}
