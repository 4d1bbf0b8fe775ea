"""A model bundle as teacher: what it says, when it is refused, and that a student follows it."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import fill_cache, tiny_plan

from medseg.errors import BundleError, PlanError, TrainingError
from medseg.io.bundles import save_bundle
from medseg.networks.build import BACKBONES, build_network
from medseg.training.loop import fit
from medseg.types.plan import LossTerm, Step
from medseg.workflow.teacher import check_teacher, mean_logits, open_teacher, unseen_member

CPU = torch.device("cpu")


def _plan(alpha=0.9, **training):
    return tiny_plan(losses=(LossTerm(1.0, "distillation", {"alpha": alpha, "temperature": 2.0}),), **training)


def _teacher(folder, plan, members=1, seed=0, scores=None):
    files = {}
    for fold in range(members):
        torch.manual_seed(seed + fold)
        network = build_network(plan.network, channels=len(plan.channels), outputs=plan.labels.outputs())
        files[fold] = folder.parent / f"{folder.name}_{fold}.safetensors"
        save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, files[fold])
    save_bundle(folder, plan, files, scores or {"cases": 0})
    return folder


def _forwards(plan, members, seed=0):
    for fold in range(members):
        torch.manual_seed(seed + fold)
        network = build_network(plan.network, channels=len(plan.channels), outputs=plan.labels.outputs())
        yield lambda image, network=network: network.eval()(image).logits[0].detach()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_teacher_of_several_members_has_the_mean_of_their_scores(tmp_path, ndim):
    plan = tiny_plan(ndim=ndim)
    teacher = _opened(_with_loss(plan), _teacher(tmp_path / "bundle", plan, members=2))
    image = torch.randn(2, 1, *(16,) * ndim)
    wanted = sum(one(image).softmax(1) for one in _forwards(plan, 2)) / 2
    said = teacher.scores(image)
    assert not said.requires_grad
    torch.testing.assert_close(said.softmax(1), wanted)


def _opened(plan, folder, member=None):
    return open_teacher(check_teacher(plan, folder), plan, CPU, member=member)


def test_one_member_alone_may_teach_the_fold_it_never_saw(tmp_path):
    plan = tiny_plan()
    folder = _teacher(tmp_path / "bundle", plan, members=2, scores={"splits_sha256": "5"})
    bundle = check_teacher(_with_loss(plan), folder)
    assert [unseen_member(bundle, fold, "5") for fold in (0, 1, 2, "all")] == ["0", "1", None, None]
    assert unseen_member(bundle, 0, "other") is None
    assert unseen_member(bundle, 0, None) is None
    image = torch.randn(1, 1, 16, 16, 16)
    _, second = _forwards(plan, 2)
    torch.testing.assert_close(_opened(_with_loss(plan), folder, "1").scores(image), second(image))


def _with_loss(plan):
    return replace(plan, training=replace(plan.training, losses=_plan().training.losses))


def test_the_mean_over_regions_is_one_of_each_region():
    logits = [torch.tensor([[[0.0], [3.0]]]), torch.tensor([[[2.0], [-60.0]]])]
    wanted = (logits[0].sigmoid() + logits[1].sigmoid()) / 2
    torch.testing.assert_close(mean_logits(logits, regions=True).sigmoid(), wanted)


def test_without_loss_and_teacher_there_is_nothing_to_open():
    assert check_teacher(tiny_plan(), None) is None


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        (_plan(), None, "needs a teacher"),
        (tiny_plan(), tiny_plan(), "no loss that learns"),
        (_plan(), tiny_plan(ndim=2), "topology.ndim"),
        (_plan(), tiny_plan(channels=("CT",)), "other channels"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, student, teacher, says):
    folder = None if teacher is None else _teacher(tmp_path / "bundle", teacher)
    with pytest.raises(PlanError, match=says):
        check_teacher(student, folder)


def test_a_teacher_with_code_of_its_own_is_trusted_by_name(tmp_path, monkeypatch):
    module = types.ModuleType("my_lab")
    module.net = BACKBONES["unet"]
    monkeypatch.setitem(sys.modules, "my_lab", module)
    plan = tiny_plan()
    folder = _teacher(tmp_path / "bundle", replace(plan, network=replace(plan.network, use="my_lab:net")))
    with pytest.raises(BundleError, match="my_lab"):
        check_teacher(_with_loss(plan), folder)
    assert check_teacher(_with_loss(plan), folder, trust=("my_lab",)) is not None


def test_a_student_that_sees_only_its_teacher_comes_to_say_what_it_says(tmp_path):
    cache = tmp_path / "cache"
    names = fill_cache(cache)
    plan = _plan(alpha=1.0, epochs=6, steps_per_epoch=10, augment=(), optimizer=Step("adamw", {"lr": 0.01}))
    teacher = _opened(plan, _teacher(tmp_path / "bundle", tiny_plan(), seed=3))
    rows = []
    fit(plan, names[:2], names[2:], cache, tmp_path / "run", device=CPU, teacher=teacher, hooks=[_kept(rows)])
    assert rows[-1]["val_loss"] < 0.5 * rows[0]["val_loss"]


def _kept(rows):
    return lambda end: rows.append(end.metrics)


def test_a_run_belongs_to_its_teacher(tmp_path):
    cache = tmp_path / "cache"
    names = fill_cache(cache)
    plan = _plan(epochs=1, steps_per_epoch=2)
    first, second = (_opened(plan, _teacher(tmp_path / f"b{n}", tiny_plan(), seed=n)) for n in (1, 2))
    fit(plan, names[:2], names[2:], cache, tmp_path / "run", device=CPU, teacher=first)
    with pytest.raises(TrainingError, match="another plan"):
        fit(plan, names[:2], names[2:], cache, tmp_path / "run", device=CPU, teacher=second)
