from dataclasses import replace

import pytest
from tiny_run import tiny_plan

from medseg.errors import PlanError
from medseg.io.records import write_record
from medseg.types.labels import Label, Labels
from medseg.types.plan import (
    Adversary,
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)
from medseg.workflow.check_plan import check_plan, load_plan

TOPOLOGY = Topology(3, (8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (2, 2))
PLAN = Plan(
    schema="medseg.plan/1",
    name="toy-3d_fullres",
    channels=("MRI",),
    labels=Labels((Label("organ", (1,)),)),
    preprocess=Preprocess((1.0, 1.0, 1.0), (Step("z_score", {"nonzero": True}),)),
    network=Network("unet", TOPOLOGY),
    sampling=Sampling((16, 16, 16), 2),
    training=Training(
        losses=(LossTerm(1.0, "dice_ce", {"batch_dice": True}),),
        optimizer=Step("sgd", {"lr": 0.01}),
        schedule=Step("poly"),
        augment=(Step("affine", {"p": 0.2}), Step("mirror", {"axes": [0, 2]})),
        epochs=2,
    ),
    inference=Inference(mirror_axes=(0, 2)),
    postprocess=(Step("drop_small", {"names": ["organ"], "min_mm3": 10.0}),),
    origin=Origin("0", "0", Budget(8.0), "unet"),
    reasons={},
)


def points_plan(*, head="dsnt", options=None, loss=None, landmarks=("a", "b"), **inference):
    heads = (Step(head, {"points": 2, **(options or {})}), Step("segmentation"))
    plan = changed(losses=(loss or LossTerm(1.0, head), LossTerm(1.0, "dice_ce")), landmarks=landmarks)
    return replace(plan, network=replace(plan.network, heads=heads), inference=Inference(**inference))


def test_landmarks_fit_their_head_loss_and_swaps():
    bce, logit = LossTerm(1.0, "heatmap", {"kind": "bce"}), {"values": "logit"}
    good = [points_plan(), points_plan(head="heatmap"), points_plan(head="heatmap", options=logit, loss=bce)]
    good.append(points_plan(swap_axis=2, swap_points=(("a", "b"),)))
    assert [check_plan(plan) for plan in good] == [()] * 4
    wrong = {
        "network.heads": replace(PLAN, landmarks=("a",)),
        "training.losses[0].options.kind": points_plan(head="heatmap", loss=bce),
        "inference.swap_points": points_plan(swap_axis=2, swap_points=(("a", "c"),)),
        "inference.swap_labels": points_plan(swap_axis=2, swap_labels=(("left", "right"),)),
    }
    for where, plan in wrong.items():
        with pytest.raises(PlanError) as caught:
            check_plan(plan)
        assert str(caught.value.where) == where
    with pytest.raises(PlanError, match="kind bce"):
        check_plan(points_plan(head="heatmap", options=logit))


def changed(**fields):
    training = {k: fields.pop(k) for k in list(fields) if hasattr(PLAN.training, k)}
    return replace(PLAN, training=replace(PLAN.training, **training), **fields)


def test_a_good_plan_names_no_foreign_code():
    assert check_plan(PLAN) == ()


FAULTS = {
    "preprocess.intensity[0]": changed(preprocess=replace(PLAN.preprocess, intensity=(Step("hounsfield"),))),
    "network": changed(network=replace(PLAN.network, use="u_net")),
    "network.heads[1]": changed(network=replace(PLAN.network, heads=(Step("segmentation"), Step("segment")))),
    "sampling.focus": changed(sampling=replace(PLAN.sampling, focus=Step("hardest"))),
    "training.losses[0]": changed(losses=(LossTerm(1.0, "dice_cee"),)),
    "training.optimizer": changed(optimizer=Step("sgd", {"learning_rate": 0.1})),
    "training.schedule": changed(schedule=Step("polynomial")),
    "training.augment[1]": changed(augment=(Step("noise"), Step("mirror", {"axis": 0}))),
    "postprocess[0]": changed(postprocess=(Step("drop_small", {"max_mm3": 3.0}),)),
    "postprocess[0].options.names": changed(postprocess=(Step("keep_largest", {"names": ["organn"]}),)),
    "inference.mirror_axes": changed(inference=Inference(mirror_axes=(3,))),
    "inference.overlap": changed(inference=Inference(overlap=1.0)),
    "training.epochs": changed(epochs=0),
    "training.steps_per_epoch": changed(steps_per_epoch=0),
}


@pytest.mark.parametrize("field", FAULTS)
def test_every_field_is_checked_and_named(field):
    with pytest.raises(PlanError) as caught:
        check_plan(FAULTS[field])
    assert caught.value.where == field and caught.value.hint


def test_foreign_code_is_listed_once():
    losses = (LossTerm(1.0, "dice_ce"), LossTerm(0.1, "statistics:fmean"), LossTerm(0.1, "statistics:median"))
    assert check_plan(changed(losses=losses)) == ("statistics",)
    with pytest.raises(PlanError, match="cannot import"):
        check_plan(changed(losses=(LossTerm(1.0, "no_such_lab.losses:own"),)))


def test_a_file_is_read_checked_and_named_in_errors(tmp_path):
    path = tmp_path / "my plan ü.json"
    write_record(PLAN, path)
    assert load_plan(path) == PLAN
    assert load_plan(str(path)) == PLAN
    write_record(FAULTS["training.schedule"], path)
    with pytest.raises(PlanError, match=r"my plan ü\.json: training\.schedule: unknown name"):
        load_plan(path)
    path.write_text(path.read_text(encoding="utf-8").replace('"epochs"', '"epoch"'), encoding="utf-8")
    with pytest.raises(PlanError, match="epoch"):
        load_plan(path)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(PlanError, match=r"training\.losses\[0\]\.weight"):
        check_plan(tiny_plan(losses=(LossTerm(weight, "dice_ce"),)))
    with pytest.raises(PlanError, match=r"training\.adversary\.weight"):
        check_plan(tiny_plan(adversary=Adversary("segan", weight=weight)))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, float("nan")])
def test_windows_overlap_by_a_share_of_themselves(overlap):
    assert check_plan(changed(inference=Inference(overlap=0.0))) == ()
    with pytest.raises(PlanError, match=r"inference\.overlap.*not in \[0, 1\)"):
        check_plan(changed(inference=Inference(overlap=overlap)))
