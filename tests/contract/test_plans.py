"""Golden plans: a change of the planner must show up as a difference of the files in plans/."""

import importlib.util
import json
from pathlib import Path

import pytest

from medseg.io.records import read_record
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Plan
from medseg.workflow.check_plan import load_plan

FOLDER = Path(__file__).parents[2] / "plans"
TASKS = sorted(path.parent.name for path in FOLDER.glob("*/fingerprint.json"))
PLANS = sorted(FOLDER.glob("*/[23]d*-*.json"))
REMAKE = "python plans/remake.py"


@pytest.fixture(scope="module")
def remake():
    spec = importlib.util.spec_from_file_location("remake_plans", FOLDER / "remake.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_tasks_and_plans():
    assert TASKS == ["cbct", "cbct-head", "cephalograms", "hippocampus", "us-breast"]
    assert len(PLANS) >= 2 * len(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_planning_again_gives_the_same_bytes(task, remake):
    made = dict(remake.planned(task))
    kept = {path: path.read_text(encoding="utf-8") for path in PLANS if path.parent.name == task}
    assert sorted(made) == sorted(kept), f"run {REMAKE}"
    for path, text in made.items():
        assert text == kept[path], f"{path.name} differs: run {REMAKE} and look at the difference"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_plan_loads_and_resolves(path):
    plan = load_plan(path)
    assert plan.origin.medseg and plan.reasons
    assert isinstance(plan, Plan)


def test_the_schema_is_fresh(remake):
    path, text = remake.schema()
    assert path.read_text(encoding="utf-8") == text, f"run {REMAKE}"
    assert json.loads(text)["additionalProperties"] is False


@pytest.mark.parametrize("task", TASKS)
def test_fingerprints_hold_numbers_only(task):
    fingerprint = read_record(FOLDER / task / "fingerprint.json", Fingerprint)
    assert fingerprint.dataset and fingerprint.cases
    assert "/" not in "".join(case.case_id for case in fingerprint.cases)
    assert (FOLDER / task / "fingerprint.json").stat().st_size < 200_000
