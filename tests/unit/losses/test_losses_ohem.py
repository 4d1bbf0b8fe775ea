"""Hard voxels against sorting every sample by itself, and nnU-Net's top tenth."""

import math

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import cross_entropy
from medseg.losses.ohem import ohem
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor) -> tuple[NetworkOutput, Batch]:
    return NetworkOutput((logits,)), Batch(torch.zeros(len(logits), 1, *logits.shape[2:]), target)


def _random(rows: int, *, ignore: bool = False) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    target = torch.randint(-1 if ignore else 0, 3 if rows == 1 else 2, (3, rows, 5, 8), generator=rng)
    return 2 * torch.randn(3, 3, 5, 8, generator=rng), target


def _losses(logits: Tensor, target: Tensor, sample: int) -> list[float]:
    """Of the counted voxels of one sample, hardest first."""
    found = []
    for row in range(target.shape[1]):
        for y, x in torch.cartesian_prod(torch.arange(5), torch.arange(8)).tolist():
            truth = int(target[sample, row, y, x])
            if truth >= 0 and target.shape[1] == 1:
                found.append(-logits[sample, :, y, x].log_softmax(0)[truth].item())
            elif truth >= 0:
                found.append(math.log1p(math.exp(logits[sample, row, y, x].item() * (-1 if truth else 1))))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize(("share", "least"), [(0.1, 0), (0.35, 0), (0.1, 9), (0.5, 10_000), (1.0, 0)])
def test_every_sample_keeps_its_hardest_share(rows: int, ignore: bool, share: float, least: int) -> None:
    logits, target = _random(rows, ignore=ignore)
    means = []
    for sample in range(3):
        losses = _losses(logits, target, sample)
        kept = losses[: max(math.ceil(len(losses) * share - 1e-4), least)]
        means.append(sum(kept) / len(kept))
    found = ohem(*_case(logits, target), share=share, min_kept=least)
    assert found.item() == pytest.approx(sum(means) / 3, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("threshold", "least"), [(0.7, 0), (0.2, 0), (1e-6, 5), (0.2, 12)])
def test_a_threshold_keeps_the_voxels_whose_truth_scores_less(rows: int, threshold: float, least: int) -> None:
    logits, target = _random(rows, ignore=True)
    means = []
    for sample in range(3):
        losses = _losses(logits, target, sample)
        kept = [x for i, x in enumerate(losses) if math.exp(-x) < threshold or i < least]
        if kept:
            means.append(sum(kept) / len(kept))
    found = ohem(*_case(logits, target), threshold=threshold, min_kept=least)
    assert found.item() == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_a_coarser_scale_keeps_at_least_its_share_of_min_kept() -> None:
    logits, target = _random(1)
    image = torch.zeros(3, 1, 10, 16)  # 4 voxels of the image in one of this scale
    found = ohem(NetworkOutput((logits,)), Batch(image, target), share=0.01, min_kept=30)
    means = [sum(_losses(logits, target, sample)[:8]) / 8 for sample in range(3)]
    assert found.item() == pytest.approx(sum(means) / 3, rel=1e-5)


def test_an_easy_sample_does_not_vanish_beside_a_hard_one() -> None:
    """nnU-Net's top k over the whole batch gives the first sample no gradient at all."""
    target = torch.zeros(2, 1, 10, 10, dtype=torch.int64)
    logits = torch.zeros(2, 2, 10, 10)
    logits[0, 0], logits[1, 0] = 4.0, -4.0
    logits.requires_grad_()
    ohem(*_case(logits, target), min_kept=0).backward()
    assert logits.grad is not None
    assert logits.grad[0].any() and logits.grad[1].any()
    assert (logits.grad != 0).any(1).sum((1, 2)).tolist() == [10, 10]


def test_one_sample_is_nnunets_top_tenth() -> None:
    logits, target = _random(1)
    losses = torch.nn.functional.cross_entropy(logits[:1], target[:1, 0], reduction="none").flatten()
    expected = losses.topk(int(losses.numel() * 10 / 100)).values.mean()
    torch.testing.assert_close(ohem(*_case(logits[:1], target[:1]), min_kept=0), expected)


def test_everything_kept_is_cross_entropy() -> None:
    case = _case(*_random(1))
    torch.testing.assert_close(ohem(*case, share=1.0, min_kept=0), cross_entropy(*case))
    torch.testing.assert_close(ohem(*case, threshold=1.0, min_kept=0), cross_entropy(*case))


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"min_kept": -1}, {"threshold": 0.0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="share"):
        ohem(*_case(*_random(1)), **options)  # type: ignore[arg-type]
