"""Weighted cross-entropy against torch, sklearn's formula and loops over voxels."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.cross_entropy import (
    Place,
    balanced_weights,
    edge_band,
    gap_map,
    pixel_cross_entropy,
    weighted_cross_entropy,
)
from medseg.losses.dice import cross_entropy
from medseg.types.tensors import Batch, NetworkOutput


def _case(logits: Tensor, target: Tensor, spacing: tuple[float, ...] | None = None) -> tuple[NetworkOutput, Batch]:
    image = torch.zeros(len(logits), 1, *logits.shape[2:])
    return NetworkOutput((logits,)), Batch(image, target, spacing=spacing)


def _random(rows: int, *, size: tuple[int, ...] = (3, 4, 5)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    target = torch.randint(-1, 3 if rows == 1 else 2, (2, rows, *size), generator=rng)
    return 2 * torch.randn(2, 3, *size, generator=rng), target


def test_class_weights_are_torchs_weighted_mean() -> None:
    logits, target = _random(1)
    weights = [0.5, 2.0, 7.0]
    expected = F.cross_entropy(logits, target[:, 0], weight=torch.tensor(weights), ignore_index=-1)
    torch.testing.assert_close(weighted_cross_entropy(*_case(logits, target), weights=weights), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_equal_weights_are_plain_cross_entropy(rows: int) -> None:
    case = _case(*_random(rows))
    for value in (
        weighted_cross_entropy(*case, weights=[1.0] * 3),
        pixel_cross_entropy(*case, extra=0.0),
        pixel_cross_entropy(*case, extra=0.0, weights=[1.0] * 3, place="edges"),
    ):
        torch.testing.assert_close(value, cross_entropy(*case))
    if rows == 1:
        torch.testing.assert_close(weighted_cross_entropy(*case, weights=[4.0] * 3), cross_entropy(*case))


def test_region_weights_count_inside_each_region() -> None:
    logits, target = _random(3)
    weights = [2.0, 0.0, 5.0]
    above = below = 0.0
    for b, r in itertools.product(range(2), range(3)):
        for z, y in zip(logits[b, r].flatten().tolist(), target[b, r].flatten().tolist(), strict=True):
            if y >= 0:
                weight = weights[r] if y else 1.0
                above += weight * math.log1p(math.exp(-z if y else z))
                below += weight
    found = weighted_cross_entropy(*_case(logits, target), weights=weights)
    assert found.item() == pytest.approx(above / below, rel=1e-5)


def test_balanced_weights_are_n_over_k_n_c_within_their_limits() -> None:
    counts = [600, 300, 100]
    classes = np.repeat(np.arange(3), counts)
    expected = len(classes) / (3 * np.bincount(classes))
    np.testing.assert_allclose(balanced_weights(torch.tensor(counts)), expected, rtol=1e-6)
    assert balanced_weights(torch.tensor([10**6, 1, 0])).tolist() == pytest.approx([1 / 3, 20.0, 20.0], rel=1e-5)
    assert balanced_weights(torch.tensor([10**6, 1]), least=0.6, most=2.0).tolist() == pytest.approx([0.6, 2.0])
    assert balanced_weights(torch.tensor([5, 5])).tolist() == [1.0, 1.0]


def test_without_weights_every_class_of_the_batch_has_one_voice() -> None:
    """The weights of all voxels of a class add up to the same, whatever its size."""
    target = torch.tensor([[[0] * 12 + [1] * 3 + [-1]]])
    logits = torch.zeros(1, 2, 16)
    logits[0, 0, :12], logits[0, 1, 12:15] = 1.0, 3.0  # each class has its own loss
    own = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-3.0))]
    assert weighted_cross_entropy(*_case(logits, target)).item() == pytest.approx(sum(own) / 2, rel=1e-5)
    region = torch.where(target == 1, 1, target)
    scores = torch.where(target == 1, 3.0, -1.0)
    assert weighted_cross_entropy(*_case(scores, region)).item() == pytest.approx(sum(own) / 2, rel=1e-5)


def _slow_gaps(objects: np.ndarray, spacing: tuple[float, ...], sigma: float) -> np.ndarray:
    """Distances to every voxel of every object, one by one."""
    found = np.zeros(objects.shape[1:])
    for place in np.ndindex(found.shape):
        far = []
        for part in objects:
            steps = (np.argwhere(part) - place) * np.array(spacing)
            far.append(np.sqrt((steps**2).sum(1)).min() if len(steps) else np.inf)
        both = sum(sorted(far)[:2])
        found[place] = math.exp(-(both**2) / (2 * sigma**2)) if both <= 4 * sigma else 0.0
    return found


@pytest.mark.parametrize(("size", "spacing"), [((7, 9), (1.5, 0.5)), ((3, 6, 7), (2.0, 0.6, 0.6))])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_gap_map_is_the_papers_formula_in_mm(size: tuple[int, ...], spacing: tuple[float, ...], sigma: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=size, p=[0.85, 0.05, 0.05, 0.05])
    objects = np.stack([labels == c for c in (1, 2, 3)])
    found = gap_map(torch.from_numpy(objects)[None], spacing, sigma)[0]
    np.testing.assert_allclose(found, _slow_gaps(objects, spacing, sigma), rtol=1e-4, atol=1e-7)


def test_one_object_leaves_no_gap() -> None:
    objects = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    objects[..., 2, 2] = True
    assert not gap_map(objects, (1.0, 1.0), 2.0).any()


@pytest.mark.parametrize(("size", "spacing"), [((7, 9), (1.5, 0.5)), ((3, 6, 7), (2.0, 0.6, 0.6))])
def test_edge_band_reaches_as_far_in_mm_along_every_axis(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 0, 1, 2], size=size, p=[0.05, 0.85, 0.05, 0.05])
    band = 1.3
    slow = np.zeros(size)
    for place in np.ndindex(size):
        others = np.argwhere((labels != labels[place]) & (labels >= 0))
        steps = (others - place) * np.array(spacing)
        slow[place] = np.sqrt((steps**2).sum(1)).min() <= band
    target = torch.from_numpy(labels)[None, None]
    objects = torch.stack([target[:, 0] == c for c in (1, 2)], dim=1)
    found = edge_band(objects, target, spacing, band)[0, 0].numpy()
    counted = labels >= 0
    np.testing.assert_array_equal(found[counted], slow[counted])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("place", ["gaps", "edges"])
def test_pixel_weights_add_to_the_weight_of_the_class(rows: int, place: str) -> None:
    logits, target = _random(rows, size=(6, 5))
    spacing, lengths = (1.0, 0.5), {"sigma_mm": 0.8, "band_mm": 0.6}
    weights = [0.5, 2.0, 3.0]
    objects = target > 0 if rows == 3 else torch.stack([target[:, 0] == c for c in (1, 2)], dim=1)
    if place == "gaps":
        more = gap_map(objects, spacing, 0.8)[:, None].expand_as(target)
    else:
        more = edge_band(objects, target, spacing, 0.6)
    assert more.any()
    above = below = 0.0
    for b, r, y, x in np.ndindex(*target.shape):
        truth = int(target[b, r, y, x])
        if truth < 0:
            continue
        if rows == 1:
            loss = -logits[b, :, y, x].log_softmax(0)[truth].item()
            own = weights[truth]
        else:
            loss = math.log1p(math.exp(-logits[b, r, y, x].item() * (1 if truth else -1)))
            own = weights[r] if truth else 1.0
        weight = own + 4.0 * more[b, r, y, x].item()
        above, below = above + weight * loss, below + weight
    case = _case(logits, target, spacing)
    found = pixel_cross_entropy(*case, place=place, extra=4.0, weights=weights, **lengths)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(above / below, rel=1e-4)


def test_lengths_are_those_of_the_finest_voxel_unless_given() -> None:
    logits, target = _random(1, size=(9, 9))
    case = _case(logits, target, (0.6, 0.3))
    torch.testing.assert_close(pixel_cross_entropy(*case), pixel_cross_entropy(*case, sigma_mm=1.5))
    assert pixel_cross_entropy(*case) != pixel_cross_entropy(*case, sigma_mm=0.5)
    edges = pixel_cross_entropy(*case, place="edges")
    torch.testing.assert_close(edges, pixel_cross_entropy(*case, place="edges", band_mm=0.45))


@pytest.mark.parametrize("options", [{"weights": [1.0, 2.0]}, {"weights": [1.0, -1.0, 1.0]}])
@pytest.mark.parametrize("rows", [1, 3])
def test_weights_that_do_not_fit_are_refused(options: dict[str, list[float]], rows: int) -> None:
    with pytest.raises(PlanError, match="weights"):
        weighted_cross_entropy(*_case(*_random(rows)), weights=options["weights"])


@pytest.mark.parametrize("options", [{"place": "gap"}, {"extra": -1.0}, {"sigma_mm": 0.0}, {"band_mm": -1.0}])
def test_pixel_options_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="place"):
        pixel_cross_entropy(*_case(*_random(1)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("place", "option", "length"), [("gaps", "sigma_mm", 2.5), ("edges", "band_mm", 1.0)])
def test_lengths_are_those_of_the_image_at_every_decoder_scale(place: Place, option: str, length: float) -> None:
    target = torch.zeros(1, 1, 12, 12, dtype=torch.long)
    target[..., 1:4, :], target[..., 7:, :] = 1, 2
    logits, image = torch.randn(1, 3, 12, 12), torch.zeros(1, 1, 24, 24)
    batch = Batch(image, target, spacing=(1.0, 1.0))  # half the image's size: its voxels are 0.5
    found = pixel_cross_entropy(NetworkOutput((logits,)), batch, place=place)
    torch.testing.assert_close(
        found, pixel_cross_entropy(NetworkOutput((logits,)), batch, place=place, **{option: length})
    )
    far = pixel_cross_entropy(NetworkOutput((logits,)), batch, place=place, **{option: 2 * length})
    assert not torch.isclose(found, far, rtol=1e-4)
