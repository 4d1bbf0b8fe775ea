import logging
from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_plan

from medseg.errors import PlanError
from medseg.types.plan import Adversary, LossTerm
from medseg.workflow.check_plan import check_plan
from medseg.workflow.size_plan import warn_of_size

CPU = torch.device("cpu")


def _for(plan, gib):
    return replace(plan, origin=replace(plan.origin, budget=replace(plan.origin.budget, vram_gib=gib)))


def test_a_plan_that_grew_by_hand_beyond_its_budget_is_said(caplog):
    plan = tiny_plan()
    with caplog.at_level(logging.WARNING, logger="medseg"):
        need = warn_of_size(plan, CPU)
        assert not caplog.text
        fitting = _for(plan, need * 1.001)
        warn_of_size(fitting, CPU)
        assert not caplog.text
        judged = replace(fitting, training=replace(plan.training, adversary=Adversary("segan", options={"width": 64})))
        grown = warn_of_size(judged, CPU)
    assert grown > need
    assert "was made for" in caplog.text


def test_a_card_takes_more_than_the_tensors():
    assert warn_of_size(tiny_plan(), torch.device("cuda", 0)) > warn_of_size(tiny_plan(), CPU) + 0.5


def test_what_a_part_refuses_is_an_error_before_anything_is_prepared():
    flat = tiny_plan(ndim=2, adversary=Adversary("projective"))
    check_plan(flat)
    with pytest.raises(PlanError, match="3D masks"):
        warn_of_size(flat, CPU)
    warn_of_size(tiny_plan(adversary=Adversary("projective")), CPU)


def looks_at_numbers(output, batch):
    """A loss of one's own that cannot be computed without data."""
    return output.logits[0].square().mean() if (batch.target > 0).any() else output.logits[0].sum() * 0


def test_a_loss_that_needs_data_is_trained_without_an_estimate(caplog):
    plan = tiny_plan(losses=(LossTerm(1.0, f"{__name__}:looks_at_numbers"),))
    check_plan(plan)
    with caplog.at_level(logging.WARNING, logger="medseg"):
        assert warn_of_size(plan, CPU) is None
    assert "not known beforehand" in caplog.text
