"""The Gaussian prior of raters' codes."""

import pytest
import torch
from torch.distributions import Normal

from medseg.errors import PlanError
from medseg.losses.rater_prior import rater_prior
from medseg.types.tensors import Batch, NetworkOutput

BATCH = Batch(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))


def test_it_is_the_negative_log_density_per_case_up_to_a_constant():
    codes, sigma, cases = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 0.6, 40
    gaussian = Normal(0.0, sigma)
    constant = -gaussian.log_prob(torch.zeros(1)) * codes.numel()
    oracle = (-gaussian.log_prob(codes).sum() - constant) / cases
    found = rater_prior(NetworkOutput(rater_codes=codes), BATCH, cases=cases, sigma=sigma)
    torch.testing.assert_close(found[None], oracle)


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"sigma": 0.0}, {"sigma": float("nan")}])
def test_what_is_no_prior_is_refused(wrong):
    with pytest.raises(PlanError, match="cases and a sigma of"):
        rater_prior(NetworkOutput(rater_codes=torch.zeros(1, 2)), BATCH, **wrong)


def test_without_codes_it_says_what_is_missing():
    with pytest.raises(PlanError, match="raters' codes"):
        rater_prior(NetworkOutput(), BATCH)
