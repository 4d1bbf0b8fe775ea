import math
from dataclasses import replace

import pytest
from toy_fingerprints import alike, feature_bytes, voxel_seconds

from medseg.errors import BudgetError, PlanError
from medseg.io.records import format_record, parse_record, record_sha256
from medseg.planning import planner, presets
from medseg.planning.design import Wishes
from medseg.types.plan import Budget, Plan

HIPPOCAMPUS = alike((36, 50, 35), (1.0, 1.0, 1.0), 200)
CBCT = alike((400, 400, 300), (0.3, 0.3, 0.3), 10, channels=("CBCT",))
ULTRASOUND = alike((1, 570, 770), (1.0, 1.0, 1.0), 100, ndim=2, unit="px", channels=("US",))
EIGHT = Budget(8.0)


def plans(fingerprint, budget=EIGHT, preset="unet", **more):
    more = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 2**30, **more}
    made = planner.make_plans(fingerprint, budget, preset, **more)
    return {plan.name.rsplit("-", 1)[-1]: plan for plan in made}


def test_configurations_follow_the_data():
    assert list(plans(HIPPOCAMPUS)) == ["2d", "3d_fullres"]
    assert list(plans(CBCT)) == ["2d", "3d_fullres", "3d_lowres"]
    assert list(plans(ULTRASOUND)) == ["2d"]


@pytest.mark.parametrize("preset", ["unet", "resenc"])
def test_same_arguments_same_bytes_and_the_text_reads_back(preset):
    first, second = (plans(CBCT, Budget(8.0, hours=0.5), preset, seconds_of=voxel_seconds) for _ in range(2))
    for config, plan in first.items():
        assert format_record(plan) == format_record(second[config])
        assert parse_record(format_record(plan), Plan, where=config) == plan


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["vram_gib", "ram_gib", "hours"])
def test_a_budget_is_a_number_above_zero(name, wrong):
    with pytest.raises(BudgetError, match=f"{name} is"):
        plans(HIPPOCAMPUS, replace(EIGHT, **{name: wrong}), seconds_of=voxel_seconds)


def test_the_plan_says_where_it_comes_from():
    plan = plans(HIPPOCAMPUS)["3d_fullres"]
    assert plan.name == "toy-3d_fullres"
    assert plan.origin.fingerprint_sha256 == record_sha256(HIPPOCAMPUS)
    assert plan.origin.budget == EIGHT and plan.origin.preset == "unet"


def test_every_decision_has_a_reason():
    reasons = plans(CBCT)["3d_lowres"].reasons
    decided = """
        preprocess.spacing_mm preprocess.intensity preprocess.orientation preprocess.crop network.topology
        sampling.patch sampling.batch training.losses training.optimizer training.augment training.epochs
        inference.mirror_axes origin.budget
    """.split()
    assert set(decided) <= set(reasons) and all(reasons.values())


def test_lowres_sees_a_quarter_of_the_scan_at_the_finest_spacing_that_does():
    made = plans(CBCT)
    full, low = made["3d_fullres"], made["3d_lowres"]
    voxels = math.prod(CBCT.cases[0].shape)
    assert math.prod(full.sampling.patch) < presets.CONTEXT * voxels
    shrunk = math.prod(old / new for old, new in zip((0.3,) * 3, low.preprocess.spacing_mm, strict=True))
    seen = math.prod(low.sampling.patch) / (voxels * shrunk)
    assert presets.CONTEXT <= seen < presets.CONTEXT * 1.25
    assert full.training.losses[0].options == {"batch_dice": True}
    assert low.training.losses[0].options == {"batch_dice": False}


def test_lowres_is_dropped_where_it_would_hardly_be_coarser():
    nearly = alike((230, 230, 230), (0.3, 0.3, 0.3), 10)
    full = plans(nearly)["3d_fullres"]
    covered = math.prod(full.sampling.patch) / 230**3
    assert 0.125 < covered < presets.CONTEXT
    assert list(plans(nearly)) == ["2d", "3d_fullres"]


def test_mirroring_is_the_same_in_training_and_prediction_and_fits_the_network():
    made = plans(HIPPOCAMPUS)
    for config, axes in (("3d_fullres", (0, 2)), ("2d", (2,))):
        plan = made[config]
        assert plan.inference.mirror_axes == axes
        assert [step.options for step in plan.training.augment if step.use == "mirror"] == [{"axes": list(axes)}]


@pytest.mark.parametrize("use", ["tversky", "dice", "generalised_dice", "focal_tversky", "cldice"])
def test_every_loss_of_overlaps_is_summed_as_dice_is(use):
    wishes = Wishes({"loss.dice_ce": 0, f"loss.{use}": 1})
    for config, wanted in (("2d", True), ("3d_fullres", True), ("3d_lowres", False)):
        plan = plans(CBCT, wishes=wishes)[config]
        assert [term.options["batch_dice"] for term in plan.training.losses] == [wanted]
        assert "Dice" in plan.reasons["training.losses"]


def test_sides_of_a_cascade_are_summed_as_its_end_is():
    losses = plans(CBCT, preset="cascade")["2d"].training.losses
    assert [(term.use, term.options["batch_dice"]) for term in losses] == [("dice_ce", True), ("side", True)]


def test_the_2d_plan_of_volumes_keeps_slices():
    plan = plans(CBCT)["2d"]
    assert plan.preprocess.spacing_mm == (None, 0.3, 0.3) and plan.sampling.patch[0] == 1
    assert plan.network.topology.ndim == 2
    assert plan.training.losses[0].options == {"batch_dice": True}


def test_ultrasound_in_pixels():
    plan = plans(ULTRASOUND)["2d"]
    assert plan.preprocess.spacing_mm == (None, None, None) and plan.preprocess.orientation == "stored"
    assert plan.preprocess.intensity[0].use == "fan_z_score"
    assert "speckle" in [step.use for step in plan.training.augment]


def test_networks_of_one_fold_share_its_hours():
    many = {"wishes": Wishes({"members": 3}), "seconds_of": voxel_seconds}
    three = plans(HIPPOCAMPUS, Budget(8.0, hours=0.9), **many)["3d_fullres"]
    one = plans(HIPPOCAMPUS, Budget(8.0, hours=0.3), seconds_of=voxel_seconds)["3d_fullres"]
    assert three.training.members == 3 and one.training.members == 1
    assert three.origin.budget.hours == 0.9
    assert three.network == one.network and three.training.epochs == one.training.epochs
    assert "18 min each" in three.reasons["training.members"] and "training.members" not in one.reasons
    with pytest.raises(BudgetError) as alone:
        plans(HIPPOCAMPUS, Budget(8.0, hours=1e-4), seconds_of=voxel_seconds)
    with pytest.raises(BudgetError, match="for each of 3 networks") as together:
        plans(HIPPOCAMPUS, Budget(8.0, hours=3e-4), **many)
    one_h, all_h = (float(caught.value.hint.split()[-2]) for caught in (alone, together))
    assert all_h == pytest.approx(3 * one_h, rel=1e-3)
    for wrong in (0, 1.5, True, "two"):
        with pytest.raises(PlanError, match="networks"):
            plans(HIPPOCAMPUS, Budget(8.0), wishes=Wishes({"members": wrong}))


def test_no_hours_is_the_published_schedule_and_hours_are_kept():
    long = plans(HIPPOCAMPUS)["3d_fullres"]
    assert (long.training.epochs, long.training.steps_per_epoch, long.training.optimizer.use) == (1000, 250, "sgd")
    assert long.origin.budget.step_s is None
    short = plans(HIPPOCAMPUS, Budget(8.0, hours=0.3), seconds_of=voxel_seconds)["3d_fullres"]
    steps = short.training.epochs * short.training.steps_per_epoch
    base = short.network.topology.channels[0]
    assert presets.steps_worth(base) * 0.9 < steps and steps * short.origin.budget.step_s <= 0.3 * 3600
    assert short.training.optimizer.use == "adamw" and short.training.ema is not None


def test_short_time_makes_pictures_coarser_before_it_makes_networks_narrow():
    steps = {
        hours: plans(ULTRASOUND, Budget(8.0, hours=hours), seconds_of=voxel_seconds)["2d"] for hours in (0.02, 50.0)
    }
    assert steps[50.0].preprocess.spacing_mm == (None, None, None)
    quick = steps[0.02]
    assert quick.preprocess.spacing_mm[1] == quick.preprocess.spacing_mm[2] > 1
    assert "coarser than stored" in quick.reasons["preprocess.spacing_mm"]
    assert quick.sampling.patch[2] < steps[50.0].sampling.patch[2]


def test_presets_differ_in_the_encoder_only():
    plain, residual = plans(HIPPOCAMPUS)["3d_fullres"], plans(HIPPOCAMPUS, preset="resenc")["3d_fullres"]
    assert (plain.network.use, plain.network.topology.blocks) == ("unet", (2, 2, 2, 2))
    assert (residual.network.use, residual.network.topology.blocks) == ("resenc_unet", (1, 3, 4, 6))
    assert plain.preprocess == residual.preprocess


def test_precision_is_the_users():
    assert plans(HIPPOCAMPUS, Budget(8.0, precision="fp16"))["2d"].training.precision == "fp16"


def test_a_budget_of_memory_nothing_fits_in():
    with pytest.raises(BudgetError, match=r"2d: .*3d_fullres: .*the smallest that would fit is 0\.6 GiB"):
        plans(CBCT, Budget(0.5))


def test_a_configuration_that_does_not_fit_is_left_out_and_said():
    made = plans(CBCT, Budget(0.6))
    assert list(made) == ["2d"]
    assert "the smallest that would fit is" in made["2d"].reasons["left_out.3d_fullres"]


def test_ram_is_that_of_the_largest_scan():
    asked = []

    def bytes_of(plan, scan):
        asked.append(scan.shape)
        return 4 * 2**30

    large = replace(HIPPOCAMPUS.cases[0], case_id="z", shape=(80, 90, 70))
    fingerprint = replace(HIPPOCAMPUS, cases=(*HIPPOCAMPUS.cases, large))
    plan = plans(fingerprint, Budget(8.0, ram_gib=16.0), prediction_bytes=bytes_of)["3d_fullres"]
    assert set(asked) == {(80, 90, 70)}
    assert plan.reasons["origin.budget"].endswith("takes about 4 GiB of main memory, of 16")
    with pytest.raises(BudgetError, match=r"smallest that would fit is 4\.5 GiB"):
        plans(fingerprint, Budget(8.0, ram_gib=4.0), prediction_bytes=bytes_of)


def test_usage_errors_name_the_way_out():
    with pytest.raises(PlanError, match=r"use one of attention_unet, .*, resenc, .*, unet, "):
        plans(HIPPOCAMPUS, preset="unet_3d")
    with pytest.raises(BudgetError, match="seconds_of"):
        plans(HIPPOCAMPUS, Budget(8.0, hours=1.0))
    with pytest.raises(PlanError, match="without cases"):
        plans(replace(HIPPOCAMPUS, cases=()))
