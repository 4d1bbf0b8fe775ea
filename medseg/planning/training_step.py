"""One training step on random data, as the loop does it, for measuring and for abstract execution."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from medseg.losses.build import Loss, build_loss, errors_of
from medseg.losses.term_weights import TermWeights
from medseg.networks.blocks.options import has_rater_code
from medseg.networks.build import HeadedNetwork, arrange, build_network
from medseg.networks.critics import build_critic, judge
from medseg.networks.precision import run
from medseg.types.geometry import Size3
from medseg.types.plan import Network, Options, Training
from medseg.types.tensors import Batch, Mixed

Update = Callable[[list[nn.Parameter]], None]


@dataclass(frozen=True)
class Job:
    """What one step is made of: sizes, and the training settings that take memory or time."""

    network: Network
    channels: int
    outputs: int
    patch: Size3
    batch: int
    training: Training
    regions: bool = False


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that lives through a training: network, loss, optimiser state and averaged weights."""

    network: nn.Module
    loss: Loss
    states: tuple[list[Tensor], ...]
    average: list[Tensor]
    critic: nn.Module | None = None
    critic_states: tuple[list[Tensor], ...] = ()


def build(job: Job) -> HeadedNetwork:
    """The job's network on the CPU."""
    deep = job.training.deep_supervision
    return build_network(job.network, channels=job.channels, outputs=job.outputs, deep_supervision=deep)


def without_data(network: HeadedNetwork) -> HeadedNetwork:
    """The network with new tensors of the same sizes and orders; in a mode without data, tensors without data."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_like(weight), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _like(buffer))
    return network


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def build_parts(
    job: Job, device: torch.device, *, channels_last: bool | None = None, built: HeadedNetwork | None = None
) -> Parts:
    """Network and loss in training mode, with the optimiser's tensors as they are after the first step.

    `channels_last` overrides the memory order that suits `device`; `built` takes the place of a new network.
    """
    built = built or build(job)
    network = (built if device.type == "cpu" else built.to(device)).train()
    if channels_last is not None:
        arrange(built, channels_last=channels_last)
    params = list(network.parameters())
    copies = _state_copies(job.training.optimizer.use, job.training.optimizer.options)
    states = tuple([torch.zeros_like(p) for p in params] for _ in range(copies))
    average = [p.detach().clone() for p in params] if job.training.ema is not None else []
    critic = _critic(job, device)
    own = tuple([torch.zeros_like(p) for p in critic.parameters()] for _ in range(2)) if critic is not None else ()
    loss = build_loss(job.training.losses, learnt=_term_weights(job, device))
    return Parts(network, loss, states, average, critic, own)


def random_batch(job: Job, device: torch.device) -> Batch:
    """An image of noise, with targets of every class and points anywhere."""
    topology = job.network.topology
    size = job.patch[3 - topology.ndim :]
    rows, values = (job.outputs, 2) if _regions(job) else (1, max(job.outputs, 1))
    image = torch.randn(job.batch, job.channels, *size, device=device)
    target = torch.randint(values, (job.batch, rows, *size), device=device)
    asked = [step.options["points"] for step in job.network.heads if "points" in step.options]
    count = asked[0] if asked and isinstance(asked[0], int) else 0
    points = torch.rand(job.batch, count, topology.ndim, device=device) * (min(size) - 1) if count else None
    spacing = None if topology.spacing_mm is None else topology.spacing_mm[3 - topology.ndim :]
    taught = any(term.use == "distillation" for term in job.training.losses)
    teacher = torch.randn(job.batch, job.outputs, *size, device=device) if taught else None
    mixes = any(step.use == "mixup" for step in job.training.augment)
    mixed = Mixed(target.clone(), torch.rand(job.batch, device=device)) if mixes else None
    raters = torch.zeros(job.batch, dtype=torch.int64, device=device) if has_rater_code(job.network.options) else None
    return Batch(image, target, points, spacing, teacher=teacher, mixed=mixed, raters=raters)


def run_step(parts: Parts, batch: Batch, training: Training, *, whole: bool) -> None:
    """Forward in the plan's precision, loss in float32, backward, clip, update.

    `whole`: the update works on all weights at once, as optimisers do on a GPU, instead of one after another.
    """
    for p in parts.network.parameters():
        p.grad = None
    output = run(parts.network, batch.image, batch.raters, training.precision).as_float32()
    total = parts.loss(output, batch).total
    judged = None
    if parts.critic is not None:
        judged = output.logits[0]
        total = total + judge(parts.critic, batch.image, judged, batch.target)
    del output
    total.backward()  # type: ignore[no-untyped-call]
    clip = training.clip_grad_norm
    clip_grad_norm_(parts.network.parameters(), math.inf if clip is None else clip, foreach=whole)
    with torch.no_grad():
        params = list(parts.network.parameters())
        used = [i for i, p in enumerate(params) if p.grad is not None]
        step = len(used) if whole else 1
        for start in range(0, len(used), max(step, 1)):
            some = used[start : start + step]
            _update([params[i] for i in some], [[state[i] for i in some] for state in parts.states])
        if parts.average:
            torch._foreach_lerp_(parts.average, [p.detach() for p in parts.network.parameters()], 0.01)
    if parts.critic is not None and judged is not None:
        _critic_step(parts.critic, parts.critic_states, judged, batch)


def _term_weights(job: Job, device: torch.device) -> TermWeights | None:
    if job.training.weighting == "fixed":
        return None
    weights = TermWeights(len(errors_of(job.training.losses)))
    return weights if device.type == "cpu" else weights.to(device)  # abstract weights cannot be moved


def _critic(job: Job, device: torch.device) -> nn.Module | None:
    if job.training.adversary is None:
        return None
    critic = build_critic(
        job.training.adversary,
        job.network.topology,
        channels=job.channels,
        outputs=job.outputs,
        regions=_regions(job),
    )
    return critic if device.type == "cpu" else critic.to(device)  # abstract weights cannot be moved


def _critic_step(critic: nn.Module, states: tuple[list[Tensor], ...], logits: Tensor, batch: Batch) -> None:
    for p in critic.parameters():
        p.grad = None
    judge(critic, batch.image, logits, batch.target, own=True).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        _update(list(critic.parameters()), list(states))


def _regions(job: Job) -> bool:
    return job.regions or job.outputs == 1


def _state_copies(use: str, options: Options) -> int:
    """Tensors as large as the weights that the optimiser keeps: 1 for SGD with momentum, 2 for Adam and others."""
    if use != "sgd":
        return 2
    return 1 if options.get("momentum", 0.99) else 0


def _update(params: list[nn.Parameter], states: list[list[Tensor]]) -> None:
    """An update whose temporaries are those of SGD with momentum and decay (one copy), or Adam (one or two)."""
    grads = [p.grad for p in params if p.grad is not None]
    if len(states) == 2:
        first, second = states
        torch._foreach_lerp_(first, grads, 0.1)
        torch._foreach_mul_(second, 0.999)
        torch._foreach_addcmul_(second, grads, grads, 0.001)
        root = torch._foreach_sqrt(second)
        torch._foreach_add_(root, 1e-8)
        torch._foreach_addcdiv_(params, first, root, -1e-6)  # type: ignore[arg-type]
        return
    decayed = torch._foreach_add(grads, params, alpha=3e-5)  # type: ignore[arg-type]
    for momentum in states:
        torch._foreach_mul_(momentum, 0.99)
        torch._foreach_add_(momentum, decayed)
        torch._foreach_add_(decayed, momentum, alpha=0.99)
    torch._foreach_add_(params, decayed, alpha=-1e-6)  # type: ignore[arg-type]
