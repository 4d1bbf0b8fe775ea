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
        self.need, self.unit = need, unit
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
Sizes = Callable[[Size3, int], Total]
SecondsOf = Callable[[Network, Sampling, Training], float]


@dataclass(frozen=True)
class Fit:
    """What has to fit: one configuration of a data set, and the memory; shapes and spacing are (z, y, x).

    `whole`: the patch must cover this shape and may not be smaller.
    """

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
    whole: Size3 | None = None

    @property
    def foreground(self) -> float:
        """Share of patches that are placed on a class; 0 where a patch holds the whole scan anyway."""
        return 0.0 if self.whole or not self.outputs else presets.FOREGROUND_FRACTION

    def network(self, patch: Size3, base: int) -> Network:
        """The preset's network for a patch."""
        topology, _ = topology_for(patch, self.spacing_mm, ndim=self.ndim, preset=self.preset, base=base)
        return Network(self.preset.backbone, topology, self.preset.heads, self.preset.options)


@dataclass(frozen=True)
class Fitted:
    """A network and its batches; `steps` and `step_s` only under a time budget."""

    network: Network
    sampling: Sampling
    reasons: dict[str, str] = field(default_factory=dict)
    steps: int | None = None
    step_s: float | None = None


def first_patch(fit: Fit) -> Size3:
    """Isotropic in mm, as many voxels as 256 x 256 x 256 (2D: 2048 x 2048), clipped to the median scan.

    Where the patch must cover a shape, that shape.
    """
    if fit.whole is not None:
        return topology_for(fit.whole, fit.spacing_mm, ndim=fit.ndim, preset=fit.preset)[1]
    axes = range(3 - fit.ndim, 3)
    edge = START_EDGE[fit.ndim] * math.prod(fit.spacing_mm[axis] for axis in axes) ** (1 / fit.ndim)
    z, y, x = (
        max(1, min(round(edge / fit.spacing_mm[axis]), math.ceil(fit.median[axis]))) if axis in axes else 1
        for axis in range(3)
    )
    return topology_for((z, y, x), fit.spacing_mm, ndim=fit.ndim, preset=fit.preset)[1]


def patches(fit: Fit) -> tuple[Size3, ...]:
    """Every candidate patch, largest first."""
    if fit.whole is not None:
        return (first_patch(fit),)
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
    batch = fit_batch(fit, fitted.sampling.patch, sizes(fit, estimate, base))
    sampling = replace(fitted.sampling, batch=batch.value)
    return replace(fitted, sampling=sampling, reasons={**fitted.reasons, "sampling.batch": batch.reason})


def fit_patch(fit: Fit, *, estimate: Estimate, base: int) -> Fitted:
    """Largest patch whose training step of batch 2 fits; raises BudgetError with the smallest budget that would do."""
    size = sizes(fit, estimate, base)
    candidates = patches(fit)
    patch = _largest(candidates, lambda patch: size(patch, presets.BATCH_AT_LEAST).total_bytes(), _limit(fit))
    if patch is None:
        bytes_needed = size(candidates[-1], presets.BATCH_AT_LEAST).total_bytes()
        need = math.ceil(bytes_needed / presets.VRAM_SHARE / GIB * 10) / 10
        what = f"the smallest patch {_by(candidates[-1])} with batch 2 needs {need:.1f} GiB of device memory"
        raise Shortage(f"{what}, the budget is {fit.vram_gib:g}", where="vram_gib", need=need, unit="GiB")
    reasons = {
        "sampling.patch": _patch_reason(fit, candidates[0], patch),
        "network.topology": topology_reason(fit, patch, base),
    }
    return Fitted(fit.network(patch, base), Sampling(patch, presets.BATCH_AT_LEAST, fit.foreground), reasons)


def _limit(fit: Fit) -> float:
    return fit.vram_gib * presets.VRAM_SHARE * GIB


def sizes(fit: Fit, estimate: Estimate, base: int) -> Sizes:
    """Memory of a training step by patch and batch; every question is asked once."""

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


def fit_batch(fit: Fit, patch: Size3, size: Sizes) -> Decision[int]:
    """As many samples as memory and data allow.

    n samples need at most n / m of what m need besides the fixed part, because weights and the like do not grow. What
    that leaves open is estimated up to 8 samples; above, where an estimate takes long, it is left.
    """
    least, limit = presets.BATCH_AT_LEAST, _limit(fit)
    share = round(presets.BATCH_OF_DATASET * math.prod(fit.median) * fit.cases / math.prod(patch))
    cap = max(least, min(presets.BATCH_AT_MOST, share))

    def at_most(n: int, known: int) -> float:
        memory = size(patch, known)
        fixed = memory.workspace_bytes + memory.context_bytes
        return fixed + (memory.total_bytes() - fixed) * n / known

    def certain(known: int) -> int:
        return max((n for n in range(least, cap + 1) if at_most(n, known) <= limit), default=least)

    known, low = least, certain(least)
    while low < cap and known < min(low + 1, presets.PROBED_BATCH):
        guess = min(low + 1, presets.PROBED_BATCH)
        if size(patch, guess).total_bytes() > limit:
            break
        known, low = guess, max(low, guess, certain(guess))
    used_gib = at_most(low, known) / GIB
    text = f"{low}, what memory leaves (data would allow {cap})"
    if low == cap:
        text = f"{low}, limited by {presets.BATCH_OF_DATASET:.0%} of all voxels ({share}, at least {least})"
        text += f" and by {presets.BATCH_AT_MOST}" if share > cap else ""
    return Decision(low, f"{text}; estimated at most {used_gib:.2f} of {fit.vram_gib:g} GiB")


def seen(fit: Fit, patch: Size3) -> float:
    """The share of the median scan that a patch sees; of a slice in 2D."""
    return math.prod(min(p / m, 1.0) for p, m in zip(patch[3 - fit.ndim :], fit.median[3 - fit.ndim :], strict=True))


def coverage(fit: Fit, patch: Size3) -> str:
    """How much of the median scan a patch sees, in words."""
    whole = "slice" if fit.ndim == 2 else "scan"
    return f"{_by(patch)} covers {seen(fit, patch):.0%} of the median {whole} ({_by(fit.median)})"


def _patch_reason(fit: Fit, largest: Size3, patch: Size3) -> str:
    if fit.whole is not None:
        return f"{_by(patch)} covers every scan (the largest is {_by(fit.whole)} on the network grid)"
    text = coverage(fit, patch)
    if patch == largest:
        return f"{text}; no larger one is useful"
    return (
        f"{text}; the largest below {_by(largest)} that fits {fit.vram_gib:g} GiB with batch {presets.BATCH_AT_LEAST}"
    )


def topology_reason(fit: Fit, patch: Size3, base: int) -> str:
    """Stages and bottleneck of a patch's network, in words."""
    topology = fit.network(patch, base).topology
    edge = tuple(n // d for n, d in zip(patch, topology.divisor(), strict=True))
    spacing = " x ".join(f"{s:.4g}" for s in fit.spacing_mm[3 - fit.ndim :])
    return f"{len(topology.strides)} stages down to {_by(edge)} voxels at spacing {spacing}, finest axes first"


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
