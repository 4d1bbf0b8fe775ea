"""One optimiser step and one validation pass."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from medseg.errors import TrainingError
from medseg.losses.build import Loss
from medseg.networks.critics import judge
from medseg.networks.precision import run
from medseg.training.adversary import Opponent, learn
from medseg.training.balance import Balance
from medseg.types.labels import Labels
from medseg.types.plan import Precision
from medseg.types.tensors import Batch, NetworkOutput

_NEGATIVE = -0.01  # rounding leaves overlaps a little above 1
_SMALLEST_SCALE = 2.0**-14  # fp16 gradients that overflow even at this scale will not recover


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step is logged with."""

    loss: float
    terms: Mapping[str, float]
    grad_norm: float


def new_scaler(precision: Precision, device: torch.device) -> GradScaler:
    """Loss scaling for fp16 on CUDA; elsewhere it does nothing."""
    return GradScaler(device.type, enabled=precision == "fp16" and device.type == "cuda")


def train_step(
    network: nn.Module,
    batch: Batch,
    loss: Loss,
    optimizer: Optimizer,
    *,
    scaler: GradScaler,
    precision: Precision = "fp32",
    clip_grad_norm: float | None = None,
    opponent: Opponent | None = None,
    balance: Balance | None = None,
) -> StepResult:
    """Forward in `precision`, loss in float32, backward, clip, update; then a step of the critic, if there is one.

    `balance` holds the weights of terms that `loss` was built with, and is updated, too.

    Raises TrainingError with the loss terms where loss or gradients are not finite.
    """
    network.train()
    optimizer.zero_grad(set_to_none=True)
    if balance is not None:
        balance.begin()
    output = run(network, batch.image, batch.raters, precision).as_float32()
    value = loss(output, batch)
    total = value.total
    terms = {name: float(term.detach()) for name, term in value.terms.items()}
    if opponent is not None:
        verdict = judge(opponent.critic, batch.image, output.logits[0], batch.target)
        total, terms["adversary"] = total + opponent.weight * verdict, float(verdict.detach())
    logits = None if opponent is None else output.logits[0].detach()
    del output
    if balance is not None and balance.weights.lowest is not None and float(balance.weights.lowest) < _NEGATIVE:
        what = f"a term is negative, and no weight can be learnt for it: {_listed(terms)}"
        raise TrainingError(what, hint='use the weighting "fixed", or a loss that is never below 0')
    size = float(total.detach())
    if not math.isfinite(size):
        raise TrainingError(f"the loss is not finite: {_listed(terms)}")
    scaler.scale(total).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    limit = clip_grad_norm if clip_grad_norm is not None else math.inf
    norm = float(clip_grad_norm_(network.parameters(), limit))
    lost = scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE
    if not math.isfinite(norm) and (not scaler.is_enabled() or lost):
        raise TrainingError(f"the gradients are not finite at loss {size:.6g}: {_listed(terms)}")
    scaler.step(optimizer)
    if balance is not None and math.isfinite(norm):
        scaler.step(balance.optimizer)
        balance.weights.hold()
    scaler.update()
    if opponent is not None and logits is not None:
        terms["critic"] = learn(opponent, logits, batch)
    return StepResult(size, terms, norm)


def new_average(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all floating-point weights, to be updated by `update_average`."""
    return {name: tensor.detach().clone() for name, tensor in _weights(network)}


def update_average(average: Mapping[str, Tensor], network: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards the weights after `step` (0, 1, ...).

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the first random weights are soon forgotten.
    """
    keep = min(decay, (1 + step) / (10 + step))
    weights = dict(_weights(network))
    torch._foreach_lerp_(list(average.values()), [weights[name].detach() for name in average], 1 - keep)


@contextmanager
def averaged(network: nn.Module, average: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within the block the network holds the averaged weights; afterwards its own again, bit for bit."""
    if average is None:
        yield
        return
    _swap(network, average)
    try:
        yield
    finally:
        _swap(network, average)


def validate(
    network: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    labels: Labels,
    precision: Precision,
    *,
    landmarks: Sequence[str] = (),
) -> dict[str, float]:
    """Mean loss, Dice per class of the voxels of all batches together, and mean distance in mm per landmark.

    NaN for a class or landmark that never occurs. Tasks without classes have no Dice, those without landmarks no
    distance, which is in pixels where scans state no spacing.
    """
    network.eval()
    total, seen = 0.0, 0
    counts = torch.zeros(3, len(labels.items), dtype=torch.int64)
    errors = [torch.zeros(0, len(landmarks))]
    with torch.inference_mode():
        for batch in batches:
            output = run(network, batch.image, batch.raters, precision).as_float32()
            total += float(loss(output, batch).total)
            if labels.items:
                counts += overlaps(output.logits[0], batch.target).cpu()
            if landmarks:
                errors.append(distances_mm(output, batch).cpu())
            seen += 1
    dice = [_dice(*row) for row in counts.T.tolist()]
    radial = torch.cat(errors).nanmean(0).tolist()
    found = {**_with_mean("dice", labels.names(), dice), **_with_mean("radial_error_mm", landmarks, radial)}
    return {"val_loss": total / max(seen, 1), **found}


def distances_mm(output: NetworkOutput, batch: Batch) -> Tensor:
    """How far found points lie from the true ones, (b, n); NaN where a point is unknown."""
    if output.points is None or batch.points is None:
        raise TrainingError("there are no landmarks to compare", hint="give the plan a head that finds landmarks")
    steps = output.points.new_tensor(batch.spacing or (1.0,) * output.points.shape[2])
    far: Tensor = torch.linalg.vector_norm((output.points - batch.points) * steps, dim=2)
    return far


def overlaps(logits: Tensor, target: Tensor) -> Tensor:
    """Voxels in both, in prediction and in reference, as (3, classes) int64; ignored voxels count nowhere."""
    if logits.shape[1] == target.shape[1]:
        kept = target >= 0
        predicted, true = (logits > 0) & kept, target == 1
        dims = [0, *range(2, logits.ndim)]
        return torch.stack([(predicted & true).sum(dims), predicted.sum(dims), true.sum(dims)])
    classes = logits.shape[1]
    true = target[:, 0].flatten()
    predicted = logits.argmax(1).flatten()
    pairs = (true * classes + predicted)[true >= 0]
    table = torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return torch.stack([table.diagonal(), table.sum(0), table.sum(1)])[:, 1:]


def _dice(both: int, predicted: int, true: int) -> float:
    return 2 * both / (predicted + true) if predicted + true else math.nan


def _with_mean(kind: str, names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The mean of the values that are known, and each by name; nothing without names."""
    known = [value for value in values if not math.isnan(value)]
    mean = sum(known) / len(known) if known else math.nan
    each = {f"{kind} {name}": value for name, value in zip(names, values, strict=True)}
    return {kind: mean, **each} if names else {}


def _weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, t) for name, t in network.state_dict(keep_vars=True).items() if t.is_floating_point())


def _swap(network: nn.Module, average: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in _weights(network):
            own = weight.clone()
            weight.copy_(average[name])
            average[name].copy_(own)


def _listed(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in terms.items()) or "no terms"
