import json

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import BudgetError
from medseg.io.records import read_record
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Budget, Plan
from medseg.workflow.check_plan import check_plan, load_plan
from medseg.workflow.plan import config_name, explain, plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four scans of 12 x 20 x 16 voxels; the labels lie along the first axis."""
    root = tmp_path_factory.mktemp("data set ü")
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir()
    for i in range(4):
        labels = np.zeros((16, 20, 12), np.uint8)
        labels[3:8, 5:15, 3:9] = 1
        labels[8:13, 5:15, 3:9] = 2
        image = labels * 50.0 + rng.normal(size=labels.shape)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), root / "imagesTr" / f"c{i}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), root / "labelsTr" / f"c{i}.nii.gz")
    header = {
        "name": "Toy",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(header), encoding="utf-8")
    return root


def test_plans_and_fingerprint_are_written_and_check(folder, tmp_path):
    (tmp_path / "plan-3d_lowres.json").write_text("left by an earlier run")
    plans = plan(folder, tmp_path, budget=Budget(4.0))
    assert [config_name(made) for made in plans] == ["2d", "3d_fullres"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fingerprint.json",
        "plan-2d.json",
        "plan-3d_fullres.json",
    ]
    assert load_plan(tmp_path / "plan-3d_fullres.json") == plans[1]
    assert read_record(tmp_path / "fingerprint.json", Fingerprint).dataset == "Toy"
    assert all(check_plan(made) == () for made in plans)
    assert plans[1].sampling.patch == (12, 20, 16)


def test_planning_again_gives_the_same_bytes(folder, tmp_path):
    for name in ("one", "two"):
        plan(folder, tmp_path / name, budget=Budget(4.0), workers=1 if name == "one" else 2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_hours_time_steps_on_the_device_and_record_them(folder, tmp_path, monkeypatch):
    asked = []

    def time_step(network, **what):
        asked.append((what["patch"], what["batch"], str(what["device"])))
        return 0.2

    monkeypatch.setattr("medseg.planning.memory.time_step", time_step)
    plans = plan(folder, tmp_path, budget=Budget(4.0, hours=0.2, device="cpu", precision="fp32"))
    budget = plans[1].origin.budget
    assert (budget.step_s, budget.device, budget.hours) == (0.2, "cpu", 0.2)
    assert ((12, 20, 16), 2, "cpu") in asked
    assert plans[1].training.epochs * plans[1].training.steps_per_epoch * 0.2 <= 0.2 * 3600
    assert "0.2 s each" in plans[1].reasons["training.epochs"]


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), (None, "bf16"), ("cuda:0", "bf16")])
def test_memory_on_a_cpu_that_is_asked_for_is_that_of_its_precision(folder, tmp_path, monkeypatch, device, precision):
    monkeypatch.setattr("medseg.workflow.devices._cpu_has_bf16", lambda: False)
    plans = plan(folder, tmp_path, budget=Budget(4.0, device=device))
    assert {made.training.precision for made in plans} == {precision}


def test_a_budget_nothing_fits_in_leaves_no_files(folder, tmp_path):
    with pytest.raises(BudgetError, match="smallest that would fit is"):
        plan(folder, tmp_path, budget=Budget(0.01))
    assert list(tmp_path.iterdir()) == []


def test_explain_says_every_decision_with_its_reason(folder, tmp_path):
    made: Plan = plan(folder, tmp_path, budget=Budget(4.0))[1]
    text = explain(made)
    assert text.startswith("# Toy-3d_fullres\n")
    for field, reason in made.reasons.items():
        assert f"**{field}**" in text and reason in text
    assert "12 x 20 x 16" in text
