"""Optimisers, and learning-rate schedules as functions of progress."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, AdamW, Optimizer

from medseg.errors import PlanError
from medseg.plugins import resolve
from medseg.types.plan import Step

Schedule = Callable[[float], float]


def sgd(
    network: nn.Module,
    *,
    lr: float = 0.01,
    momentum: float = 0.99,
    weight_decay: float = 3e-5,
    nesterov: bool = True,
    decay_norms: bool = True,
    l1_norms: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum; decay on all parameters (Isensee 2021).

    Without `decay_norms` only what `decays` decays. `l1_norms` as in `slimmed`.
    """
    groups = grouped(network, weight_decay, every=decay_norms)
    return slimmed(
        SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov), network, l1_norms
    )


def adamw(
    network: nn.Module,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    beta1: float = 0.9,
    beta2: float = 0.999,
    decay_norms: bool = False,
    l1_norms: float = 0.0,
) -> Optimizer:
    """Adam with decoupled decay (Loshchilov 2019) of what `decays`; of all parameters with `decay_norms`.

    `l1_norms` as in `slimmed`.
    """
    groups = grouped(network, weight_decay, every=decay_norms)
    return slimmed(AdamW(groups, lr=lr, betas=(beta1, beta2)), network, l1_norms)


def slimmed(optimizer: Optimizer, network: nn.Module, weight: float) -> Optimizer:
    """The optimiser with `weight` * |gamma| of every channel of the batch norms in what it minimises (Liu 2017).

    It drives channels that are little used to 0. The gradient joins after clipping. Raises PlanError for a network
    without batch norms.

    >>> import torch
    >>> norm = nn.BatchNorm2d(2)
    >>> norm.weight.grad = torch.zeros(2)
    >>> slimmed(SGD(norm.parameters(), lr=1.0), norm, 0.25).step()
    >>> norm.weight.tolist()
    [0.75, 0.75]
    """
    if weight == 0:
        return optimizer
    gammas = [norm.weight for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.affine]
    if weight < 0 or not gammas:
        what = f"l1_norms {weight} " + ("is negative" if weight < 0 else "needs batch norms, and the network has none")
        raise PlanError(what, where="training.optimizer", hint='leave it out, or choose the norm "batch"')

    def shrink(optimizer: Optimizer, args: object, kwargs: object) -> None:
        for gamma in gammas:
            if gamma.grad is not None:
                gamma.grad.add_(gamma.detach().sign(), alpha=weight)

    optimizer.register_step_pre_hook(shrink)
    return optimizer


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is meant for a parameter: the weights of convolutions and products, that is.

    Not for biases, norms, slopes, the scales of branches (gammas) and tables of positions, which decay would push
    towards switching off what they scale.

    >>> conv = nn.Conv2d(2, 3, 1)
    >>> decays("stem.conv.weight", conv.weight), decays("stem.conv.bias", conv.bias), decays("block.scale", conv.weight)
    (True, False, False)
    """
    return parameter.ndim > 1 and name.endswith("weight")


def grouped(network: nn.Module, weight_decay: float, *, every: bool) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: those that decay, and those that do not; one group for `every`."""
    pairs = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if every:
        return [{"params": [p for _, p in pairs], "weight_decay": weight_decay}]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in pairs if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in pairs if not decays(name, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def poly(progress: float, *, power: float = 0.9) -> float:
    """(1 - progress) ** power.

    >>> poly(0.0), poly(1.0)
    (1.0, 0.0)
    """
    return float((1.0 - min(max(progress, 0.0), 1.0)) ** power)


def cosine_restarts(progress: float, *, cycles: int = 1, warmup: float = 0.0, multiplier: float = 1.0) -> float:
    """Linear warm-up for the share `warmup` of the run, then `cycles` half cosines from 1 to 0 (Loshchilov 2017).

    Each cycle is `multiplier` times as long as the one before.

    >>> cosine_restarts(0.0), round(cosine_restarts(0.5), 6), cosine_restarts(1.0)
    (1.0, 0.5, 0.0)
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    place = (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    lengths = [multiplier**cycle for cycle in range(cycles)]
    place *= sum(lengths)
    for length in lengths[:-1]:
        if place < length:
            break
        place -= length
    else:
        length = lengths[-1]
    return 0.5 * (1 + math.cos(math.pi * min(place / length, 1.0)))


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType({"adamw": adamw, "sgd": sgd})
SCHEDULES: Mapping[str, Callable[..., float]] = MappingProxyType({"cosine_restarts": cosine_restarts, "poly": poly})


def build_optimizer(network: nn.Module, optimizer: Step, schedule: Step) -> tuple[Optimizer, Schedule]:
    """Both from the plan; the schedule returns what the optimiser's rates are multiplied with.

    An optimiser of the user's own is a function of the list of parameters; those in OPTIMIZERS see the network.
    Raises PlanError for unknown names or options.
    """
    build = resolve(optimizer.use, OPTIMIZERS, optimizer.options, where="training.optimizer")
    free = [p for p in network.parameters() if p.requires_grad]
    built: Optimizer = build(network if optimizer.use in OPTIMIZERS else free)
    for group in built.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return built, resolve(schedule.use, SCHEDULES, schedule.options, where="training.schedule")


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its first one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
