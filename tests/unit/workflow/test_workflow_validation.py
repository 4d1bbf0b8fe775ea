"""What validation makes of a plan: its own cleaning steps stay; and of cases that cannot be scored."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from phantoms import write_scan
from tiny_run import tiny_plan

from medseg.errors import TrainingError
from medseg.io.images import read_labels, write_labels
from medseg.types.dataset import Case, Dataset
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step
from medseg.workflow.validate_fold import Validated
from medseg.workflow.validation import clean_and_score

ORGAN = Labels((Label("organ", (1,)),))


def _case(folder):
    """A ball, and the same with half of the voxels of its surface flipped and a fragment far from it."""
    grid = np.stack(np.indices((24, 24, 24)), -1)
    radius = np.linalg.norm(grid - 11.5, axis=-1)
    ball = radius <= 8
    jagged = ball ^ ((np.abs(radius - 8) < 0.9) & (np.random.default_rng(0).random(ball.shape) < 0.5))
    jagged[:3, :3, :3] = True
    write_scan(radius.astype(np.float32), folder / "image.nii.gz", spacing_mm=(1.0, 1.0, 1.0))
    for name, array in (("reference", ball), ("predicted", jagged)):
        place = Geometry(ball.shape, (1.0, 1.0, 1.0))
        write_labels(LabelMap(array.astype(np.uint8), place, ORGAN), folder / f"{name}.nii.gz")
    case = Case("a", (folder / "image.nii.gz",), folder / "reference.nii.gz")
    return Dataset("organ", folder, ("MR",), ORGAN, (case,)), Validated(case, 0, folder / "predicted.nii.gz")


def test_the_plans_own_cleaning_stays_and_more_is_chosen_after_it(tmp_path):
    dataset, validated = _case(tmp_path)
    plan = tiny_plan(labels=ORGAN)
    smooth = Step("refine_contours", {"sigma_mm": 1.0})
    chosen, plain = clean_and_score(plan, dataset, [validated], workers=1)
    both, scores = clean_and_score(replace(plan, postprocess=(smooth,)), dataset, [validated], workers=1)
    assert chosen.postprocess and smooth not in chosen.postprocess
    assert both.postprocess[0] == smooth and len(both.postprocess) > 1
    assert both.reasons["postprocess"].startswith("refine_contours as the plan had it; then 1 validation cases")
    assert scores["mean_dice_before"] == plain["mean_dice_before"] < plain["mean_dice"] < scores["mean_dice"]
    again, same = clean_and_score(both, dataset, [validated], workers=1)
    assert again.postprocess == both.postprocess and same["mean_dice"] == scores["mean_dice"]


def test_a_case_that_cannot_be_read_costs_only_itself(tmp_path, caplog):
    dataset, good = _case(tmp_path / "fold_0" / "validation")
    folder = good.prediction.parent
    bad = replace(good, case=replace(good.case, id="b"), prediction=folder / "broken.nii.gz")
    bad.prediction.write_bytes(b"no image")
    gone = replace(good, case=replace(good.case, id="c"), prediction=folder / "c.nii.gz", error="c: x")
    plan = tiny_plan(labels=ORGAN)
    _, alone = clean_and_score(plan, dataset, [good], workers=1)
    with caplog.at_level(logging.WARNING, "medseg"):
        chosen, scores = clean_and_score(plan, dataset, [bad, good, gone], workers=1)
    assert chosen.postprocess and "failed" not in alone
    assert scores["cases"] == 1 and scores["mean_dice"] == alone["mean_dice"]
    assert [row["case"] for row in scores["per_case"]] == ["a"]
    assert [(row["case"], row["fold"]) for row in scores["failed"]] == [("c", 0), ("b", 0)]
    assert str(tmp_path) not in json.dumps(scores) and "broken.nii.gz" in caplog.text
    kept = json.loads((tmp_path / "fold_0" / "validation_scores.json").read_text())
    assert [row["case"] for row in kept["failed"]] == ["c", "b"] and len(kept["per_case"]) == 1
    with pytest.raises(TrainingError, match=r"none of 2 validation cases can be scored \(c: x\)"):
        clean_and_score(plan, dataset, [bad, gone], workers=1)


def test_values_that_only_predictions_hold_are_read_and_scored(tmp_path):
    dataset, validated = _case(tmp_path)
    labels = Labels((Label("whole", (1, 2), write=9), Label("core", (2,))))
    dataset, plan = replace(dataset, labels=labels), tiny_plan(labels=labels)
    grid = np.stack(np.indices((24, 24, 24)), -1)
    ball = np.linalg.norm(grid - 11.5, axis=-1) <= 8
    as_written = LabelMap(ball.astype(np.uint8) * 9, Geometry(ball.shape, (1.0, 1.0, 1.0)), labels)
    write_labels(as_written, validated.prediction)
    _, scores = clean_and_score(plan, dataset, [validated], workers=1)
    assert scores["dice"] == {"whole": 1.0, "core": None}
    write_labels(as_written, tmp_path / "reference.nii.gz")
    with pytest.raises(TrainingError, match="holds values 9 that are no class"):
        clean_and_score(plan, dataset, [validated], workers=1)


def test_a_case_held_out_of_two_folds_has_the_scores_of_both(tmp_path):
    dataset, jagged = _case(tmp_path / "fold_0" / "validation")
    other = tmp_path / "fold_1" / "validation" / "predicted.nii.gz"
    write_labels(read_labels(jagged.case.label, ORGAN), other)
    perfect = replace(jagged, fold=1, prediction=other)
    _, scores = clean_and_score(tiny_plan(labels=ORGAN), dataset, [jagged, perfect], workers=1)
    first, second = (row["dice_before"]["organ"] for row in scores["per_case"])
    assert [row["fold"] for row in scores["per_case"]] == [0, 1] and first < 0.95 and second == 1
    for fold, dice in enumerate((first, second)):
        kept = json.loads((tmp_path / f"fold_{fold}" / "validation_scores.json").read_text())
        assert [row["dice"]["organ"] for row in kept["per_case"]] == [dice]


@pytest.mark.parametrize("values", [(2, 1), (36, 7)])
def test_a_plan_that_writes_other_values_than_the_data_set_is_scored_by_class(tmp_path, values):
    dataset, validated = _case(tmp_path)
    stored = Labels((Label("shell", (1,)), Label("core", (2,))))
    written = Labels(tuple(replace(item, write=value) for item, value in zip(stored.items, values, strict=True)))
    radius = np.linalg.norm(np.stack(np.indices((24, 24, 24)), -1) - 11.5, axis=-1)
    for labels, file in ((stored, validated.case.label), (written, validated.prediction)):
        shell, core = (item.written for item in labels.items)
        array = np.where(radius <= 4, core, np.where(radius <= 8, shell, 0)).astype(np.uint8)
        write_labels(LabelMap(array, Geometry(array.shape, (1.0, 1.0, 1.0)), labels), file)
    dataset = replace(dataset, labels=stored)
    _, scores = clean_and_score(tiny_plan(labels=written), dataset, [validated], workers=1)
    assert scores["dice_before"] == {"shell": 1.0, "core": 1.0} == scores["dice"]
