"""medseg predict: many scans through a model; each leaves a record, none stops the others."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import medseg
from medseg.errors import DatasetError, MedsegError
from medseg.io.bundles import bundle_sha256, load_bundle
from medseg.io.images import is_dicom, is_image, read_image, write_scores
from medseg.io.outputs import check_formats, check_whole, format_like, output_name, write_results
from medseg.io.records import read_record, write_record
from medseg.io.scans import find_cases
from medseg.types.dataset import Case
from medseg.types.labels import Labels
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import CaseReport, ModelBundle, Prediction, Provenance, RunReport
from medseg.workflow.devices import resolve_device
from medseg.workflow.model import (
    Model,
    PredictOptions,
    bundle_folder,
    load_model,
    members_of,
    predict_image,
    tuned,
)

__all__ = ["Model", "PredictOptions", "load_model", "predict_folder", "predict_image"]
REPORT = "report.json"
_DEFAULT = PredictOptions()


@dataclass(frozen=True)
class _Job:
    """A case and the files it leaves in `out`."""

    case: Case
    out: Path
    formats: tuple[str, ...]
    probabilities: str | None

    def names(self) -> tuple[str, ...]:
        labels = tuple(output_name(self.case.id, form) for form in self.formats)
        return labels if self.probabilities is None else (*labels, self.probabilities)


def predict_folder(
    bundle: Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    options: PredictOptions = _DEFAULT,
    report: Report = silent,
) -> RunReport:
    """Segment all scans among files, folders of files and DICOM folders.

    Writes one file per format on the grid of each scan (and `probabilities/<case id>.nii.gz` on request) and, after
    every case, `report.json` with a line per case. A scan that cannot be read or predicted is a failed line with
    what, where and what to do, and leaves no label map, not even an older one. Raises MedsegError only for what
    concerns all of them: a bad bundle, no scans, or an output folder that would mix results with inputs.
    """
    device = resolve_device(options.device)
    scans, out = [Path(path) for path in inputs], Path(out)
    loaded = load_bundle(bundle_folder(Path(bundle)), trust=options.trust)
    cases, refused = find_cases(scans, loaded.plan.channels)
    if not cases and not refused:
        raise DatasetError("no scans given", hint="give files, folders of files or DICOM folders")
    jobs = _jobs(cases, scans, out, options)
    members = members_of(loaded, device, options)
    blank = RunReport(
        "medseg.report/1", medseg.__version__, bundle_sha256(loaded), str(device), (), _settings(loaded, options)
    )
    made_by = Provenance(loaded.plan.name, blank.bundle_sha256, blank.settings)
    old = _lines_before(out / REPORT, blank) if options.resume else {}
    lines = [_refused_line(path, reason, scans) for path, reason in refused.items()]
    write_record(replace(blank, cases=(*lines, *_later(jobs, old))), out / REPORT)

    def predict(job: _Job) -> Prediction:
        image = read_image(job.case.images, channels=loaded.plan.channels, files=job.case.files)
        check_formats(image.source, job.formats, loaded.plan.labels, options.seg_kind)
        return predict_image(image, loaded, members, device=device, options=options, case_id=job.case.id, report=report)

    def write(job: _Job, prediction: Prediction) -> None:
        write_results(prediction, out, job.case.id, job.formats, made_by, seg_kind=options.seg_kind)

    for number, job in enumerate(jobs, start=1):
        done = _kept(old.get(job.case.id), job, loaded.plan.labels)
        lines.append(done or _run(job, predict, write))
        write_record(replace(blank, cases=(*lines, *_later(jobs[number:], old))), out / REPORT)
        report(Progress("cases", number, len(jobs)))
    return replace(blank, cases=tuple(lines))


def _run(job: _Job, predict: Callable[[_Job], Prediction], write: Callable[[_Job, Prediction], None]) -> CaseReport:
    """Predict and write one case; whatever goes wrong becomes the error of its line."""
    start = time.monotonic()
    try:
        prediction = predict(job)
        write(job, prediction)
        if job.probabilities is not None and prediction.probabilities is not None:
            write_scores(prediction.probabilities, job.out / job.probabilities)
        seconds = round(time.monotonic() - start, 3)
        volumes = prediction.volumes_ml or None
        return CaseReport(job.case.id, "ok", seconds, job.names(), volumes, prediction.warnings)
    except Exception as error:
        for name in job.names():
            (job.out / name).unlink(missing_ok=True)
        return CaseReport(job.case.id, "failed", round(time.monotonic() - start, 3), error=_reason(error, job.case))


def _reason(error: Exception, case: Case) -> str:
    """What, where and what to do, in one line."""
    where = case.images[0]
    if isinstance(error, MedsegError):
        return str(error if error.where else type(error)(error.what, where=where, hint=error.hint))
    text = " ".join(str(error).split())
    short = "not enough memory" in text or "can't allocate memory" in text
    if short or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{where}: out of memory. close other programs, predict on another device, or crop the scan"
    if isinstance(error, OSError):
        return f"{where}: {text}. check the disk and its permissions"
    return f"{where}: internal error {type(error).__name__}: {text}. please report it with this line"


def _jobs(cases: Sequence[Case], inputs: Sequence[Path], out: Path, options: PredictOptions) -> list[_Job]:
    """One job per case; refuses an output folder within the inputs, which the next run would take for scans."""
    target = out.resolve()
    for folder in inputs:
        if folder.is_dir() and target.is_relative_to(folder.resolve()):
            raise DatasetError("output lies within the inputs", where=out, hint="choose a folder outside of them")
    jobs = []
    for case in cases:
        formats = tuple(dict.fromkeys(options.format)) or (format_like(case.images[0]),)
        probabilities = f"probabilities/{case.id}.nii.gz" if options.save_probabilities else None
        jobs.append(_Job(case, out, formats, probabilities))
    named = Counter(name.casefold() for job in jobs for name in job.names())
    twice = [name for job in jobs for name in job.names() if named[name.casefold()] > 1]
    if twice:
        raise DatasetError("would be the result of two scans", where=out / twice[0], hint="rename one of them")
    written = {(out / name).resolve() for job in jobs for name in job.names()}
    clash = [path for case in cases for path in case.images if path.resolve() in written]
    if clash:
        raise DatasetError(
            "would be overwritten by its own result", where=clash[0], hint="choose another output folder"
        )
    return jobs


def _settings(bundle: ModelBundle, options: PredictOptions) -> dict[str, str]:
    """What else than the bundle decides the results."""
    inference = tuned(bundle.plan, options).inference
    folds = options.folds or [member.fold for member in bundle.members]
    return {
        "folds": " ".join(map(str, folds)),
        "overlap": str(inference.overlap),
        "mirror_axes": " ".join(map(str, inference.mirror_axes)),
        "clean": str(options.clean),
        **({"seg_kind": options.seg_kind} if "dicom-seg" in options.format else {}),
    }


def _lines_before(path: Path, now: RunReport) -> dict[str, CaseReport]:
    """The finished lines of an earlier report, if it is of the same bundle and settings."""
    if not path.is_file():
        return {}
    try:
        before = read_record(path, RunReport)
    except MedsegError:
        return {}  # a report that cannot be read vouches for nothing: every case is predicted again
    if before.bundle_sha256 != now.bundle_sha256 or before.settings != now.settings:
        return {}
    return {line.case_id: line for line in before.cases if line.outputs and line.status != "failed"}


def _later(jobs: Sequence[_Job], old: Mapping[str, CaseReport]) -> list[CaseReport]:
    """Earlier lines of cases this run has not come to, so that a run stopped twice forgets none."""
    return [old[job.case.id] for job in jobs if job.case.id in old]


def _kept(line: CaseReport | None, job: _Job, labels: Labels) -> CaseReport | None:
    """The earlier line as skipped, if every file it promises is there and can be read to its end."""
    if line is None or set(job.names()) - set(line.outputs):
        return None
    try:
        for form in job.formats:
            check_whole(job.out / output_name(job.case.id, form), form, labels)
        if job.probabilities is not None:
            read_image([job.out / job.probabilities])
    except (MedsegError, OSError):
        return None
    return replace(line, status="skipped", seconds=0.0)


def _refused_line(path: Path, reason: str, inputs: Sequence[Path]) -> CaseReport:
    """Failed, unless it is no image at all and merely lies beside the scans (a text, a DICOM report)."""
    other = "no image" in reason or (path.is_file() and not is_image(path) and not is_dicom(path))
    if other and path not in inputs:
        return CaseReport(path.name, "skipped", 0.0, warnings=(reason,))
    return CaseReport(path.name, "failed", 0.0, error=f"{path}: {reason}")
