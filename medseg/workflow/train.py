"""medseg train: prepare, fit each fold, validate whole volumes, choose cleaning, save the bundle."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64

from medseg.errors import DatasetError, MedsegError, PlanError, TrainingError
from medseg.io.bundles import bundle_sha256, remove_leftovers, remove_parts, save_bundle
from medseg.io.cache import cache_key, is_complete, write_case
from medseg.io.dataset_points import read_points, within
from medseg.io.datasets import read_dataset
from medseg.io.pairs import in_order, read_pair
from medseg.io.records import read_record, record_sha256, to_plain, write_record
from medseg.io.regions import region_faults
from medseg.preprocess.chain import prepare_image, prepare_labels
from medseg.preprocess.fan import has_fan, scored
from medseg.training.curves import tensorboard
from medseg.training.lock import locked
from medseg.training.loop import Hook, fit
from medseg.training.session import CHECKPOINT, WEIGHTS, is_finished
from medseg.types.dataset import Case, Dataset, Split
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import ModelBundle
from medseg.workflow.check_plan import check_plan, load_plan
from medseg.workflow.devices import resolve_device, resolve_precision
from medseg.workflow.run_folds import (
    Fold,
    Folds,
    annotated,
    member_runs,
    run_raters,
    run_splits,
    say_absent_raters,
    say_changed_annotations,
    unfinished_members,
    wanted_folds,
    with_finished,
)
from medseg.workflow.size_plan import warn_of_size
from medseg.workflow.switches import say_doubts
from medseg.workflow.teacher import check_teacher, open_teacher, unseen_member
from medseg.workflow.validate_fold import Validated, validate_fold
from medseg.workflow.validation import clean_and_score

_LOG = logging.getLogger("medseg")
_TEACHER = "teacher.json"  # of a network: the bundle that taught it, and which member, if it saw nothing of the fold


def prepare(plan: Plan, dataset: Dataset, folder: Path, *, workers: int | None = None, report: Report = silent) -> Path:
    """Preprocess every annotated case into the cache below `folder`; returns the cache. Finished cases are skipped.

    `workers` threads work side by side (None: one per core, at most 4). Raises DatasetError that lists every case that
    failed; the others are kept.
    """
    cache = folder / "cache" / cache_key(plan.preprocess, plan.labels, plan.landmarks, dataset.spacing_mm)[:16]
    cases = annotated(dataset)
    wrong: list[str] = []
    work = partial(_prepare_case, plan, dataset, cache)
    limit = workers or min(4, os.cpu_count() or 1)
    for done, (_, problem) in enumerate(in_order(work, cases, workers=limit), start=1):
        wrong += [problem] if problem else []
        report(Progress("prepare", done, len(cases)))
    if wrong:
        raise DatasetError(
            f"{len(wrong)} of {len(cases)} cases cannot be prepared\n  " + "\n  ".join(wrong),
            where=dataset.root,
            hint="correct or remove them, then run the same command; finished cases are kept",
        )
    return cache


def train(
    plan: Plan | Path | str,
    dataset: Path | str,
    out: Path | str,
    *,
    folds: Folds = "cv",
    device: str = "auto",
    hooks: Sequence[Hook] = (),
    report: Report = silent,
    workers: int | None = None,
    track: bool = False,
    teacher: Path | str | None = None,
    trust: Sequence[str] = (),
) -> ModelBundle:
    """Train the folds of a plan on a dataset folder into the run folder `out`; returns the bundle `out`/bundle.

    `folds`: "cv" for all of the cross-validation, "all" for all cases at once, or numbers. Finished folds are not
    trained again; the bundle holds every fold that is finished, also of earlier calls, with all the networks that the
    plan has per fold. Cleaning is chosen from out-of-fold predictions only. An interrupted call goes on where it
    stopped when called again. Calls for different folds may run side by side; for the same fold the second is refused.
    A case that cannot be validated is logged and listed in the scores as `failed`. `track` also writes the metrics of
    every network for TensorBoard, into a folder tensorboard beside its weights. `teacher` is the bundle that the loss
    "distillation" learns from; its memory is not part of the plan's budget, and `trust` names modules of its code.
    Raises PlanError, DatasetError, TrainingError, or Interrupted after SIGTERM or Ctrl-C.
    """
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    refs = check_plan(plan)
    say_doubts(plan)
    out = Path(out)
    data = read_dataset(Path(dataset))
    _say_doubts(data)
    _check_match(plan, data)
    where = resolve_device(device)
    here = replace(plan, training=replace(plan.training, precision=resolve_precision(plan.training.precision, where)))
    warn_of_size(here, where)
    guide = check_teacher(plan, None if teacher is None else Path(teacher), trust=trust)
    with locked(out, doing="preparing", wait=True):
        _keep_plan(plan, out)
        splits = run_splits(data, out, folds)
        wanted = wanted_folds(folds, splits, out)
        _sweep_caches(out)
        cache = prepare(plan, data, out, workers=workers, report=report)
        raters = run_raters(data, plan, out)
    dealt = record_sha256(splits) if splits else None
    taught = {} if guide is None else {fold: unseen_member(guide, fold, dealt) for fold in [*range(len(splits)), "all"]}
    for fold in with_finished(wanted, splits, out, plan):
        split, run = _split(data, splits, fold), out / f"fold_{fold}"
        say_absent_raters(plan, raters, fold, split.train)
        say_changed_annotations(run, split.train, cache)
        for part, one in unfinished_members(here, run):
            _sweep_fold(one)
            _keep_teacher(guide, taught.get(fold), one)
            fit(
                part,
                split.train,
                split.val,
                cache,
                one,
                device=where,
                hooks=(*hooks, tensorboard(one / "tensorboard")) if track else hooks,
                report=report,
                workers=_loaders(where) if workers is None else workers,
                teacher=None if guide is None else open_teacher(guide, here, where, member=taught[fold]),
                raters=raters,
            )
        with locked(out, doing="validating", wait=True):
            validate_fold(plan, data, split.val, run, device=where, report=report)
    with locked(out, doing="saving", wait=True):
        members = {fold: out / f"fold_{fold}" for fold in with_finished(wanted, splits, out, plan)}
        validated: list[Validated] = []
        for fold, run in members.items():  # what is there already is kept; another process may have added folds
            names = _split(data, splits, fold).val
            validated += validate_fold(plan, data, names, run, device=where, report=report)
        cleaned, scores = clean_and_score(plan, data, validated, report=report, workers=workers)
        facts: dict[str, object] = {"members": [str(fold) for fold in members], "splits_sha256": dealt}
        if guide is not None:
            facts["teacher"] = _teacher_facts([one for run in members.values() for one in member_runs(run, plan)])
        remove_leftovers(out)
        weights = {fold: [one / WEIGHTS for one in member_runs(run, plan)] for fold, run in members.items()}
        return save_bundle(out / "bundle", cleaned, weights, {**scores, **facts}, refs)


def _say_doubts(dataset: Dataset) -> None:
    """Log what no label map of this data set could show."""
    for fault in region_faults(dataset.labels):
        _LOG.warning("%s. %s", fault.what, fault.fix)


def _sweep_caches(out: Path) -> None:
    """Remove what killed processes left of cases; the caller holds the lock of `out`, as all do who prepare there."""
    for cache in (out / "cache").glob("*"):
        remove_parts(cache)


def _sweep_fold(run: Path) -> None:
    """Remove what killed processes left in the folder of a fold; where one is training, refused as `fit` is.

    Scores are written there too, without this lock, but of finished folds only.
    """
    with locked(run):
        if not is_finished(run):
            remove_parts(run)


def _split(dataset: Dataset, splits: tuple[Split, ...], fold: Fold) -> Split:
    """The cases of a fold; "all" has nothing to validate."""
    return Split(tuple(case.id for case in annotated(dataset)), ()) if fold == "all" else splits[int(fold)]


def _keep_teacher(guide: ModelBundle | None, member: str | None, run: Path) -> None:
    """Write down who teaches a network; a run that goes on from a checkpoint with another is refused by `fit`."""
    if guide is not None and not ((run / _TEACHER).exists() and (run / CHECKPOINT).exists()):
        write_record({"bundle_sha256": bundle_sha256(guide), "member": member or ""}, run / _TEACHER)


def _teacher_facts(runs: Sequence[Path]) -> dict[str, object]:
    """For the scores: the teachers, and whether one has seen the cases that its student is scored on."""
    lessons = [read_record(one / _TEACHER, dict[str, str]) for one in runs if (one / _TEACHER).exists()]
    unseen = len(lessons) == len(runs) and all(lesson["member"] for lesson in lessons)
    if not unseen:
        _LOG.warning(
            "the teacher has no member of the same fold and splits: it may have learnt from cases that the student is"
            " scored on, so these scores are too good"
        )
    teachers = sorted({lesson["bundle_sha256"] for lesson in lessons})
    return {"bundle_sha256": " ".join(teachers), "never_saw_validation": unseen}


def _prepare_case(plan: Plan, dataset: Dataset, cache: Path, case: Case) -> str:
    """Write one case into the cache; returns what went wrong, or nothing."""
    points = case.landmarks if plan.landmarks else None
    sources = [*case.images, *(path for path in (case.label, points) if path is not None)]
    try:
        if is_complete(cache, case.id, sources=sources):
            return ""
        image, labels = read_pair(case, dataset)
        labels = scored(labels, image, plan.preprocess)
        prepared = prepare_image(image, plan.preprocess)
        target = prepare_labels(labels, prepared.geometry, order=plan.preprocess.label_order)
        inside = _drawn_from(prepared, target, plan)
        places = _places(case, dataset, image.geometry, prepared.geometry) if plan.landmarks else None
        write_case(
            cache, case.id, prepared, target, patch=plan.sampling.patch, sources=sources, inside=inside, points=places
        )
    except (MedsegError, OSError) as error:
        text = str(error)
        return text if text.startswith(case.id) else f"{case.id}: {text}"
    return ""


def _drawn_from(prepared: Image, target: LabelMap, plan: Plan) -> Bool[np.ndarray, "z y x"] | None:
    """Where patches that need not show a class lie: in the fan of ultrasound, and where somebody annotated."""
    ignore = target.labels.ignore
    fan = (prepared.array != 0).any(axis=0) if has_fan(plan.preprocess) else None
    if ignore is None or not (target.array == ignore).any():
        return fan
    known: np.ndarray = target.array != ignore
    return known if fan is None else known & fan


def _places(case: Case, dataset: Dataset, scan: Geometry, grid: Geometry) -> Float64[np.ndarray, "n 3"]:
    """A case's landmarks as places (z, y, x) on its prepared grid; NaN for those outside, which nobody can see."""
    points = read_points(case, dataset, scan)
    places, seen = grid.to_voxels(points), within(grid, points)
    if cut := int((within(scan, points) & ~seen).sum()):
        _LOG.warning("%s: %d landmarks lie outside the box that the crop keeps; they are not learnt from", case.id, cut)
    inside: np.ndarray = np.where(seen[:, None], places, np.nan)
    return inside


def _check_match(plan: Plan, dataset: Dataset) -> None:
    if plan.channels != dataset.channels:
        raise PlanError(
            f"plan is for channels {list(plan.channels)}, the data set has {list(dataset.channels)}",
            where="channels",
            hint="make the plan from this data set",
        )
    same = {"labels": plan.labels.mean_the_same(dataset.labels), "landmarks": plan.landmarks == dataset.landmarks}
    for field, agree in same.items():
        if not agree:
            raise PlanError(f"{field} differ from the data set's", where=field, hint="make the plan from this data set")
    others = sorted(set(dataset.raters()) - set(plan.raters)) if plan.raters else []
    if others:
        what = f"the plan has no code for the raters {', '.join(others[:5])}"
        raise PlanError(what, where="raters", hint="make the plan from this data set")


def _keep_plan(plan: Plan, out: Path) -> None:
    """Copy the plan into the run folder; a folder belongs to one plan."""
    path = out / "plan.json"
    if path.exists() and _essence(read_record(path, Plan)) != _essence(plan):
        raise TrainingError("holds a run of another plan", where=out, hint="choose another output folder")
    write_record(plan, path)


def _essence(plan: Plan) -> str:
    """Hash of what makes a plan another one; how a trained network is called, predicts and is cleaned may change."""
    plain = to_plain(plan)
    free = ("name", "reasons", "inference", "postprocess", "origin")
    return record_sha256({key: plain[key] for key in plain if key not in free})


def _loaders(device: torch.device) -> int:
    """Threads that load batches: none on a CPU, whose cores are busy with training."""
    return 0 if device.type == "cpu" else max(1, min(8, (os.cpu_count() or 1) - 1))
