"""Refuse a plan that cannot run, before anything is read or trained."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import PlanError
from medseg.io.records import read_record
from medseg.plugins import code_ref, resolve
from medseg.types.geometry import AXES
from medseg.types.plan import Adversary, LossTerm, Network, Plan, Step
from medseg.workflow.switches import refuse_fights

Table = Mapping[str, Callable[..., Any]]


def load_plan(path: str | Path) -> Plan:
    """A plan file, read strictly and checked.

    Raises PlanError that names file and field for unknown fields, wrong types and steps that do not resolve.
    """
    plan = read_record(Path(path), Plan)
    try:
        check_plan(plan)
    except PlanError as error:
        raise PlanError(error.what, where=f"{path}: {error.where}", hint=error.hint) from error
    return plan


def check_plan(plan: Plan) -> tuple[str, ...]:
    """Every step resolves, its options fit and no two fight; the modules of foreign code ("module:function") it names.

    Raises PlanError naming the field.
    """
    refs = []
    for where, step, table in _steps(plan):
        resolve(step.use, table, step.options, where=where)
        refs.append(code_ref(step.use))
    _check_names(plan)
    _check_numbers(plan)
    _check_weights(plan)
    _check_directions(plan)
    refuse_fights(plan)
    _check_landmarks(plan)
    return tuple(dict.fromkeys(ref for ref in refs if ref is not None))


def _steps(plan: Plan) -> Iterator[tuple[str, Step | Network | LossTerm | Adversary, Table]]:
    from medseg.augment.chain import AUGMENT
    from medseg.augment.mixup import MIXING
    from medseg.losses.build import LOSSES, WHOLE_LOSSES
    from medseg.networks.build import BACKBONES, HEADS
    from medseg.networks.critics import CRITICS
    from medseg.postprocess.chain import CLEAN
    from medseg.preprocess.intensity import INTENSITY
    from medseg.training.focus import FOCUS
    from medseg.training.optim import OPTIMIZERS, SCHEDULES

    yield "network", plan.network, BACKBONES
    yield "sampling.focus", plan.sampling.focus, FOCUS
    yield "training.optimizer", plan.training.optimizer, OPTIMIZERS
    yield "training.schedule", plan.training.schedule, SCHEDULES
    if plan.training.adversary is not None:
        yield "training.adversary", plan.training.adversary, CRITICS
    lists: tuple[tuple[str, tuple[Step | LossTerm, ...], Table], ...] = (
        ("preprocess.intensity", plan.preprocess.intensity, INTENSITY),
        ("network.heads", plan.network.heads, HEADS),
        ("training.losses", plan.training.losses, {**LOSSES, **WHOLE_LOSSES}),
        ("training.augment", plan.training.augment, {**AUGMENT, **MIXING}),
        ("postprocess", plan.postprocess, CLEAN),
    )
    for where, steps, table in lists:
        for index, step in enumerate(steps):
            yield f"{where}[{index}]", step, table


def _check_names(plan: Plan) -> None:
    """What resolving cannot see: axes and class names of this plan."""
    first = 3 - plan.network.topology.ndim
    bad = [axis for axis in plan.inference.mirror_axes if not first <= axis <= 2]
    if bad:
        hint = f"z, y, x = 0, 1, 2; this network has {list(range(first, 3))}"
        raise PlanError(f"cannot mirror axes {bad}", where="inference.mirror_axes", hint=hint)
    for index, step in enumerate(plan.postprocess):
        names = step.options.get("names", [])
        unknown = sorted({str(name) for name in names} - set(plan.labels.names())) if isinstance(names, list) else []
        if unknown:
            where = f"postprocess[{index}].options.names"
            known = ", ".join(plan.labels.names())
            raise PlanError(f"no label is called {', '.join(unknown)}", where=where, hint=f"labels are {known}")


def _check_numbers(plan: Plan) -> None:
    """That there are steps to train, and that windows do not overlap altogether."""
    for field in ("epochs", "steps_per_epoch", "members"):
        count = getattr(plan.training, field)
        if count < 1:
            raise PlanError(f"{count} leaves nothing to train", where=f"training.{field}", hint="give 1 or more")
    overlap = plan.inference.overlap
    if not 0 <= overlap < 1:
        raise PlanError(f"{overlap:g} is not in [0, 1)", where="inference.overlap", hint="0.5 is usual")


def _check_weights(plan: Plan) -> None:
    """That every term of what is minimised counts, and counts as something to make small."""
    terms = [(f"training.losses[{index}].weight", term.weight) for index, term in enumerate(plan.training.losses)]
    adversary = plan.training.adversary
    terms += [] if adversary is None else [("training.adversary.weight", adversary.weight)]
    for where, weight in terms:
        if not 0 < weight < math.inf:
            raise PlanError(f"a weight of {weight:g}", where=where, hint="above 0, or leave it out")


def _check_directions(plan: Plan) -> None:
    """That scans can be predicted across the axes that inference names, and slices taken across those of sampling."""
    from medseg.inference.directions import thin_window

    if plan.inference.directions and plan.landmarks:
        hint = "leave directions out: landmarks are found in the whole scan at once"
        raise PlanError("a model with landmarks has no directions", where="inference.directions", hint=hint)
    for name in plan.inference.directions if plan.network.topology.ndim == 3 else ():
        thin_window(plan, AXES.index(name), where="inference.directions")
    if plan.sampling.directions:
        _check_slices(plan)


def _check_slices(plan: Plan) -> None:
    """That slices across the axes that sampling names can be learnt from."""
    what, hint = "", "leave directions out"
    if plan.network.topology.ndim == 3:
        what = "a 3D network takes no slices"
    elif plan.landmarks:
        what = "a landmark lies in one slice only"
    elif plan.inference.swap_labels and set(plan.sampling.directions) != {"z"}:
        what = "slices across y and x do not tell left from right"
    elif set(plan.sampling.directions) != {"z"} and any(_mirrors(step) for step in plan.training.augment):
        what = "mirroring rows or columns of slices across several axes flips more axes than it names"
        hint = "take mirror out of training.augment, or leave directions out"
    if what:
        raise PlanError(what, where="sampling.directions", hint=hint)


def _mirrors(step: Step) -> bool:
    return step.use == "mirror" and step.options.get("axes", [0]) != []


def _check_landmarks(plan: Plan) -> None:
    """That a head finds the landmarks, that its maps are what the loss takes them for, and that swapped names exist."""
    builtin = {step.use for step in plan.network.heads if ":" not in step.use}
    if plan.landmarks and not builtin & {"dsnt", "heatmap"} and len(builtin) == len(plan.network.heads):
        what = f"no head finds the {len(plan.landmarks)} landmarks"
        raise PlanError(what, where="network.heads", hint="add the head dsnt or heatmap with its loss")
    for step in plan.network.heads:
        wanted = "bce" if step.options.get("values") == "logit" else "mse"
        for index, term in enumerate(plan.training.losses):
            if step.use == term.use == "heatmap" and term.options.get("kind", "mse") != wanted:
                what = f"heat maps that hold {step.options.get('values', 'gaussian')} values need the kind {wanted}"
                hint = "values gaussian go with kind mse, values logit with kind bce"
                raise PlanError(what, where=f"training.losses[{index}].options.kind", hint=hint)
    pairs = {"swap_points": plan.landmarks, "swap_labels": plan.labels.names()}
    for field, names in pairs.items():
        unknown = {name for pair in getattr(plan.inference, field) for name in pair} - set(names)
        if unknown:
            what = f"there is no {', '.join(sorted(unknown))}"
            raise PlanError(what, where=f"inference.{field}", hint=f"names are {', '.join(names) or 'none'}")
