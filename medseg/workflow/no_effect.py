"""Options of a batch that change nothing for one of its scans: its line says so."""

from medseg.workflow.model import PredictOptions
from medseg.workflow.predict_case import Job


def without_effect(job: Job, options: PredictOptions) -> tuple[str, ...]:
    """Warnings about what was asked for and is not written, or is of no use to this scan or model."""
    return (*_unwritten(job, options), *_unused(job, options))


def _unwritten(job: Job, options: PredictOptions) -> tuple[str, ...]:
    """What was asked for and is not written."""
    notes = []
    if job.cine is None and "gif" in options.format and job.formats:
        notes.append(f"a GIF is made of cines only; written as {' '.join(job.formats)}")
    if job.cine is None and not job.formats and (options.format or options.save_probabilities):
        notes.append("this model finds landmarks only: it has no label maps and no probabilities to write")
    if job.cine is not None and job.landmarks:
        notes.append("landmarks of cines are not written")
    return tuple(notes)


def _unused(job: Job, options: PredictOptions) -> tuple[str, ...]:
    """Options that differ from their defaults and are for other models, scans or formats."""
    notes = []
    if options.overlap is not None and job.landmarks and job.cine is None:
        notes.append("--overlap has no effect: a model with landmarks sees the whole scan at once, without windows")
    if options.temporal_median != 1 and job.cine is None:
        notes.append("--temporal-median has no effect: it smooths ultrasound cines, and this is none")
    if options.seg_kind != "binary" and "dicom-seg" not in job.formats:
        notes.append("--seg-kind has no effect: no DICOM SEG is written; ask for it with --format dicom-seg")
    return tuple(notes)
