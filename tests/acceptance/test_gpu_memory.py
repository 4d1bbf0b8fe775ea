"""The planner's promise on a real card: plans never need more than their budget, and use what the data allow.

pytest -m gpu tests/acceptance/test_gpu_memory.py
"""

import pytest
import torch
from toy_fingerprints import alike

from medseg.planning.fit import GIB
from medseg.planning.memory import estimate_step, measure_step
from medseg.planning.planner import make_plans
from medseg.types.plan import Budget

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LARGE = alike((300, 512, 512), (0.4, 0.4, 0.4), 40, channels=("CT",))


@pytest.mark.parametrize("vram_gib", [4.0, 8.0, 16.0, 24.0, 40.0])
@pytest.mark.parametrize("preset", ["unet", "resenc"])
def test_a_plan_stays_within_its_budget(vram_gib, preset):
    device = torch.device("cuda", 0)
    if torch.cuda.get_device_properties(device).total_memory < vram_gib * GIB:
        pytest.skip(f"the card has less than {vram_gib:g} GiB")
    plan = next(p for p in make_plans(LARGE, Budget(vram_gib), preset) if p.name.endswith("3d_fullres"))
    what = {
        "channels": 1,
        "outputs": plan.labels.outputs(),
        "patch": plan.sampling.patch,
        "batch": plan.sampling.batch,
        "training": plan.training,
    }
    estimated = estimate_step(plan.network, **what)
    measured = measure_step(plan.network, **what, device=device)
    assert measured.reserved_bytes + estimated.context_bytes <= vram_gib * GIB
    assert measured.live_bytes <= estimated.live_bytes * 1.02
