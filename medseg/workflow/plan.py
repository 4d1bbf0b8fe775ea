"""medseg plan: measure a data set, decide, write the plans."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from medseg.io.datasets import read_dataset
from medseg.io.records import write_record
from medseg.planning.design import Wishes
from medseg.planning.fingerprint import measure_dataset
from medseg.planning.planner import make_plans
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Budget, Network, Options, Plan, Sampling, Training
from medseg.types.progress import Report, silent
from medseg.workflow.check_plan import check_plan
from medseg.workflow.switches import say_doubts

if TYPE_CHECKING:
    from medseg.planning.fit import SecondsOf

NO_OPTIONS: Options = MappingProxyType({})


def plan(
    dataset: Path | str,
    out: Path | str,
    *,
    budget: Budget,
    preset: str = "unet",
    options: Options = NO_OPTIONS,
    heads: Sequence[str] = (),
    workers: int | None = None,
    report: Report = silent,
) -> tuple[Plan, ...]:
    """Measure the data set and write `fingerprint.json` and `plan-<config>.json` to `out`.

    `options` are those of the network (of a head or loss as "head.option" or "loss.<loss>.option"; "loss.<loss>" is a
    weight, which adds the loss or, if 0, leaves it out), `heads` come on top of those that the data call for ("heatmap"
    takes the place of "dsnt"). Where the budget has hours, training steps are timed on its device (as chosen by "auto"
    if None) and the time is recorded in the plan. Plans of an earlier run in `out` that no longer apply are removed.
    Raises DatasetError or BudgetError, or PlanError for names and options that no part of the network has.
    """
    out, wishes = Path(out), Wishes(options, tuple(heads))
    fingerprint = measure_dataset(read_dataset(dataset), workers=workers, report=report)
    if budget.hours is None:
        budget = _of_named_cpu(budget)
        plans = make_plans(fingerprint, budget, preset, wishes=wishes)
    else:
        budget, seconds_of = _stopwatch(fingerprint, budget)
        plans = make_plans(fingerprint, budget, preset, wishes=wishes, seconds_of=seconds_of)
    for made in plans:
        check_plan(made)
        say_doubts(made)
    write_record(fingerprint, out / "fingerprint.json")
    written = {f"plan-{config_name(made)}.json": made for made in plans}
    for name, made in written.items():
        write_record(made, out / name)
    for config in ("2d", "3d_fullres", "3d_lowres"):
        if f"plan-{config}.json" not in written:
            (out / f"plan-{config}.json").unlink(missing_ok=True)
    return plans


def config_name(plan: Plan) -> str:
    """The configuration in a plan's name: "2d", "3d_fullres" or "3d_lowres"."""
    return plan.name.rsplit("-", 1)[-1]


def explain(plan: Plan) -> str:
    """The plan and its reasons as Markdown, for people."""
    topology, sampling, training = plan.network.topology, plan.sampling, plan.training
    spacing = " x ".join("own" if s is None else f"{s:.4g}" for s in plan.preprocess.spacing_mm)
    steps = training.epochs * training.steps_per_epoch
    rows = {
        "preprocess.orientation": plan.preprocess.orientation,
        "preprocess.spacing_mm": spacing,
        "preprocess.crop": plan.preprocess.crop,
        "preprocess.intensity": ", ".join(step.use for step in plan.preprocess.intensity),
        "network.topology": f"{plan.network.use} {topology.ndim}D, channels {' '.join(map(str, topology.channels))}",
        "network.heads": ", ".join(step.use for step in plan.network.heads),
        "network.options": ", ".join(f"{name} {value}" for name, value in plan.network.options.items()) or "defaults",
        "sampling.patch": " x ".join(map(str, sampling.patch)),
        "sampling.batch": str(sampling.batch),
        "training.losses": " + ".join(f"{term.weight:g} {term.use}" for term in training.losses),
        "training.optimizer": f"{training.optimizer.use}, {training.schedule.use}",
        "training.augment": ", ".join(dict.fromkeys(step.use for step in training.augment)),
        "training.epochs": f"{training.epochs} x {training.steps_per_epoch} = {steps} steps",
        "inference.mirror_axes": ", ".join("zyx"[axis] for axis in plan.inference.mirror_axes) or "none",
        "postprocess": ", ".join(step.use for step in plan.postprocess) or "none yet",
    }
    lines = [f"# {plan.name}", ""]
    lines += [f"- **{field}**: {value}" + _because(plan, field) for field, value in rows.items()]
    rest = [f"- **{field}**\n  {reason}" for field, reason in plan.reasons.items() if field not in rows]
    return "\n".join([*lines, *rest]) + "\n"


def _because(plan: Plan, field: str) -> str:
    return f"\n  {plan.reasons[field]}" if field in plan.reasons else ""


def _of_named_cpu(budget: Budget) -> Budget:
    """The budget with the precision that training will have on a CPU that is asked for; of GPUs any may be meant."""
    from medseg.workflow.devices import resolve_device, resolve_precision

    if budget.device != "cpu":
        return budget
    return replace(budget, precision=resolve_precision(budget.precision, resolve_device("cpu")))


def _stopwatch(fingerprint: Fingerprint, budget: Budget) -> "tuple[Budget, SecondsOf]":
    """A function that times a training step on the budget's device, and the budget with that device named."""
    from medseg.planning.memory import time_step
    from medseg.workflow.devices import resolve_device, resolve_precision

    device = resolve_device(budget.device or "auto")
    precision = resolve_precision(budget.precision, device)
    budget = replace(budget, device=str(device), precision=precision)

    def seconds_of(network: Network, sampling: Sampling, training: Training) -> float:
        return time_step(
            network,
            channels=len(fingerprint.channels),
            outputs=fingerprint.labels.outputs(),
            patch=sampling.patch,
            batch=sampling.batch,
            training=training,
            device=device,
            regions=fingerprint.labels.are_regions(),
        )

    return budget, seconds_of
