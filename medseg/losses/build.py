"""The table of losses and the weighted sum of a plan, over all decoder scales."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import cross_entropy, dice, dice_ce
from medseg.plugins import resolve
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput

LOSSES: Mapping[str, Callable[..., Tensor]] = {"dice_ce": dice_ce, "dice": dice, "cross_entropy": cross_entropy}


@dataclass(frozen=True, eq=False)
class LossValue:
    """The scalar to minimise, and each term before its weight (detached), by name."""

    total: Tensor
    terms: Mapping[str, Tensor]


Loss = Callable[[NetworkOutput, Batch], LossValue]


def build_loss(terms: Sequence[LossTerm], *, where: str = "training.losses") -> Loss:
    """The weighted sum of `terms`, each at every decoder scale with the target brought to that scale.

    A term is a function `(output, batch, *, options) -> Tensor` that sees one scale: `output.logits[0]` and
    `batch.target` have one size. Scales weigh 1, 1/2, 1/4 ...; where there are several the lowest weighs 0; the
    weights sum to 1 (Isensee 2021). Raises PlanError for unknown names and options.
    """
    if not terms:
        raise PlanError("there is no loss", where=where, hint="give at least one term")
    parts = [
        (name, term.weight, resolve(term.use, LOSSES, term.options, where=where))
        for name, term in zip(_names(terms), terms, strict=True)
    ]

    def loss(output: NetworkOutput, batch: Batch) -> LossValue:
        total = output.logits[0].new_zeros((), dtype=torch.float32)
        values = {name: total for name, _, _ in parts}
        for share, logits in zip(scale_weights(len(output.logits)), output.logits, strict=True):
            if share == 0:
                continue
            one = NetworkOutput((logits,)), at_scale(batch, logits.shape[2:])
            for name, weight, term in parts:
                with torch.autocast(logits.device.type, enabled=False):
                    value = term(*one)
                total = total + share * weight * value
                values[name] = values[name] + share * value.detach()
        return LossValue(total, values)

    return loss


def scale_weights(scales: int) -> tuple[float, ...]:
    """Share of each decoder scale, finest first.

    >>> scale_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    """
    halves = [0.5**i for i in range(scales)]
    if scales > 1:
        halves[-1] = 0.0
    return tuple(half / sum(halves) for half in halves)


def at_scale(batch: Batch, size: Sequence[int]) -> Batch:
    """The batch with its target (not its image) at another size: the nearest voxel's value."""
    target = batch.target
    for axis, new in enumerate(size, start=2):
        old = target.shape[axis]
        if old != new:
            centres = (torch.arange(new, device=target.device) + 0.5) * (old / new)
            target = target.index_select(axis, centres.long())
    return Batch(batch.image, target)


def _names(terms: Sequence[LossTerm]) -> list[str]:
    """A name per term, numbered where one is used twice."""
    short = [term.use.rsplit(":", 1)[-1] for term in terms]
    return [name if short.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(short)]
