"""Commands from a data set to a model: check, plan, train, report."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from medseg.cli.terms import FAILED, OK, Device, Out, Words, show
from medseg.errors import MedsegError


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
    show(format_faults(faults))
    return FAILED if any(fault.severity == "error" for fault in faults) else OK


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
    option: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    head: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> int:
    """Measure a data set and write fingerprint.json and one plan-<configuration>.json per network worth training.

    Example: medseg plan DATA --vram 8 --hours 2 -o RUN

    Example: medseg plan DATA --vram 8 --preset gg_net --option norm=switchable --option attention=cbam -o RUN

    Example: medseg plan DATA --vram 8 --option loss.cldice=0.5 --option loss.dice_ce.ce_weight=2 -o RUN

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
        Time to train one fold on the device, with all its networks; a training step is measured to keep it.
    preset
        Family of networks: "unet", "resenc" (residual encoder), or a backbone that `medseg networks` lists.
    option
        name=value of the network, or head.name=value, loss.<loss>.name=value; loss.<loss>=weight adds a loss or weighs
        it, 0 leaves it out; members=3 trains three networks per fold; repeat for more.
    head
        A head beside those that the data call for; "heatmap" takes the place of "dsnt"; repeat for more.
    """
    from medseg.cli.progress import shown_progress
    from medseg.planning.design import read_options
    from medseg.types.plan import Budget
    from medseg.workflow import plan as job

    options = read_options(option)

    budget = Budget(vram_gib=vram, ram_gib=ram, hours=hours, device=None if device == "auto" else device)
    with shown_progress() as report:
        plans = job.plan(dataset, out, budget=budget, preset=preset, options=options, heads=head, report=report)
    for made in plans:
        show(job.explain(made))
    return OK


def train(
    plan: Path,
    dataset: Path,
    /,
    *,
    out: Out,
    fold: Annotated[tuple[str, ...], Words] = ("cv",),
    device: Device = "auto",
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    teacher: Path | None = None,
    trust: Annotated[tuple[str, ...], Words] = (),
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
        "cv" (all folds), "all" (every case at once), or fold numbers from 0.
    tensorboard
        Also write every epoch's metrics for TensorBoard (extra "track").
    teacher
        Model bundle that the plan's loss "distillation" learns from.
    trust
        Modules of the teacher's own code that may be imported.
    """
    from medseg.cli.progress import shown_progress
    from medseg.cli.tables import score_lines
    from medseg.workflow import train as job

    folds = _folds(fold)
    with shown_progress() as report:
        bundle = job.train(
            plan,
            dataset,
            out,
            folds=folds,
            device=device,
            report=report,
            track=tensorboard,
            teacher=teacher,
            trust=trust,
        )
    show(score_lines(bundle.scores))
    show(f"model: {bundle.root}")
    return OK


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

    show(f"page: {write_report(run, dataset, out)}")
    return OK


def _folds(words: tuple[str, ...]) -> Literal["cv", "all"] | tuple[int, ...]:
    if words == ("cv",):
        return "cv"
    if words == ("all",):
        return "all"
    if not words or not all(word.isdecimal() for word in words):
        raise MedsegError(f"{' '.join(words)!r} is no fold", where="--fold", hint='give "cv", "all" or numbers from 0')
    return tuple(int(word) for word in words)
