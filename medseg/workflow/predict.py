"""medseg predict: many scans through a model; each leaves a record, none stops the others."""

import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import medseg
from medseg.errors import DatasetError, MedsegError
from medseg.inference.ensemble import chosen
from medseg.io.archives import unpacked
from medseg.io.bundles import bundle_folder, bundle_sha256, load_bundle, remove_parts
from medseg.io.cache import VERSION
from medseg.io.outputs import format_like
from medseg.io.processes import Limits, Lost, run_apart
from medseg.io.scans import find_cases
from medseg.training.lock import locked
from medseg.types.dataset import Case
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import CaseReport, ModelBundle, Provenance, RunReport
from medseg.workflow import journal
from medseg.workflow.cine import FORMATS as CINE_FORMATS
from medseg.workflow.cine import cine_file
from medseg.workflow.devices import resolve_device
from medseg.workflow.left_out import notes_before, refused_lines
from medseg.workflow.model import (
    Model,
    PredictOptions,
    load_model,
    members_of,
    predict_image,
    tuned,
)
from medseg.workflow.no_effect import without_effect
from medseg.workflow.predict_case import Job, Predictor, failed, kept, older_results, predictor_in_worker, roots_of

__all__ = ["Model", "PredictOptions", "load_model", "predict_folder", "predict_image"]
REPORT = journal.REPORT
_DEFAULT = PredictOptions()
Lines = Generator[tuple[int, CaseReport], None, None]  # with the index of the job
_FEW = 16  # cases that are predicted sooner than a process starts


def predict_folder(
    bundle: Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    options: PredictOptions = _DEFAULT,
    report: Report = silent,
) -> RunReport:
    """Segment all scans among files, archives, folders of files and trees of DICOM series.

    Writes one file per format on the grid of each scan (and `probabilities/<case id>.nii.gz` on request), after every
    case its line in `report.jsonl`, and at the end all lines in `report.json`. A scan that cannot be read or predicted,
    or that takes its process down, is a failed line with what, where and what to do, and leaves no label map, not even
    an older one. Raises MedsegError only for what concerns all of them: a bad bundle, no scans, an input that is not
    there, an output folder that another run works in, that cannot be written, that would mix results with inputs, or
    that holds files of their names though no prediction has left a report there.
    """
    out, given = Path(out), [Path(path) for path in inputs]
    _refuse_missing(given)
    device = resolve_device(options.device)
    refuse_unwritable(out)
    folder = bundle_folder(Path(bundle))
    loaded = load_bundle(folder, trust=options.trust)
    chosen(loaded, options.folds, options.rater)
    with ExitStack() as stack:
        scans, refused = _opened(given, stack)
        cases, wrong = find_cases(scans, loaded.plan.channels, keep_identifiers=options.keep_identifiers, report=report)
        refused.update(wrong)
        if not cases and not refused:
            raise DatasetError("no scans given", hint="give files, archives, folders of files or DICOM folders")
        notes = notes_before(cases, refused, loaded.plan.channels)
        unpacked = [path for path in scans if path not in given]
        jobs = _jobs(cases, notes, scans, unpacked, out, loaded.plan, options)
        settings = _settings(loaded, options)
        blank = RunReport("medseg.report/1", medseg.__version__, bundle_sha256(loaded), str(device), (), settings)
        made_by = Provenance(loaded.plan.name, blank.bundle_sha256, blank.settings)
        workers = _workers(options, len(jobs))
        members = () if workers else members_of(loaded, device, options)
        stack.enter_context(locked(out, doing="predicting", error=DatasetError, remove=True))

        def predict(todo: Sequence[Job]) -> Lines:
            if workers:
                yield from _apart(todo, folder, options, made_by, workers)
            else:
                predictor = Predictor(loaded, members, device, options, made_by, report)
                yield from ((index, predictor.run(job)) for index, job in enumerate(todo))

        lines = [journal.writable_line(line) for line in refused_lines(refused, scans, given, options.keep_identifiers)]
        batch = _Batch(out, blank, lines, jobs, loaded)
        return _run(batch, predict, options.resume, report)


@dataclass(frozen=True, eq=False)
class _Batch:
    """All cases of a run, and the lines of what is no case."""

    out: Path
    blank: RunReport
    lines: Sequence[CaseReport]
    jobs: Sequence[Job]
    bundle: ModelBundle


def _run(
    batch: _Batch,
    predict: Callable[[Sequence[Job]], Lines],
    resume: bool,
    report: Report,
) -> RunReport:
    """Predict what no earlier run has finished; every line is on disk before the next case ends."""
    out, jobs = batch.out, batch.jobs
    done = _done_before(batch, report) if resume else {}
    _remove_leftovers(out)
    journal.begin(out, batch.blank, (*batch.lines, *done.values()))
    todo = [index for index in range(len(jobs)) if index not in done]
    try:
        with closing(predict([jobs[index] for index in todo])) as results:
            for index, made in results:
                done[todo[index]] = line = journal.writable_line(made)
                journal.append(out, line)
                report(Progress("cases", len(done), len(jobs)))
    finally:
        final = replace(batch.blank, cases=(*batch.lines, *(done[index] for index in sorted(done))))
        journal.finish(out, final)
    return final


def _apart(todo: Sequence[Job], folder: Path, options: PredictOptions, made_by: Provenance, workers: int) -> Lines:
    """Lines by worker processes; a case whose process ends, or takes too long, is a failed line."""
    limits = Limits(workers, options.case_minutes and 60 * options.case_minutes)
    for index, result in run_apart(predictor_in_worker, (folder, options, made_by), todo, limits):
        if isinstance(result, Lost):
            job = todo[index]
            yield index, failed(job, f"{job.case.id}: {result.reason}. predict it alone to see why, or leave it out")
        else:
            yield index, result


def _workers(options: PredictOptions, cases: int) -> int:
    """Processes to predict in, 0 for this one."""
    if options.case_minutes is not None and (options.workers == 0 or options.case_minutes <= 0):
        hint = "give minutes above 0 and at least one worker"
        raise DatasetError("only a process of its own can be given up", where="--case-minutes", hint=hint)
    if options.workers is not None:
        if options.workers < 0:
            raise DatasetError(f"{options.workers} is no number of processes", where="--workers", hint="give 0 or more")
        return options.workers
    return 1 if cases > _FEW or options.case_minutes else 0


def _refuse_missing(inputs: Sequence[Path]) -> None:
    """Raise DatasetError for the first input that is not there, named as it was given."""
    for path in inputs:
        if not path.exists():
            raise DatasetError("no such file or folder", where=path, hint="check the path")


def refuse_unwritable(out: Path) -> None:
    """Raise DatasetError where nothing can be written to a folder; it is not made."""
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        hint = "choose another output folder, or change its permissions"
        raise DatasetError(f"cannot be written ({error.strerror})", where=out, hint=hint) from error


def _opened(inputs: Sequence[Path], stack: ExitStack) -> tuple[list[Path], dict[Path, str]]:
    """The inputs, archives unpacked for as long as the stack is open, and the archives that are refused."""
    opened: list[Path] = []
    refused: dict[Path, str] = {}
    for path in inputs:
        try:
            opened.append(stack.enter_context(unpacked(path)))
        except MedsegError as error:
            refused[path] = f"{error.what}. {error.hint}"
    return opened, refused


def _jobs(
    cases: Sequence[Case],
    notes: Sequence[tuple[str, ...]],
    inputs: Sequence[Path],
    unpacked: Sequence[Path],
    out: Path,
    plan: Plan,
    options: PredictOptions,
) -> list[Job]:
    """One job per case; refuses an output folder within the inputs, which the next run would take for scans."""
    target = out.resolve()
    for folder in inputs:
        if folder.is_dir() and target.is_relative_to(folder.resolve()):
            raise DatasetError("output lies within the inputs", where=out, hint="choose a folder outside of them")
    passing = [target, *(folder.resolve() for folder in unpacked)]  # what is fetched lies in the output folder
    root_of = roots_of(inputs)
    jobs = []
    for case, known in zip(cases, notes, strict=True):
        cine = cine_file(case)
        formats = _formats(case, cine, options) if plan.labels.items or cine else ()
        scores = options.save_probabilities and bool(plan.labels.items)
        probabilities = f"probabilities/{case.id}.nii.gz" if scores else None
        root = root_of(case.images[0])
        lasting = not any(case.images[0].resolve().is_relative_to(folder) for folder in passing)
        job = Job(
            case, out, formats, probabilities, root, known, options.keep_identifiers, cine, plan.landmarks, lasting
        )
        jobs.append(replace(job, notes=(*known, *without_effect(job, options), *older_results(job))))
    _refuse_clashes(jobs, out)
    return jobs


def _formats(case: Case, cine: Path | None, options: PredictOptions) -> tuple[str, ...]:
    """Those asked for, gif of cines only; else those of the scan."""
    asked = tuple(dict.fromkeys(options.format))
    if cine is not None:
        return asked or CINE_FORMATS
    held = tuple(form for form in asked if form != "gif")
    if held:
        return held
    return ("nii.gz" if case.files else format_like(case.images[0]),)


def _refuse_clashes(jobs: Sequence[Job], out: Path) -> None:
    named = Counter(name.casefold() for job in jobs for name in job.names())
    twice = [name for job in jobs for name in job.names() if named[name.casefold()] > 1]
    if twice:
        raise DatasetError("would be the result of two scans", where=out / twice[0], hint="rename one of them")
    target = out.resolve()
    written = {target / name for job in jobs for name in job.names()}
    clash = [path for job in jobs for path in job.case.images if path.resolve() in written]
    if clash:
        raise DatasetError(
            "would be overwritten by its own result", where=clash[0], hint="choose another output folder"
        )
    foreign = [name for job in jobs for name in job.names() if (out / name).exists()]
    if foreign and not journal.exists(out):
        what = "is there already, in a folder without a report of a prediction"
        raise DatasetError(what, where=out / foreign[0], hint="choose another output folder, or move the file away")


def _settings(bundle: ModelBundle, options: PredictOptions) -> dict[str, str]:
    """What else than the bundle decides the results."""
    inference = tuned(bundle.plan, options).inference
    folds = options.folds or dict.fromkeys(member.fold for member in bundle.members)
    return {
        "folds": " ".join(map(str, folds)),
        "overlap": str(inference.overlap),
        "mirror_axes": " ".join(map(str, inference.mirror_axes)),
        "clean": str(options.clean),
        "preprocessing": VERSION,
        **({"seg_kind": options.seg_kind} if "dicom-seg" in options.format else {}),
        **({"spacing_mm": "{} {}".format(*options.spacing_mm)} if options.spacing_mm else {}),
        **({"temporal_median": str(options.temporal_median)} if options.temporal_median != 1 else {}),
        **({"directions": " ".join(options.directions)} if options.directions else {}),
        **({} if options.rater is None else {"rater": str(1 + bundle.plan.raters.index(options.rater))}),
    }


def _done_before(batch: _Batch, report: Report) -> dict[int, CaseReport]:
    """Lines of cases that an earlier run of the same bundle and settings finished and whose files are whole."""
    before = journal.earlier(batch.out)
    if before is None or before.bundle_sha256 != batch.blank.bundle_sha256 or before.settings != batch.blank.settings:
        return {}
    old = {line.case_id: line for line in before.cases if line.outputs and line.status != "failed"}
    found = {}
    for index, job in enumerate(batch.jobs):
        line = kept(old.get(job.case.id), job, batch.bundle.plan.labels)
        if line is not None:
            found[index] = line
        report(Progress("earlier results", index + 1, len(batch.jobs)))
    return found


def _remove_leftovers(out: Path) -> None:
    """Temporary files of a run that was killed."""
    for folder in (out, out / "probabilities"):
        remove_parts(folder)
