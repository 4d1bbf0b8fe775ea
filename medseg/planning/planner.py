"""Put the decisions together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import medseg
from medseg.errors import BudgetError, PlanError
from medseg.io.records import record_sha256
from medseg.planning import decisions, presets
from medseg.planning.decisions import Decision, SpacingMm
from medseg.planning.fit import GIB, Estimate, Fit, Fitted, SecondsOf, Shortage, Total, fit_memory
from medseg.planning.presets import PRESETS, Preset
from medseg.planning.timing import fit_time
from medseg.types.fingerprint import Fingerprint
from medseg.types.geometry import Geometry, Size3, Vec3
from medseg.types.plan import Budget, Inference, LossTerm, Network, Origin, Plan, Preprocess, Step, Training

PredictionBytes = Callable[[Plan, Geometry], int]
Config = Literal["2d", "3d_fullres", "3d_lowres"]


def make_plans(
    fingerprint: Fingerprint,
    budget: Budget,
    preset: str,
    *,
    seconds_of: SecondsOf | None = None,
    estimate: Estimate | None = None,
    prediction_bytes: PredictionBytes | None = None,
) -> tuple[Plan, ...]:
    """Plans "2d" and, for 3D data, "3d_fullres" and, where its patch sees too little, "3d_lowres".

    Pure: same arguments, same plans, on any machine. `seconds_of(network, sampling, training)` measures a training
    step and is needed where the budget has hours. `estimate` and `prediction_bytes` default to `planning.memory`. A
    configuration that does not fit is left out and named in the others' reasons. Raises BudgetError if none fits.
    """
    family = _family(fingerprint, preset)
    if budget.hours is not None and seconds_of is None:
        raise BudgetError("hours need a measured step", where="hours", hint="give seconds_of, or leave hours out")
    fitted, failed = _fit_all(fingerprint, budget, family, seconds_of, estimate or _estimate_step)
    plans: list[Plan] = []
    for config, (fit, found) in fitted.items():
        plan = _assemble(fingerprint, budget, preset, config=config, fit=fit, found=found, lowres="3d_lowres" in fitted)
        try:
            plans.append(_within_ram(plan, fingerprint, prediction_bytes or _estimate_prediction))
        except Shortage as error:
            failed[config] = error
    if not plans:
        raise _cheapest(failed)
    left_out = {f"left_out.{config}": f"{error.what}; {error.hint}" for config, error in failed.items()}
    return tuple(replace(plan, reasons={**plan.reasons, **left_out}) for plan in plans)


def _estimate_step(network: Network, **what: Any) -> Total:
    from medseg.planning.memory import estimate_step  # imports torch

    return estimate_step(network, **what)


def _estimate_prediction(plan: Plan, scan: Geometry) -> int:
    from medseg.planning.memory import estimate_prediction

    return estimate_prediction(plan, scan)


def _family(fingerprint: Fingerprint, preset: str) -> Preset:
    family = PRESETS.get(preset)
    if family is None:
        raise PlanError(f'unknown preset "{preset}"', where="preset", hint=f"use one of {', '.join(sorted(PRESETS))}")
    if not fingerprint.cases:
        raise PlanError("a fingerprint without cases", where=fingerprint.dataset, hint="add training cases")
    return family


Found = dict[Config, tuple[Fit, Fitted]]


def _fit_all(
    fingerprint: Fingerprint, budget: Budget, family: Preset, seconds_of: SecondsOf | None, estimate: Estimate
) -> tuple[Found, dict[str, Shortage]]:
    def fitted(fit: Fit) -> Fitted:
        if budget.hours is None or seconds_of is None:
            return fit_memory(fit, estimate=estimate)
        return fit_time(fit, hours=budget.hours, seconds_of=seconds_of, estimate=estimate)

    found: Found = {}
    failed: dict[str, Shortage] = {}
    for config, fits in _candidates(fingerprint, budget, family).items():
        try:
            found[config] = _first_wide(fits, fitted)
        except Shortage as error:
            failed[config] = error
    if "3d_fullres" in found:
        coarse = _lowres(fingerprint, *found["3d_fullres"], fitted)
        if coarse is not None:
            found["3d_lowres"] = coarse
    return found, failed


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
        training=_training(steps, budget, augment=(), batch_dice=False),
        vram_gib=budget.vram_gib,
        regions=fingerprint.labels.are_regions(),
    )


def _candidates(fingerprint: Fingerprint, budget: Budget, family: Preset) -> dict[Config, list[Fit]]:
    """What to fit per configuration: the first that affords a network of useful width is taken."""
    spacing = decisions.target_spacing(fingerprint).value
    flat = _fit(fingerprint, budget, family, ndim=2, spacing_mm=(None, *spacing[1:]))
    if fingerprint.ndim == 3:
        return {"2d": [flat], "3d_fullres": [_fit(fingerprint, budget, family, ndim=3, spacing_mm=spacing)]}
    return {"2d": [flat] if budget.hours is None else _coarser_pictures(fingerprint, flat)}


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


def _assemble(
    fingerprint: Fingerprint, budget: Budget, preset: str, *, config: Config, fit: Fit, found: Fitted, lowres: bool
) -> Plan:
    spacing = _network_spacing(fingerprint, config, fit)
    crop, orient = decisions.cropping(fingerprint), decisions.orientation(fingerprint)
    intensity = decisions.intensity_steps(fingerprint)
    mirror = decisions.mirror_axes(fingerprint)
    axes = tuple(axis for axis in mirror.value if fit.ndim == 3 or axis > 0)
    ultrasound = any(decisions.modality(name) == "us" for name in fingerprint.channels)
    augment = presets.augmentation(found.sampling.patch, axes, ultrasound=ultrasound)
    dice = decisions.batch_dice(fingerprint.labels, config=config, has_lowres=lowres)
    steps = found.steps or presets.MAX_STEPS
    return Plan(
        schema="medseg.plan/1",
        name=f"{fingerprint.dataset}-{config}",
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        preprocess=Preprocess(spacing.value, intensity.value, orient.value, crop.value),
        network=found.network,
        sampling=found.sampling,
        training=_training(steps, budget, augment=augment.value, batch_dice=dice.value),
        inference=Inference(mirror_axes=axes),
        postprocess=(),
        origin=Origin(medseg.__version__, record_sha256(fingerprint), replace(budget, step_s=found.step_s), preset),
        reasons={
            "preprocess.spacing_mm": spacing.reason,
            "preprocess.intensity": intensity.reason,
            "preprocess.orientation": orient.reason,
            "preprocess.crop": crop.reason,
            "training.losses": dice.reason,
            "training.optimizer": presets.optimiser(steps).reason,
            "training.augment": augment.reason,
            "training.epochs": f"{presets.LONG_EPOCHS} x {presets.LONG_STEPS_PER_EPOCH} steps: no time budget",
            "inference.mirror_axes": mirror.reason,
            **found.reasons,
        },
    )


def _network_spacing(fingerprint: Fingerprint, config: Config, fit: Fit) -> Decision[SpacingMm]:
    full = decisions.target_spacing(fingerprint)
    if config == "3d_lowres":
        seen = f"the full-resolution patch sees less than {presets.CONTEXT:.0%} of the median scan"
        return Decision(fit.spacing_mm, f"{seen}; coarsened from {full.value} mm until the patch sees that much")
    factor = fit.spacing_mm[1] / decisions.native_spacing(fingerprint)[1]
    if fingerprint.ndim == 2 and any(math.isclose(factor, one) for one in presets.COARSER_2D):
        hurry = f"{factor:g} times coarser than stored, or no {presets.USEFUL_CHANNELS} first channels fit the hours"
        return Decision((None, *fit.spacing_mm[1:]), hurry)
    if config == "2d" and fingerprint.ndim == 3:
        return Decision((None, full.value[1], full.value[2]), f"{full.reason}; slices stay as they are")
    return full


def _training(steps: int, budget: Budget, *, augment: tuple[Step, ...], batch_dice: bool) -> Training:
    optimizer, schedule, ema = presets.optimiser(steps).value
    count, size = presets.epochs(steps)
    return Training(
        losses=(LossTerm(1.0, "dice_ce", {"batch_dice": batch_dice}),),
        optimizer=optimizer,
        schedule=schedule,
        augment=augment,
        epochs=count,
        steps_per_epoch=size,
        precision=budget.precision,
        ema=ema,
    )


def _within_ram(plan: Plan, fingerprint: Fingerprint, prediction_bytes: PredictionBytes) -> Plan:
    """Say what predicting the largest scan takes; raise BudgetError if it is more than the user allows."""
    largest = max(fingerprint.cases, key=lambda case: (math.prod(case.shape), case.case_id))
    scan = Geometry(largest.shape, largest.spacing_mm, unit=fingerprint.unit)
    need, limit = prediction_bytes(plan, scan) / GIB, plan.origin.budget.ram_gib
    text = f"predicting the largest scan ({_by(largest.shape)}) takes about {need:.2g} GiB of main memory"
    if limit is not None and need > limit * presets.RAM_SHARE:
        least = math.ceil(need / presets.RAM_SHARE * 10) / 10
        raise Shortage(f"{text}, the budget is {limit:g}", where="ram_gib", need=least, unit="GiB")
    return replace(plan, reasons={**plan.reasons, "origin.budget": text + (f", of {limit:g}" if limit else "")})


def _cheapest(failed: Mapping[str, Shortage]) -> BudgetError:
    what = "; ".join(f"{config}: {error.what}" for config, error in failed.items())
    where = next(iter(failed.values())).where
    least = min((error for error in failed.values() if error.where == where), key=lambda error: error.need)
    return BudgetError(what, where=least.where, hint=least.hint)


def _by(shape: Size3) -> str:
    return " x ".join(str(n) for n in shape)
