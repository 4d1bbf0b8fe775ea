"""How far a run is, and how it keeps to its time: plain numbers, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

TOLERANCE = 0.02  # of the time left; smaller overruns wait for a better estimate


@dataclass(frozen=True)
class Position:
    """`step` of `total` steps are done and `epochs` of them closed; `sums` add up the open epoch's `count` steps.

    Progress runs straight from `bend_progress` at `bend_step` to 1 at `total`.
    """

    total: int
    step: int = 0
    epochs: int = 0
    count: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    trained_s: float = 0.0
    bend_step: int = 0
    bend_progress: float = 0.0


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


def close_epoch(position: Position) -> Position:
    """The next epoch begins."""
    return replace(position, epochs=position.epochs + 1, count=0, sums={})


def epoch_is_full(position: Position, steps_per_epoch: int) -> bool:
    """Whether the open epoch must be closed before the next step."""
    return position.count >= steps_per_epoch or (position.count > 0 and position.step >= position.total)


def shorten(position: Position, *, limit_s: float, step_s: float) -> Position:
    """End earlier if the steps left would take longer than the time left; never later.

    The schedule's progress goes on from where it is and reaches 1 at the new end, so the learning rate never jumps.

    >>> end = shorten(Position(total=100, step=50, trained_s=60.0), limit_s=100.0, step_s=1.0)
    >>> end.total, progress(end)
    (90, 0.5)
    """
    left_s = limit_s - position.trained_s
    needed_s = (position.total - position.step) * step_s
    if needed_s <= 0 or needed_s <= left_s * (1 + TOLERANCE):
        return position
    total = position.step + max(0, int(left_s / step_s))
    return replace(position, total=total, bend_step=position.step, bend_progress=progress(position))


def pace(marks: Sequence[tuple[int, float]]) -> float | None:
    """Seconds per step, everything between included, over marks of (step, seconds); None for fewer than 2."""
    if len(marks) < 2 or marks[-1][0] == marks[0][0]:
        return None
    return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
