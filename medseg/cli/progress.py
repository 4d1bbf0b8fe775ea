"""Progress and log lines: bars on a terminal, now and then a plain line elsewhere; always on stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from medseg.types.progress import Progress as Step
from medseg.types.progress import Report, silent

_LOG = logging.getLogger("medseg")
_EVERY_S = 20.0
_LOOK_BACK_S = 1800.0  # cases and epochs may take minutes each


@contextmanager
def shown_progress(*, lines: bool = True) -> Iterator[Report]:
    """A report callback that draws one bar per stage; where stderr is no terminal, it logs if `lines`."""
    console = Console(stderr=True)
    with _logging_to(console):
        if not console.is_terminal:
            yield _log_lines() if lines else silent
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeftColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=console, speed_estimate_period=_LOOK_BACK_S) as bars:
            yield _draw_bars(bars)


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Send the library's log records to stderr while a command runs, above the bars where there are any."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)


def _draw_bars(bars: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(step: Step) -> None:
        if step.stage not in tasks:
            for task in bars.tasks:
                bars.update(task.id, visible=not task.finished)
            tasks[step.stage] = bars.add_task(step.stage, total=step.total, values="")
        bars.update(tasks[step.stage], completed=step.done, total=step.total, values=_values(step))

    return report


def _log_lines() -> Report:
    """Logs a stage when it first ends, and at most every 20 seconds else, with the time that is left at its pace."""
    last: dict[str, float] = {}
    first: dict[str, tuple[float, int]] = {}
    ended: set[str] = set()

    def report(step: Step) -> None:
        now = time.monotonic()
        first.setdefault(step.stage, (now, step.done))
        ends = step.done == step.total and step.stage not in ended
        if not ends and now - last.setdefault(step.stage, now) < _EVERY_S:
            return
        last[step.stage] = now
        ended.update({step.stage} if ends else ())
        left = _left(step, now, *first[step.stage])
        _LOG.info("%s", " ".join(filter(None, (f"{step.stage} {step.done}/{step.total}", _values(step), left))))

    return report


def _left(step: Step, now: float, began: float, done: int) -> str:
    """How long a stage will take at the pace it has had since the step `done`."""
    if step.done <= done or step.done >= step.total:
        return ""
    seconds = (now - began) / (step.done - done) * (step.total - step.done)
    return f"({seconds / 3600:.1f} h left)" if seconds > 5400 else f"({max(1, round(seconds / 60))} min left)"


def _values(step: Step) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in step.values.items())
