from dataclasses import replace

import pytest
from tiny_run import tiny_plan
from toy_fingerprints import alike, feature_bytes

from medseg.errors import PlanError
from medseg.networks.build import BACKBONES, HEADS
from medseg.planning.design import HEAD_LOSSES, Wishes, design, read_options
from medseg.planning.planner import make_plans
from medseg.planning.presets import PRESETS
from medseg.types.labels import Label, Labels
from medseg.types.plan import Adversary, Budget, LossTerm, Network, Topology
from medseg.workflow.check_plan import check_plan
from medseg.workflow.network_switches import topology_that_monai_ignores
from medseg.workflow.networks import list_networks

SCANS = alike((36, 50, 35), (1.0, 1.0, 1.0), 20)
JOINT = replace(SCANS, landmarks=("menton", "nasion"))
POINTS = replace(JOINT, labels=Labels(()))


def family(fingerprint=SCANS, preset="unet", heads=(), **options):
    return design(fingerprint, preset, Wishes(options, tuple(heads))).value


def uses(steps):
    return [step.use for step in steps]


def test_typed_options():
    words = ["attention=cbam", "dropout=0.1", "blocks=2", "deep=true", "cap=null", "pool=[1, 2]", "name=a=b"]
    expected = {"attention": "cbam", "dropout": 0.1, "blocks": 2, "deep": True, "cap": None, "pool": [1, 2]}
    assert read_options(words) == {**expected, "name": "a=b"}


@pytest.mark.parametrize("words", [["cbam"], ["=1"], ["a=1", "a=2"], ['a={"b": 1}'], ["a=[[1]]"]])
def test_what_is_no_option_is_refused(words):
    with pytest.raises(PlanError, match="--option"):
        read_options(words)


def test_every_backbone_has_a_preset_and_every_head_a_loss():
    assert {preset.backbone for preset in PRESETS.values()} == set(BACKBONES)
    assert set(HEAD_LOSSES) == set(HEADS)


def test_presets_and_the_list_agree_about_dimensions():
    listed = {part.name: part.dimensions for part in list_networks("backbone")}
    assert {preset.backbone: preset.dimensions for preset in PRESETS.values()} == listed


def test_labels_are_segmented_and_landmarks_found():
    assert uses(family().heads) == ["segmentation"] and uses(family().losses) == ["dice_ce"]
    joint = family(JOINT)
    assert uses(joint.heads) == ["segmentation", "dsnt"] and uses(joint.losses) == ["dice_ce", "dsnt"]
    assert joint.heads[1].options == {"points": 2}
    assert uses(family(POINTS).heads) == ["dsnt"] and uses(family(POINTS).losses) == ["dsnt"]


def test_heat_maps_take_the_place_of_dsnt():
    assert uses(family(POINTS, heads=["heatmap"]).heads) == ["heatmap"]
    assert uses(family(POINTS, heads=["heatmap"]).losses) == ["heatmap"]
    with pytest.raises(PlanError, match="find the same points"):
        family(POINTS, heads=["heatmap", "dsnt"])
    with pytest.raises(PlanError, match="no landmarks for the head"):
        family(SCANS, heads=["dsnt"])


def test_the_global_guidance_network_brings_its_boundary_modules():
    assert uses(family(preset="gg_net").heads) == ["segmentation", "boundary"]
    assert uses(family(preset="gg_net").losses) == ["dice_ce", "gg_net"]
    assert uses(family(POINTS, preset="gg_net").heads) == ["dsnt"]
    assert uses(family(heads=["boundary"]).losses) == ["dice_ce", "gg_net"]


def test_options_reach_the_part_they_name():
    made = family(JOINT, attention="cbam", **{"dsnt.scale": 2, "loss.dsnt.unit": "mm"})
    assert made.options == {"attention": "cbam"}
    assert made.heads[1].options == {"points": 2, "scale": 2} and made.losses[1].options == {"unit": "mm"}
    with pytest.raises(PlanError, match='the plan has no "boundary"'):
        family(SCANS, **{"boundary.edge": "outer"})
    with pytest.raises(PlanError, match="unknown preset"):
        family(SCANS, preset="u2net")


def test_losses_are_added_weighed_and_left_out():
    made = family(**{"loss.cldice": 0.5, "loss.cldice.steps": 4, "loss.dice_ce": 2})
    assert [(term.use, term.weight) for term in made.losses] == [("dice_ce", 2.0), ("cldice", 0.5)]
    assert made.losses[1].options == {"steps": 4}
    (own,) = family(**{"loss.dice_ce": 0, "loss.my.losses:own": 1, "loss.my.losses:own.power": 3}).losses
    assert (own.use, own.options) == ("my.losses:own", {"power": 3})
    with pytest.raises(PlanError, match=r'the plan has no "loss\.focal"'):
        family(**{"loss.focal.gamma": 1})


def test_classes_weigh_by_their_volumes_in_all_cases():
    small, large = SCANS.cases[0], replace(SCANS.cases[1], spacing_mm=(2.0, 1.0, 1.0))
    shape = {"cropped_shape": (10, 10, 10)}
    cases = (replace(small, class_voxels=(100, 0), **shape), replace(large, class_voxels=(50, 10), **shape))
    labels = Labels((Label("one", (1,)), Label("two", (2,))))
    found = family(replace(SCANS, cases=cases, labels=labels), **{"loss.weighted_cross_entropy": 1}).losses[1]
    volumes = (3000 - 220, 200, 20)  # background, one, two, of 3000 mm3
    assert found.options["weights"] == pytest.approx([3000 / (3 * volumes[0]), 3000 / 600, 20.0], abs=1e-4)
    few = tuple(replace(case, ignored_voxels=800) for case in cases)
    known = family(replace(SCANS, cases=few, labels=labels), **{"loss.weighted_cross_entropy": 1}).losses[1]
    assert known.options["weights"][0] == pytest.approx(600 / (3 * 380), abs=1e-4), "600 mm3 were annotated"
    given = {"loss.weighted_cross_entropy": 1, "loss.weighted_cross_entropy.weights": [1, 2, 3]}
    assert family(**given).losses[1].options == {"weights": [1, 2, 3]}
    regions = replace(SCANS, labels=Labels((Label("whole", (1, 2)), Label("core", (2,)))))
    assert family(regions, **{"loss.weighted_cross_entropy": 1}).losses[1].options == {}


@pytest.mark.parametrize("weight", ["much", -1, True, float("nan"), float("inf"), None, [1]])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(PlanError, match="no weight of a loss"):
        family(**{"loss.focal": weight})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention": "cbma"}, "unknown attention"),
        ({"colour": 3}, "no option colour"),
        ({"dropout": "much"}, "dropout"),
        ({"loss.dice_ec": 1}, "unknown"),
        ({"loss.dice_ce": 0}, "there is no loss"),
        ({"loss.dise_ce": 0}, 'no loss "dise_ce" to leave out'),
    ],
)
def test_wrong_options_are_found_when_planning(options, said):
    small = alike((16, 20, 16), (1.0, 1.0, 1.0), 3)
    with pytest.raises(PlanError, match=said):
        make_plans(small, Budget(4.0), "unet", wishes=Wishes(options))


def test_learnt_weights_of_terms_are_planned_and_nothing_else_is_a_weighting():
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    wishes = Wishes({"weighting": "uncertainty", "loss.focal": 1.0})
    *_, plan = make_plans(SCANS, Budget(8.0), "unet", wishes=wishes, **quick)
    assert plan.training.weighting == "uncertainty" and "weighting" not in plan.network.options
    assert make_plans(SCANS, Budget(8.0), "unet", **quick)[-1].training.weighting == "fixed"
    with pytest.raises(PlanError, match="no weighting"):
        family(weighting="uncertain")
    with pytest.raises(PlanError, match='no "weighting"'):
        family(**{"weighting.kind": "uncertainty"})


def test_codes_of_raters_are_planned_where_they_are_asked_for_and_known():
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    told = replace(SCANS, raters=("A", "B", "C"))
    *_, plan = make_plans(told, Budget(8.0), "unet", wishes=Wishes({"attention": "se+rater_code"}), **quick)
    assert plan.raters == ("A", "B", "C") and plan.network.options["rater_code_raters"] == 3
    assert plan.training.losses[-1] == LossTerm(1.0, "rater_prior", {"cases": len(SCANS.cases)})
    check_plan(plan)
    *_, plain = make_plans(told, Budget(8.0), "unet", **quick)
    assert plain.raters == () and len(plain.training.losses) == 1
    assert "--option attention=rater_code" in plain.reasons["network.heads"]
    check_plan(plain)
    with pytest.raises(PlanError, match="names no raters"):
        family(attention="rater_code")


def test_a_critic_is_planned_with_its_memory_and_its_own_options():
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    options = {"adversary": "segan", "adversary.weight": 0.05, "adversary.width": 8}
    *_, plan = make_plans(SCANS, Budget(8.0), "unet", wishes=Wishes(options), **quick)
    assert plan.training.adversary == Adversary("segan", 0.05, options={"width": 8})
    assert "the critic segan learns beside the network" in " ".join(plan.reasons.values())
    assert "adversary" not in plan.network.options
    (thick,) = make_plans(SCANS, Budget(8.0), "unet", wishes=Wishes({"adversary": "projective"}), **quick)
    assert thick.name == "toy-3d_fullres"
    assert thick.reasons["left_out.2d"] == "unet with the critic projective is for 3D, this takes 2D"
    (flat,) = make_plans(
        SCANS, Budget(8.0), "unet", wishes=Wishes({"loss.gg_net.edge": "canny"}, ("boundary",)), **quick
    )
    assert flat.name == "toy-2d"
    assert flat.reasons["left_out.3d_fullres"] == "unet with the edges canny is for 2D, this takes 3D"
    with pytest.raises(PlanError, match="a critic judges label maps, and the data set has landmarks alone"):
        family(POINTS, adversary="segan")
    small = alike((16, 20, 16), (1.0, 1.0, 1.0), 3)
    with pytest.raises(PlanError, match="segen"):
        make_plans(small, Budget(4.0), "unet", wishes=Wishes({"adversary": "segen"}))
    for wrong, said in (
        ({"adversary.weight": 1.0}, "there is no critic"),
        ({"adversary": True}, "there is no critic"),
        ({"adversary": "segan", "adversary.weight": 0}, "above 0"),
        ({"adversary": "segan", "adversary.lr": "much"}, "above 0"),
    ):
        with pytest.raises(PlanError, match=said):
            family(**wrong)


def test_a_backbone_names_its_preset():
    assert family(preset="resenc_unet") == family(preset="resenc") and family(preset="resenc").backbone == "resenc_unet"


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.rigid])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_planner_gives_no_channels_that_the_network_ignores(name, ndim):
    preset = PRESETS[name]
    for base in preset.bases:
        channels = preset.stage_channels(preset.stages, ndim=ndim, base=base)
        rows = ((1, 1, 1),) * preset.stages
        topology = Topology(ndim, channels, rows, rows, (1,) * preset.stages)
        plan = replace(tiny_plan(ndim=ndim), network=Network(preset.backbone, topology))
        assert list(topology_that_monai_ignores(plan)) == []


def test_networks_of_one_dimension_leave_the_others_out():
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    (flat,) = make_plans(SCANS, Budget(8.0), "bisenet", **quick)
    assert flat.name == "toy-2d"
    assert flat.reasons["left_out.3d_fullres"] == "bisenet is a network for 2D, this takes 3D"
    (thick,) = make_plans(SCANS, Budget(8.0), "direction_fused", **quick)
    assert thick.name == "toy-3d_fullres"
    pictures = alike((1, 50, 60), (1.0, 1.0, 1.0), 20, ndim=2)
    with pytest.raises(PlanError, match="direction_fused is a network for 3D"):
        make_plans(pictures, Budget(8.0), "direction_fused", **quick)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_plans_a_patch_that_its_network_divides(preset):
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    for plan in make_plans(SCANS, Budget(24.0), preset, **quick):
        divisor = plan.network.topology.divisor()
        assert all(n % d == 0 for n, d in zip(plan.sampling.patch, divisor, strict=True))
        assert plan.network.use == PRESETS[preset].backbone and plan.network.topology.spacing_mm == (1.0, 1.0, 1.0)
