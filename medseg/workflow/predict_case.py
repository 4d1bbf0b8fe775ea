"""One case of a batch: read, predict, write; whatever goes wrong becomes the error of its line."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from medseg.errors import BundleError, MedsegError, lacks_memory
from medseg.inference.sliding_window import Forward
from medseg.io.bundles import bundle_sha256, load_bundle
from medseg.io.identifiers import masked_text, shown_uid
from medseg.io.images import read_image, write_scores
from medseg.io.landmarks import read_landmarks
from medseg.io.outputs import Format, check_formats, check_whole, landmark_names, output_name
from medseg.io.scan_sources import source_sha256
from medseg.types.dataset import Case
from medseg.types.geometry import Vec3
from medseg.types.labels import Labels
from medseg.types.progress import Report, silent
from medseg.types.result import CaseReport, ModelBundle, Prediction, Provenance
from medseg.workflow.cine import check_cine, cine_names, predict_cine, write_cine
from medseg.workflow.devices import resolve_device
from medseg.workflow.model import PredictOptions, members_of, predict_image
from medseg.workflow.write_back import write_checked, write_landmarks_checked


@dataclass(frozen=True)
class Job:
    """A case and the files it leaves in `out`.

    `root`: the input it was found in, which texts do not repeat; `notes`: warnings that are known before it is read;
    `cine`: its file, if that is an ultrasound cine; `landmarks`: the points that the model finds; `lasting`: its files
    are the user's own, neither unpacked nor fetched for this run.
    """

    case: Case
    out: Path
    formats: tuple[str, ...]
    probabilities: str | None
    root: Path
    notes: tuple[str, ...] = ()
    keep_identifiers: bool = False
    cine: Path | None = None
    landmarks: tuple[str, ...] = ()
    lasting: bool = True

    def names(self) -> tuple[str, ...]:
        """Its files, relative to `out`."""
        if self.cine is not None:
            return cine_names(self.case.id, self.formats)
        labels = tuple(output_name(self.case.id, form) for form in self.formats)
        points = landmark_names(self.case.id) if self.landmarks else ()
        return (*labels, *points) if self.probabilities is None else (*labels, *points, self.probabilities)

    def series_uids(self) -> tuple[str, ...]:
        """For its line: what is no UID is hashed."""
        return tuple(map(shown_uid, self.case.series_uids))

    def source_sha256(self) -> str:
        """A hash that says whether its line is of the same files; empty where they cannot be read."""
        try:
            return source_sha256(self.case, lasting=self.lasting)
        except OSError:
            return ""

    def said(self, text: str) -> str:
        """A text for its line, without names of folders and DICOM files that could name the patient."""
        if self.keep_identifiers:
            return text
        files = [file for files in self.case.files for file in files]
        folders = [path.parent for path in self.case.images]
        return masked_text(text, files or folders, self.root, series=bool(files))


@dataclass(frozen=True, eq=False)
class Predictor:
    """What all cases of a batch share."""

    bundle: ModelBundle
    members: tuple[Forward, ...]
    device: torch.device
    options: PredictOptions
    made_by: Provenance
    report: Report = silent

    def predict(self, job: Job) -> Prediction:
        """Read a scan and segment it."""
        labels, channels = self.bundle.plan.labels, self.bundle.plan.channels
        image = read_image(
            job.case.images,
            channels=channels,
            files=job.case.files,
            volumes=job.case.volumes,
            spacing_mm=self.options.spacing_mm,
        )
        check_formats(image.source, job.formats, labels, self.options.seg_kind)
        return predict_image(
            image,
            self.bundle,
            self.members,
            device=self.device,
            options=self.options,
            case_id=job.case.id,
            report=self.report,
        )

    def run(self, job: Job) -> CaseReport:
        """Predict and write one case."""
        start = time.monotonic()
        try:
            source = job.source_sha256()
            prediction = self._written(job)
        except Exception as error:
            return failed(job, reason(error, job.case), time.monotonic() - start)
        warnings = tuple(job.said(warning) for warning in (*job.notes, *prediction.warnings))
        one, largest = (prediction.area_mm2, None) if job.cine is None else (None, prediction.area_mm2)
        return CaseReport(
            job.case.id,
            "ok",
            round(time.monotonic() - start, 3),
            job.names(),
            prediction.volumes_ml or None,
            warnings,
            series_uids=job.series_uids(),
            area_mm2=one or None,
            largest_area_mm2=largest or None,
            landmarks=_places(prediction),
            source_sha256=source,
        )

    def _written(self, job: Job) -> Prediction:
        """What was predicted, after its files are there."""
        if job.cine is not None:
            return self._written_cine(job, job.cine)
        prediction = self.predict(job)
        if job.formats:
            write_checked(prediction, job.out, job.case.id, job.formats, self.made_by, seg_kind=self.options.seg_kind)
        if job.probabilities is not None and prediction.probabilities is not None:
            write_scores(prediction.probabilities, job.out / job.probabilities)
        if prediction.landmarks is not None:
            write_landmarks_checked(prediction.landmarks, job.out, job.case.id)
        return prediction

    def _written_cine(self, job: Job, path: Path) -> Prediction:
        check_cine(path, self.bundle.plan, job.formats, self.options)
        made = predict_cine(
            path,
            self.bundle,
            self.members,
            device=self.device,
            options=self.options,
            case_id=job.case.id,
            report=self.report,
        )
        notes = write_cine(made, job.out, job.formats, self.made_by, options=self.options)
        return replace(made.prediction, area_mm2=made.largest_mm2(), warnings=(*made.prediction.warnings, *notes))


def older_results(job: Job) -> tuple[str, ...]:
    """Warnings about results of the case in formats that this run does not write: they may be of another model."""
    case, own = job.case, {*job.names()}
    possible = [*cine_names(case.id, get_args(Format)), *landmark_names(case.id), f"probabilities/{case.id}.nii.gz"]
    inputs = {path.absolute() for path in case.images}
    there = [name for name in possible if name not in own and (job.out / name).is_file()]
    return tuple(
        f"{name} was there before and is not of this run; remove it if it is of no use"
        for name in there
        if (job.out / name).absolute() not in inputs
    )


def predictor_in_worker(folder: Path, options: PredictOptions, made_by: Provenance) -> Callable[[Job], CaseReport]:
    """`Predictor.run` of a worker process, with a copy of the model of its own."""
    device = resolve_device(options.device)
    bundle = load_bundle(folder, trust=options.trust)
    members = members_of(bundle, device, options)
    if bundle_sha256(bundle) != made_by.bundle_sha256:  # asked last: the folder may be replaced while it is read
        raise BundleError("has changed since this run began", where=folder, hint="predict again")
    return Predictor(bundle, members, device, options, made_by).run


def failed(job: Job, error: str, seconds: float = 0.0) -> CaseReport:
    """The line of a case that failed, after what there is of its results has been removed."""
    for name in job.names():
        (job.out / name).unlink(missing_ok=True)
    uids, notes = job.series_uids(), tuple(job.said(note) for note in job.notes)
    return CaseReport(job.case.id, "failed", round(seconds, 3), error=job.said(error), warnings=notes, series_uids=uids)


def kept(line: CaseReport | None, job: Job, labels: Labels) -> CaseReport | None:
    """The line of an earlier run as skipped, if it is of the same scan and all its files are there and whole."""
    if line is None or set(job.names()) - set(line.outputs):
        return None
    if not all((job.out / name).is_file() for name in job.names()) or not _same_source(line, job):
        return None
    try:
        for form in job.formats:
            if form != "gif":
                check_whole(job.out / output_name(job.case.id, form), form, labels)
        if job.probabilities is not None:
            read_image([job.out / job.probabilities])
        points = landmark_names(job.case.id) if job.landmarks and job.cine is None else ()
        if any(read_landmarks(job.out / name).names != job.landmarks for name in points):
            return None
    except (MedsegError, OSError):
        return None
    return replace(line, status="skipped", seconds=0.0)


def _same_source(line: CaseReport, job: Job) -> bool:
    """Whether a line is of the files of a job as they are now; one that does not say vouches for nothing."""
    return bool(line.source_sha256) and line.source_sha256 == job.source_sha256()


def _places(prediction: Prediction) -> dict[str, Vec3 | None] | None:
    """For a case's line; None for a landmark that is missing."""
    if prediction.landmarks is None:
        return None
    placed = prediction.landmarks.placed()
    rounded = {name: (round(x, 3), round(y, 3), round(z, 3)) for name, (x, y, z) in placed.items()}
    return {name: rounded.get(name) for name in prediction.landmarks.names}


def reason(error: Exception, case: Case) -> str:
    """What, where and what to do, in one line."""
    where = case.id if case.files else case.images[0]
    if isinstance(error, MedsegError):
        return str(error if error.where else type(error)(error.what, where=where, hint=error.hint))
    text = " ".join(str(error).split())
    if lacks_memory(error):
        return f"{where}: out of memory. close other programs, predict on another device, or crop the scan"
    if isinstance(error, OSError):
        return f"{where}: {text}. check the disk and its permissions"
    return f"{where}: internal error {type(error).__name__}: {text}. please report it with this line"


def roots_of(inputs: Sequence[Path]) -> Callable[[Path], Path]:
    """Which input a path was found in: the folder given, or the one that holds the file given."""
    folders = [path if path.is_dir() else path.parent for path in inputs]

    def root(path: Path) -> Path:
        return next((folder for folder in folders if path.is_relative_to(folder)), path.parent)

    return root
