"""Weights of loss terms that are learnt: where they start, what they are, and where they end."""

import math

import pytest
import torch

from medseg.losses.build import build_loss
from medseg.losses.term_weights import TermWeights
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput

TERMS = (LossTerm(2.0, "dice_ce"), LossTerm(0.5, "focal"))


def scene():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=rng).requires_grad_()
    return logits, Batch(torch.zeros(2, 1, 8, 8), torch.randint(0, 3, (2, 1, 8, 8), generator=rng))


def test_at_first_the_sum_and_its_gradients_are_those_of_fixed_weights():
    logits, batch = scene()
    fixed = build_loss(TERMS)(NetworkOutput((logits,)), batch)
    learnt = build_loss(TERMS, learnt=TermWeights(2))(NetworkOutput((logits,)), batch)
    torch.testing.assert_close(learnt.total, fixed.total)
    assert learnt.terms == fixed.terms
    (one,) = torch.autograd.grad(fixed.total, logits)
    (other,) = torch.autograd.grad(learnt.total, logits)
    torch.testing.assert_close(one, other)


def test_every_term_of_the_plan_has_one_factor_and_its_parts_share_it():
    logits, batch = scene()
    weights = TermWeights(2)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.7, -1.2]))
    value = build_loss(TERMS, learnt=weights)(NetworkOutput((logits,)), batch)
    parts = {name: float(term) for name, term in value.terms.items()}
    slow = 2.0 * (parts["dice"] + parts["cross_entropy"]) / math.exp(0.7) + 0.7 / 2
    slow += 0.5 * parts["focal"] * math.exp(1.2) - 1.2 / 2
    assert float(value.total.detach()) == pytest.approx(slow, rel=1e-5)
    assert weights.weights() == pytest.approx([math.exp(-0.7), math.exp(1.2)])


def test_terms_that_stay_end_at_one_half_each_whatever_their_unit():
    weights = TermWeights(3)
    optimiser = torch.optim.Adam(weights.parameters(), lr=0.05)
    sizes = torch.tensor([0.02, 1.0, 400.0])
    for _ in range(6000):
        optimiser.zero_grad()
        weights(list(sizes)).backward()
        optimiser.step()
    assert [w * float(size) for w, size in zip(weights.weights(), sizes, strict=True)] == pytest.approx([0.5] * 3, 1e-3)


def test_a_term_that_vanishes_does_not_run_away():
    weights = TermWeights(2)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([-90.0, 40.0]))
    weights.hold()
    assert weights.log_variances.tolist() == [-10.0, 10.0]
    assert math.isfinite(weights([torch.tensor(0.0), torch.tensor(1.0)]).item())


def test_a_prior_is_added_as_it_is():
    logits, batch = scene()
    terms = (*TERMS, LossTerm(3.0, "rater_prior", {"cases": 10, "sigma": 2.0}))
    weights = TermWeights(2)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.7, -1.2]))
    codes = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    without = build_loss(TERMS, learnt=weights)(NetworkOutput((logits,)), batch)
    value = build_loss(terms, learnt=weights)(NetworkOutput((logits,), rater_codes=codes), batch)
    assert float(value.terms["rater_prior"]) == pytest.approx((1 + 4 + 9) / (2 * 4 * 10))
    torch.testing.assert_close(value.total, without.total + 3 * value.terms["rater_prior"])
