"""Whole-volume validation of trained folds, and what is learnt from it: cleaning and scores."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from medseg.errors import GeometryError, MedsegError, TrainingError
from medseg.io.bundles import remove_parts
from medseg.io.dataset_points import read_points
from medseg.io.images import read_labels
from medseg.io.landmarks import read_landmarks
from medseg.io.pairs import in_order, read_pair
from medseg.io.records import write_record
from medseg.metrics.cases import json_number, score_case, summarise
from medseg.metrics.landmarks import score_landmarks, summarise_landmarks
from medseg.planning.cleaning import choose_cleaning
from medseg.postprocess.chain import clean
from medseg.preprocess.fan import scored
from medseg.types.dataset import Dataset
from medseg.types.image import LabelMap
from medseg.types.landmarks import Landmarks
from medseg.types.plan import Plan, Step
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import CaseScores
from medseg.workflow.validate_fold import Validated, with_error

_SCORES = "validation_scores.json"
Pair = Callable[[Validated], tuple[LabelMap, LabelMap]]  # prediction and reference


def clean_and_score(
    plan: Plan, dataset: Dataset, validated: Sequence[Validated], *, report: Report = silent, workers: int | None = None
) -> tuple[Plan, dict[str, object]]:
    """The plan with the cleaning that out-of-fold predictions justify, and the scores before and after it.

    Cleaning steps that the plan has already stay, and come first. Of ultrasound frames, what a reference has outside of
    the fan does not count, as nothing is predicted there. `landmarks` of the scores are distances, `failed` the cases
    that could not be predicted or read again. Without validated cases the plan stays as it is. Raises TrainingError if
    all of them failed.
    """
    if not validated:
        return plan, {"schema": "medseg.scores/1", "cases": 0, "folds": []}
    failed = [one for one in validated if one.error is not None]
    outlined = [one for one in validated if one.error is None and one.case.label is not None and plan.labels.items]
    by_fold: dict[Path, dict[str, object]] = {one.prediction.parent.parent: {} for one in validated}
    more: dict[str, object] = {}
    if outlined:
        plan, more = _label_scores(plan, dataset, outlined, failed, by_fold, report=report, workers=workers)
    if not (good := _without(validated, failed)):
        what = f"none of {len(failed)} validation cases can be scored ({failed[0].error})"
        hint = "correct what stops them and run the same command; trained weights are kept"
        raise TrainingError(what, where=failed[0].prediction.parent, hint=hint)
    scores: dict[str, object] = {
        "schema": "medseg.scores/1",
        "cases": len(good),
        "folds": sorted({one.fold for one in good}, key=str),
        "seed": plan.training.seed,
        **more,
    }
    for folder, kept in by_fold.items():
        _add_rest(kept, plan, dataset, _of(good, folder), _of(failed, folder))
        remove_parts(folder, _SCORES)
        write_record({"schema": "medseg.scores/1", **kept}, folder / _SCORES)
    _add_rest(scores, plan, dataset, good, failed)
    return plan, scores


def _add_rest(
    scores: dict[str, object], plan: Plan, dataset: Dataset, good: Sequence[Validated], failed: Sequence[Validated]
) -> None:
    """Add distances of landmarks, where the plan has any, and the cases that failed, where there are any."""
    if plan.landmarks:
        scores["landmarks"] = landmark_scores(dataset, good)
    if failed:
        scores["failed"] = [{"case": one.case.id, "fold": one.fold, "error": one.error} for one in failed]


def landmark_scores(dataset: Dataset, validated: Sequence[Validated]) -> dict[str, object]:
    """Distances of the cases that have reference landmarks, over all and case by case, ready for JSON."""
    rows, cases = [], []
    for one in validated:
        if one.landmarks is not None and one.case.landmarks is not None:
            truth = Landmarks(dataset.landmarks, read_points(one.case, dataset))
            row = score_landmarks(one.case.id, read_landmarks(one.landmarks), truth)
            errors = {name: json_number(error) for name, error in row.errors_mm.items()}
            rows.append(row)
            cases.append({"case": one.case.id, "fold": one.fold, "errors_mm": errors})
    return {"summary": summarise_landmarks(rows), "per_case": cases}


def _label_scores(
    plan: Plan,
    dataset: Dataset,
    validated: Sequence[Validated],
    failed: list[Validated],
    by_fold: Mapping[Path, dict[str, object]],
    *,
    report: Report,
    workers: int | None,
) -> tuple[Plan, dict[str, object]]:
    """The plan with its cleaning, scores before and after it, those of folds in `by_fold`; bad cases join `failed`."""
    pair, own = partial(_pair, dataset, plan), plan.postprocess
    pairs = _loaded(partial(_cleaned, pair, own), validated, failed)
    decision = choose_cleaning(pairs, report=report, total=len(validated))
    validated = _without(validated, failed)
    steps = (*own, *decision.value)
    before = _scores(pair, validated, (), report, workers)
    after = _scores(pair, validated, steps, report, workers) if steps else before
    first = f"{', '.join(step.use for step in own)} as the plan had it; then " if own else ""
    reason = first + decision.reason
    reasons = {**plan.reasons, "postprocess": reason}
    names = plan.labels.names()
    scores: dict[str, object] = {
        "mean_dice_before": json_number(_mean(_dice(before, name) for name in names)),
        "mean_dice": json_number(_mean(_dice(after, name) for name in names)),
        "dice_before": {name: json_number(_dice(before, name)) for name in names},
        "dice": {name: json_number(_dice(after, name)) for name in names},
        "cleaning": reason,
        "summary": summarise(after),
        "per_case": [
            {"case": one.case.id, "fold": one.fold, "dice_before": _row(first), "dice": _row(last)}
            for one, first, last in zip(validated, before, after, strict=True)
        ],
    }
    for folder, kept in by_fold.items():
        here = {one.prediction for one in _of(validated, folder)}
        rows = [row for one, row in zip(validated, before, strict=True) if one.prediction in here]
        kept.update(_fold_scores(rows))
    return replace(plan, postprocess=steps, reasons=reasons), scores


def _loaded(pair: Pair, validated: Sequence[Validated], failed: list[Validated]) -> Iterator[tuple[LabelMap, LabelMap]]:
    """The pair of every case that can be read; the others are added to `failed`."""
    for one in validated:
        try:
            both = pair(one)
        except MedsegError as problem:
            failed.append(with_error(one, problem))
        else:
            yield both


def _without(validated: Sequence[Validated], failed: Sequence[Validated]) -> list[Validated]:
    lost = {one.prediction for one in failed}
    return [one for one in validated if one.prediction not in lost]


def _of(validated: Sequence[Validated], folder: Path) -> list[Validated]:
    return [one for one in validated if one.prediction.parent.parent == folder]


def _pair(dataset: Dataset, plan: Plan, one: Validated) -> tuple[LabelMap, LabelMap]:
    image, reference = read_pair(one.case, dataset)
    reference = scored(reference, image, plan.preprocess)
    prediction = read_labels(one.prediction, plan.labels, predicted=True)
    if prediction.array.shape != reference.array.shape:
        what = f"has {prediction.array.shape} voxels where the scan has {reference.array.shape}"
        raise GeometryError(what, where=one.prediction, hint="the scan was replaced; run the same command again")
    return replace(prediction, geometry=reference.geometry), reference


def _cleaned(pair: Pair, steps: Sequence[Step], one: Validated) -> tuple[LabelMap, LabelMap]:
    prediction, reference = pair(one)
    return clean(prediction, steps) if steps else prediction, reference


def _scores(
    pair: Pair, validated: Sequence[Validated], steps: Sequence[Step], report: Report, workers: int | None
) -> list[CaseScores]:
    def score(one: Validated) -> CaseScores:
        prediction, reference = pair(one)
        return score_case(one.case.id, clean(prediction, steps) if steps else prediction, reference)

    rows = []
    for _, row in in_order(score, validated, workers=workers):
        rows.append(row)
        report(Progress("score", len(rows), len(validated)))
    return rows


def _fold_scores(rows: Sequence[CaseScores]) -> dict[str, object]:
    return {
        "cleaning": "none",
        "summary": summarise(rows),
        "per_case": [{"case": row.case_id, "dice": _row(row)} for row in rows],
    }


def _row(scores: CaseScores) -> dict[str, float | str | None]:
    return {name: json_number(label.dice) for name, label in scores.labels.items()}


def _dice(rows: Sequence[CaseScores], name: str) -> float:
    return _mean(row.labels[name].dice for row in rows)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
