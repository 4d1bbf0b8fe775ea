"""Loss terms that find their weights themselves, beside the network's optimiser."""

from dataclasses import dataclass

import torch
from torch.optim import Adam, Optimizer

from medseg.losses.build import errors_of, term_names
from medseg.losses.term_weights import TermWeights
from medseg.types.plan import Plan

LR = 0.01  # of log variances, which have to move by a few units; multiplied by the plan's schedule


@dataclass(frozen=True, eq=False)
class Balance:
    """The learnt weights of one run, and the terms' names."""

    weights: TermWeights
    optimizer: Optimizer
    names: tuple[str, ...]

    def begin(self) -> None:
        """Forget the gradients and the lowest term of the step before."""
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.lowest = None

    def now(self) -> dict[str, float]:
        """The factor of every term, as metrics say it."""
        return {f"weight {name}": weight for name, weight in zip(self.names, self.weights.weights(), strict=True)}


def open_balance(plan: Plan, device: torch.device) -> Balance | None:
    """What a plan's training with `weighting` "uncertainty" starts with, on `device`, or None."""
    if plan.training.weighting == "fixed":
        return None
    terms = errors_of(plan.training.losses)
    weights = TermWeights(len(terms)).to(device)
    optimizer = Adam(weights.parameters(), lr=LR)
    optimizer.param_groups[0]["initial_lr"] = LR
    return Balance(weights, optimizer, tuple(term_names(terms)))
