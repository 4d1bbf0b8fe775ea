"""Losses see how far the training is."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_run import fill_cache, tiny_plan

from medseg.losses.dice import dice_ce
from medseg.training.loop import fit
from medseg.types.plan import LossTerm


def test_a_loss_sees_the_share_of_the_training_that_is_done(monkeypatch, tmp_path):
    seen = []

    def fading(output, batch):
        seen.append(batch.progress)
        return dice_ce(output, batch)

    monkeypatch.setattr("medseg.training.loop.draw_curves", lambda *given: None)
    monkeypatch.setitem(sys.modules, "my_lab_losses", SimpleNamespace(fading=fading))
    plan = tiny_plan(losses=(LossTerm(1.0, "my_lab_losses:fading"),), epochs=2, steps_per_epoch=2)
    fill_cache(tmp_path / "cache", 2)
    fit(plan, ("a",), (), tmp_path / "cache", tmp_path / "run", device=torch.device("cpu"))
    assert seen == pytest.approx([0.0, 0.25, 0.5, 0.75])
