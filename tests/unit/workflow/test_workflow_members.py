"""Several networks per fold: trained one after another, validated and saved together."""

import shutil

import numpy as np
import pytest
import torch
from phantoms import write_png_dataset
from safetensors.torch import load_file
from tiny_run import tiny_plan, with_hours

from medseg.errors import Interrupted, PlanError
from medseg.inference.ensemble import load_members
from medseg.io.bundles import load_bundle
from medseg.io.images import read_image, read_labels
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step
from medseg.workflow.check_plan import check_plan
from medseg.workflow.model import PredictOptions, members_of, predict_image
from medseg.workflow.report import read_curves
from medseg.workflow.run_folds import member_plan, member_runs
from medseg.workflow.train import train

CPU = torch.device("cpu")
LABELS = Labels((Label("shell", (1,)), Label("core", (2,))))


def flat_plan(members=1, **training):
    settings = {"epochs": 2, "steps_per_epoch": 4, "augment": (), "optimizer": Step("adamw", {"lr": 0.01})}
    return tiny_plan(ndim=2, channels=("MRI",), members=members, **{**settings, **training})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_png_dataset(folder, 10, shape=(24, 20))
    return folder


@pytest.fixture(scope="module")
def three(pictures, tmp_path_factory):
    run = tmp_path_factory.mktemp("three")
    train(flat_plan(3, seed=7), pictures, run, folds=1, device="cpu")
    return run


def test_each_network_is_that_of_its_seed(pictures, three, tmp_path):
    bundle = load_bundle(three / "bundle")
    assert [member.fold for member in bundle.members] == [1, 1, 1]
    assert bundle.scores["members"] == ["1"]
    for number, member in enumerate(bundle.members):
        alone = tmp_path / str(number)
        train(flat_plan(seed=7 + number), pictures, alone, folds=1, device="cpu")
        wanted = load_file(alone / "fold_1" / "weights.safetensors")
        found = load_file(bundle.root / member.weights)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_they_are_validated_by_their_mean(pictures, three):
    bundle = load_bundle(three / "bundle")
    networks = load_members(bundle, device=CPU, folds=["1"])
    assert len(networks) == 3
    options = PredictOptions(clean=False)
    paths = sorted((three / "fold_1" / "validation").glob("*.nii.gz"))
    assert len(paths) == 2
    for path in paths:
        image = read_image([pictures / "imagesTr" / f"{path.name[:-7]}_0000.png"], channels=("MRI",))

        def mean(window):
            return sum(network(window) for network in networks) / 3

        made = predict_image(image, bundle, [mean], device=CPU, options=options)
        assert np.array_equal(made.labels.array, read_labels(path, LABELS).array)
        one = [predict_image(image, bundle, [net], device=CPU, options=options).labels.array for net in networks]
        assert any(not np.array_equal(part, one[0]) for part in one[1:]), "they are not all the same network"
    assert len(members_of(bundle, CPU, options)) == 3


def test_every_network_has_its_curves_and_stages(pictures, three, tmp_path):
    assert [picture.title for picture in read_curves(three)] == ["fold 1", "fold 1, member 1", "fold 1, member 2"]
    stages, ends = [], []
    watch = {"report": lambda p: stages.append(p.stage), "hooks": [lambda end: ends.append(end.folder)]}
    train(flat_plan(2, epochs=1), pictures, tmp_path, folds=0, device="cpu", **watch)
    assert ends == [tmp_path / "fold_0", tmp_path / "fold_0" / "member_1"]
    seen = [stage for stage in dict.fromkeys(stages) if stage.startswith("train")]
    assert seen == ["train fold_0", "train fold_0 member_1"]


def test_a_run_that_stopped_between_two_networks_goes_on_with_the_second(pictures, three, tmp_path):
    import signal

    plan = flat_plan(3, seed=7)

    def stop(progress):
        if progress.stage == "train fold_1 member_1" and progress.done == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(plan, pictures, tmp_path, folds=1, device="cpu", report=stop)
    first, second, third = member_runs(tmp_path / "fold_1", plan)
    stamp = (first / "weights.safetensors").stat().st_mtime_ns
    assert not (second / "weights.safetensors").exists() and not third.exists()
    assert not (tmp_path / "bundle").exists()
    train(flat_plan(3, seed=7), pictures, tmp_path, folds=1, device="cpu")
    assert (first / "weights.safetensors").stat().st_mtime_ns == stamp
    for run, other in zip(member_runs(tmp_path / "fold_1", plan), member_runs(three / "fold_1", plan), strict=True):
        assert (run / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def test_a_fold_that_lacks_a_network_is_not_in_the_bundle_of_another(pictures, three, tmp_path):
    run = shutil.copytree(three, tmp_path / "run")
    shutil.rmtree(run / "fold_1" / "member_2")
    bundle = train(flat_plan(3, seed=7), pictures, run, folds=0, device="cpu")
    assert [member.fold for member in bundle.members] == [0, 0, 0]


def test_the_hours_of_a_fold_are_shared():
    plan = with_hours(flat_plan(4), 2.0)
    shares = [member_plan(plan, number) for number in range(4)]
    assert [share.origin.budget.hours for share in shares] == [0.5] * 4
    assert [share.training.seed for share in shares] == [0, 1, 2, 3]
    assert member_plan(flat_plan(), 0).origin.budget.hours is None


def test_no_network_at_all_is_refused():
    with pytest.raises(PlanError, match=r"training\.members"):
        check_plan(flat_plan(0))
