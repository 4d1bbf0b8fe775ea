"""Predict the scans of a fold with the weights that never saw them."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from medseg.errors import ImageError, MedsegError, memory_errors
from medseg.io.bundles import remove_parts
from medseg.io.cache import VERSION
from medseg.io.files import file_sha256, write_text
from medseg.io.images import write_labels
from medseg.io.landmarks import write_landmarks
from medseg.io.outputs import landmark_names
from medseg.io.pairs import read_scan
from medseg.io.records import record_sha256
from medseg.io.scan_sources import source_sha256
from medseg.training.session import WEIGHTS
from medseg.types.dataset import Case, Dataset
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import Member, ModelBundle
from medseg.workflow.model import PredictOptions, members_of, predict_image
from medseg.workflow.run_folds import member_runs

_LOG = logging.getLogger("medseg")
_SHORT = "free memory, or validate on another device: run the same command again"
Fold = int | str


@dataclass(frozen=True)
class Validated:
    """A case with the fold that never saw it, and the files predicted for it.

    `prediction` is the label map without cleaning, which tasks without classes do not have; `landmarks` the points;
    `error` says why there is nothing to score.
    """

    case: Case
    fold: Fold
    prediction: Path
    landmarks: Path | None = None
    error: str | None = None

    def is_there(self, plan: Plan) -> bool:
        """Whether all files that the plan predicts are there."""
        points = self.landmarks is None or self.landmarks.exists()
        return points and (self.prediction.exists() or not plan.labels.items)


def validate_fold(
    plan: Plan,
    dataset: Dataset,
    case_ids: Sequence[str],
    folder: Path,
    *,
    device: torch.device,
    report: Report = silent,
) -> tuple[Validated, ...]:
    """Predict the scans `case_ids` with the networks in `folder` (fold_k) into `folder`/validation, without cleaning.

    The same steps as prediction. What these weights have predicted before, from the same files and with the same
    inference settings, is kept; a case that cannot be predicted is logged and has an `error`. Nobody else may be
    validating there.
    """
    cases = {case.id: case for case in dataset.cases}
    fold = _fold_name(folder)
    out = folder / "validation"
    found = [
        Validated(cases[name], fold, out / f"{name}.nii.gz", out / landmark_names(name)[1] if plan.landmarks else None)
        for name in case_ids
    ]
    weights = [run / WEIGHTS for run in member_runs(folder, plan)]
    known = {path.relative_to(folder).as_posix(): file_sha256(path) for path in weights}
    sha256 = " ".join(known.values())
    _forget_others(
        out, f"{sha256} {VERSION} {record_sha256(plan.inference)} {_sources([one.case for one in found], dataset)}"
    )
    remove_parts(out)
    missing = [one for one in found if not one.is_there(plan)]
    if not missing:
        return tuple(found)
    name: int | Literal["all"] = fold if isinstance(fold, int) else "all"
    bundle = ModelBundle(folder, plan, tuple(Member(name, path, sha) for path, sha in known.items()), {})
    options = PredictOptions(clean=False)
    members = members_of(bundle, device, options)
    failed: dict[str, Validated] = {}
    for done, one in enumerate(missing, start=len(found) - len(missing) + 1):
        try:
            with memory_errors(ImageError, "out of memory", hint=_SHORT):
                image = read_scan(one.case, dataset)
                made = predict_image(image, bundle, members, device=device, options=options, case_id=one.case.id)
                if plan.labels.items:
                    write_labels(made.labels, one.prediction)
                if one.landmarks is not None and made.landmarks is not None:
                    write_landmarks(made.landmarks, one.landmarks)
        except MedsegError as problem:
            failed[one.case.id] = with_error(one, problem)
        report(Progress(f"validate {folder.name}", done, len(found)))
    return tuple(failed.get(one.case.id, one) for one in found)


def with_error(one: Validated, problem: MedsegError) -> Validated:
    """The case with its error, which is logged in full; what is kept in scores names no file."""
    _LOG.warning("fold %s is validated without %s: %s", one.fold, one.case.id, problem)
    return replace(one, error=problem.what)


def _forget_others(out: Path, made_by: str) -> None:
    """Remove predictions of other weights, preparation, inference settings or scans than `made_by` stands for."""
    note = out / "weights.sha256"
    if note.exists() and note.read_text(encoding="utf-8").strip() == made_by:
        return
    if out.exists():
        shutil.rmtree(out)
    write_text(note, made_by + "\n")


def _fold_name(folder: Path) -> Fold:
    name = folder.name.removeprefix("fold_")
    return int(name) if name.isdigit() else name


def _sources(cases: Sequence[Case], dataset: Dataset) -> str:
    """A hash of the files of all cases and of the spacing that the data set states for them.

    Files that cannot be read are found out when they are predicted.
    """
    digest = hashlib.sha256(f"{dataset.spacing_mm}\n".encode() if dataset.spacing_mm else b"")
    for case in sorted(cases, key=lambda case: case.id):
        try:
            state = source_sha256(case)
        except OSError:
            state = ""
        digest.update(f"{case.id} {state}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
