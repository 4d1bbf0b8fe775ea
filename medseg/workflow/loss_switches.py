"""Terms of a plan's loss that fight each other; see `switches.py`."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.types.plan import LossTerm, Plan


@dataclass(frozen=True)
class Fight:
    """What fights, in which field, and what to do."""

    where: str
    what: str
    hint: str


Rule = Callable[[Plan], Iterator[Fight]]


def focal_and_class_weights(plan: Plan) -> Iterator[Fight]:
    """Focal's alpha and weights of classes both answer that classes are of unequal size."""
    if _weighs_classes(plan) and any(_option(term, "alpha") is not None for term in _terms(plan, "focal")):
        what = "focal's alpha and class weights would both weigh the classes"
        yield Fight("training.losses", what, 'give focal the option "alpha": null, or leave the class weights out')


def ohem_and_focal(plan: Plan) -> Iterator[Fight]:
    """Both pick hard voxels."""
    if _terms(plan, "ohem") and _terms(plan, "focal"):
        yield Fight("training.losses", "ohem and focal would both pick the hard voxels", "keep one of them")


def ohem_and_pixel_weights(plan: Plan) -> Iterator[Fight]:
    """OHEM drops what pixel weights stress."""
    if _terms(plan, "ohem") and _terms(plan, "pixel_cross_entropy"):
        what = "ohem and pixel_cross_entropy would both say which voxels are hard, one by loss and one by place"
        yield Fight("training.losses", what, "keep one of them")


def gaps_without_classes(plan: Plan) -> Iterator[Fight]:
    """Weights of what lies between classes where there is one, or where they overlap."""
    values = [value for item in plan.labels.items for value in item.values]
    one, overlap = len(plan.labels.items) < 2, len(set(values)) < len(values)
    if (one or overlap) and any(_option(term, "place") == "gaps" for term in _terms(plan, _PIXELS)):
        why = "the plan has one: it would be cross_entropy" if one else "there is none where regions overlap"
        what = f"pixel_cross_entropy stresses gaps between classes, and {why}"
        yield Fight("training.losses", what, 'give it "place": "edges", or use cross_entropy')


def ohem_that_keeps_all(plan: Plan) -> Iterator[Fight]:
    """The least number kept is all there is."""
    z, y, x = plan.sampling.patch
    voxels = z * y * x * (len(plan.labels.items) if plan.labels.are_regions() else 1)
    for term in _terms(plan, "ohem"):
        least = _option(term, "min_kept")
        if isinstance(least, int) and least >= voxels:
            what = f"ohem keeps at least {least} voxels, and the patch has {voxels}: it would pick none"
            yield Fight("training.losses", what, f"set min_kept to about {voxels // 50}, or use cross_entropy")


def shares_of_nothing(plan: Plan) -> Iterator[Fight]:
    """A part of a term that counts less than nothing, and a term whose parts all count nothing."""
    for number, term in enumerate(plan.training.losses):
        shares = {name: share for name in _SHARES if (share := _option(term, name)) is not None and _builtin(term)}
        below = {name: share for name, share in shares.items() if share < 0}
        if below or (len(shares) > 1 and not any(shares.values())):
            given = ", ".join(f"{name} {share:g}" for name, share in (below or shares).items())
            what = f"{term.use} with {given} " + (
                "would grow what it should make small" if below else "teaches nothing"
            )
            yield Fight(f"training.losses[{number}].options", what, "give 0 or more, and one part more than 0")


def overlap_twice(plan: Plan) -> Iterator[Fight]:
    """Two terms that measure the overlap of the same classes."""
    names = [term.use for term in plan.training.losses if _measures(term, _OVERLAP, "dice_weight")]
    if len(names) > 1:
        hint = "keep one of them, and give it the sum of the weights"
        yield Fight("training.losses", f"{' and '.join(names)} would count the overlap twice", hint)


def edges_twice(plan: Plan) -> Iterator[Fight]:
    """Two terms that compare the same edges."""
    if _terms(plan, "gg_net") and _terms(plan, "boundary"):
        what = "gg_net holds the edges that boundary would count again"
        yield Fight("training.losses", what, "keep gg_net, whose option edge_weight is the weight of its edges")


def cross_entropy_twice(plan: Plan) -> Iterator[Fight]:
    """Two terms that average the cross-entropy of all voxels."""
    names = [term.use for term in plan.training.losses if _measures(term, _ENTROPY, *_ENTROPY_SHARES)]
    if len(names) > 1:
        hint = 'keep one of them; "dice_ce" with "ce_weight": 0 is Dice alone, and all take class weights'
        yield Fight("training.losses", f"{' and '.join(names)} would count cross-entropy twice", hint)


def hard_voxels_beside_all(plan: Plan) -> Iterator[Fight]:
    """Hard voxels are picked, and the cross-entropy of all of them counts as well."""
    picked = _terms(plan, "ohem", "focal")
    whole = [term.use for term in plan.training.losses if _measures(term, _ENTROPY, *_ENTROPY_SHARES)]
    if picked and whole:
        what = f"{picked[0].use} stresses hard voxels, and {whole[0]} counts the cross-entropy of all beside it"
        yield Fight(
            "training.losses", what, 'give dice_ce "ce_weight": 0, or leave the other out, unless both are meant'
        )


def overlap_alone(plan: Plan) -> Iterator[Fight]:
    """Dice or its kin without a loss of every voxel beside it."""
    overlap = [term.use for term in plan.training.losses if _measures(term, _OVERLAP, "dice_weight")]
    voxels = _terms(plan, "ohem", "focal")
    voxels = voxels or [term for term in plan.training.losses if _measures(term, _ENTROPY, *_ENTROPY_SHARES)]
    if overlap and not voxels and all(_builtin(term) for term in plan.training.losses):
        what = f"{overlap[0]} alone has noisy gradients, and a curve that is hard to read"
        yield Fight("training.losses", what, "put cross_entropy beside it, as dice_ce does")


def class_weights_that_do_not_fit(plan: Plan) -> Iterator[Fight]:
    """A list with an entry per class of another length."""
    outputs = plan.labels.outputs()
    for number, term in enumerate(plan.training.losses):
        for name in ("weights", "alpha"):
            values = _option(term, name)
            if isinstance(values, list) and _builtin(term) and len(values) != outputs:
                order = "one per region" if plan.labels.are_regions() else "background first, then one per class"
                where = f"training.losses[{number}].options.{name}"
                yield Fight(where, f"{len(values)} numbers for {outputs} outputs", f"give {outputs}: {order}")


def classes_that_do_not_exist(plan: Plan) -> Iterator[Fight]:
    """Centre lines of labels that the plan has not."""
    known = len(plan.labels.items)
    for number, term in enumerate(plan.training.losses):
        chosen = _option(term, "classes") if term.use == "cldice" else None
        bad = [c for c in chosen if c not in range(1, known + 1)] if isinstance(chosen, list) else []
        if bad or chosen == []:
            what = f"cldice of labels {bad}, and the plan has {known}" if bad else "cldice of no label"
            names = ", ".join(f"{i} {name}" for i, name in enumerate(plan.labels.names(), 1))
            yield Fight(f"training.losses[{number}].options.classes", what, f"labels are {names or 'none'}")


def one_term_to_weigh(plan: Plan) -> Iterator[Fight]:
    """Learnt weights of terms where there is nothing to weigh against."""
    from medseg.losses.build import errors_of

    if plan.training.weighting == "uncertainty" and len(errors_of(plan.training.losses)) < 2:
        what = "weights of loss terms are to be learnt, and there is one term"
        yield Fight("training.weighting", what, 'use "fixed", or add a term')


def faded_term_that_is_weighed_up(plan: Plan) -> Iterator[Fight]:
    """A term that is to fade, beside weights that make small terms count."""
    for number, term in enumerate(plan.training.losses):
        fades = term.use == "object_boundary" and (_option(term, "decay") or 0) > 0
        if fades and plan.training.weighting == "uncertainty":
            what = "the loss object_boundary is to fade by its decay, and learnt weights make up for it"
            yield Fight(f"training.losses[{number}].options.decay", what, 'leave decay out, or use weighting "fixed"')


LOSS_FIGHTS: tuple[Rule, ...] = (
    focal_and_class_weights,
    ohem_and_focal,
    ohem_and_pixel_weights,
    gaps_without_classes,
    ohem_that_keeps_all,
    shares_of_nothing,
    overlap_twice,
    edges_twice,
    cross_entropy_twice,
    class_weights_that_do_not_fit,
    classes_that_do_not_exist,
    one_term_to_weigh,
    faded_term_that_is_weighed_up,
)

_PIXELS = "pixel_cross_entropy"
_OVERLAP = ("dice_ce", "dice", "generalised_dice", "tversky", "focal_tversky", "bce_batch_dice", "distillation")
_ENTROPY_SHARES = ("ce_weight", "bce_weight")
_SHARES = ("dice_weight", *_ENTROPY_SHARES, "edge_weight")
_ENTROPY = (
    "dice_ce",
    "cross_entropy",
    "weighted_cross_entropy",
    "pixel_cross_entropy",
    "bce_batch_dice",
    "distillation",
)


def resolved(options: Mapping[str, Any], function: Callable[..., Any] | None, name: str) -> Any:
    """An option as the function will get it: the plan's, or the default; None where there is none."""
    if name in options or function is None:
        return options.get(name)
    known = inspect.signature(function).parameters.get(name)
    return None if known is None or known.default is known.empty else known.default


def _terms(plan: Plan, *names: str) -> list[LossTerm]:
    return [term for term in plan.training.losses if term.use in names]


def _builtin(term: LossTerm) -> bool:
    return ":" not in term.use


def _measures(term: LossTerm, names: Sequence[str], *shares: str) -> bool:
    teacher_only = term.use == "distillation" and term.options.get("alpha") == 1
    counts = all(term.options.get(share, 1.0) != 0 for share in shares)
    return term.use in names and term.weight != 0 and counts and not teacher_only


def _weighs_classes(plan: Plan) -> bool:
    given = [term for term in _terms(plan, "pixel_cross_entropy") if term.options.get("weights") is not None]
    return bool(given or _terms(plan, "weighted_cross_entropy"))


def _option(term: LossTerm, name: str) -> Any:
    from medseg.losses.build import LOSSES, WHOLE_LOSSES

    return resolved(term.options, {**LOSSES, **WHOLE_LOSSES}.get(term.use), name)
