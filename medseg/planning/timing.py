"""Largest network whose steps fit the time."""

import math
from dataclasses import replace

from medseg.errors import BudgetError, PlanError, memory_errors
from medseg.planning import presets
from medseg.planning.fit import (
    Estimate,
    Fit,
    Fitted,
    SecondsOf,
    Shortage,
    coverage,
    first_patch,
    fit_batch,
    fit_patch,
    patches,
    seen,
    sizes,
    topology_reason,
)
from medseg.types.plan import Sampling


def fit_time(fit: Fit, *, hours: float, seconds_of: SecondsOf, estimate: Estimate) -> Fitted:
    """Largest network whose steps of batch 2 are quick enough for a useful run, then the batch if time is ample.

    `seconds_of` measures one step. First-stage channels grow while `presets.steps_worth` of them remain. The patch of
    the narrowest network shrinks until `presets.ENOUGH_STEPS` fit, but then sees a quarter of the scan at least, or, if
    that is still too slow, until its `steps_worth` do. Raises BudgetError with the hours that would do, and PlanError
    if memory runs out while a step is timed.
    """
    seconds = hours * 3600 * presets.TIME_SHARE
    bases = fit.preset.bases
    whole = _whole(fit, bases[-1], estimate)
    best: Fitted | None = None
    for base in bases:
        try:
            fitted = _narrowed(fit, whole, base) if whole else fit_patch(fit, estimate=estimate, base=base)
        except Shortage:
            if best is None:
                raise
            break
        step_s = _measured(fit, fitted, presets.BATCH_AT_LEAST, seconds_of)
        if best is None and seconds / step_s < max(presets.ENOUGH_STEPS, presets.steps_worth(base)):
            best = _smaller_patch(fit, fitted, step_s, seconds, seconds_of)
            break
        if seconds / step_s < presets.steps_worth(base):
            break
        best = _timed(fitted, presets.BATCH_AT_LEAST, step_s, seconds)
    else:
        best = _more_per_step(fit, best, seconds, seconds_of, estimate) if best else best
    if best is None or best.steps is None or best.step_s is None:
        raise BudgetError("the preset names no network to time", where="preset", hint="give it first-stage channels")
    return _explained(best, hours, best.steps, best.step_s, bases)


def _whole(fit: Fit, base: int, estimate: Estimate) -> Fitted | None:
    """The first patch, if even the widest network fits with it: then narrower ones need no estimate."""
    try:
        fitted = fit_patch(fit, estimate=estimate, base=base)
    except Shortage:
        return None
    return fitted if fitted.sampling.patch == first_patch(fit) else None


def _narrowed(fit: Fit, whole: Fitted, base: int) -> Fitted:
    patch = whole.sampling.patch
    reasons = {**whole.reasons, "network.topology": topology_reason(fit, patch, base)}
    return replace(whole, network=fit.network(patch, base), reasons=reasons)


def _measured(fit: Fit, fitted: Fitted, batch: int, seconds_of: SecondsOf) -> float:
    sampling = replace(fitted.sampling, batch=batch)
    size = f"patch {' x '.join(map(str, sampling.patch))}, batch {batch}"
    hint = "free memory on the device and plan again, or plan with less --vram"
    with memory_errors(PlanError, "out of memory while a training step was timed", where=size, hint=hint):
        seconds = seconds_of(fitted.network, sampling, fit.training)
    return max(1e-6, float(f"{seconds:.3g}"))


def _timed(fitted: Fitted, batch: int, step_s: float, seconds: float) -> Fitted:
    steps = min(presets.MAX_STEPS, int(seconds / step_s))
    return replace(fitted, sampling=replace(fitted.sampling, batch=batch), steps=steps, step_s=step_s)


def _smaller_patch(fit: Fit, fitted: Fitted, step_s: float, seconds: float, seconds_of: SecondsOf) -> Fitted:
    """Shrink the patch until the steps fit; the time of a step goes with the voxels of its patch."""
    base = fitted.network.topology.channels[0]
    least, whole = presets.steps_worth(base), patches(fit)
    for steps, floor in ((max(presets.ENOUGH_STEPS, least), presets.CONTEXT), (least, 0.0)):
        while seconds / step_s < steps:
            last = math.prod(fitted.sampling.patch)
            smaller = [patch for patch in whole if math.prod(patch) < last and seen(fit, patch) >= floor]
            if not smaller:
                break
            patch = next((p for p in smaller if math.prod(p) <= last * seconds / steps / step_s), smaller[-1])
            sampling = Sampling(patch, presets.BATCH_AT_LEAST, fit.foreground)
            network = fit.network(patch, base)
            step_s = _measured(fit, Fitted(network, sampling, {}), presets.BATCH_AT_LEAST, seconds_of)
            enough = f"the largest that is quick enough for {steps} steps"
            why = enough if seconds / step_s >= steps else "the smallest that sees a quarter of it"
            topology = topology_reason(fit, patch, base)
            reasons = {"sampling.patch": f"{coverage(fit, patch)}; {why}", "network.topology": topology}
            fitted = Fitted(network, sampling, reasons)
    if seconds / step_s < least:
        need = math.ceil(step_s * least / presets.TIME_SHARE / 36) / 100
        what = f"the smallest network takes {step_s:.3g} s a step, {least} steps need {need:.2f} hours"
        raise Shortage(what, where="hours", need=need, unit="hours")
    return _timed(fitted, presets.BATCH_AT_LEAST, step_s, seconds)


def _more_per_step(fit: Fit, best: Fitted, seconds: float, seconds_of: SecondsOf, estimate: Estimate) -> Fitted:
    """The full-size network has time left: enlarge the batch while a long run of steps remains."""
    least = presets.BATCH_AT_LEAST
    allowed = int(least * seconds / (best.step_s or 1.0) / presets.LONG_STEPS)
    if allowed <= least:
        return best
    largest = fit_batch(fit, best.sampling.patch, sizes(fit, estimate, fit.preset.base_channels)).value
    batch = min(largest, allowed)
    return best if batch == least else _timed(best, batch, _measured(fit, best, batch, seconds_of), seconds)


def _explained(best: Fitted, hours: float, steps: int, step_s: float, bases: tuple[int, ...]) -> Fitted:
    count, size = presets.epochs(steps)
    share = presets.TIME_SHARE
    minutes = steps * step_s / 60
    base = best.network.topology.channels[0]
    reasons = {
        **best.reasons,
        "training.epochs": (
            f"{minutes:.1f} min of steps at {step_s:.3g} s each, of {hours * 60:g} min ({1 - share:.0%} is left for "
            f"validation and files): {count} epochs of {size} steps"
        ),
        "sampling.batch": f"{best.sampling.batch}: under a time budget, larger only beyond {presets.LONG_STEPS} steps",
    }
    reasons["network.topology"] += (
        f"; {base} first channels: the most of {bases} whose step is quick enough for {presets.steps_worth(base)} steps"
    )
    return replace(best, reasons=reasons)
