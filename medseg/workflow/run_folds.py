"""The folds of a run folder and their networks: dealt once, kept, and checked against the data set at every call."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medseg.errors import DatasetError, TrainingError
from medseg.io.cache import VERSION, annotation_sha256
from medseg.io.records import read_record, write_record
from medseg.planning.splits import FOLDS, extend_splits, make_splits, split_faults, take_turns
from medseg.training.session import CHECKPOINT, is_finished, read_facts
from medseg.types.dataset import Case, Dataset, Split
from medseg.types.plan import Plan

_LOG = logging.getLogger("medseg")
Fold = int | Literal["all"]
Folds = Literal["cv", "all"] | int | Sequence[int]


@dataclass(frozen=True)
class _Annotations:
    """`annotations.json`: `cache` is the version that prepared the cases, `sha256` is of their annotations."""

    cache: str
    sha256: dict[str, str]


def annotated(dataset: Dataset) -> list[Case]:
    """The cases that have a label map or landmarks."""
    return [case for case in dataset.cases if case.label is not None or case.landmarks is not None]


def run_splits(dataset: Dataset, out: Path, folds: Folds) -> tuple[Split, ...]:
    """The folds of the run folder, made when first needed and then kept.

    Cases added later join folds that were dealt; folds of the data set's own stay as they are. Raises DatasetError
    where they no longer fit the data set: lost cases, a patient on both sides of a fold, other folds of its own.
    """
    path = out / "splits.json"
    labelled = replace(dataset, cases=tuple(annotated(dataset)))
    if not path.exists():
        if folds == "all":
            return ()
        made = make_splits(labelled)
        if len(made) < FOLDS and not labelled.splits:
            _LOG.warning("%d patients or groups: %d folds instead of %d", len(made), len(made), FOLDS)
        write_record(made, path)
    splits = read_record(path, tuple[Split, ...])
    known = {case.id for case in labelled.cases}
    dealt = {name for split in splits for name in (*split.train, *split.val)}
    lost = sorted(dealt - known)
    if lost:
        raise DatasetError(
            f"cases {', '.join(lost[:5])} are in the splits but not in the data set",
            where=path,
            hint="restore them, or train into another output folder",
        )
    _check_again(labelled, splits, path)
    unused = sorted(known - dealt)
    if unused and (dataset.splits or not take_turns(splits)):
        some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        _LOG.warning("%s: %d cases are in no fold and stay out of the cross-validation: %s", path, len(unused), some)
    elif unused:
        splits = extend_splits(splits, labelled)
        write_record(splits, path)
    return splits


def run_raters(dataset: Dataset, plan: Plan, out: Path) -> dict[str, str]:
    """Who annotated which case, for a plan that knows raters; kept in the run folder.

    Raises DatasetError where cases that were there at an earlier call have changed hands: networks of one run would
    mean different people by one code.
    """
    known = {case.id: case.rater for case in dataset.cases if case.rater is not None}
    if not plan.raters:
        return known
    path, now = out / "raters.json", {case.id: case.rater or "" for case in dataset.cases}
    before = read_record(path, dict[str, str]) if path.exists() else {}
    changed = sorted(case for case in now.keys() & before.keys() if now[case] != before[case])
    if changed:
        what = f"{len(changed)} cases had other raters when this run began: {', '.join(changed[:5])}"
        raise DatasetError(what, where=path, hint="train into another output folder")
    write_record({**before, **now}, path)
    return known


def say_absent_raters(plan: Plan, raters: Mapping[str, str], fold: Fold, train: Sequence[str]) -> None:
    """Log a warning for raters whose way a fold cannot learn."""
    absent = sorted(set(plan.raters) - {raters[case] for case in train if case in raters})
    if absent:
        _LOG.warning(
            "fold %s: no case to learn from by the raters %s; they get the mean of the others", fold, ", ".join(absent)
        )


def say_changed_annotations(run: Path, train: Sequence[str], cache: Path) -> None:
    """Log a warning for cases whose label map or landmarks have changed since a fold began to learn from them.

    What they were is kept in the folder of the fold; of folds that began under an earlier medseg nobody knows.
    """
    path, now = run / "annotations.json", {case: annotation_sha256(cache, case) for case in train}
    if not (run / CHECKPOINT).exists() and not is_finished(run):
        write_record(_Annotations(VERSION, now), path)
        return
    before = read_record(path, _Annotations) if path.exists() else _Annotations("", {})
    if before.cache != VERSION:
        return  # prepared otherwise, so the hashes differ for another reason
    changed = sorted(case for case in now.keys() & before.sha256.keys() if now[case] != before.sha256[case])
    if changed:
        some = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        what = (
            "%s: label maps or landmarks of %d cases have changed since it began: %s. Delete this folder to learn them"
        )
        _LOG.warning(what, run, len(changed), some)


def wanted_folds(folds: Folds, splits: tuple[Split, ...], out: Path) -> list[Fold]:
    """The folds that are asked for; raises TrainingError for those that the run does not have."""
    if folds == "all":
        return ["all"]
    chosen = list(range(len(splits))) if folds == "cv" else [folds] if isinstance(folds, int) else list(folds)
    unknown = [fold for fold in chosen if fold not in range(len(splits))]
    if unknown or not chosen:
        raise TrainingError(f"no folds {unknown}", where=out, hint=f"folds are 0 to {len(splits) - 1}, cv or all")
    return [int(fold) for fold in chosen]


def with_finished(wanted: Sequence[Fold], splits: tuple[Split, ...], out: Path, plan: Plan) -> list[Fold]:
    """Wanted folds, and those of earlier calls that are finished with all their networks, in order.

    Raises TrainingError for a finished network that has learnt from what its fold holds out now.
    """
    every: list[Fold] = [*range(len(splits)), "all"]
    found = []
    for fold in every:
        runs = [run for run in member_runs(out / f"fold_{fold}", plan) if is_finished(run)]
        if fold not in wanted and len(runs) < plan.training.members:
            continue
        for run in runs if fold != "all" else ():
            _check_unseen(run, splits[int(fold)])
        found.append(fold)
    return found


def _check_unseen(run: Path, split: Split) -> None:
    seen = sorted(set(read_facts(run).get("train", ())) & set(split.val))
    if seen:
        raise TrainingError(
            f"was trained on {len(seen)} cases that its fold holds out now: {', '.join(seen[:5])}",
            where=run,
            hint="restore splits.json, or delete this folder to train it anew",
        )


def member_runs(fold: Path, plan: Plan) -> tuple[Path, ...]:
    """The folder of every network of a fold: the fold's own, and one in it for each further network."""
    return (fold, *(fold / f"member_{number}" for number in range(1, plan.training.members)))


def unfinished_members(plan: Plan, fold: Path) -> Iterator[tuple[Plan, Path]]:
    """The plan and the folder of each network of a fold that is still to be trained."""
    for number, run in enumerate(member_runs(fold, plan)):
        if not is_finished(run):
            yield member_plan(plan, number), run


def member_plan(plan: Plan, number: int) -> Plan:
    """The plan of one network of a fold: a seed of its own, and its share of the time."""
    training, budget = plan.training, plan.origin.budget
    hours = None if budget.hours is None else budget.hours / training.members
    return replace(
        plan,
        training=replace(training, seed=training.seed + number),
        origin=replace(plan.origin, budget=replace(budget, hours=hours)),
    )


def _check_again(labelled: Dataset, splits: tuple[Split, ...], path: Path) -> None:
    """Raise DatasetError where groups or folds of the data set have changed since the folds of the run were made."""
    hint = "train into another output folder"
    if labelled.splits and labelled.splits != splits:
        raise DatasetError("holds other folds than the data set's own, which have changed", where=path, hint=hint)
    wrong = [fault for fault in split_faults(replace(labelled, splits=splits)) if fault.severity == "error"]
    if wrong:
        what = "\n  ".join(["the run's folds do not fit the data set's groups any more", *(f.what for f in wrong)])
        raise DatasetError(what, where=path, hint=hint)
