"""Adversarial training: a critic and its optimiser, one step after each of the network's."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medseg.errors import TrainingError
from medseg.networks.critics import build_critic, clamp_weights, judge
from medseg.types.plan import Plan
from medseg.types.tensors import Batch

BETAS = (0.5, 0.999)  # usual where two networks learn against each other (Radford 2016)


@dataclass(frozen=True, eq=False)
class Opponent:
    """The critic of one run; `weight` is its share in the network's loss."""

    critic: nn.Module
    optimizer: Optimizer
    weight: float


def open_opponent(plan: Plan, device: torch.device) -> Opponent | None:
    """The critic that a plan's training asks for, on `device`, or None."""
    adversary = plan.training.adversary
    if adversary is None:
        return None
    critic = build_critic(
        adversary,
        plan.network.topology,
        channels=len(plan.channels),
        outputs=plan.labels.outputs(),
        regions=plan.labels.are_regions(),
    ).to(device)
    return Opponent(critic, Adam(critic.parameters(), lr=adversary.lr, betas=BETAS), adversary.weight)


def learn(opponent: Opponent, logits: Tensor, batch: Batch) -> float:
    """One step of the critic on a batch and the network's finest logits; returns its loss.

    Raises TrainingError where that is not finite.
    """
    opponent.optimizer.zero_grad(set_to_none=True)
    loss = judge(opponent.critic, batch.image, logits, batch.target, own=True)
    size = float(loss.detach())
    if not math.isfinite(size):
        raise TrainingError(f"the critic's loss is not finite: {size:.6g}")
    loss.backward()  # type: ignore[no-untyped-call]
    opponent.optimizer.step()
    clamp_weights(opponent.critic)
    return size
