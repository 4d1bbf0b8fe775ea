"""The table of losses and the weighted sum of a plan, over all decoder scales."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses import landmarks
from medseg.losses.boundary import boundary, gg_net
from medseg.losses.cldice import cldice
from medseg.losses.cross_entropy import pixel_cross_entropy, weighted_cross_entropy
from medseg.losses.dice import cross_entropy, dice, dice_ce
from medseg.losses.distance import distance
from medseg.losses.distillation import distil
from medseg.losses.focal import focal
from medseg.losses.ohem import ohem
from medseg.losses.overlap import focal_tversky, generalised_dice, tversky
from medseg.losses.rater_prior import rater_prior
from medseg.losses.scales import at_scale, scale_weights
from medseg.losses.sides import object_boundary, side
from medseg.losses.stage_wise import bce_batch_dice
from medseg.losses.term_weights import TermWeights
from medseg.plugins import resolve
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput

# Terms of one decoder scale.
LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "dice_ce": dice_ce,
    "dice": dice,
    "cross_entropy": cross_entropy,
    "weighted_cross_entropy": weighted_cross_entropy,
    "pixel_cross_entropy": pixel_cross_entropy,
    "focal": focal,
    "ohem": ohem,
    "generalised_dice": generalised_dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "cldice": cldice,
    "bce_batch_dice": bce_batch_dice,
    "distillation": distil,
}
# Of those, the ones that learn from the soft labels of mixed samples.
SOFT_LOSSES = frozenset({"dice_ce", "dice", "cross_entropy", "generalised_dice", "tversky", "focal_tversky"})
# Terms of the whole output: of heads other than segmentation.
WHOLE_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "dsnt": landmarks.dsnt,
    "heatmap": landmarks.heatmap,
    "distance": distance,
    "side": side,
    "object_boundary": object_boundary,
    "gg_net": gg_net,
    "boundary": boundary,
    "rater_prior": rater_prior,
}
# Of those, the ones that are no measure of an error: weights that are learnt leave them alone.
PRIORS = frozenset({"rater_prior"})


@dataclass(frozen=True, eq=False)
class LossValue:
    """The scalar to minimise, and each term before its weight (detached), by name."""

    total: Tensor
    terms: Mapping[str, Tensor]


Loss = Callable[[NetworkOutput, Batch], LossValue]


def build_loss(terms: Sequence[LossTerm], *, where: str = "training.losses", learnt: TermWeights | None = None) -> Loss:
    """The weighted sum of `terms`; `learnt` weighs each of `errors_of(terms)` once more.

    A term is a function `(output, batch, *, options) -> Tensor`. Those in LOSSES, and terms of the user's own, see one
    decoder scale at a time: `output.logits[0]` and `batch.target` have one size, and `batch.spacing` is that scale's.
    A function of the user's own with an attribute `whole_output` that is true is called as those in WHOLE_LOSSES are.
    Scales weigh 1, 1/2, 1/4 ...; where there are several the lowest weighs 0; the weights sum to 1 (Isensee 2021). A
    backbone with `scale_weights` says itself how much each counts beside the others.
    Those in WHOLE_LOSSES are called once, with everything. "dice_ce" is told as the two terms it is. Where a batch has
    weights, all is done sample by sample and the weighted values are averaged. Raises PlanError for unknown names and
    options, and when called for a term of logits without logits.
    """
    if not terms:
        raise PlanError("there is no loss", where=where, hint="give at least one term")
    tables = {**LOSSES, **WHOLE_LOSSES}
    for term in terms:
        resolve(term.use, tables, term.options, where=where)
    apart = [(number, part) for number, term in enumerate(terms) for part in _apart(term)]
    parts = []
    for name, (number, term) in zip(term_names([part for _, part in apart]), apart, strict=True):
        bound = resolve(term.use, tables, term.options, where=where)
        whole = term.use in WHOLE_LOSSES or _sees_all(bound)
        parts.append(_Part(name, number, term.weight, bound, whole, term.use in PRIORS))

    def loss(output: NetworkOutput, batch: Batch) -> LossValue:
        if batch.weight is not None:
            return _weighted(loss, output, batch, batch.weight)
        if not output.logits and not all(part.whole for part in parts):
            raise PlanError("a loss of labels without the head segmentation", where=where, hint="leave one of them out")
        seen = _scales(output, batch)
        values = [part.value(((1.0, output, batch),) if part.whole else seen) for part in parts]
        weighed = [part.weight * value for part, value in zip(parts, values, strict=True)]
        total = torch.stack(weighed).sum() if learnt is None else _balanced(parts, weighed, learnt)
        return LossValue(total, {part.name: value.detach() for part, value in zip(parts, values, strict=True)})

    return loss


def _weighted(loss: Loss, output: NetworkOutput, batch: Batch, weight: Tensor) -> LossValue:
    """The mean over samples of weight * loss of the sample alone; terms likewise."""
    values = [loss(output.sample(i), batch.sample(i)) for i in range(len(weight))]
    total = (weight * torch.stack([value.total for value in values])).mean()
    names = values[0].terms
    return LossValue(total, {n: (weight * torch.stack([value.terms[n] for value in values])).mean() for n in names})


_Seen = Sequence[tuple[float, NetworkOutput, Batch]]


def _scales(output: NetworkOutput, batch: Batch) -> _Seen:
    """Share, logits and target of every decoder scale that counts."""
    shares = zip(scale_weights(len(output.logits), output.scale_weights), output.logits, strict=True)
    return [
        (share, replace(output, logits=(logits,)), at_scale(batch, logits.shape[2:]))
        for share, logits in shares
        if share > 0
    ]


@dataclass(frozen=True)
class _Part:
    """One term, or a part of the plan's term `number`."""

    name: str
    number: int
    weight: float
    term: Callable[..., Tensor]
    whole: bool
    is_prior: bool

    def value(self, seen: _Seen) -> Tensor:
        """The term in float32, before its weight, over all that it sees."""
        with torch.autocast(seen[0][2].image.device.type, enabled=False):
            return torch.stack([share * self.term(output, batch) for share, output, batch in seen]).sum()


def _apart(term: LossTerm) -> list[LossTerm]:
    """ "dice_ce" as Dice and cross-entropy, whose curves are read apart: Dice alone says little of convergence."""
    if term.use != "dice_ce":
        return [term]
    options = dict(term.options)
    shares = options.pop("dice_weight", 1.0), options.pop("ce_weight", 1.0)
    options_of = {"dice": options, "cross_entropy": {}}
    parts = [
        LossTerm(term.weight * share, use, options_of[use])
        for share, use in zip(shares, options_of, strict=True)
        if isinstance(share, (int, float)) and share != 0
    ]
    return parts or [term]


def errors_of(terms: Sequence[LossTerm]) -> list[LossTerm]:
    """The terms that measure an error, in order."""
    return [term for term in terms if term.use not in PRIORS]


def _balanced(parts: Sequence[_Part], values: Sequence[Tensor], learnt: TermWeights) -> Tensor:
    """The sum by learnt weights of the plan's terms, whose parts follow one another, and what is not weighed."""
    errors: dict[int, Tensor] = {}
    rest: list[Tensor] = []
    for part, value in zip(parts, values, strict=True):
        if part.is_prior:
            rest.append(value)
        else:
            errors[part.number] = errors[part.number] + value if part.number in errors else value
    return torch.stack([learnt(list(errors.values())), *rest]).sum()


def _sees_all(term: Callable[..., Tensor]) -> bool:
    """Whether a function of the user's own asks for the whole output."""
    return bool(getattr(getattr(term, "func", term), "whole_output", False))


def term_names(terms: Sequence[LossTerm]) -> list[str]:
    """A name per term, numbered where one is used twice."""
    short = [term.use.rsplit(":", 1)[-1] for term in terms]
    return [name if short.count(name) == 1 else f"{name}_{short[:i].count(name)}" for i, name in enumerate(short)]
