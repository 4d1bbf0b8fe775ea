"""Mixing of samples against written sums, MONAI's losses on blended one-hot labels, and the distribution of shares."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from medseg.augment.mixup import build_mixing, mixup, sample_pairing
from medseg.errors import PlanError
from medseg.losses.build import SOFT_LOSSES, build_loss
from medseg.losses.dice import cross_entropy, dice
from medseg.losses.overlap import generalised_dice, tversky
from medseg.losses.scales import at_scale
from medseg.types.plan import LossTerm, Step
from medseg.types.tensors import Batch, NetworkOutput


def _batch(rows=1, *, samples=3, size=(4, 6), ignore=False):
    rng = torch.Generator().manual_seed(rows)
    image = torch.randn(samples, 2, *size, generator=rng)
    target = torch.randint(-1 if ignore else 0, 3 if rows == 1 else 2, (samples, rows, *size), generator=rng)
    return Batch(image, target)


def _logits(batch):
    rng = torch.Generator().manual_seed(9)
    return 2 * torch.randn(len(batch.image), 3, *batch.image.shape[2:], generator=rng)


@pytest.mark.parametrize("size", [(4, 6), (3, 4, 5)])
def test_images_are_mixed_with_another_sample_and_both_labels_are_kept(size):
    batch = _batch(size=size)
    mixed = mixup(batch, np.random.default_rng(0))
    assert mixed.mixed is not None
    for i, share in enumerate(mixed.mixed.share.tolist()):
        partner = next(j for j in range(3) if torch.equal(mixed.mixed.target[i], batch.target[j]))
        assert partner != i and 0 <= share <= 1
        torch.testing.assert_close(mixed.image[i], share * batch.image[i] + (1 - share) * batch.image[partner])
        assert torch.equal(mixed.target[i], batch.target[i])


def test_the_same_numbers_give_the_same_mixture():
    batch = _batch()
    one, same, other = (mixup(batch, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.image, same.image) and not torch.equal(one.image, other.image)


def test_a_pair_is_the_mean_of_both_images_with_the_labels_of_one():
    batch = _batch()
    paired = sample_pairing(batch, np.random.default_rng(0), p=1.0)
    assert paired.mixed is None and paired.target is batch.target
    for i in range(3):
        means = [(batch.image[i] + batch.image[j]) / 2 for j in range(3) if j != i]
        assert any(torch.allclose(paired.image[i], mean) for mean in means)
    drawn = [sample_pairing(batch, np.random.default_rng(seed), p=0.3) is not batch for seed in range(300)]
    assert 60 < sum(drawn) < 120
    single = _batch(samples=1)
    assert sample_pairing(single, np.random.default_rng(0), p=1.0) is single
    with pytest.raises(PlanError, match="from 0 to 1"):
        sample_pairing(batch, np.random.default_rng(0), p=2.0)


def test_shares_are_drawn_from_beta():
    batch = _batch(samples=500, size=(1, 1))
    shares = mixup(batch, np.random.default_rng(3), alpha=0.2).mixed.share.numpy()
    assert kstest(shares, beta(0.2, 0.2).cdf).pvalue > 0.01
    assert kstest(shares, beta(1, 1).cdf).pvalue < 1e-6


def test_alone_or_by_chance_nothing_is_mixed():
    single = _batch(samples=1)
    assert mixup(single, np.random.default_rng(0)) is single
    batch = _batch()
    mixed = [mixup(batch, np.random.default_rng(seed), p=0.3).mixed is not None for seed in range(300)]
    assert 60 < sum(mixed) < 120
    assert build_mixing([Step("noise")])(batch, np.random.default_rng(0)) is batch


def test_a_voxel_ignored_in_one_of_the_two_is_ignored():
    batch = _batch(ignore=True)
    mixed = mixup(batch, np.random.default_rng(0))
    assert torch.equal(mixed.target < 0, mixed.mixed.target < 0)
    assert (mixed.target < 0).sum() > (batch.target < 0).sum()


def _soft(mixed, k):
    """Blended labels (b, k, *s), as MONAI's losses take them."""
    share = mixed.mixed.share.reshape(-1, 1, 1, 1)
    if mixed.target.shape[1] == k:
        first, second = mixed.target.float(), mixed.mixed.target.float()
    else:
        first, second = (
            torch.nn.functional.one_hot(t[:, 0], k).movedim(-1, 1).float() for t in (mixed.target, mixed.mixed.target)
        )
    return share * first + (1 - share) * second


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_overlap_losses_see_the_blended_labels(rows, batch_dice):
    from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss

    mixed = mixup(_batch(rows), np.random.default_rng(5), alpha=1.0)
    logits = _logits(mixed)
    soft, output = _soft(mixed, 3), NetworkOutput((logits,))
    assert (soft.sum((2, 3)) > 0).all()
    kind = {"softmax": True} if rows == 1 else {"sigmoid": True}
    options = {"include_background": rows == 3, "batch": batch_dice, "smooth_nr": 1e-5, "smooth_dr": 1e-5, **kind}
    assert dice(output, mixed, batch_dice=batch_dice).item() == pytest.approx(
        DiceLoss(**options)(logits, soft).item(), abs=1e-5
    )
    assert tversky(output, mixed, batch_dice=batch_dice).item() == pytest.approx(
        TverskyLoss(alpha=0.3, beta=0.7, **options)(logits, soft).item(), abs=1e-5
    )
    options["include_background"] = True
    assert generalised_dice(output, mixed, batch_dice=batch_dice).item() == pytest.approx(
        GeneralizedDiceLoss(**options)(logits, soft).item(), abs=2e-4
    )  # MONAI smooths sums of another size


def test_cross_entropy_is_torchs_with_class_probabilities():
    mixed = mixup(_batch(), np.random.default_rng(5), alpha=1.0)
    logits = _logits(mixed)
    expected = torch.nn.functional.cross_entropy(logits, _soft(mixed, 3))
    torch.testing.assert_close(cross_entropy(NetworkOutput((logits,)), mixed), expected)
    regions = mixup(_batch(3), np.random.default_rng(5), alpha=1.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, _soft(regions, 3))
    torch.testing.assert_close(cross_entropy(NetworkOutput((logits,)), regions), expected)


@pytest.mark.parametrize("use", sorted(SOFT_LOSSES))
def test_losses_of_mixed_samples_depend_on_both_truths_at_every_scale(use):
    batch = _batch(samples=2, size=(8, 8))
    mixed = mixup(batch, np.random.default_rng(2), alpha=5.0)
    logits = (_logits(batch), _logits(batch)[..., ::2, ::2], _logits(batch)[..., ::4, ::4])
    loss = build_loss((LossTerm(1.0, use),))
    value = loss(NetworkOutput(logits), mixed).total
    assert value != loss(NetworkOutput(logits), batch).total
    small = at_scale(mixed, (4, 4))
    assert torch.equal(small.mixed.target, mixed.mixed.target[..., 1::2, 1::2])
    assert torch.equal(small.target, mixed.target[..., 1::2, 1::2])


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"p": 1.5}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(PlanError, match="alpha"):
        mixup(_batch(), np.random.default_rng(0), **options)
