"""Largest patch, then batch, that fit the memory; largest network whose steps fit the time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, Protocol

from medseg.errors import BudgetError
from medseg.planning import presets
from medseg.planning.decisions import Decision
from medseg.planning.presets import Preset
from medseg.planning.topology import shrink, topology_for
from medseg.types.geometry import Size3, Vec3
from medseg.types.plan import Network, Sampling, Training

GIB = 2**30
START_EDGE = {2: 2048.0, 3: 256.0}  # voxels per axis of an isotropic first patch (Isensee 2021)


class Shortage(BudgetError):
    """A budget nothing fits in; `need` is the smallest that would do."""

    def __init__(self, what: str, *, where: str, need: float, unit: str) -> None:
        self.need = need
        super().__init__(what, where=where, hint=f"the smallest that would fit is {need:g} {unit}")


class Total(Protocol):
    """What an estimate returns: planning.memory.StepMemory, or a test's stand-in."""

    def total_bytes(self) -> int:
        """Bytes of device memory of one training step."""

    @property
    def workspace_bytes(self) -> int:
        """Of these, what libraries take."""

    @property
    def context_bytes(self) -> int:
        """Of these, what the device takes for every process."""


Estimate = Callable[..., Total]
SecondsOf = Callable[[Network, Sampling, Training], float]


@dataclass(frozen=True)
class Fit:
    """What has to fit: one configuration of a data set, and the memory; shapes and spacing are (z, y, x)."""

    ndim: Literal[2, 3]
    preset: Preset
    spacing_mm: Vec3
    median: Vec3
    cases: int
    channels: int
    outputs: int
    training: Training
    vram_gib: float
    regions: bool = False

    def network(self, patch: Size3, base: int) -> Network:
        """The preset's network for a patch."""
        topology, _ = topology_for(patch, self.spacing_mm, ndim=self.ndim, preset=self.preset, base=base)
        return Network(self.preset.backbone, topology)


@dataclass(frozen=True)
class Fitted:
    """A network and its batches; `steps` and `step_s` only under a time budget."""

    network: Network
    sampling: Sampling
    reasons: dict[str, str] = field(default_factory=dict)
    steps: int | None = None
    step_s: float | None = None


def first_patch(fit: Fit) -> Size3:
    """Isotropic in mm, as many voxels as 256 x 256 x 256 (2D: 2048 x 2048), clipped to the median scan."""
    axes = range(3 - fit.ndim, 3)
    edge = START_EDGE[fit.ndim] * math.prod(fit.spacing_mm[axis] for axis in axes) ** (1 / fit.ndim)
    z, y, x = (
        max(1, min(round(edge / fit.spacing_mm[axis]), math.ceil(fit.median[axis]))) if axis in axes else 1
        for axis in range(3)
    )
    return topology_for((z, y, x), fit.spacing_mm, ndim=fit.ndim, preset=fit.preset)[1]


def patches(fit: Fit) -> tuple[Size3, ...]:
    """Every candidate patch, largest first."""
    found: list[Size3] = []
    patch: Size3 | None = first_patch(fit)
    while patch is not None:
        found.append(patch)
        patch = shrink(patch, fit.median, fit.spacing_mm, ndim=fit.ndim, preset=fit.preset)
    return tuple(found)


def fit_memory(fit: Fit, *, estimate: Estimate) -> Fitted:
    """Largest patch whose training step of batch 2 fits, then the largest batch.

    A batch holds at most 5 % of the voxels of all cases. Raises BudgetError with the smallest budget that would do.
    """
    base = fit.preset.base_channels
    fitted = fit_patch(fit, estimate=estimate, base=base)
    batch = _batch(fit, fitted.sampling.patch, _sizes(fit, estimate, base))
    sampling = replace(fitted.sampling, batch=batch.value)
    return replace(fitted, sampling=sampling, reasons={**fitted.reasons, "sampling.batch": batch.reason})


def fit_patch(fit: Fit, *, estimate: Estimate, base: int) -> Fitted:
    """Largest patch whose training step of batch 2 fits; raises BudgetError with the smallest budget that would do."""
    size = _sizes(fit, estimate, base)
    candidates = patches(fit)
    patch = _largest(candidates, lambda patch: size(patch, presets.BATCH_AT_LEAST).total_bytes(), _limit(fit))
    if patch is None:
        bytes_needed = size(candidates[-1], presets.BATCH_AT_LEAST).total_bytes()
        need = math.ceil(bytes_needed / presets.VRAM_SHARE / GIB * 10) / 10
        what = f"the smallest patch {_by(candidates[-1])} with batch 2 needs {need:.1f} GiB of device memory"
        raise Shortage(f"{what}, the budget is {fit.vram_gib:g}", where="vram_gib", need=need, unit="GiB")
    reasons = {
        "sampling.patch": _patch_reason(fit, candidates[0], patch),
        "network.topology": _topology_reason(fit, patch, base),
    }
    return Fitted(
        fit.network(patch, base), Sampling(patch, presets.BATCH_AT_LEAST, presets.FOREGROUND_FRACTION), reasons
    )


def fit_time(fit: Fit, *, hours: float, seconds_of: SecondsOf, estimate: Estimate) -> Fitted:
    """Largest network whose steps of batch 2 are quick enough for a useful run, then the batch if time is ample.

    `seconds_of` measures one step. First-stage channels grow while at least `presets.MIN_STEPS` steps remain; if not
    even the smallest network does, the patch shrinks. Raises BudgetError with the hours that would do.
    """
    seconds = hours * 3600 * presets.TIME_SHARE
    best: Fitted | None = None
    for base in [b for b in presets.BASE_CHANNELS if b <= fit.preset.base_channels]:
        fitted = fit_patch(fit, estimate=estimate, base=base)
        step_s = _measured(fit, fitted, presets.BATCH_AT_LEAST, seconds_of)
        if seconds / step_s < presets.MIN_STEPS:
            best = best or _smaller_patch(fit, fitted, step_s, seconds, seconds_of)
            break
        best = _timed(fitted, presets.BATCH_AT_LEAST, step_s, seconds)
    else:
        best = _more_per_step(fit, best, seconds, seconds_of, estimate) if best else best
    if best is None or best.steps is None or best.step_s is None:
        raise BudgetError("the preset names no network to time", where="preset", hint="use unet or resenc")
    return _explained(best, hours, best.steps, best.step_s)


def _limit(fit: Fit) -> float:
    return fit.vram_gib * presets.VRAM_SHARE * GIB


def _sizes(fit: Fit, estimate: Estimate, base: int) -> Callable[[Size3, int], Total]:
    @cache
    def size(patch: Size3, batch: int) -> Total:
        return estimate(
            fit.network(patch, base),
            channels=fit.channels,
            outputs=fit.outputs,
            patch=patch,
            batch=batch,
            training=fit.training,
            regions=fit.regions,
        )

    return size


def _largest(candidates: tuple[Size3, ...], size: Callable[[Size3], int], limit: float) -> Size3 | None:
    """The largest candidate within `limit`, or None; memory goes with voxels, which tells where to look next."""
    too_large, fits, guess = -1, len(candidates), 0
    while too_large < len(candidates) - 1:
        used = size(candidates[guess])
        too_large, fits = (too_large, guess) if used <= limit else (guess, fits)
        if fits - too_large == 1:
            break
        wanted = math.prod(candidates[guess]) * limit / used
        likely = next((i for i, patch in enumerate(candidates) if math.prod(patch) <= wanted), len(candidates))
        guess = min(max(likely, too_large + 1), fits - 1)
    return candidates[fits] if fits < len(candidates) else None


def _batch(fit: Fit, patch: Size3, size: Callable[[Size3, int], Total]) -> Decision[int]:
    """As many samples as memory and data allow.

    Up to 16 by estimates; above, where estimates take long, by what is certain: n samples need at most n / 16 of what
    16 need besides the fixed part, because weights and the like do not grow.
    """
    least, probe = presets.BATCH_AT_LEAST, presets.PROBED_BATCH
    voxels = math.prod(fit.median) * fit.cases
    share = max(least, round(presets.BATCH_OF_DATASET * voxels / math.prod(patch)))
    cap = min(presets.BATCH_AT_MOST, share)
    limit = _limit(fit)
    low, high = least, min(cap, probe) + 1  # low fits, high is not wanted or does not
    guess = min(2 * least, high - 1)
    while high - low > 1:
        used = size(patch, guess).total_bytes()
        low, high = (guess, high) if used <= limit else (low, guess)
        each = max(1.0, (used - size(patch, least).total_bytes()) / (guess - least))
        guess = min(max(guess + math.floor((limit - used) / each), low + 1), high - 1)
    if low == probe < cap:
        memory = size(patch, probe)
        fixed = memory.workspace_bytes + memory.context_bytes
        low = min(cap, math.floor(probe * (limit - fixed) / (memory.total_bytes() - fixed)))
    used_gib = size(patch, min(low, probe)).total_bytes() / GIB
    text = f"{low}, what memory leaves (data would allow {cap})"
    if low == cap:
        text = f"{low}, limited by {presets.BATCH_OF_DATASET:.0%} of all voxels ({share}, at least {least})"
        text += f" and by {presets.BATCH_AT_MOST}" if share > cap else ""
    return Decision(low, f"{text}; {min(low, probe)} take an estimated {used_gib:.2f} of {fit.vram_gib:g} GiB")


def _measured(fit: Fit, fitted: Fitted, batch: int, seconds_of: SecondsOf) -> float:
    sampling = replace(fitted.sampling, batch=batch)
    return max(1e-6, float(f"{seconds_of(fitted.network, sampling, fit.training):.3g}"))


def _timed(fitted: Fitted, batch: int, step_s: float, seconds: float) -> Fitted:
    steps = min(presets.MAX_STEPS, int(seconds / step_s))
    return replace(fitted, sampling=replace(fitted.sampling, batch=batch), steps=steps, step_s=step_s)


def _smaller_patch(fit: Fit, fitted: Fitted, step_s: float, seconds: float, seconds_of: SecondsOf) -> Fitted:
    """Shrink the patch until `MIN_STEPS` steps fit; the time of a step goes with the voxels of its patch."""
    wanted = seconds / presets.MIN_STEPS
    whole = patches(fit)
    base = fitted.network.topology.channels[0]
    while step_s > wanted:
        last = math.prod(fitted.sampling.patch)
        smaller = [patch for patch in whole if math.prod(patch) < last]
        if not smaller:
            need = math.ceil(step_s * presets.MIN_STEPS / presets.TIME_SHARE / 36) / 100
            what = f"the smallest network takes {step_s:.3g} s a step, {presets.MIN_STEPS} steps need {need:.2f} hours"
            raise Shortage(what, where="hours", need=need, unit="hours")
        patch = next((p for p in smaller if math.prod(p) <= last * wanted / step_s), smaller[-1])
        reasons = {
            "sampling.patch": f"{_coverage(fit, patch)}; the largest that is quick enough",
            "network.topology": _topology_reason(fit, patch, base),
        }
        sampling = Sampling(patch, presets.BATCH_AT_LEAST, presets.FOREGROUND_FRACTION)
        fitted = Fitted(fit.network(patch, base), sampling, reasons)
        step_s = _measured(fit, fitted, presets.BATCH_AT_LEAST, seconds_of)
    return _timed(fitted, presets.BATCH_AT_LEAST, step_s, seconds)


def _more_per_step(fit: Fit, best: Fitted, seconds: float, seconds_of: SecondsOf, estimate: Estimate) -> Fitted:
    """The full-size network has time left: enlarge the batch while a long run of steps remains."""
    least = presets.BATCH_AT_LEAST
    allowed = int(least * seconds / (best.step_s or 1.0) / presets.LONG_STEPS)
    if allowed <= least:
        return best
    largest = _batch(fit, best.sampling.patch, _sizes(fit, estimate, fit.preset.base_channels)).value
    batch = min(largest, allowed)
    return best if batch == least else _timed(best, batch, _measured(fit, best, batch, seconds_of), seconds)


def _explained(best: Fitted, hours: float, steps: int, step_s: float) -> Fitted:
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
        f"; {base} first channels: the largest of {presets.BASE_CHANNELS} with at least {presets.MIN_STEPS} steps"
    )
    return replace(best, reasons=reasons)


def _coverage(fit: Fit, patch: Size3) -> str:
    covered = math.prod(min(p / m, 1.0) for p, m in zip(patch[3 - fit.ndim :], fit.median[3 - fit.ndim :], strict=True))
    seen = "slice" if fit.ndim == 2 else "scan"
    return f"{_by(patch)} covers {covered:.0%} of the median {seen} ({_by(fit.median)})"


def _patch_reason(fit: Fit, largest: Size3, patch: Size3) -> str:
    text = _coverage(fit, patch)
    if patch == largest:
        return f"{text}; no larger one is useful"
    return (
        f"{text}; the largest below {_by(largest)} that fits {fit.vram_gib:g} GiB with batch {presets.BATCH_AT_LEAST}"
    )


def _topology_reason(fit: Fit, patch: Size3, base: int) -> str:
    topology = fit.network(patch, base).topology
    edge = tuple(n // d for n, d in zip(patch, topology.divisor(), strict=True))
    spacing = " x ".join(f"{s:.4g}" for s in fit.spacing_mm[3 - fit.ndim :])
    return f"{len(topology.strides)} stages down to {_by(edge)} voxels at spacing {spacing}, finest axes first"


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
