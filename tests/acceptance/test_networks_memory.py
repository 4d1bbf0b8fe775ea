"""The estimated memory of every backbone with every head, of every block and every loss, against the allocator's."""

import battery
import pytest
import torch
from battery import SHAPES

from medseg.planning.memory import estimate_step, measure_step

pytestmark = pytest.mark.acceptance
TOLERANCE = 0.02
BATCH = 2
PATCHES = {"2d": (1, 128, 128), "3d": (32, 48, 48), "anisotropic": (16, 64, 48)}
SIZES = {"base": 16, "patches": PATCHES}  # for small ones torch takes kernels with buffers that nobody trains with


@pytest.fixture(autouse=True)
def two_threads():
    """With a single one oneDNN takes kernels with other buffers for a few networks, up to a fifth of the memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("entry", [e for shape in SHAPES for e in battery.all_of(shape, **SIZES)], ids=str)
def test_the_estimate_is_what_the_allocator_counts(entry):
    check(entry)


@pytest.mark.parametrize("entry", [e for shape in SHAPES for e in battery.joint(shape, **SIZES)], ids=str)
def test_every_backbone_with_all_heads_at_once(entry):
    check(entry)


def check(entry):
    job = entry.job(BATCH)
    what = {"channels": job.channels, "outputs": job.outputs, "patch": job.patch, "batch": BATCH}
    what |= {"training": job.training}
    estimate = estimate_step(entry.network, gpu=False, **what)
    measured = measure_step(entry.network, device=torch.device("cpu"), **what)
    assert estimate.live_bytes == pytest.approx(measured.live_bytes, rel=TOLERANCE)
