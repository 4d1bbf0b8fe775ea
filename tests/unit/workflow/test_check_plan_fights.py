"""Every pair of switches that fight is refused with its sentence, and each of them alone is not."""

from dataclasses import replace

import pytest
from tiny_run import tiny_plan

from medseg.errors import PlanError
from medseg.losses.build import WHOLE_LOSSES
from medseg.types.labels import Label, Labels
from medseg.types.plan import Adversary, Inference, LossTerm, Plan, Step
from medseg.workflow.check_plan import check_plan
from medseg.workflow.switches import DOUBTS, FIGHTS, doubts

RULES = {rule.__name__: rule for rule in (*FIGHTS, *DOUBTS)}
KIDNEYS = Labels((Label("kidney_left", (1,)), Label("kidney_right", (2,)), Label("liver", (3,))))
REGIONS = Labels((Label("whole", (1, 2)), Label("core", (2,))))
DICE = LossTerm(1.0, "dice")


def losses(*terms: str | LossTerm) -> Plan:
    return tiny_plan(losses=tuple(LossTerm(1.0, term) if isinstance(term, str) else term for term in terms))


def term(use: str, **options: object) -> LossTerm:
    return LossTerm(1.0, use, options)  # type: ignore[arg-type]


def network(*heads: Step, **changes: object) -> Plan:
    """With other heads; `changes` are of the plan, or `use`, `options` and `losses`."""
    plan = tiny_plan(
        losses=changes.pop("losses", (LossTerm(1.0, "dice_ce"),)), adversary=changes.pop("adversary", None)
    )
    built = replace(
        plan.network,
        use=changes.pop("use", "unet"),
        options=changes.pop("options", {}),
        heads=heads or plan.network.heads,
    )
    return replace(plan, network=built, **changes)  # type: ignore[arg-type]


def coded(raters: int, **training: object) -> Plan:
    """With codes for so many raters, and their names."""
    terms = training.pop("losses", (LossTerm(1.0, "dice_ce"), LossTerm(1.0, "rater_prior")))
    plan = tiny_plan(losses=terms, **training)
    options = {"attention": "se+rater_code", "rater_code_raters": raters}
    return replace(plan, network=replace(plan.network, options=options), raters=("A", "B", "C")[:raters])


def batch(size: int, **options: object) -> Plan:
    plan = network(options=options)
    return replace(plan, sampling=replace(plan.sampling, batch=size))


def focused(use: str, *, foreground_fraction: float = 0.33, **changes: object) -> Plan:
    plan = network(DSNT, losses=(LossTerm(1.0, "dsnt"),), landmarks=LANDMARKS) if changes else tiny_plan()
    sampling = replace(plan.sampling, focus=Step(use), foreground_fraction=foreground_fraction)
    return replace(plan, sampling=sampling, **changes)  # type: ignore[arg-type]


def mixing(
    *terms: LossTerm, samples: int = 2, focus: str = "uniform_classes", adversary: Adversary | None = None
) -> Plan:
    plan = tiny_plan(augment=(Step("mixup"),), losses=terms or (LossTerm(1.0, "dice_ce"),), adversary=adversary)
    return replace(plan, sampling=replace(plan.sampling, batch=samples, focus=Step(focus)))


def mirrored(*steps: Step, orientation: str = "LPS", inference: Inference | None = None) -> Plan:
    plan = tiny_plan(labels=KIDNEYS, augment=steps)
    changed = replace(plan, preprocess=replace(plan.preprocess, orientation=orientation))
    return changed if inference is None else replace(changed, inference=inference)


def flat(*steps: Step) -> Plan:
    """Slices of volumes."""
    return replace(tiny_plan(ndim=2, labels=KIDNEYS, augment=steps), preprocess=mirrored().preprocess)


def joint(*steps: Step, inference: Inference | None = None, points: tuple[str, ...] = ("tmj_l", "tmj_r")) -> Plan:
    """Kidneys and landmarks with sides."""
    heads, losses = (Step("segmentation"), DSNT), (LossTerm(1.0, "dice_ce"), LossTerm(1.0, "dsnt"))
    plan = network(*heads, losses=losses, landmarks=points, labels=KIDNEYS)
    return replace(
        plan, training=replace(plan.training, augment=steps), inference=inference or Inference(mirror_axes=())
    )


def shaped(use: str, channels: tuple[int, ...], *heads: Step, **training: object) -> Plan:
    """A backbone of so many stages."""
    plan = network(*heads, use=use)
    stages = len(channels)
    strides = ((1, 1, 1),) + ((2, 2, 2),) * (stages - 1)
    topology = replace(
        plan.network.topology, channels=channels, strides=strides, kernels=((3, 3, 3),) * stages, blocks=(1,) * stages
    )
    return replace(
        plan,
        network=replace(plan.network, topology=topology),
        training=replace(plan.training, **training),  # type: ignore[arg-type]
    )


ONE = Labels((Label("lesion", (1,)),))
NESTED = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
APART = Labels((Label("femur", (1, 2)), Label("tibia", (3, 4))))
SWAPS = {"swap_axis": 2, "swap_values": [1, 2]}
DSNT = Step("dsnt", {"points": 2})
LANDMARKS = ("a", "b")
# Rule, field, a part of the sentence, plan.
ROWS = [
    ("focal_and_class_weights", "training.losses", "alpha", losses("focal", "weighted_cross_entropy")),
    (
        "focal_and_class_weights",
        "training.losses",
        "weigh the classes",
        losses("focal", term("pixel_cross_entropy", weights=[1.0, 2.0, 3.0])),
    ),
    ("ohem_and_focal", "training.losses", "hard voxels", losses("focal", term("ohem", min_kept=9))),
    (
        "ohem_and_pixel_weights",
        "training.losses",
        "by loss and one by place",
        losses("pixel_cross_entropy", term("ohem", min_kept=9)),
    ),
    ("ohem_that_keeps_all", "training.losses", "4096", losses("ohem")),
    (
        "gaps_without_classes",
        "training.losses",
        "has one",
        tiny_plan(labels=ONE, losses=(DICE, LossTerm(1.0, "pixel_cross_entropy"))),
    ),
    (
        "gaps_without_classes",
        "training.losses",
        "regions overlap",
        tiny_plan(labels=NESTED, losses=(DICE, LossTerm(1.0, "pixel_cross_entropy"))),
    ),
    (
        "block_options_without_block",
        "network.options.se_reduction",
        "does not have",
        network(options={"attention": "cbam", "se_reduction": 4}),
    ),
    (
        "block_options_without_block",
        "network.options.dense_growth",
        "does not have",
        network(options={"attention": "se+aspp", "se_reduction": 4, "aspp_rates": [1, 2], "dense_growth": 3}),
    ),
    ("overlap_twice", "training.losses", "dice_ce and dice ", losses("dice_ce", "dice")),
    ("overlap_twice", "training.losses", "overlap twice", losses("dice_ce", "generalised_dice")),
    ("overlap_twice", "training.losses", "overlap twice", losses("tversky", "dice")),
    ("overlap_twice", "training.losses", "overlap twice", losses("dice_ce", "distillation")),
    (
        "shares_of_nothing",
        "training.losses[1].options",
        "dice_ce with dice_weight 0, ce_weight 0 teaches nothing",
        losses("cldice", term("dice_ce", dice_weight=0, ce_weight=0.0)),
    ),
    (
        "shares_of_nothing",
        "training.losses[0].options",
        "dice_ce with ce_weight -1 would grow what it should make small",
        losses(term("dice_ce", ce_weight=-1.0)),
    ),
    ("cross_entropy_twice", "training.losses", "cross-entropy twice", losses("dice_ce", "cross_entropy")),
    ("cross_entropy_twice", "training.losses", "cross-entropy twice", losses("bce_batch_dice", "cross_entropy")),
    (
        "cross_entropy_twice",
        "training.losses",
        "cross-entropy twice",
        losses(DICE, "weighted_cross_entropy", "pixel_cross_entropy"),
    ),
    (
        "class_weights_that_do_not_fit",
        "training.losses[1].options.weights",
        "2 numbers for 3",
        losses("dice", term("weighted_cross_entropy", weights=[1.0, 2.0])),
    ),
    (
        "class_weights_that_do_not_fit",
        "training.losses[0].options.alpha",
        "3 numbers for 2",
        tiny_plan(labels=REGIONS, losses=(term("focal", alpha=[0.1, 0.2, 0.3]),)),
    ),
    (
        "classes_that_do_not_exist",
        "training.losses[1].options.classes",
        "labels [3]",
        losses("dice_ce", term("cldice", classes=[1, 3])),
    ),
    (
        "classes_that_do_not_exist",
        "training.losses[1].options.classes",
        "no label",
        losses("dice_ce", term("cldice", classes=[])),
    ),
    ("losses_without_their_part", "training.losses[1]", "needs dsnt", losses("dice_ce", "dsnt")),
    ("losses_without_their_part", "training.losses[1]", "needs heatmap", losses("dice_ce", "heatmap")),
    ("losses_without_their_part", "training.losses[1]", "needs distance", losses("dice_ce", "distance")),
    ("losses_without_their_part", "training.losses[1]", "needs boundary", losses("dice_ce", "boundary")),
    ("losses_without_their_part", "training.losses[1]", "needs boundary", losses("dice_ce", "gg_net")),
    ("losses_without_their_part", "training.losses[1]", "needs cascade", losses("dice_ce", "side")),
    ("losses_without_their_part", "training.losses[1]", "needs object_boundary", losses("dice_ce", "object_boundary")),
    (
        "losses_without_their_part",
        "training.losses[0]",
        "needs segmentation",
        network(DSNT, landmarks=LANDMARKS, losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "dsnt"))),
    ),
    (
        "losses_without_their_part",
        "training.adversary",
        "judges label maps",
        network(DSNT, landmarks=LANDMARKS, losses=(LossTerm(1.0, "dsnt"),), adversary=Adversary("consistency")),
    ),
    (
        "parts_without_their_loss",
        "network.heads[1]",
        "teach the head dsnt",
        network(Step("segmentation"), DSNT, landmarks=LANDMARKS),
    ),
    (
        "points_without_names",
        "network.heads[1].options.points",
        "names 1 landmarks",
        network(Step("segmentation"), DSNT, landmarks=("a",), losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "dsnt"))),
    ),
    ("batch_norm_of_one_sample", "sampling.batch", "batch norm", batch(1, norm="batch")),
    ("batch_norm_of_one_sample", "sampling.batch", "switchable", batch(1, norm="switchable")),
    ("batch_norm_of_one_sample", "sampling.batch", "repvgg", batch(1, encoder="repvgg")),
    (
        "mixing_with_what_needs_hard_labels",
        "training.augment",
        "nothing says which",
        joint(Step("sample_pairing")),
    ),
    ("focus_without_effect", "sampling.focus", "asks for none", focused("dice_driven", foreground_fraction=0.0)),
    (
        "focus_without_effect",
        "sampling.focus",
        "landmarks only",
        focused("dynamic", labels=Labels(()), landmarks=LANDMARKS),
    ),
    (
        "edges_twice",
        "training.losses",
        "count again",
        network(
            Step("segmentation"),
            Step("boundary"),
            losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "gg_net"), LossTerm(1.0, "boundary")),
        ),
    ),
    (
        "heads_twice",
        "network.heads[2]",
        "the points",
        network(
            Step("segmentation"),
            DSNT,
            Step("heatmap", {"points": 2}),
            landmarks=LANDMARKS,
            losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "dsnt"), LossTerm(1.0, "heatmap")),
        ),
    ),
    (
        "cascade_that_nothing_teaches",
        "network.options.stop_gradient",
        "never learn",
        network(use="cascade", options={"stop_gradient": True}),
    ),
    ("heads_twice", "network.heads[1]", "segmentation", network(Step("segmentation"), Step("segmentation"))),
    ("mixing_with_what_needs_hard_labels", "sampling.batch", "there is one", mixing(samples=1)),
    (
        "mixing_with_what_needs_hard_labels",
        "sampling.batch",
        "sample_pairing mixes",
        replace(tiny_plan(augment=(Step("sample_pairing"),)), sampling=batch(1).sampling),
    ),
    (
        "mixing_with_what_needs_hard_labels",
        "training.augment",
        "focal",
        mixing(LossTerm(1.0, "dice"), LossTerm(1.0, "focal")),
    ),
    ("mixing_with_what_needs_hard_labels", "training.augment", "the critic", mixing(adversary=Adversary("segan"))),
    ("mixing_with_what_needs_hard_labels", "training.augment", "the sampler dynamic", mixing(focus="dynamic")),
    ("mirrored_sides", "training.augment[1].options", "kidney_left", mirrored(Step("noise"), Step("mirror"))),
    (
        "mirrored_sides",
        "training.augment[0].options",
        "mirroring z",
        mirrored(Step("mirror", {"axes": [0]}), orientation="PSL"),
    ),
    (
        "mirrored_sides",
        "inference.mirror_axes",
        "not exchanged",
        mirrored(inference=Inference(mirror_axes=(2,))),
    ),
    ("mirrored_sides", "training.augment[0].options", "mirroring x", flat(Step("mirror", {"axes": [1, 2]}))),
    (
        "mirrored_sides",
        "inference.mirror_axes",
        "not exchanged",
        mirrored(orientation="stored", inference=Inference(mirror_axes=(2,), swap_axis=2)),
    ),
    (
        "mirrored_sides",
        "inference.mirror_axes",
        "not exchanged",
        mirrored(inference=Inference(mirror_axes=(1, 2), swap_axis=2, swap_labels=(("liver", "spleen"),))),
    ),
    (
        "mirrored_sides",
        "training.augment[0].options",
        "not exchanged",
        joint(Step("mirror", {"axes": [2], **SWAPS})),
    ),
    (
        "mirrored_sides",
        "training.augment[0].options",
        "not exchanged",
        joint(Step("mirror", {"axes": [2], "swap_axis": 2, "swap_values": [1, 3], "swap_points": [0, 1]})),
    ),
    (
        "mirrored_sides",
        "inference.mirror_axes",
        "not exchanged",
        joint(inference=Inference(mirror_axes=(2,), swap_axis=2, swap_labels=(("kidney_left", "kidney_right"),))),
    ),
    (
        "mirrored_sides",
        "training.augment[0].options",
        "no partner",
        joint(Step("mirror", {"axes": [2], **SWAPS}), points=("tmj_l", "nasion")),
    ),
    (
        "one_term_to_weigh",
        "training.weighting",
        "there is one term",
        tiny_plan(weighting="uncertainty"),
    ),
    (
        "one_term_to_weigh",
        "training.weighting",
        "there is one term",
        replace(coded(2), training=replace(coded(2).training, weighting="uncertainty")),
    ),
    (
        "faded_term_that_is_weighed_up",
        "training.losses[1].options.decay",
        "make up for it",
        network(
            use="object_boundary",
            training=replace(
                tiny_plan().training,
                losses=(LossTerm(1.0, "dice_ce"), term("object_boundary", decay=1.0)),
                weighting="uncertainty",
            ),
        ),
    ),
    ("raters_without_their_codes", "raters", "codes for 0 raters", replace(tiny_plan(), raters=("A",))),
    (
        "raters_without_their_codes",
        "network.options.rater_code_raters",
        "the plan names 1",
        replace(coded(2), raters=("A",)),
    ),
    (
        "raters_without_their_codes",
        "training.augment",
        "two raters",
        coded(2, losses=(LossTerm(1.0, "dice_ce"),), augment=(Step("mixup"),)),
    ),
]


@pytest.mark.parametrize(("rule", "where", "said", "plan"), ROWS)
def test_switches_that_fight_are_refused_with_the_reason(rule: str, where: str, said: str, plan: Plan) -> None:
    fights = list(RULES[rule](plan))
    assert fights and fights[0].where == where and said in fights[0].what and fights[0].hint
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert any(caught.value.what == fight.what for known in FIGHTS for fight in known(plan))


def test_every_loss_of_the_whole_output_is_known_to_need_a_part() -> None:
    for name in WHOLE_LOSSES:
        assert list(RULES["losses_without_their_part"](losses("dice_ce", name))), name


def test_every_rule_has_a_row() -> None:
    assert {rule.__name__ for rule in FIGHTS} == {row[0] for row in ROWS}
    assert {rule.__name__ for rule in DOUBTS} == {row[0] for row in DOUBTFUL}


PEACE = {
    "raters": coded(3),
    "learnt weights beside a prior": coded(
        2, losses=(LossTerm(1.0, "dice"), LossTerm(1.0, "cross_entropy"), LossTerm(1.0, "rater_prior", {"cases": 3}))
    ),
    "plain": tiny_plan(),
    "dice and cross-entropy": losses("dice", "cross_entropy"),
    "dice alone twice named": losses(term("dice_ce", dice_weight=0.0), "tversky"),
    "focal without alpha": losses("dice", term("focal", alpha=None), "weighted_cross_entropy"),
    "focal": losses("dice", "focal"),
    "a teacher without labels": losses("dice_ce", term("distillation", alpha=1)),
    "ohem": losses("dice", term("ohem", min_kept=100)),
    "weights": losses("dice", term("weighted_cross_entropy", weights=[1.0, 2.0, 3.0])),
    "region weights": tiny_plan(labels=REGIONS, losses=(term("focal", alpha=[0.1, 0.2]),)),
    "Dice alone beside cross-entropy": losses(term("bce_batch_dice", bce_weight=0.0), "weighted_cross_entropy"),
    "centre lines": losses("dice_ce", term("cldice", classes=[2])),
    "code of one's own": losses("dice_ce", "statistics:fmean"),
    "a head of one's own": network(Step("segmentation"), Step("statistics:fmean")),
    "landmarks": network(DSNT, landmarks=LANDMARKS, losses=(LossTerm(1.0, "dsnt"),)),
    "both": network(
        Step("segmentation"), DSNT, landmarks=LANDMARKS, losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "dsnt"))
    ),
    "a head without number of points": network(
        Step("segmentation"), Step("distance"), losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "distance"))
    ),
    "batch norm": batch(2, norm="batch"),
    "instance norm": batch(1),
    "focus": focused("dice_driven"),
    "mixing": mixing(),
    "mixing with other soft losses": mixing(LossTerm(1.0, "tversky"), LossTerm(1.0, "cross_entropy")),
    "edges": network(
        Step("segmentation"), Step("boundary"), losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "gg_net"))
    ),
    "focus on cases": focused("dynamic", foreground_fraction=0.0),
    "switchable without batch norm": batch(1, norm="switchable_no_bn"),
    "mirroring another axis": mirrored(Step("mirror", {"axes": [0, 1]}), inference=Inference(mirror_axes=(0, 1))),
    "mirroring with exchange": mirrored(
        Step("mirror", {"axes": [2], **SWAPS}),
        inference=Inference(mirror_axes=(2,), swap_axis=2, swap_labels=(("kidney_left", "kidney_right"),)),
    ),
    "mirroring with all exchanged": joint(
        Step("mirror", {"axes": [2], **SWAPS, "swap_values": [2, 1], "swap_points": [0, 1]}),
        inference=Inference(
            mirror_axes=(2,),
            swap_axis=2,
            swap_labels=(("kidney_right", "kidney_left"),),
            swap_points=(("tmj_l", "tmj_r"),),
        ),
    ),
    "a cascade with its own loss": network(
        use="cascade", options={"stop_gradient": True}, losses=(LossTerm(1.0, "dice_ce"), LossTerm(1.0, "side"))
    ),
    "a cascade with gradients": network(use="cascade"),
    "pairs of samples": tiny_plan(augment=(Step("sample_pairing"),), losses=(DICE, LossTerm(1.0, "focal"))),
    "gaps of two classes": losses(DICE, "pixel_cross_entropy"),
    "gaps of regions apart": tiny_plan(labels=APART, losses=(DICE, LossTerm(1.0, "pixel_cross_entropy"))),
    "edges of one class": tiny_plan(labels=ONE, losses=(DICE, term("pixel_cross_entropy", place="edges"))),
    "options of blocks": network(options={"attention": "se+aspp", "se_reduction": 4, "aspp_rates": [1, 2]}),
    "options of a block that is always there": network(use="mel_net", options={"aspp_rates": [1, 2]}),
    "options of the default encoder": network(use="unet", options={"encoder": "dense", "dense_growth": 4}),
    "sides that nobody knows": mirrored(Step("mirror"), orientation="stored"),
}


@pytest.mark.parametrize("name", PEACE)
def test_switches_that_do_not_fight_are_left_alone(name: str) -> None:
    assert [fight for rule in FIGHTS for fight in rule(PEACE[name])] == []


STYLE = {"norm": "batch", "act": "relu"}
DOUBTFUL = [
    ("batch_norm_of_few_samples", "noisy", batch(2, norm="batch")),
    ("repvgg_without_its_norm", "cannot be fused", batch(2, encoder="repvgg", norm="instance")),
    ("repvgg_without_its_norm", "cannot be fused", batch(8, encoder="repvgg")),
    ("deep_supervision_of_one_scale", "no coarser scale", tiny_plan()),
    ("deep_supervision_of_one_scale", "counts nothing", shaped("unet", (4, 8, 8))),
    ("deep_supervision_of_one_scale", "one decoder scale", shaped("fcn", (4, 8, 8, 8))),
    (
        "boundary_of_one_scale",
        "only the finest",
        shaped("gg_net", (4, 8, 8, 8), Step("segmentation"), Step("boundary"), deep_supervision=False),
    ),
    ("style_that_encoders_ignore", "whatever norm, act says", network(options={"encoder": "convnext", **STYLE})),
    ("style_that_encoders_ignore", "whatever dropout", network(options={"encoder": "poolformer", "dropout": 0.1})),
    ("topology_that_monai_ignores", "[4, 8, 16, 32]", shaped("segresnet", (4, 8, 16, 20))),
    ("hard_voxels_beside_all", "ohem stresses hard voxels, and dice_ce", losses("dice_ce", term("ohem", min_kept=9))),
    ("sides_that_nobody_knows", "kidney_left, kidney_right: names", mirrored(Step("mirror"), orientation="stored")),
    (
        "sides_that_nobody_knows",
        "no axis is known",
        mirrored(orientation="stored", inference=Inference(mirror_axes=(2,))),
    ),
    ("overlap_alone", "tversky alone", losses("tversky", "cldice")),
    ("overlap_alone", "dice_ce alone", losses(term("dice_ce", ce_weight=0.0))),
    ("overlap_alone", "bce_batch_dice alone", losses(term("bce_batch_dice", bce_weight=0.0))),
    (
        "windows_of_landmark_plans",
        "overlap 0.75",
        joint(inference=Inference(overlap=0.75)),
    ),
]


@pytest.mark.parametrize(("rule", "said", "plan"), DOUBTFUL)
def test_what_is_hardly_meant_is_said_and_not_refused(rule: str, said: str, plan: Plan) -> None:
    found = list(RULES[rule](plan))
    assert len(found) == 1 and said in found[0].what and found[0] in doubts(plan)


def test_networks_whose_coarser_scales_count_are_not_doubtful() -> None:
    plans = [
        shaped("unet", (4, 8, 8, 8)),
        shaped("gg_net", (4, 8, 8), Step("segmentation"), Step("boundary")),
        shaped("bisenet", (4, 8, 8)),
        shaped("segresnet", (4, 8, 16, 32), deep_supervision=False),
        shaped("unet", (4, 8), deep_supervision=False),
    ]
    assert [doubts(plan) for plan in plans] == [()] * len(plans)


def test_nothing_is_doubtful_about_a_larger_batch_and_one_scale_asked_for() -> None:
    plan = batch(8, norm="batch")
    assert doubts(replace(plan, training=replace(plan.training, deep_supervision=False))) == ()
