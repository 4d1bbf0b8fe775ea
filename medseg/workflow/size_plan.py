"""Whether a plan, as edited since it was made, still fits the memory it was made for."""

import logging

import torch

from medseg.errors import PlanError
from medseg.planning.memory import estimate_step
from medseg.types.plan import Plan

_LOG = logging.getLogger("medseg")
_GIB = 2**30


def warn_of_size(plan: Plan, device: torch.device) -> float | None:
    """GiB of a training step of the plan as it is now; a warning in the log where they exceed its budget.

    A loss, head or critic that was put into the plan by hand takes memory that patch and batch were not chosen for.
    None, and a line in the log, where that cannot be known without data, as with a loss of one's own that looks at
    numbers. Raises PlanError where network, critic or losses refuse the plan.
    """
    try:
        step = estimate_step(
            plan.network,
            channels=len(plan.channels),
            outputs=plan.labels.outputs(),
            patch=plan.sampling.patch,
            batch=plan.sampling.batch,
            training=plan.training,
            gpu=device.type != "cpu",
            regions=plan.labels.are_regions(),
        )
    except PlanError:
        raise
    except Exception as error:  # code of the user's own may do anything
        _LOG.warning("the memory of a training step is not known beforehand (%s: %s)", type(error).__name__, error)
        return None
    need, budget = step.total_bytes() / _GIB, plan.origin.budget.vram_gib
    if need > budget:
        _LOG.warning(
            "a training step takes about %.2f GiB, the plan was made for %g: make its patch or batch smaller,"
            " or plan again with what was added as --preset, --head or --option",
            need,
            budget,
        )
    return need
