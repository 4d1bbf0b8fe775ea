"""How far a run is, and how it keeps to its time: plain numbers, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from medseg.types.progress import Progress

TOLERANCE = 0.02  # of the time left; smaller overruns wait for a better estimate
STALL = 5.0
SLACK = 0.1  # of the steps left; a smaller gain is not worth a change


@dataclass(frozen=True)
class Position:
    """`step` of `total` steps are done and `epochs` of them closed; `sums` add up the open epoch's `count` steps.

    Progress runs straight from `bend_progress` at `bend_step` to 1 at `total`. `known` is what the sampler goes by in
    the open epoch, and `seen` what it gathers for the next (see `focus.py`).
    """

    total: int
    step: int = 0
    epochs: int = 0
    count: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    trained_s: float = 0.0
    bend_step: int = 0
    bend_progress: float = 0.0
    known: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seen: Mapping[str, Sequence[float]] = field(default_factory=dict)


def progress(position: Position) -> float:
    """The share of the schedule that is behind, in [0, 1].

    >>> progress(Position(total=10, step=5)), progress(Position(total=8, step=6, bend_step=4, bend_progress=0.5))
    (0.5, 0.75)
    """
    span = position.total - position.bend_step
    if span <= 0:
        return 1.0
    return position.bend_progress + (1 - position.bend_progress) * (position.step - position.bend_step) / span


def advance(position: Position, values: Mapping[str, float]) -> Position:
    """One step further; `values` are added to the open epoch."""
    sums = {name: position.sums.get(name, 0.0) + value for name, value in values.items()}
    return replace(position, step=position.step + 1, count=position.count + 1, sums=sums)


def close_epoch(position: Position, known: Mapping[str, Sequence[float]]) -> Position:
    """The next epoch begins; `known` is what the sampler goes by in it."""
    return replace(position, epochs=position.epochs + 1, count=0, sums={}, known=known, seen={})


def epoch_is_full(position: Position, steps_per_epoch: int) -> bool:
    """Whether the open epoch must be closed before the next step."""
    return position.count >= steps_per_epoch or (position.count > 0 and position.step >= position.total)


def keep_time(position: Position, *, planned: int, limit_s: float, step_s: float) -> Position:
    """End where the time left ends, at the latest after the `planned` steps.

    A machine that was slow for a while gets its steps back when it is quick again. The schedule's progress goes on from
    where it is and reaches 1 at the new end, so the learning rate never jumps.

    >>> end = keep_time(Position(total=100, step=50, trained_s=60.0), planned=100, limit_s=100.0, step_s=1.0)
    >>> end.total, progress(end)
    (90, 0.5)
    >>> keep_time(end, planned=100, limit_s=100.0, step_s=0.1).total
    100
    """
    if position.step >= position.total:
        return position
    left_s = limit_s - position.trained_s
    total = min(planned, position.step + max(0, int(left_s / step_s)))
    late = total < position.total and (position.total - position.step) * step_s > left_s * (1 + TOLERANCE)
    early = total - position.step > (position.total - position.step) * (1 + SLACK)
    if not late and not early:
        return position
    return replace(position, total=total, bend_step=position.step, bend_progress=progress(position))


def pace(marks: Sequence[tuple[int, float]]) -> float | None:
    """Seconds per step, everything between included, over marks of (step, seconds); None for fewer than 2.

    A stall of the machine says nothing about the steps to come: stretches over `STALL` times the median are left out.
    """
    stretches = [(n - m, t - s) for (m, s), (n, t) in pairwise(marks) if n > m]
    if not stretches:
        return None
    limit = STALL * median(seconds / steps for steps, seconds in stretches)
    usual = [(steps, seconds) for steps, seconds in stretches if seconds <= limit * steps]
    return sum(seconds for _, seconds in usual) / sum(steps for steps, _ in usual)


def said(run: Path, position: Position, step_s: float | None, batch: int, row: Mapping[str, float]) -> Progress:
    """How far a run is, with its loss and, of the last epoch's `row`, what it scored; `run` is a fold's or member's."""
    values = {name: value / max(position.count, 1) for name, value in position.sums.items() if name == "loss"}
    values |= {name: value for name, value in row.items() if name.startswith(("dice", "radial_error_mm"))}
    if step_s:
        values["patches_per_s"] = batch / step_s
        values["seconds_left"] = (position.total - position.step) * step_s
    name = f"{run.parent.name} {run.name}" if run.name.startswith("member_") else run.name
    return Progress(f"train {name}", position.step, position.total, values)
