"""What default tests leave out: heads learnt by heart, everything in 3D and on anisotropic grids, half precision."""

import battery
import pytest
import torch

pytestmark = pytest.mark.acceptance
ENTRIES = [entry for shape in ("3d", "anisotropic") for entry in battery.graphs(shape)]


@pytest.mark.parametrize("entry", [*battery.heads("2d"), *ENTRIES], ids=str)
def test_it_learns_one_patch_by_heart(entry):
    battery.check_learns(entry, steps=1500)  # heads that regress take up to 1100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_half_precision_gives_about_the_same(entry, dtype):
    battery.check_half(entry, dtype)
