"""Centre-line Dice against loops over neighbours, and on lines whose skeleton is known."""

import numpy as np
import pytest
import torch
from monai.losses.cldice import SoftclDiceLoss, soft_skel
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.cldice import cldice, soft_skeleton
from medseg.losses.dice import dice
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor, spacing: tuple[float, ...] | None = None) -> tuple[NetworkOutput, Batch]:
    return NetworkOutput((logits,)), Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target, spacing=spacing)


def _around(place: tuple[int, ...], shape: tuple[int, ...], axes: list[int], *, cross: bool) -> list[tuple[int, ...]]:
    """A voxel and its neighbours inside the picture: along each of the axes, or in the box they span."""
    found = []
    for step in np.ndindex(*(3,) * len(shape)):
        offset = [s - 1 for s in step]
        if any(o and a not in axes for a, o in enumerate(offset)) or (cross and sum(map(abs, offset)) > 1):
            continue
        moved = tuple(p + o for p, o in zip(place, offset, strict=True))
        if all(0 <= m < n for m, n in zip(moved, shape, strict=True)):
            found.append(moved)
    return found


def _slow_skeleton(mask: np.ndarray, axes: list[int], iterations: int) -> np.ndarray:
    def least(values: np.ndarray) -> np.ndarray:
        found = np.zeros_like(values)
        for p in np.ndindex(values.shape):
            found[p] = min(values[q] for q in _around(p, values.shape, axes, cross=True))
        return found

    def opened(values: np.ndarray) -> np.ndarray:
        worn, found = least(values), np.zeros_like(values)
        for p in np.ndindex(values.shape):
            found[p] = max(worn[q] for q in _around(p, values.shape, axes, cross=False))
        return found

    line = np.maximum(mask - opened(mask), 0)
    for _ in range(iterations):
        mask = least(mask)
        new = np.maximum(mask - opened(mask), 0)
        line = line + np.maximum(new - line * new, 0)
    return line


@pytest.mark.parametrize(("size", "axes"), [((7, 8), [0, 1]), ((4, 6, 5), [0, 1, 2]), ((4, 6, 5), [1, 2])])
@pytest.mark.parametrize("iterations", [0, 2])
def test_the_skeleton_is_the_papers(size: tuple[int, ...], axes: list[int], iterations: int) -> None:
    mask = np.random.default_rng(2).random(size).astype(np.float32)
    found = soft_skeleton(torch.from_numpy(mask)[None, None], axes, iterations)[0, 0]
    np.testing.assert_allclose(found, _slow_skeleton(mask, axes, iterations), atol=1e-6)


def test_a_bar_has_its_middle_line_as_skeleton_and_a_line_itself() -> None:
    bar = torch.zeros(1, 1, 9, 20)
    bar[..., 3:6, 3:17] = 1
    line = soft_skeleton(bar, [0, 1], 3)[0, 0]
    assert line[4, 4:16].eq(1).all()
    assert not line[:, 5:15][[0, 1, 2, 3, 5, 6, 7, 8]].any()
    thin = torch.zeros(1, 1, 5, 6, 7)
    thin[0, 0, :, 3, 3] = 1
    torch.testing.assert_close(soft_skeleton(thin, [0, 1, 2], 3), thin)


@pytest.mark.parametrize("size", [(12, 14), (6, 12, 14)])
def test_skeleton_and_loss_agree_with_monai(size: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 1, *size, generator=rng)
    target = (torch.rand(2, 1, *size, generator=rng) > 0.5).long()
    axes = list(range(len(size)))
    torch.testing.assert_close(soft_skeleton(logits.sigmoid(), axes, 3), soft_skel(logits.sigmoid(), 3))
    theirs = SoftclDiceLoss(iter_=3, smooth=1e-8, sigmoid=True)(logits, target.float())
    torch.testing.assert_close(cldice(*_case(logits, target)), theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_harmonic_mean_of_both_shares() -> None:
    rng = torch.Generator().manual_seed(4)
    logits, target = torch.randn(2, 3, 8, 8, generator=rng), torch.randint(0, 3, (2, 1, 8, 8), generator=rng)
    p, losses = logits.softmax(1), []
    for i in range(2):
        for c in (1, 2):
            truth = (target[i : i + 1] == c).float()
            score = p[i : i + 1, c : c + 1]
            line, true_line = soft_skeleton(score, [0, 1], 3), soft_skeleton(truth, [0, 1], 3)
            precision = ((line * truth).sum() + 1) / (line.sum() + 1)
            sensitivity = ((true_line * score).sum() + 1) / (true_line.sum() + 1)
            losses.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    torch.testing.assert_close(cldice(*_case(logits, target)), torch.stack(losses).mean())
    only = torch.stack(losses[1::2]).mean()
    torch.testing.assert_close(cldice(*_case(logits, target), classes=[2]), only)


def _drawn(rows: list[slice], columns: list[slice]) -> Tensor:
    picture = torch.zeros(1, 1, 12, 40, dtype=torch.int64)
    for row, column in zip(rows, columns, strict=True):
        picture[..., row, column] = 1
    return picture


def _scores(picture: Tensor) -> Tensor:
    return 20.0 * torch.cat([1 - picture, picture], dim=1).float() - 10


def test_a_gap_in_a_line_costs_more_than_as_many_voxels_at_its_side() -> None:
    truth = _drawn([slice(4, 9)], [slice(2, 38)])
    cut = truth.clone()
    cut[..., 18:22] = 0  # 20 voxels through the whole width
    thinner = truth.clone()
    thinner[..., 4, 2:22] = 0  # 20 voxels along one side
    assert dice(*_case(_scores(cut), truth)).item() == pytest.approx(dice(*_case(_scores(thinner), truth)).item())
    assert cldice(*_case(_scores(cut), truth)) > 3 * cldice(*_case(_scores(thinner), truth))


def test_nothing_is_thinned_along_an_axis_of_thick_slices() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1, 2, 4, 8, 8, generator=rng), torch.randint(0, 2, (1, 1, 4, 8, 8), generator=rng)
    thick = cldice(*_case(logits, target, (3.0, 1.0, 1.0)), smooth=1e-6)
    slices = [_case(logits[:, :, z], target[:, :, z]) for z in range(4)]
    lines = [(soft_skeleton(o.logits[0].softmax(1)[:, 1:], [0, 1], 3), b.target.float()) for o, b in slices]
    precision = sum((line * y).sum() for line, y in lines) / sum(line.sum() for line, _ in lines)
    true = [soft_skeleton(b.target.float(), [0, 1], 3) for _, b in slices]
    hits = sum((t * o.logits[0].softmax(1)[:, 1:]).sum() for t, (o, _) in zip(true, slices, strict=True))
    sensitivity = hits / sum(t.sum() for t in true)
    torch.testing.assert_close(thick, 1 - 2 * precision * sensitivity / (precision + sensitivity))
    assert thick != cldice(*_case(logits, target, (1.0, 1.0, 1.0)), smooth=1e-6)


@pytest.mark.parametrize("options", [{"classes": [3]}, {"classes": [0]}, {"classes": []}, {"iterations": -1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        cldice(*_case(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.int64)), **options)  # type: ignore[arg-type]
