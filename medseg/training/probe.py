"""Where augmentation runs: measured, not assumed."""

import logging
import time
from collections.abc import Sequence

import torch

from medseg.augment.chain import build_augment
from medseg.io.cache import CachedCase
from medseg.training.batches import draw_sample
from medseg.training.focus import build_sampler
from medseg.types.plan import Plan
from medseg.types.tensors import Patch

_LOG = logging.getLogger("medseg")
_PATCHES = 12  # most steps fire rarely; fewer would measure luck


def faster_device(
    plan: Plan, cases: Sequence[CachedCase], device: torch.device, *, workers: int
) -> tuple[torch.device, dict[str, float]]:
    """The device on which a patch is augmented sooner, and the seconds per patch it took on each.

    The CPU's time is divided by `workers`, which augment side by side. On a CPU run nothing is measured.
    """
    cpu = torch.device("cpu")
    if device.type == "cpu":
        return cpu, {}
    sampler = build_sampler(plan.sampling.focus, cases, plan.labels)
    samples = [draw_sample(plan, sampler, 0, number) for number in range(_PATCHES)]
    seconds = {
        "cpu": _seconds(plan, [patch for patch, _ in samples], cpu) / max(1, workers),
        device.type: _seconds(plan, [patch for patch, _ in samples], device),
    }
    chosen = cpu if seconds["cpu"] <= seconds[device.type] else device
    _LOG.info("augmentation per patch: %s; runs on %s", {k: f"{v * 1000:.1f} ms" for k, v in seconds.items()}, chosen)
    return chosen, seconds


def _seconds(plan: Plan, patches: Sequence[Patch], device: torch.device) -> float:
    augment = build_augment(plan.training.augment, patch=plan.sampling.patch)
    rng = torch.Generator().manual_seed(plan.training.seed)
    began = 0.0
    for number, patch in enumerate([patches[0], *patches]):
        if number == 1:
            _wait(device)
            began = time.perf_counter()
        augment(Patch(patch.image.to(device), patch.labels.to(device)), rng)
    _wait(device)
    return (time.perf_counter() - began) / len(patches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
