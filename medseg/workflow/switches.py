"""Switches of a plan that fight each other: one small function per pair, each with the sentence a user reads."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.errors import PlanError
from medseg.types.plan import LossTerm, Plan, Step
from medseg.types.sides import paired_names, side_axis

_LOG = logging.getLogger("medseg")
FEW = 8  # samples per step below which batch statistics are poor


@dataclass(frozen=True)
class Fight:
    """What fights, in which field, and what to do."""

    where: str
    what: str
    hint: str


Rule = Callable[[Plan], Iterator[Fight]]


def refuse_fights(plan: Plan) -> None:
    """Raise PlanError for the first pair of switches that fight."""
    for rule in FIGHTS:
        for fight in rule(plan):
            raise PlanError(fight.what, where=fight.where, hint=fight.hint)


def doubts(plan: Plan) -> tuple[Fight, ...]:
    """What is no error but hardly meant."""
    return tuple(fight for rule in DOUBTS for fight in rule(plan))


def say_doubts(plan: Plan) -> None:
    """Log a warning for each doubt."""
    for doubt in doubts(plan):
        _LOG.warning("%s: %s. %s", doubt.where, doubt.what, doubt.hint)


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


def ohem_that_keeps_all(plan: Plan) -> Iterator[Fight]:
    """The least number kept is all there is."""
    z, y, x = plan.sampling.patch
    voxels = z * y * x * (len(plan.labels.items) if plan.labels.are_regions() else 1)
    for term in _terms(plan, "ohem"):
        least = _option(term, "min_kept")
        if isinstance(least, int) and least >= voxels:
            what = f"ohem keeps at least {least} voxels, and the patch has {voxels}: it would pick none"
            yield Fight("training.losses", what, f"set min_kept to about {voxels // 50}, or use cross_entropy")


def overlap_twice(plan: Plan) -> Iterator[Fight]:
    """Two terms that measure the overlap of the same classes."""
    names = [term.use for term in plan.training.losses if _measures(term, _OVERLAP, "dice_weight")]
    if len(names) > 1:
        hint = "keep one of them, and give it the sum of the weights"
        yield Fight("training.losses", f"{' and '.join(names)} would count the overlap twice", hint)


def cross_entropy_twice(plan: Plan) -> Iterator[Fight]:
    """Two terms that average the cross-entropy of all voxels."""
    names = [term.use for term in plan.training.losses if _measures(term, _ENTROPY, "ce_weight")]
    if len(names) > 1:
        hint = 'keep one of them; "dice_ce" with "ce_weight": 0 is Dice alone, and all take class weights'
        yield Fight("training.losses", f"{' and '.join(names)} would count cross-entropy twice", hint)


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


def losses_without_their_part(plan: Plan) -> Iterator[Fight]:
    """A loss of something that no part of the network returns."""
    parts = {plan.network.use, *(step.use for step in plan.network.heads)}
    if any(":" in part for part in parts):
        return  # code of the user's own may return anything
    for number, term in enumerate(plan.training.losses):
        wanted = _made_by(term)
        if wanted and not wanted & parts:
            what = f"the loss {term.use} needs {' or '.join(sorted(wanted))}, which the network has not"
            yield Fight(f"training.losses[{number}]", what, "add it to network.heads, or leave the loss out")
    if plan.training.adversary is not None and "segmentation" not in parts:
        what = "a critic judges label maps, and the network has no head segmentation"
        yield Fight("training.adversary", what, "leave it out")


def parts_without_their_loss(plan: Plan) -> Iterator[Fight]:
    """A head that nothing would teach."""
    makers = [_made_by(term) for term in plan.training.losses]
    if not all(makers):
        return  # a loss of the user's own may look at anything
    for number, step in enumerate(plan.network.heads):
        if ":" not in step.use and not any(step.use in made_by for made_by in makers):
            hint = "add its loss to training.losses, or leave the head out"
            yield Fight(f"network.heads[{number}]", f"no loss would teach the head {step.use}", hint)


def points_without_names(plan: Plan) -> Iterator[Fight]:
    """A landmark head of another number of points than the plan names."""
    for number, step in enumerate(plan.network.heads):
        points = step.options.get("points")
        if step.use in ("dsnt", "heatmap") and isinstance(points, int) and points != len(plan.landmarks):
            what = f"the head {step.use} finds {points} points, and the plan names {len(plan.landmarks)} landmarks"
            yield Fight(f"network.heads[{number}].options.points", what, "make both the same")


def batch_norm_of_one_sample(plan: Plan) -> Iterator[Fight]:
    """Batch norm learns with the statistics of one scan and predicts with those of all."""
    name = _batch_norm(plan)
    if name and plan.sampling.batch == 1:
        what = f"{name} with a batch of 1 learns with each patch's own statistics and predicts with those of all"
        yield Fight("sampling.batch", what, 'use "norm": "instance", or a batch of 8 or more')


def batch_norm_of_few_samples(plan: Plan) -> Iterator[Fight]:
    """Batch norm whose statistics are noisy."""
    name = _batch_norm(plan)
    if name and 1 < plan.sampling.batch < FEW:
        what = f"{name} with a batch of {plan.sampling.batch} has noisy statistics"
        yield Fight("sampling.batch", what, f'"norm": "instance" does not depend on the batch; {FEW} would do')


def repvgg_without_its_norm(plan: Plan) -> Iterator[Fight]:
    """RepVGG blocks have batch norm whatever the option says."""
    norm = plan.network.options.get("norm")
    if plan.network.options.get("encoder") == "repvgg" and norm not in (None, "batch"):
        what = f'the encoder repvgg has batch norm, since branches with norm "{norm}" cannot be fused into one'
        yield Fight("network.options.norm", what, f'it is "{norm}" in the decoder only; say "batch" for both')


def deep_supervision_of_one_scale(plan: Plan) -> Iterator[Fight]:
    """A decoder with nothing below its finest scale."""
    if plan.training.deep_supervision and len(plan.network.topology.channels) < 3:
        what = "deep supervision finds no coarser scale: a network of two stages has one decoder scale"
        yield Fight("training.deep_supervision", what, "nothing is lost; add a stage if it is wanted")


def mirrored_sides(plan: Plan) -> Iterator[Fight]:
    """Mirroring between left and right without exchanging the names that say so."""
    axis = side_axis(plan.preprocess.orientation) if plan.network.topology.ndim == 3 else None
    pairs = {*paired_names(plan.labels.names()).pairs, *paired_names(plan.landmarks).pairs}
    if axis is None or not pairs:
        return
    left, right = sorted(pairs)[0]
    what = f"mirroring {'zyx'[axis]} makes {left} of {right}, and they are not exchanged"
    for number, step in enumerate(plan.training.augment):
        axes = step.options.get("axes", [0, 1, 2])
        if step.use == "mirror" and isinstance(axes, list) and axis in axes and not _exchanges(step, axis):
            hint = f"leave {axis} out of its axes, or give swap_axis with swap_values or swap_points"
            yield Fight(f"training.augment[{number}].options", what, hint)
    inference = plan.inference
    known = {frozenset(pair) for pair in (*inference.swap_labels, *inference.swap_points)}
    missing = [pair for pair in pairs if frozenset(pair) not in known]
    if axis in inference.mirror_axes and (inference.swap_axis != axis or missing):
        hint = f"leave {axis} out of mirror_axes, or give swap_axis with swap_labels and swap_points"
        yield Fight("inference.mirror_axes", what, hint)


FIGHTS: tuple[Rule, ...] = (
    focal_and_class_weights,
    ohem_and_focal,
    ohem_and_pixel_weights,
    ohem_that_keeps_all,
    overlap_twice,
    cross_entropy_twice,
    class_weights_that_do_not_fit,
    classes_that_do_not_exist,
    losses_without_their_part,
    parts_without_their_loss,
    points_without_names,
    batch_norm_of_one_sample,
    mirrored_sides,
)
DOUBTS: tuple[Rule, ...] = (batch_norm_of_few_samples, repvgg_without_its_norm, deep_supervision_of_one_scale)

_OVERLAP = ("dice_ce", "dice", "generalised_dice", "tversky", "focal_tversky", "bce_batch_dice", "distillation")
_ENTROPY = (
    "dice_ce",
    "cross_entropy",
    "weighted_cross_entropy",
    "pixel_cross_entropy",
    "bce_batch_dice",
    "distillation",
)
# What makes the output that a loss of the whole output looks at: heads, or backbones that return more than features.
_MAKERS: Mapping[str, frozenset[str]] = {
    "dsnt": frozenset({"dsnt"}),
    "heatmap": frozenset({"heatmap"}),
    "distance": frozenset({"distance"}),
    "boundary": frozenset({"boundary", "gg_net"}),
    "gg_net": frozenset({"boundary", "gg_net"}),
    "side": frozenset({"cascade"}),
    "object_boundary": frozenset({"object_boundary"}),
}


def _made_by(term: LossTerm) -> frozenset[str]:
    from medseg.losses.build import LOSSES

    return frozenset({"segmentation"}) if term.use in LOSSES else _MAKERS.get(term.use, frozenset())


def _terms(plan: Plan, *names: str) -> list[LossTerm]:
    return [term for term in plan.training.losses if term.use in names]


def _builtin(term: LossTerm) -> bool:
    return ":" not in term.use


def _measures(term: LossTerm, names: Sequence[str], share: str) -> bool:
    teacher_only = term.use == "distillation" and term.options.get("alpha") == 1
    return term.use in names and term.weight != 0 and term.options.get(share, 1.0) != 0 and not teacher_only


def _weighs_classes(plan: Plan) -> bool:
    given = [term for term in _terms(plan, "pixel_cross_entropy") if term.options.get("weights") is not None]
    return bool(given or _terms(plan, "weighted_cross_entropy"))


def _option(term: LossTerm, name: str) -> Any:
    """An option as the loss will get it: the plan's, or the default."""
    from medseg.losses.build import LOSSES, WHOLE_LOSSES

    return _resolved(term.options, {**LOSSES, **WHOLE_LOSSES}.get(term.use), name)


def _resolved(options: Mapping[str, Any], function: Callable[..., Any] | None, name: str) -> Any:
    if name in options or function is None:
        return options.get(name)
    known = inspect.signature(function).parameters.get(name)
    return None if known is None or known.default is known.empty else known.default


def _batch_norm(plan: Plan) -> str | None:
    """What of the network looks at the whole batch, in words."""
    from medseg.networks.build import BACKBONES

    network = plan.network
    if network.options.get("encoder") == "repvgg":
        return "the encoder repvgg, which has batch norm,"
    norm = _resolved(network.options, BACKBONES.get(network.use), "norm")
    return {"batch": "batch norm", "switchable": "switchable norm"}.get(str(norm))


def _exchanges(step: Step, axis: int) -> bool:
    swaps = step.options.get("swap_values") or step.options.get("swap_points")
    return step.options.get("swap_axis") == axis and bool(swaps)
