"""The training loop of one fold: resumable at every step, within its time, stoppable at any moment."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from medseg.errors import Interrupted, TrainingError, memory_errors
from medseg.training import journal
from medseg.training.batches import drawn_cases, validation_batches
from medseg.training.curves import draw_curves
from medseg.training.focus import gathered, learnt, listening
from medseg.training.lock import locked
from medseg.training.optim import set_rate
from medseg.training.position import Position, advance, close_epoch, epoch_is_full, keep_time, pace, progress, said
from medseg.training.session import (
    CHECKPOINT,
    METRICS,
    NOBODY,
    WEIGHTS,
    Session,
    find_checkpoint,
    identity,
    is_finished,
    next_stream,
    open_session,
    open_stream,
    own_randomness,
    restore,
    save,
    save_weights,
    seed_step,
    write_facts,
)
from medseg.training.signals import stop_requests
from medseg.training.step import averaged, train_step, update_average, validate
from medseg.training.teacher import Teacher, taught
from medseg.types.plan import Plan
from medseg.types.progress import Report, silent
from medseg.types.tensors import Batch

_LOG = logging.getLogger("medseg")
_CHECKPOINT_EVERY_S = 300.0
_DRAW_EVERY_S = 60.0
_MARK_EVERY = 20  # steps between two looks at the time left
_MARKS = 13
_WARM_STEPS = 3  # the first steps of a process are slow and say nothing about the rest
_VALIDATION_BATCHES = 16
_TIME_SHARE = 0.985  # of the plan's hours; the rest is for the last validation, which no pace foretells
_SHORT = (
    "the last checkpoint, if there is one, is kept: free memory and run the same command; or make patch or batch "
    "smaller, or plan again with less --vram, and train in another folder"
)


@dataclass(frozen=True, eq=False)
class EpochEnd:
    """What a hook sees after an epoch (0, 1, ...): the row of metrics.jsonl, and the network that would be kept.

    `folder` is the network's: `fold_0`, or `fold_0/member_1` where the plan has several networks per fold.
    """

    epoch: int
    metrics: Mapping[str, float]
    network: nn.Module
    folder: Path


Hook = Callable[[EpochEnd], object]


@dataclass(frozen=True)
class _Clock:
    """What the loop remembers of the time: seconds of `time.monotonic`, and (step, trained seconds) marks."""

    now: float
    saved: float
    drawn: float
    began_step: int
    marks: tuple[tuple[int, float], ...] = ()


def fit(
    plan: Plan,
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    cache: Path,
    run: Path,
    *,
    device: torch.device,
    hooks: Sequence[Hook] = (),
    report: Report = silent,
    workers: int = 0,
    teacher: Teacher | None = None,
    raters: Mapping[str, str] = NOBODY,
) -> Path:
    """Train one network on the cached cases `train_ids` to the end of its schedule; returns the weights file.

    Goes on from `run`/checkpoint.safetensors if there is one: the final weights are the same bytes as without the
    interruption (same machine, device and threads). `raters` says who annotated a case. A hook that returns "stop" ends
    training after the epoch.
    Raises TrainingError if another process trains here, if the folder belongs to another plan or split, if memory runs
    out, or if numbers are not finite; Interrupted after SIGTERM or Ctrl-C, when all up to the last step is saved.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(run))
        stack.enter_context(memory_errors(TrainingError, "out of memory", where=run, hint=_SHORT))
        stack.enter_context(own_randomness(device))
        asked = stack.enter_context(stop_requests())
        key = identity(plan, train_ids, val_ids, teacher, raters)
        found = find_checkpoint(run, key)
        if found is not None and is_finished(run):
            return run / WEIGHTS
        session = open_session(
            plan,
            (train_ids, val_ids),
            cache,
            run,
            device=device,
            workers=workers,
            facts=None if found is None else found[1]["facts"],
            asked_to_stop=asked,
            teacher=teacher,
            raters=raters,
        )
        position = Position(total=plan.training.epochs * plan.training.steps_per_epoch)
        position = position if found is None else restore(session, *found)
        journal.truncate(run / METRICS, position.epochs)
        write_facts(session, position, finished=False)
        keep = partial(save, session, expected=key)
        position = _train(session, position, keep, hooks, report)
        weights = save_weights(session)
        keep(position, finished=True)
        write_facts(session, position, finished=True)
    return weights


def _train(
    session: Session, position: Position, keep: Callable[[Position], None], hooks: Sequence[Hook], report: Report
) -> Position:
    training = session.plan.training
    now = time.monotonic()
    clock = _Clock(now=now, saved=now, drawn=now - _DRAW_EVERY_S, began_step=position.step)
    row: Mapping[str, float] = {}
    stream = open_stream(session, position)
    try:
        while position.step < position.total or epoch_is_full(position, training.steps_per_epoch):
            full = epoch_is_full(position, training.steps_per_epoch)
            if full:
                row = _measure(session, position, clock, keep)
                position = close_epoch(position, learnt(session.sampler, position.known, position.seen, row))
                stream = next_stream(session, position, stream)
                clock = _draw(session, position, clock)
                position = _call(session, position, hooks, row)
            else:
                position = _one_step(session, position, next(stream))
            position, clock = _look_at_clock(session, position, clock, full)
            report(said(session.folder, position, pace(clock.marks), session.plan.sampling.batch, row))
            signum = session.asked_to_stop()
            if full or signum is not None or clock.now - clock.saved > _CHECKPOINT_EVERY_S:
                keep(position)
                clock = replace(clock, saved=clock.now)
            if signum is not None:
                raise Interrupted(signum, where=session.folder)
    finally:
        stream.close()
    return position


def _one_step(session: Session, position: Position, batch: Batch) -> Position:
    training = session.plan.training
    heard: list[list[float]] = []
    set_rate(session.optimizer, session.schedule(progress(position)))
    if session.balance is not None:
        set_rate(session.balance.optimizer, session.schedule(progress(position)))
    seed_step(training.seed, position.step)
    batch = replace(batch, progress=progress(position))
    try:
        result = train_step(
            session.network,
            taught(batch, session.teacher),
            listening(session.loss, session.sampler, heard),
            session.optimizer,
            scaler=session.scaler,
            precision=training.precision,
            clip_grad_norm=training.clip_grad_norm,
            opponent=session.opponent,
            balance=session.balance,
        )
    except TrainingError as error:
        kept = session.folder / CHECKPOINT
        note = f"the last good checkpoint is kept at {kept}; " if kept.exists() else ""
        raise TrainingError(
            f"stopped at step {position.step}: {error.what}",
            where=session.folder,
            hint=note + (error.hint or "lower the learning rate, or train in fp32"),
        ) from error
    if session.average is not None and training.ema is not None:
        update_average(session.average, session.network, training.ema, position.step)
    terms = {f"loss {name}": value for name, value in result.terms.items()} if len(result.terms) > 1 else {}
    names = drawn_cases(session.plan, session.sampler, position.step, position.known) if heard else ()
    position = replace(position, seen=gathered(position.seen, names, heard))
    return advance(position, {"loss": result.loss, "grad_norm": result.grad_norm, **terms})


def _measure(
    session: Session, position: Position, clock: _Clock, keep: Callable[[Position], None]
) -> Mapping[str, float]:
    """Validate on the fixed patches and write the epoch's row; a request to stop saves and ends it."""
    training = session.plan.training
    measured: dict[str, float] = {}
    if session.val:
        steps = max(1, min(_VALIDATION_BATCHES, training.steps_per_epoch * 3 // 20))
        source = validation_batches(
            session.plan, session.val, steps=steps, device=session.device, workers=session.workers
        )
        try:
            with averaged(session.network, session.average), closing(source):  # type: ignore[type-var]
                watched = (taught(batch, session.teacher) for batch in _until_asked(session, source))
                measured = validate(
                    session.network,
                    watched,
                    session.loss,
                    session.plan.labels,
                    training.precision,
                    landmarks=session.plan.landmarks,
                )
        except Interrupted:
            keep(position)
            raise
    step_s = pace(clock.marks)
    set_rate(session.optimizer, session.schedule(progress(position)))
    row = {
        "epoch": position.epochs,
        "step": position.step,
        "total_steps": position.total,
        **{name: value / position.count for name, value in position.sums.items()},
        **({} if session.balance is None else session.balance.now()),
        **measured,
        "learning_rate": session.optimizer.param_groups[0]["lr"],
        "patches_per_s": session.plan.sampling.batch / step_s if step_s else float("nan"),
        "trained_s": round(position.trained_s, 3),
    }
    journal.append(session.folder / METRICS, row)
    return row


def _until_asked(session: Session, source: Iterator[Batch]) -> Iterator[Batch]:
    for batch in source:
        signum = session.asked_to_stop()
        if signum is not None:
            raise Interrupted(signum, where=session.folder)
        yield batch


def _call(session: Session, position: Position, hooks: Sequence[Hook], row: Mapping[str, float]) -> Position:
    if not hooks:
        return position
    with averaged(session.network, session.average):
        session.network.eval()
        answers = [hook(EpochEnd(position.epochs - 1, row, session.network, session.folder)) for hook in hooks]
    return replace(position, total=position.step) if "stop" in answers else position


def _draw(session: Session, position: Position, clock: _Clock) -> _Clock:
    if position.step < position.total and clock.now - clock.drawn < _DRAW_EVERY_S:
        return clock
    draw_curves(journal.read(session.folder / METRICS), session.folder / "curves.png")
    return replace(clock, drawn=clock.now)


def _look_at_clock(session: Session, position: Position, clock: _Clock, full: bool) -> tuple[Position, _Clock]:
    """Add the seconds since the last look, and move the end to where the plan's hours end."""
    now = time.monotonic()
    position = replace(position, trained_s=position.trained_s + now - clock.now)
    clock = replace(clock, now=now)
    warm = position.step - clock.began_step >= _WARM_STEPS
    if not warm or not (full or position.step % _MARK_EVERY == 0 or len(clock.marks) < 2):
        return position, clock
    clock = replace(clock, marks=(*clock.marks, (position.step, position.trained_s))[-_MARKS:])
    step_s, hours = pace(clock.marks), session.plan.origin.budget.hours
    if hours is None or step_s is None:
        return position, clock
    planned = session.plan.training.epochs * session.plan.training.steps_per_epoch
    kept = keep_time(position, planned=planned, limit_s=hours * 3600 * _TIME_SHARE, step_s=step_s)
    if kept.total != position.total:
        _LOG.info("%d instead of %d steps fit in %g h", kept.total, position.total, hours)
    return kept, clock
