"""Commands from scans to label maps and their scores: predict, evaluate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from medseg.cli.terms import FAILED, OK, Device, Out, Words, complain, pixel_spacing, show


def predict(
    bundle: Path,
    inputs: tuple[str, ...],
    /,
    *,
    out: Out,
    device: Device = "auto",
    folds: Annotated[tuple[str, ...], Words] = (),
    tta: bool = True,
    overlap: float | None = None,
    save_probabilities: Annotated[bool, Parameter(negative="")] = False,
    format: Annotated[
        tuple[Literal["nii.gz", "nrrd", "mha", "png", "seg.nrrd", "dicom-seg", "rtstruct", "gif"], ...], Words
    ] = (),
    seg_kind: Literal["binary", "labelmap"] = "binary",
    resume: Annotated[bool, Parameter(negative="")] = False,
    clean: bool = True,
    trust: Annotated[tuple[str, ...], Words] = (),
    workers: int | None = None,
    case_minutes: float | None = None,
    keep_identifiers: Annotated[bool, Parameter(negative="")] = False,
    spacing: Annotated[tuple[float, ...], Words] = (),
    temporal_median: int = 1,
    directions: Annotated[tuple[Literal["z", "y", "x"], ...], Words] = (),
    rater: str | None = None,
    study: str | None = None,
    series: Annotated[tuple[str, ...], Words] = (),
    auth: Path | None = None,
    ca: Path | None = None,
) -> int:
    """Segment scans: files, folders of files or DICOM folders; exit 1 if a case failed, the others are done.

    Example: medseg predict RUN/bundle SCANS -o OUT --resume

    Parameters
    ----------
    bundle
        Model bundle, or the run folder that holds it.
    inputs
        Scans; or dicomweb:URL, to fetch a study from a server and store the DICOM SEG beside it.
    out
        Folder for label maps and report.json.
    folds
        Folds whose networks predict, numbers or "all" for what was trained on every case; by default all there are.
    tta
        Average over mirrored scans, along the axes the plan allows.
    overlap
        Overlap of windows, 0 to below 1; by default the plan's.
    save_probabilities
        Also write the probabilities per class.
    format
        File types of label maps, one or several; by default that of the input. gif is an overlay, of cines only.
    seg_kind
        How a DICOM SEG stores segments: binary, which every viewer reads, or labelmap, smaller and newer.
    resume
        Skip cases whose output is there, whole, and of the same scan, model and options.
    clean
        Apply the cleaning steps of the plan.
    trust
        Modules outside medseg that the bundle may import.
    workers
        Processes that predict side by side, each with a copy of the model; one that dies costs its one case. 0 predicts
        in this process; by default 1 for more than 16 cases.
    case_minutes
        Give a case up after so many minutes.
    keep_identifiers
        Name results of DICOM scans after their folders, and say file names in full; by default neither, since both
        often hold the patient's name.
    spacing
        Pixel spacing in mm, one number or y and x, of flat images and ultrasound that state none.
    temporal_median
        Smooth an ultrasound cine: the median of each class's probability over so many frames, an odd number.
    directions
        Axes across which a near-isotropic scan is predicted in slices by a 2D model, and the mean taken: z y x, one
        named twice counts twice; by default those it was trained on. For a 3D model, the axes along which its windows
        are thinnest.
    rater
        Whose way of annotating is asked for, by the name in the plan's raters; by default the mean of all learnt.
    study
        StudyInstanceUID, with dicomweb:URL.
    series
        SeriesInstanceUIDs, with dicomweb:URL; by default every series with images.
    auth
        File with user:password or a bearer token for dicomweb:URL.
    ca
        File of certificates to trust for dicomweb:URL.
    """
    from medseg.cli.progress import shown_progress
    from medseg.cli.tables import report_lines
    from medseg.workflow.dicomweb import predict_study, study_address
    from medseg.workflow.predict import PredictOptions, predict_folder

    options = PredictOptions(
        device=device,
        folds=tuple(int(f) if f.isdecimal() else f for f in folds) or None,
        tta=tta,
        overlap=overlap,
        save_probabilities=save_probabilities,
        format=format,
        seg_kind=seg_kind,
        resume=resume,
        clean=clean,
        trust=trust,
        workers=workers,
        case_minutes=case_minutes,
        keep_identifiers=keep_identifiers,
        spacing_mm=pixel_spacing(spacing),
        temporal_median=temporal_median,
        directions=directions,
        rater=rater,
    )
    address = study_address(inputs, study, series, auth=auth, ca=ca)
    with shown_progress() as report:
        if address is None:
            result = predict_folder(bundle, inputs, out, options=options, report=report)
        else:
            result = predict_study(bundle, address, out, options=options, report=report)
    show(report_lines(result))
    return FAILED if any(case.status == "failed" for case in result.cases) else OK


def evaluate(
    predictions: Path,
    references: Path,
    /,
    *,
    labels: Path | None = None,
    tolerance: float = 1.0,
    ultrasound: Path | None = None,
    second_reader: Path | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
) -> int:
    """Score label maps or landmarks against references of the same name: overlap, surfaces, volumes; radial errors.

    Example: medseg evaluate OUT DATA/labelsTs --labels DATA/dataset.json -o scores

    Parameters
    ----------
    predictions
        Folder of predicted label maps or landmark files, or one file.
    references
        Folder of references named alike, or one file.
    labels
        dataset.json, plan or bundle that names the classes; by default the dataset.json beside the references,
        or else each value is a class.
    tolerance
        Tolerance of the normalised surface distance (NSD), mm.
    ultrasound
        Folder of the ultrasound images, named like the label maps: only what lies within their fan is scored.
    second_reader
        Folder of landmark files of another person, whose distance to the references is shown beside.
    out
        Folder for scores.json and scores.csv, and of landmarks landmarks.json and landmarks.csv.
    """
    from medseg.workflow.evaluate_landmarks import what_to_score

    masks, points = what_to_score(predictions, references)
    if not masks:
        given = {"--labels": labels, "--tolerance": tolerance != 1.0, "--ultrasound": ultrasound}
        _warn_unused(given, "there are no label maps to score")
    if not points:
        _warn_unused({"--second-reader": second_reader}, "there are no landmarks to score")
    codes = [_evaluate_masks(predictions, references, labels, tolerance, ultrasound, out)] if masks else []
    codes += [_evaluate_points(predictions, references, second_reader, out)] if points else []
    return FAILED if FAILED in codes else OK


def _warn_unused(given: Mapping[str, object], reason: str) -> None:
    """Say which of some options were given, though they have no effect."""
    names = [name for name, value in given.items() if value]
    if names:
        complain(f"warning: {' '.join(names)} without effect: {reason}", OK)


def _evaluate_points(predictions: Path, references: Path, second_reader: Path | None, out: Path | None) -> int:
    from medseg.cli.progress import shown_progress
    from medseg.workflow import evaluate_landmarks as job

    with shown_progress() as report:
        scores = job.evaluate_landmarks(predictions, references, second_reader=second_reader, report=report)
    if out is not None:
        job.write_landmark_scores(scores, out)
    show(job.format_landmark_table(scores))
    return FAILED if any(case.status == "failed" for case in scores) else OK


def _evaluate_masks(
    predictions: Path,
    references: Path,
    labels: Path | None,
    tolerance: float,
    ultrasound: Path | None,
    out: Path | None,
) -> int:
    from medseg.cli.progress import shown_progress
    from medseg.workflow import evaluate as job

    with shown_progress() as report:
        names = job.read_label_names(labels) if labels else None
        scores = job.evaluate(
            predictions, references, labels=names, tolerance_mm=tolerance, ultrasound=ultrasound, report=report
        )
    if out is not None:
        job.write_scores(scores, out)
    show(job.format_table(scores))
    return FAILED if any(case.status == "failed" for case in scores) else OK
