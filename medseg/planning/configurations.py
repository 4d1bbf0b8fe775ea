"""Which configurations a data set calls for, and the network and batch that fit each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medseg.errors import PlanError
from medseg.planning import decisions, presets
from medseg.planning.decisions import SpacingMm
from medseg.planning.fit import Estimate, Fit, Fitted, SecondsOf, Shortage, fit_memory
from medseg.planning.presets import Preset
from medseg.planning.timing import fit_time
from medseg.planning.whole import fit_whole
from medseg.types.fingerprint import Fingerprint
from medseg.types.geometry import Vec3
from medseg.types.plan import Budget, LossTerm, Step, Training

Config = Literal["2d", "3d_fullres", "3d_lowres"]
Found = dict[Config, tuple[Fit, Fitted]]


@dataclass(frozen=True)
class Means:
    """How memory and time of a training step are found out."""

    estimate: Estimate
    seconds_of: SecondsOf | None = None

    def fitted(self, fit: Fit, budget: Budget) -> Fitted:
        """The largest network and batch within the budget; raises Shortage."""
        if budget.hours is None or self.seconds_of is None:
            return fit_memory(fit, estimate=self.estimate)
        return fit_time(fit, hours=budget.hours, seconds_of=self.seconds_of, estimate=self.estimate)


def fit_all(
    fingerprint: Fingerprint, budget: Budget, family: Preset, means: Means
) -> tuple[Found, dict[str, str | Shortage]]:
    """What fits, by configuration, and why the others were left out.

    Raises PlanError if the family has none of the dimensions that the data call for.
    """
    found: Found = {}
    failed: dict[str, str | Shortage] = {}
    candidates = _candidates(fingerprint, budget, family)
    for config, fits in candidates.items():
        if fits[0].ndim not in family.dimensions:
            only = " and ".join(f"{ndim}D" for ndim in family.dimensions)
            limit = family.limit(fits[0].ndim)
            what = f"with {limit} is" if limit else "is a network"
            failed[config] = f"{family.backbone} {what} for {only}, this takes {fits[0].ndim}D"
            continue
        try:
            found |= _fit_one(config, fits, fingerprint, budget, means)
        except Shortage as error:
            failed[config] = error
    if all(isinstance(failed.get(config), str) for config in candidates):
        what = "; ".join(f"{config}: {why}" for config, why in failed.items())
        raise PlanError(f"the preset has no network for these data ({what})", where="preset", hint="use another")
    return found, failed


def _fit_one(config: Config, fits: list[Fit], fingerprint: Fingerprint, budget: Budget, means: Means) -> Found:
    """The configuration and, of full resolution, what its coarser variant or replacement is; raises Shortage."""

    def fitted(fit: Fit) -> Fitted:
        return means.fitted(fit, budget)

    if fingerprint.landmarks:
        fit, made = fit_whole(fits[0], fingerprint, budget, fitted)
        coarser = config == "3d_fullres" and fit.spacing_mm != fits[0].spacing_mm
        return {"3d_lowres" if coarser else config: (fit, made)}
    found: Found = {config: _first_wide(fits, fitted)}
    coarse = _lowres(fingerprint, *found[config], fitted) if config == "3d_fullres" else None
    return found if coarse is None else {**found, "3d_lowres": coarse}


def training(
    steps: int, budget: Budget, family: Preset, *, losses: tuple[LossTerm, ...], augment: tuple[Step, ...]
) -> Training:
    """Losses, critic, optimiser and length of a run."""
    optimizer, schedule, ema = presets.optimiser(steps).value
    count, size = presets.epochs(steps)
    return Training(
        losses=losses,
        optimizer=optimizer,
        schedule=schedule,
        augment=augment,
        epochs=count,
        steps_per_epoch=size,
        precision=budget.precision,
        ema=ema,
        adversary=family.adversary,
        weighting=family.weighting,
        members=family.members,
    )


def _fit(
    fingerprint: Fingerprint, budget: Budget, family: Preset, *, ndim: Literal[2, 3], spacing_mm: SpacingMm
) -> Fit:
    crop = decisions.cropping(fingerprint).value
    native = decisions.native_spacing(fingerprint)
    z, y, x = (own if new is None else new for own, new in zip(native, spacing_mm, strict=True))
    steps = presets.MAX_STEPS if budget.hours is None else presets.steps_worth(family.base_channels)
    return Fit(
        ndim=ndim,
        preset=family,
        spacing_mm=(z, y, x),
        median=decisions.median_shape(fingerprint, spacing_mm, crop),
        cases=len(fingerprint.cases),
        channels=len(fingerprint.channels),
        outputs=fingerprint.labels.outputs(),
        training=training(steps, budget, family, losses=family.losses, augment=()),
        vram_gib=budget.vram_gib,
        regions=fingerprint.labels.are_regions(),
    )


def _candidates(fingerprint: Fingerprint, budget: Budget, family: Preset) -> dict[Config, list[Fit]]:
    """What to fit per configuration: the first that affords a network of useful width is taken."""
    spacing = decisions.target_spacing(fingerprint).value
    flat = _fit(fingerprint, budget, family, ndim=2, spacing_mm=(None, *spacing[1:]))
    if fingerprint.ndim == 3:
        full = [_fit(fingerprint, budget, family, ndim=3, spacing_mm=spacing)]
        return {"3d_fullres": full} if fingerprint.landmarks else {"2d": [flat], "3d_fullres": full}
    pictures = budget.hours is not None and not fingerprint.landmarks
    return {"2d": _coarser_pictures(fingerprint, flat) if pictures else [flat]}


def _coarser_pictures(fingerprint: Fingerprint, flat: Fit) -> list[Fit]:
    """2D data at full resolution and at the coarser ones a short time may call for."""
    crop = decisions.cropping(fingerprint).value
    z, y, x = flat.spacing_mm
    fits = [flat]
    for factor in presets.COARSER_2D:
        spacing = (z, y * factor, x * factor)
        fits.append(replace(flat, spacing_mm=spacing, median=decisions.median_shape(fingerprint, spacing, crop)))
    return fits


def _first_wide(fits: Sequence[Fit], fitted: Callable[[Fit], Fitted]) -> tuple[Fit, Fitted]:
    """The first that affords a network of useful width, else the last."""
    for fit in fits[:-1]:
        try:
            found = fitted(fit)
        except Shortage:
            continue
        if found.network.topology.channels[0] >= presets.USEFUL_CHANNELS:
            return fit, found
    return fits[-1], fitted(fits[-1])


def _lowres(
    fingerprint: Fingerprint, full: Fit, found: Fitted, fitted: Callable[[Fit], Fitted]
) -> tuple[Fit, Fitted] | None:
    """The finest coarser spacing whose patch sees a quarter of the scan; None if full resolution does, or nearly so."""
    voxels = math.prod(found.sampling.patch)
    if voxels >= presets.CONTEXT * math.prod(full.median):
        return None
    crop = decisions.cropping(fingerprint).value
    spacing, fit = full.spacing_mm, full
    while True:
        while voxels < presets.CONTEXT * math.prod(fit.median):
            spacing = _coarser(spacing)
            fit = replace(full, spacing_mm=spacing, median=decisions.median_shape(fingerprint, spacing, crop))
        try:
            coarse = fitted(fit)
        except Shortage:
            return None
        if math.prod(coarse.sampling.patch) >= presets.CONTEXT * math.prod(fit.median):
            break
        voxels = min(voxels - 1, math.prod(coarse.sampling.patch))
    return None if math.prod(full.median) < 2 * math.prod(fit.median) else (fit, coarse)


def _coarser(spacing: Vec3) -> Vec3:
    """3 % coarser; axes less than half as coarse as the coarsest go first (Isensee 2021)."""
    fine = [axis for axis in range(3) if spacing[axis] * 2 < max(spacing)] or [0, 1, 2]
    z, y, x = (float(f"{s * 1.03:.6g}") if axis in fine else s for axis, s in enumerate(spacing))
    return z, y, x
