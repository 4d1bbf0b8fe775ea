"""Mirroring between left and right in a plan that does not exchange all that says so; see `switches.py`."""

from collections.abc import Iterator, Mapping, Sequence

from medseg.types.plan import Plan, Step
from medseg.types.sides import index_swaps, paired_names, side_axis, value_swaps
from medseg.workflow.loss_switches import Fight


def mirrored_sides(plan: Plan) -> Iterator[Fight]:
    """Mirroring between left and right without exchanging every name that says so, of labels and of landmarks."""
    labels, points = paired_names(plan.labels.names()), paired_names(plan.landmarks)
    pairs, alone = sorted({*labels.pairs, *points.pairs}), (*labels.unpaired, *points.unpaired)
    axis = _axis(plan)
    if axis is None or not (pairs or alone):
        return
    values = value_swaps(plan.labels, labels.pairs)
    possible = not alone and values is not None
    wanted = {"swap_values": values or (), "swap_points": index_swaps(plan.landmarks, points.pairs)}
    what = f"mirroring {'zyx'[axis]} makes {pairs[0][0]} of {pairs[0][1]}, and they are not exchanged" if pairs else ""
    if alone:
        what = f"mirroring {'zyx'[axis]} makes another side of {alone[0]}, which has no partner"
    elif values is None:
        what = f"mirroring {'zyx'[axis]} would exchange classes that merge different numbers of values"
    for number, step in enumerate(plan.training.augment):
        axes = step.options.get("axes", [0, 1, 2])
        if step.use == "mirror" and isinstance(axes, list) and axis in axes:
            if not (possible and _exchanges(step, axis, wanted)):
                hint = f"leave {axis} out of its axes" + (f", or give {_said(axis, wanted)}" if possible else "")
                yield Fight(f"training.augment[{number}].options", what, hint)
    inference = plan.inference
    whole = _includes(inference.swap_labels, labels.pairs) and _includes(inference.swap_points, points.pairs)
    if axis in inference.mirror_axes and not (possible and whole and inference.swap_axis == axis):
        hint = f"leave {axis} out of mirror_axes"
        hint += ", or give swap_axis with all pairs in swap_labels and swap_points" if possible else ""
        yield Fight("inference.mirror_axes", what, hint)


def _axis(plan: Plan) -> int | None:
    """The axis between left and right; of pictures, whose orientation no file tells, what the plan itself says."""
    axis = side_axis(plan.preprocess.orientation)
    if axis is not None:
        return axis
    stated = [step.options.get("swap_axis") for step in plan.training.augment if step.use == "mirror"]
    axes = {axis for axis in (*stated, plan.inference.swap_axis) if isinstance(axis, int)}
    return axes.pop() if len(axes) == 1 else None


def sides_that_nobody_knows(plan: Plan) -> Iterator[Fight]:
    """Mirroring where names say sides and no axis is known to join them; not every such pair mirrors the other."""
    named = paired_names((*plan.labels.names(), *plan.landmarks))
    names = [*(name for pair in named.pairs for name in pair), *named.unpaired]
    if not names or _axis(plan) is not None:
        return
    what = f"{', '.join(names[:2])}: names say sides, and no axis is known to join left and right"
    hint = "do not mirror, or give swap_axis with all that it exchanges"
    for number, step in enumerate(plan.training.augment):
        if step.use == "mirror" and step.options.get("axes", [0]):
            yield Fight(f"training.augment[{number}].options", what, hint)
    if plan.inference.mirror_axes:
        yield Fight("inference.mirror_axes", what, hint)


def _exchanges(step: Step, axis: int, wanted: Mapping[str, Sequence[int]]) -> bool:
    """Whether a mirror step exchanges at least what is wanted."""
    return step.options.get("swap_axis") == axis and all(
        _includes(_two_by_two(step.options.get(name)), _two_by_two(flat)) for name, flat in wanted.items()
    )


def _said(axis: int, wanted: Mapping[str, Sequence[int]]) -> str:
    return f"swap_axis {axis}, " + ", ".join(f"{name} {list(flat)}" for name, flat in wanted.items() if flat)


def _two_by_two(flat: object) -> list[tuple[object, ...]]:
    numbers = list(flat) if isinstance(flat, (list, tuple)) else []
    return [tuple(numbers[i : i + 2]) for i in range(0, len(numbers), 2)]


def _includes(pairs: Sequence[tuple[object, ...]], wanted: Sequence[tuple[object, ...]]) -> bool:
    return {frozenset(pair) for pair in wanted} <= {frozenset(pair) for pair in pairs}
