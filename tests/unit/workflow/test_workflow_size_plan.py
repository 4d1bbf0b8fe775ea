import logging
from dataclasses import replace

import torch
from tiny_run import tiny_plan

from medseg.types.plan import Adversary
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
