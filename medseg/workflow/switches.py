"""Switches of a plan that fight each other: one small function per pair, each with the sentence a user reads."""

import logging
from collections.abc import Iterator, Mapping

from medseg.errors import PlanError
from medseg.types.plan import LossTerm, Plan
from medseg.workflow.loss_switches import LOSS_FIGHTS, Fight, Rule, hard_voxels_beside_all, overlap_alone, resolved
from medseg.workflow.network_switches import (
    attention_of,
    block_options_without_block,
    boundary_of_one_scale,
    cascade_that_nothing_teaches,
    deep_supervision_of_one_scale,
    raters_without_their_codes,
    style_that_encoders_ignore,
    topology_that_monai_ignores,
    windows_of_landmark_plans,
)
from medseg.workflow.side_switches import mirrored_sides, sides_that_nobody_knows

_LOG = logging.getLogger("medseg")
FEW = 8  # samples per step below which batch statistics are poor


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


def losses_without_their_part(plan: Plan) -> Iterator[Fight]:
    """A loss of something that no part of the network returns."""
    parts = {plan.network.use, *(step.use for step in plan.network.heads)}
    if any(":" in part for part in parts):
        return  # code of the user's own may return anything
    parts |= set(attention_of(plan))
    for number, term in enumerate(plan.training.losses):
        wanted = _made_by(term)
        if wanted and not wanted & parts:
            what = f"the loss {term.use} needs {' or '.join(sorted(wanted))}, which the network has not"
            yield Fight(f"training.losses[{number}]", what, "add it to the network, or leave the loss out")
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


def heads_twice(plan: Plan) -> Iterator[Fight]:
    """Two heads that return the same."""
    for group in (("dsnt", "heatmap"), ("segmentation",), ("distance",), ("boundary",)):
        places = [number for number, step in enumerate(plan.network.heads) if step.use in group]
        if len(places) > 1:
            found = "the points" if len(group) > 1 else f"what {group[0]} returns"
            yield Fight(f"network.heads[{places[1]}]", f"two heads would both give {found}", "keep one of them")


def batch_norm_of_one_sample(plan: Plan) -> Iterator[Fight]:
    """Batch norm learns with the statistics of one scan and predicts with those of all."""
    name = _batch_norm(plan)
    if name and plan.sampling.batch == 1:
        what = f"{name} with a batch of 1 learns with each patch's own statistics and predicts with those of all"
        yield Fight("sampling.batch", what, f"{_without_batch(name)}, or use a batch of 8 or more")


def batch_norm_of_few_samples(plan: Plan) -> Iterator[Fight]:
    """Batch norm whose statistics are noisy."""
    name = _batch_norm(plan)
    if name and 1 < plan.sampling.batch < FEW:
        what = f"{name} with a batch of {plan.sampling.batch} has noisy statistics"
        yield Fight("sampling.batch", what, f"{_without_batch(name)}; a batch of {FEW} would do, too")


def repvgg_without_its_norm(plan: Plan) -> Iterator[Fight]:
    """RepVGG blocks have batch norm whatever the option says."""
    from medseg.networks.build import BACKBONES

    norm = resolved(plan.network.options, BACKBONES.get(plan.network.use), "norm")
    if plan.network.options.get("encoder") == "repvgg" and norm not in (None, "batch"):
        what = f'the encoder repvgg has batch norm, since branches with norm "{norm}" cannot be fused into one'
        yield Fight("network.options.norm", what, f'it is "{norm}" in the decoder only; say "batch" for both')


def focus_without_effect(plan: Plan) -> Iterator[Fight]:
    """A sampler that goes by classes where there are none to show."""
    name = plan.sampling.focus.use
    if name in ("dice_driven", "dynamic") and not plan.labels.items:
        what = f"{name} goes by what is known of classes, and the plan has landmarks only"
        yield Fight("sampling.focus", what, "use uniform_classes")
    elif name == "dice_driven" and plan.sampling.foreground_fraction <= 0:
        what = "dice_driven chooses the class of samples that must show one, and foreground_fraction asks for none"
        yield Fight("sampling.focus", what, "set foreground_fraction to 0.33, or use uniform_classes")


def mixing_with_what_needs_hard_labels(plan: Plan) -> Iterator[Fight]:
    """Mixed samples have soft labels, which few losses take, and need one another."""
    from medseg.augment.mixup import MIXING
    from medseg.losses.build import SOFT_LOSSES

    names = [step.use for step in plan.training.augment if step.use in MIXING]
    if names and plan.sampling.batch < 2:
        yield Fight("sampling.batch", f"{names[0]} mixes the samples of a batch, and there is one", "use 2 or more")
    if "sample_pairing" in names and plan.landmarks:
        what = "sample_pairing averages two scans, and the landmarks stay those of one: nothing says which"
        yield Fight("training.augment", what, "leave it out")
    if "mixup" not in names:
        return
    hard = [term.use for term in plan.training.losses if term.use not in SOFT_LOSSES]
    hard += ["the critic"] if plan.training.adversary is not None else []
    hard += [f"the sampler {plan.sampling.focus.use}"] if plan.sampling.focus.use != "uniform_classes" else []
    if hard:
        what = f"mixup makes soft labels, and {', '.join(hard)} cannot learn from them"
        yield Fight("training.augment", what, f"leave mixup out, or use {', '.join(sorted(SOFT_LOSSES))} alone")


FIGHTS: tuple[Rule, ...] = (
    *LOSS_FIGHTS,
    losses_without_their_part,
    parts_without_their_loss,
    points_without_names,
    batch_norm_of_one_sample,
    focus_without_effect,
    block_options_without_block,
    cascade_that_nothing_teaches,
    heads_twice,
    mixing_with_what_needs_hard_labels,
    mirrored_sides,
    raters_without_their_codes,
)
DOUBTS: tuple[Rule, ...] = (
    batch_norm_of_few_samples,
    repvgg_without_its_norm,
    style_that_encoders_ignore,
    deep_supervision_of_one_scale,
    boundary_of_one_scale,
    topology_that_monai_ignores,
    windows_of_landmark_plans,
    hard_voxels_beside_all,
    overlap_alone,
    sides_that_nobody_knows,
)

# What makes the output that a loss of the whole output looks at: heads, or backbones that return more than features.
_MAKERS: Mapping[str, frozenset[str]] = {
    "dsnt": frozenset({"dsnt"}),
    "heatmap": frozenset({"heatmap"}),
    "distance": frozenset({"distance"}),
    "boundary": frozenset({"boundary"}),
    "gg_net": frozenset({"boundary"}),
    "side": frozenset({"cascade"}),
    "object_boundary": frozenset({"object_boundary"}),
    "rater_prior": frozenset({"rater_code"}),
}


def _made_by(term: LossTerm) -> frozenset[str]:
    from medseg.losses.build import LOSSES

    return frozenset({"segmentation"}) if term.use in LOSSES else _MAKERS.get(term.use, frozenset())


def _without_batch(name: str) -> str:
    """What to write instead of it."""
    if name == "switchable norm":
        return '"norm": "switchable_no_bn" leaves the statistics of the batch out'
    return "leave the encoder out" if "encoder" in name else '"norm": "instance" does not depend on the batch'


def _batch_norm(plan: Plan) -> str | None:
    """What of the network looks at the whole batch, in words."""
    from medseg.networks.build import BACKBONES

    network = plan.network
    if network.options.get("encoder") == "repvgg":
        return "the encoder repvgg, which has batch norm,"
    norm = resolved(network.options, BACKBONES.get(network.use), "norm")
    return {"batch": "batch norm", "switchable": "switchable norm"}.get(str(norm))
