"""The estimated memory of every backbone with every head, of every block and every loss, against the allocator's."""

import battery
import pytest
import torch
from battery import SHAPES

from medseg.planning.memory import estimate_step, measure_step

pytestmark = pytest.mark.acceptance
TOLERANCE = 0.02
BATCH = 4  # convolutions too small for the fast kernels are not what anybody trains


@pytest.mark.parametrize("entry", [e for shape in SHAPES for e in battery.all_of(shape, base=16)], ids=str)
def test_the_estimate_is_what_the_allocator_counts(entry):
    check(entry)


@pytest.mark.parametrize("entry", [e for shape in SHAPES for e in battery.joint(shape, base=16)], ids=str)
def test_every_backbone_with_all_heads_at_once(entry):
    check(entry)


def check(entry):
    job = entry.job(BATCH)
    what = {"channels": job.channels, "outputs": job.outputs, "patch": job.patch, "batch": BATCH}
    what |= {"training": job.training}
    estimate = estimate_step(entry.network, gpu=False, **what)
    measured = measure_step(entry.network, device=torch.device("cpu"), **what)
    assert estimate.live_bytes == pytest.approx(measured.live_bytes, rel=TOLERANCE)
