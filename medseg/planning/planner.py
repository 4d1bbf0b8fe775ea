"""Put the decisions together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import medseg
from medseg.errors import BudgetError, MedsegError, PlanError
from medseg.io.records import record_sha256
from medseg.networks.blocks.options import has_rater_code
from medseg.planning import decisions, presets
from medseg.planning.configurations import Config, Means, fit_all, training
from medseg.planning.decisions import Decision, SpacingMm
from medseg.planning.design import Wishes, design
from medseg.planning.fit import GIB, Estimate, Fit, Fitted, SecondsOf, Shortage, Total
from medseg.planning.mirroring import mirroring
from medseg.planning.whole import terms, whole_spacing
from medseg.types.fingerprint import Fingerprint
from medseg.types.geometry import Geometry, Size3
from medseg.types.plan import Budget, Network, Origin, Plan, Preprocess

PredictionBytes = Callable[[Plan, Geometry], int]
AS_SPECIFIED = Wishes()


def make_plans(
    fingerprint: Fingerprint,
    budget: Budget,
    preset: str,
    *,
    wishes: Wishes = AS_SPECIFIED,
    seconds_of: SecondsOf | None = None,
    estimate: Estimate | None = None,
    prediction_bytes: PredictionBytes | None = None,
) -> tuple[Plan, ...]:
    """Plans "2d" and, for 3D data, "3d_fullres" and, where its patch sees too little, "3d_lowres".

    Landmarks are looked for in whole scans, together with labels if there are any: one plan, "2d", or "3d_fullres",
    or "3d_lowres" where that takes coarser voxels. Pure: same arguments, same plans, on any machine.
    `seconds_of(network, sampling, training)` measures a training step and is needed where the budget has hours.
    `estimate` and `prediction_bytes` default to `planning.memory`, which builds the network: options that no part
    takes are a PlanError. A configuration that does not fit, or that the preset has no network for, is left out and
    named in the others' reasons. Raises BudgetError if none fits.
    """
    if not fingerprint.cases:
        raise PlanError("a fingerprint without cases", where=fingerprint.dataset, hint="add training cases")
    _check_budget(budget)
    if budget.hours is not None and seconds_of is None:
        raise BudgetError("hours need a measured step", where="hours", hint="give seconds_of, or leave hours out")
    family = design(fingerprint, preset, wishes)
    means = Means(estimate or _estimate_step, seconds_of)
    members = family.value.members
    found, failed = fit_all(fingerprint, _of_one(budget, members), family.value, means)
    failed = {config: _of_all(error, members) for config, error in failed.items()}
    plans: list[Plan] = []
    for config, (fit, fitted) in found.items():
        plan = _assemble(fingerprint, budget, config, fit=fit, found=fitted, lowres="3d_lowres" in found)
        origin = replace(plan.origin, preset=preset)
        plan = replace(plan, origin=origin, reasons={**plan.reasons, "network.heads": family.reason})
        try:
            plans.append(_within_ram(plan, fingerprint, prediction_bytes or _estimate_prediction))
        except Shortage as error:
            failed[config] = error
    if not plans:
        raise _cheapest({config: error for config, error in failed.items() if isinstance(error, Shortage)})
    left_out = {f"left_out.{config}": _why(error) for config, error in failed.items()}
    return tuple(replace(plan, reasons={**plan.reasons, **left_out}) for plan in plans)


def _check_budget(budget: Budget) -> None:
    for name, value in (("vram_gib", budget.vram_gib), ("ram_gib", budget.ram_gib), ("hours", budget.hours)):
        if value is not None and not 0 < value < math.inf:
            raise BudgetError(f"{name} is {value:g}", where=name, hint="give a number above 0")


def _of_one(budget: Budget, members: int) -> Budget:
    """The budget of one of so many networks that share the time of a fold."""
    return budget if budget.hours is None else replace(budget, hours=budget.hours / members)


def _of_all(error: str | Shortage, members: int) -> str | Shortage:
    """What is short for one of so many networks, as the hours that all of them need."""
    if isinstance(error, str) or error.unit != "hours" or members == 1:
        return error
    what = f"{error.what} for each of {members} networks"
    return Shortage(what, where=error.where or "hours", need=error.need * members, unit="hours")


def _said_of_members(budget: Budget, members: int) -> dict[str, str]:
    if members == 1:
        return {}
    each = "" if budget.hours is None else f", {60 * budget.hours / members:g} min each"
    return {"training.members": f"{members} networks per fold were asked for{each}; their mean predicts"}


def _estimate_step(network: Network, **what: Any) -> Total:
    from medseg.planning.memory import estimate_step  # imports torch

    try:
        return estimate_step(network, **what)
    except MedsegError:
        raise
    except Exception as error:  # options may have any value, and a network may be anyone's
        size = " x ".join(map(str, what["patch"]))
        what_failed = f'"{network.use}" cannot be trained on patches of {size} ({type(error).__name__}: {error})'
        hint = f"check its options {dict(network.options)} and its heads"
        raise PlanError(what_failed, where="network", hint=hint) from error


def _estimate_prediction(plan: Plan, scan: Geometry) -> int:
    from medseg.planning.memory import estimate_prediction

    return estimate_prediction(plan, scan)


def _why(error: str | Shortage) -> str:
    return error if isinstance(error, str) else f"{error.what}; {error.hint}"


def _assemble(
    fingerprint: Fingerprint, budget: Budget, config: Config, *, fit: Fit, found: Fitted, lowres: bool
) -> Plan:
    spacing = _network_spacing(fingerprint, config, fit)
    crop, orient = decisions.cropping(fingerprint), decisions.orientation(fingerprint)
    intensity = decisions.intensity_steps(fingerprint)
    mirror = mirroring(fingerprint)
    mirrored = mirror.value.within(fit.ndim)
    kinds = {decisions.modality(name) for name in fingerprint.channels}
    modality = next((kind for kind in ("us", "cbct") if kind in kinds), None)
    augment = presets.augmentation(
        found.sampling.patch,
        mirrored.step(fingerprint),
        modality=modality,
        pictures=fingerprint.ndim == 2,
        whole=fit.whole is not None,
    )
    steps = found.steps or presets.MAX_STEPS
    dice = decisions.batch_dice(fingerprint.labels, config=config, has_lowres=lowres, whole=fit.whole is not None)
    losses = terms(fit, batch_dice=dice)
    return Plan(
        schema="medseg.plan/1",
        name=f"{fingerprint.dataset}-{config}",
        channels=fingerprint.channels,
        labels=fingerprint.labels,
        preprocess=Preprocess(spacing.value, intensity.value, orient.value, crop.value, unit=fingerprint.unit),
        network=found.network,
        sampling=found.sampling,
        training=training(steps, budget, fit.preset, losses=losses.value, augment=augment.value),
        inference=mirrored.inference(),
        postprocess=(),
        origin=Origin(medseg.__version__, record_sha256(fingerprint), replace(budget, step_s=found.step_s), ""),
        reasons={
            "preprocess.spacing_mm": spacing.reason,
            "preprocess.intensity": intensity.reason,
            "preprocess.orientation": orient.reason,
            "preprocess.crop": crop.reason,
            "training.losses": losses.reason,
            "training.optimizer": presets.optimiser(steps).reason,
            "training.augment": augment.reason,
            "training.epochs": f"{presets.LONG_EPOCHS} x {presets.LONG_STEPS_PER_EPOCH} steps: no time budget",
            "inference.mirror_axes": mirror.reason,
            **_said_of_members(budget, fit.preset.members),
            **found.reasons,
        },
        landmarks=fingerprint.landmarks,
        raters=fingerprint.raters if has_rater_code(found.network.options) else (),
    )


def _network_spacing(fingerprint: Fingerprint, config: Config, fit: Fit) -> Decision[SpacingMm]:
    full = decisions.target_spacing(fingerprint)
    if fit.whole is not None:
        return whole_spacing(full, fit, decisions.native_spacing(fingerprint), fingerprint.unit)
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
