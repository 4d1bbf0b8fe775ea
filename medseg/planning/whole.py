"""Landmarks are looked for in whole scans: the finest network grid on which the largest scan is one patch that fits."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from medseg.losses.build import LOSSES, WHOLE_LOSSES
from medseg.planning import decisions, presets
from medseg.planning.decisions import Decision, SpacingMm
from medseg.planning.fit import Fit, Fitted, Shortage, first_patch
from medseg.types.fingerprint import Fingerprint
from medseg.types.geometry import Vec3
from medseg.types.plan import Budget, LossTerm, Option

STEP = 1.03  # each candidate's finest spacing is so many times that of the one before
MOST = 200  # candidates: up to 370 times coarser
SMALLEST = 16  # voxels of the largest scan below which no grid is worth a try
BLOBS = {"dsnt": 1.0, "heatmap": 3.0}  # width of the Gaussians of a loss, in voxels of the network grid's finest axis
# Losses that sum overlaps over a sample, or over the batch.
_SUMMED = frozenset(
    name for name, loss in {**LOSSES, **WHOLE_LOSSES}.items() if "batch_dice" in inspect.signature(loss).parameters
)


def fit_whole(
    full: Fit, fingerprint: Fingerprint, budget: Budget, fitted: Callable[[Fit], Fitted]
) -> tuple[Fit, Fitted]:
    """The finest grid whose patch, which covers every scan, fits, and what fits on it.

    Starts from the spacing of `full`. Grids grow coarser in mm alike along all axes: an axis that is coarser stays as
    it is until the others have come up to it. Under a time budget a grid that affords only a narrow network or few
    steps counts as too large, unless all do. Raises Shortage if even the coarsest is too large.
    """
    grids = _grids(full, fingerprint)
    too_large, fits, guess, leap = -1, len(grids), 0, 1
    best: Fitted | None = None
    narrow: tuple[Fit, Fitted] | None = None
    short: Shortage | None = None
    while fits - too_large > 1:
        try:
            found = fitted(grids[guess])
            if budget.hours is None or not _is_poor(found, full):
                best, fits = found, guess
                guess, leap = max(too_large + 1, fits - leap), 2 * leap
                continue
            narrow, wanted = (grids[guess], found), _voxels(grids[guess]) / 2
        except Shortage as error:
            short = error
            have = budget.hours if error.unit == "hours" else budget.vram_gib
            wanted = _voxels(grids[guess]) * (have or math.inf) / error.need
        too_large, leap = guess, 1
        likely = next((i for i, grid in enumerate(grids) if _voxels(grid) <= wanted), len(grids))
        guess = min(max(likely, too_large + 1), fits - 1)
    if best is not None:
        return grids[fits], best
    if narrow is None:
        raise short or Shortage("no grid to try", where="vram_gib", need=math.inf, unit="GiB")
    return narrow


def _is_poor(found: Fitted, full: Fit) -> bool:
    """Whether steps are few, or first channels fewer than are useful and than the preset could give."""
    narrow = found.network.topology.channels[0] < min(presets.USEFUL_CHANNELS, max(full.preset.bases))
    return narrow or (found.steps or presets.WHOLE_STEPS) < presets.WHOLE_STEPS


def whole_spacing(full: Decision[SpacingMm], fit: Fit, native: Vec3, unit: str) -> Decision[SpacingMm]:
    """The network grid of whole scans, and why it is as coarse as it is; `full` is what other plans would take."""
    own = tuple(s if new is None else new for s, new in zip(native, full.value, strict=True))
    kept, now = (_by(spacing[3 - fit.ndim :]) for spacing in (own, fit.spacing_mm))
    aim = "the largest scan fits in one patch, in which landmarks are looked for"
    if own[3 - fit.ndim :] == fit.spacing_mm[3 - fit.ndim :]:
        return Decision(full.value, f"{full.reason}; {aim}")
    z, y, x = fit.spacing_mm
    return Decision((z if fit.ndim == 3 else None, y, x), f"{now} {unit}, coarsened from {kept} until {aim}")


def terms(fit: Fit, *, batch_dice: Decision[bool]) -> Decision[tuple[LossTerm, ...]]:
    """The losses, with what they are to know of the data: how Dice is summed, how wide heat maps are in mm."""
    losses, said = [], []
    finest = min(fit.spacing_mm[3 - fit.ndim :])
    for term in fit.preset.losses:
        own: dict[str, Option] = {}
        if term.use in _SUMMED:
            own = {"batch_dice": batch_dice.value}
            said += [] if batch_dice.reason in said else [batch_dice.reason]
        elif term.use in BLOBS:
            width = float(f"{BLOBS[term.use] * finest:.6g}")
            own = {"sigma_mm": width}
            said.append(f"{term.use}: heat maps are {width:g} wide, {BLOBS[term.use]:g} voxels of the finest axis")
        losses.append(replace(term, options={**own, **term.options}))
    return Decision(tuple(losses), "; ".join(said) or "as the preset has them")


def _grids(full: Fit, fingerprint: Fingerprint) -> list[Fit]:
    """Candidates from fine to coarse; none has the patch of the one before."""
    crop = decisions.cropping(fingerprint).value
    axes = range(3 - full.ndim, 3)
    finest = min(full.spacing_mm[axis] for axis in axes)
    grids: list[Fit] = []
    for power in range(MOST):
        limit = float(f"{finest * STEP**power:.6g}")
        z, y, x = (max(own, limit) if axis in axes else own for axis, own in enumerate(full.spacing_mm))
        shapes = [decisions.resampled_shape(case, (z, y, x), crop) for case in fingerprint.cases]
        largest = np.max(shapes, axis=0)
        if max(int(largest[axis]) for axis in axes) < SMALLEST and grids:
            break
        whole = (int(largest[0]) if full.ndim == 3 else 1, int(largest[1]), int(largest[2]))
        middle = decisions.median_shape(fingerprint, (z, y, x), crop)
        fit = replace(full, spacing_mm=(z, y, x), median=middle, whole=whole)
        if not grids or first_patch(fit) != first_patch(grids[-1]):
            grids.append(fit)
    return grids


def _voxels(fit: Fit) -> int:
    return math.prod(first_patch(fit))


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
