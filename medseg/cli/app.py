"""The `medseg` command. Exit 0: all well; 1: faults or failed cases; 2: usage or an error that has a remedy."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from medseg import __version__
from medseg.errors import Interrupted, MedsegError

_OK, _FAILED, _USAGE, _INTERRUPTED, _TERMINATED = 0, 1, 2, 130, 143

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Device = Annotated[str, Parameter(help='"auto", "cpu", "cuda" or "cuda:1".')]
Words = Parameter(consume_multiple=True, negative="")

app = App(
    name="medseg",
    help="Plan, train and run medical image segmentation models under a budget of memory and time.\n\n"
    "Three commands do the main job:\n\n"
    "medseg plan DATA --vram 8 -o RUN\n\n"
    "medseg train RUN/plan-3d_fullres.json DATA -o RUN\n\n"
    "medseg predict RUN/bundle SCANS -o OUT",
    help_format="plaintext",
    version=__version__,
    version_flags=("--version", "-v"),
    result_action="return_value",
)


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors with a remedy are one line on stderr, never a traceback."""
    try:
        with _terminable():
            code = app(None if argv is None else list(argv), exit_on_error=False)
        return code if isinstance(code, int) else _OK
    except CycloptsError:
        return _USAGE  # cyclopts has printed it
    except Interrupted as error:
        return _say(str(error), 128 + error.signum)
    except (MedsegError, OSError) as error:
        return _say(f"error: {error}", _USAGE)
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED)
    except _Terminated:
        return _say("terminated", _TERMINATED)


@app.command
def check(dataset: Path, /) -> int:
    """List every fault of a data set, with file and remedy; exit 1 if one is an error.

    Example: medseg check DATA

    Parameters
    ----------
    dataset
        Folder with dataset.json in the nnU-Net v2 or Decathlon layout.
    """
    from medseg.cli.progress import shown_progress
    from medseg.workflow.check_dataset import check_dataset, format_faults

    with shown_progress() as report:
        faults = check_dataset(dataset, report=report)
    _print(format_faults(faults))
    return _FAILED if any(fault.severity == "error" for fault in faults) else _OK


@app.command
def plan(
    dataset: Path,
    /,
    *,
    vram: float,
    out: Out,
    ram: float | None = None,
    hours: float | None = None,
    device: Device = "auto",
    preset: str = "unet",
) -> int:
    """Measure a data set and write fingerprint.json and one plan-<configuration>.json per network worth training.

    Example: medseg plan DATA --vram 8 --hours 2 -o RUN

    Parameters
    ----------
    dataset
        Folder with dataset.json in the nnU-Net v2 or Decathlon layout.
    vram
        Memory a training step may take on the device, GiB.
    out
        Folder for the fingerprint and the plans.
    ram
        Main memory that prediction may take, GiB.
    hours
        Time to train one fold on the device; a training step is measured to keep it.
    preset
        "unet" or "resenc" (residual encoder).
    """
    from medseg.cli.progress import shown_progress
    from medseg.types.plan import Budget
    from medseg.workflow import plan as job

    budget = Budget(vram_gib=vram, ram_gib=ram, hours=hours, device=None if device == "auto" else device)
    with shown_progress() as report:
        plans = job.plan(dataset, out, budget=budget, preset=preset, report=report)
    for made in plans:
        _print(job.explain(made))
    return _OK


@app.command
def train(
    plan: Path,
    dataset: Path,
    /,
    *,
    out: Out,
    fold: Annotated[tuple[str, ...], Words] = ("cv",),
    device: Device = "auto",
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a plan; the same command continues a run that was stopped.

    Example: medseg train RUN/plan-3d_fullres.json DATA -o RUN --fold 0 1 2

    Parameters
    ----------
    plan
        Plan file.
    dataset
        The data set it was made for.
    out
        Run folder; the model is its subfolder bundle.
    fold
        "cv" (all folds), "all" (one network on every case), or fold numbers from 0.
    tensorboard
        Also write every epoch's metrics for TensorBoard (extra "track").
    """
    from medseg.cli.progress import shown_progress
    from medseg.cli.tables import score_lines
    from medseg.workflow import train as job

    folds = _folds(fold)
    with shown_progress() as report:
        bundle = job.train(plan, dataset, out, folds=folds, device=device, report=report, track=tensorboard)
    _print(score_lines(bundle.scores))
    _print(f"model: {bundle.root}")
    return _OK


@app.command
def predict(
    bundle: Path,
    inputs: tuple[Path, ...],
    /,
    *,
    out: Out,
    device: Device = "auto",
    folds: Annotated[tuple[str, ...], Words] = (),
    tta: bool = True,
    overlap: float | None = None,
    save_probabilities: Annotated[bool, Parameter(negative="")] = False,
    format: Literal["nii.gz", "nrrd", "mha", "png"] | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    clean: bool = True,
    trust: Annotated[tuple[str, ...], Words] = (),
) -> int:
    """Segment scans: files, folders of files or DICOM folders; exit 1 if a case failed, the others are done.

    Example: medseg predict RUN/bundle SCANS -o OUT --resume

    Parameters
    ----------
    bundle
        Model bundle, or the run folder that holds it.
    inputs
        Scans.
    out
        Folder for label maps and report.json.
    folds
        Members of the ensemble, fold numbers or "all" for the network trained on every case; by default every member.
    tta
        Average over mirrored scans, along the axes the plan allows.
    overlap
        Overlap of windows, 0 to below 1; by default the plan's.
    save_probabilities
        Also write the probabilities per class.
    format
        File type of label maps; by default that of the input.
    resume
        Skip cases whose output is there and whole.
    clean
        Apply the cleaning steps of the plan.
    trust
        Modules outside medseg that the bundle may import.
    """
    from medseg.cli.progress import shown_progress
    from medseg.cli.tables import report_lines
    from medseg.workflow.predict import PredictOptions, predict_folder

    options = PredictOptions(
        device=device,
        folds=tuple(int(f) if f.isdecimal() else f for f in folds) or None,
        tta=tta,
        overlap=overlap,
        save_probabilities=save_probabilities,
        format=format,
        resume=resume,
        clean=clean,
        trust=trust,
    )
    with shown_progress() as report:
        result = predict_folder(bundle, inputs, out, options=options, report=report)
    _print(report_lines(result))
    return _FAILED if any(case.status == "failed" for case in result.cases) else _OK


@app.command
def evaluate(
    predictions: Path,
    references: Path,
    /,
    *,
    labels: Path | None = None,
    tolerance: float = 1.0,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
) -> int:
    """Score label maps against references of the same name: overlap, surface distances, volumes, lesions.

    Example: medseg evaluate OUT DATA/labelsTs --labels DATA/dataset.json -o scores

    Parameters
    ----------
    predictions
        Folder of predicted label maps, or one file.
    references
        Folder of reference label maps named alike, or one file.
    labels
        dataset.json, plan or bundle that names the classes; by default the dataset.json beside the references,
        or else each value is a class.
    tolerance
        Tolerance of the normalised surface distance (NSD), mm.
    out
        Folder for scores.json and scores.csv.
    """
    from medseg.cli.progress import shown_progress
    from medseg.workflow import evaluate as job

    with shown_progress() as report:
        names = job.read_label_names(labels) if labels else None
        scores = job.evaluate(predictions, references, labels=names, tolerance_mm=tolerance, report=report)
    if out is not None:
        job.write_scores(scores, out)
    _print(job.format_table(scores))
    return _FAILED if any(case.status == "failed" for case in scores) else _OK


@app.command
def report(run: Path, dataset: Path, /, *, out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None) -> int:
    """Write a self-contained HTML page about a training run: scores, pictures, curves, reasons.

    Example: medseg report RUN DATA

    Parameters
    ----------
    run
        Run folder of `medseg train`.
    dataset
        The data set it was trained on.
    out
        The page; by default report.html in the run folder.
    """
    from medseg.workflow.report import write_report

    _print(f"page: {write_report(run, dataset, out)}")
    return _OK


def _folds(words: tuple[str, ...]) -> Literal["cv", "all"] | tuple[int, ...]:
    if words == ("cv",):
        return "cv"
    if words == ("all",):
        return "all"
    if not words or not all(word.isdecimal() for word in words):
        raise MedsegError(f"{' '.join(words)!r} is no fold", where="--fold", hint='give "cv", "all" or numbers from 0')
    return tuple(int(word) for word in words)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that files and child processes are left in order."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
