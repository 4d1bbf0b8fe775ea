"""Choose postprocessing from validation predictions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.ndimage import find_objects

from medseg.errors import GeometryError
from medseg.planning.decisions import Decision
from medseg.postprocess.chain import clean
from medseg.postprocess.components import voxel_values
from medseg.types.geometry import Box
from medseg.types.image import LabelMap
from medseg.types.labels import Labels
from medseg.types.plan import Step
from medseg.types.progress import Progress, Report, silent

MIN_GAIN = 1e-4  # in mean Dice; less is chance
FILL = Step("fill_holes")
CANDIDATES = (
    Step("drop_small", {"min_fraction": 0.3333}),
    *(Step("drop_small", {"min_mm3": size}) for size in (10.0, 30.0, 100.0, 300.0, 1000.0)),
    Step("keep_largest"),
    FILL,
)
Pair = tuple[LabelMap, LabelMap]


@dataclass(frozen=True)
class _Gain:
    name: str
    step: Step
    before: float
    after: float


def choose_cleaning(
    pairs: Iterable[Pair | Callable[[], Pair]], *, report: Report = silent, total: int = 0
) -> Decision[tuple[Step, ...]]:
    """Per class, the step that raises its mean Dice over cases and lowers no class; none where nothing helps.

    `pairs` are (prediction, reference), or functions that load one, and are gone through once. A case without the class
    counts 1 if the prediction has none either and 0 if it has, so that removing false positives counts; but the mean
    over the cases that have the class must not fall either, or removing everything would win. Ignored voxels count
    nowhere. A gain below 0.0001 is none; of equal steps the first of `CANDIDATES` wins. Filling comes first: each
    class is then treated as it was measured, but for background that two filled classes enclose, one within the other.
    Regions overlap, so that steps would change each other's gain: only the best one is taken. Raises GeometryError if
    the grids of a pair differ.
    """
    rows: list[np.ndarray] = []
    present: list[np.ndarray] = []
    reference: LabelMap | None = None
    for done, entry in enumerate(pairs, start=1):
        prediction, reference = entry() if callable(entry) else entry
        rows.append(_case(prediction, reference))
        present.append(_presence(reference))
        report(Progress("cleaning", done, max(total, done)))
    if reference is None:
        return Decision((), "no validation predictions: nothing is removed")
    labels, unit = reference.labels, "mm3" if reference.geometry.unit == "mm" else "pixels"
    dice = np.stack(rows)
    means = dice.mean(axis=0)
    held = np.array(present, float)[:, None, None, :]
    gains = _chosen(means, (dice * held).sum(axis=0) / np.maximum(held.sum(axis=0), 1), labels)
    if labels.are_regions():
        gains = sorted(gains, key=lambda gain: gain.before - gain.after)[:1]
    if not gains:
        listed = ", ".join(f"{n} {v:.4f}" for n, v in zip(labels.names(), np.diagonal(means[0]), strict=True))
        return Decision((), f"{len(rows)} validation cases: no step raises mean Dice ({listed})")
    said = ", ".join(
        f"{gain.name} {_says(gain.step, unit)} Dice {gain.before:.4f} -> {gain.after:.4f}" for gain in gains
    )
    return Decision(_merged(gains), f"{len(rows)} validation cases: {said}; no class lower")


def _chosen(means: Float64[np.ndarray, "s k k"], held: Float64[np.ndarray, "s k k"], labels: Labels) -> list[_Gain]:
    """Best step per class from mean Dice [step, cleaned class, scored class], step 0 being none.

    `held` are the means over the cases that have the scored class.
    """
    gains = []
    for index, name in enumerate(labels.names()):
        after = means[1:, index]
        harmless = (after >= means[0, index] - 1e-9).all(axis=1)
        harmless &= (held[1:, index] >= held[0, index] - 1e-9).all(axis=1)
        score = np.where(harmless, after[:, index], -np.inf)
        before = float(means[0, index, index])
        if score.max() >= before + MIN_GAIN:
            best = int(np.argmax(score >= score.max() - MIN_GAIN / 2))
            gains.append(_Gain(name, CANDIDATES[best], before, float(score[best])))
    return gains


def _case(prediction: LabelMap, reference: LabelMap) -> Float64[np.ndarray, "s k k"]:
    """Dice of one case [step, cleaned class, scored class]; step 0 is none."""
    if not prediction.geometry.same_grid(reference.geometry):
        raise GeometryError("prediction and reference have different grids", hint="predict on the reference's grid")
    prediction, reference = _foreground(prediction, reference)
    labels = reference.labels
    names = labels.names()
    count = len(names)
    plain = np.broadcast_to(_dice(prediction, reference), (count, count))
    rows = [plain]
    for step in CANDIDATES:
        if labels.are_regions():
            each = [_dice(clean(prediction, [_only(step, [name])]), reference) for name in names]
            rows.append(np.stack(each))
            continue
        row = plain.copy()
        cleaned = _filled(prediction, reference) if step is FILL else _dice(clean(prediction, [step]), reference)
        np.fill_diagonal(row, cleaned)
        rows.append(row)
    return np.stack(rows)


def _filled(prediction: LabelMap, reference: LabelMap) -> Float64[np.ndarray, " k"]:
    """Dice of each class if it alone is filled, since together inner classes would take holes of outer ones.

    Filling takes background, so that the Dice of all other classes stays.
    """
    both, size = _overlap(prediction, reference)
    there = set(np.unique(prediction.array).tolist())
    written = {item.name: item.written for item in prediction.labels.items}
    for index, item in enumerate(reference.labels.items):
        if written.get(item.name) not in there:
            continue
        filled = clean(prediction, [_only(FILL, [item.name])])
        taken = reference.array[filled.array != prediction.array]
        taken = taken if reference.labels.ignore is None else taken[taken != reference.labels.ignore]
        both[index] += (taken == item.values[0]).sum()
        size[index] += len(taken)
    return _ratio(both, size)


def _presence(reference: LabelMap) -> np.ndarray:
    """Whether each class occurs in the reference."""
    values = np.unique(reference.array)
    return np.array([np.isin(values, item.values).any() for item in reference.labels.items])


def _foreground(prediction: LabelMap, reference: LabelMap) -> Pair:
    """Both maps cut to the box of what either holds and, where the volume has it, a voxel around it.

    So what is flat, or open, or at the edge of the scan is so in the cut maps exactly where it is in the whole ones.
    """
    either = ((prediction.array > 0) | (reference.array > 0)).view(np.uint8)
    found = find_objects(either)
    slices = found[0] if found else (slice(0, 1),) * 3
    z, y, x = (
        (max(part.start - 1, 0), min(part.stop + 1, size)) for part, size in zip(slices, either.shape, strict=True)
    )
    box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
    cut = [replace(m, array=m.array[box.slices()], geometry=m.geometry.crop(box)) for m in (prediction, reference)]
    return cut[0], cut[1]


def _dice(prediction: LabelMap, reference: LabelMap) -> Float64[np.ndarray, " k"]:
    """Dice per class; 1 where both are empty, 0 where only the prediction is not."""
    return _ratio(*_overlap(prediction, reference))


def _ratio(both: Int64[np.ndarray, " k"], size: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    return np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0)


def _overlap(prediction: LabelMap, reference: LabelMap) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Voxels per class that both maps have, and the sum of what each has; ignored voxels count in neither."""
    labels, by_name = reference.labels, {item.name: item for item in prediction.labels.items}
    own = [by_name.get(item.name, item) for item in labels.items]  # which may be written as other values
    made, truth = prediction.array, reference.array
    if labels.ignore is not None:
        made, truth = np.where(truth == labels.ignore, 0, made), np.where(truth == labels.ignore, 0, truth)
    if labels.are_regions():
        pairs = zip(own, labels.items, strict=True)
        masks = [(np.isin(made, voxel_values(ours)), np.isin(truth, item.values)) for ours, item in pairs]
        both = np.array([(p & r).sum() for p, r in masks])
        size = np.array([p.sum() + r.sum() for p, r in masks])
    else:
        count = len(labels.items) + 1
        p = _numbered(made, [item.written for item in own])
        r = _numbered(truth, [item.values[0] for item in labels.items])
        both = np.bincount(p[p == r], minlength=count)[1:]
        size = (np.bincount(p.ravel(), minlength=count) + np.bincount(r.ravel(), minlength=count))[1:]
    return both, size


def _numbered(array: Shaped[np.ndarray, "z y x"], values: Sequence[int]) -> Shaped[np.ndarray, "z y x"]:
    """Class number 1 to n per voxel, 0 elsewhere."""
    table = np.zeros(max(int(array.max(initial=0)), *values) + 1, np.uint16)
    table[list(values)] = np.arange(1, len(values) + 1)
    return np.asarray(table[array])


def _merged(gains: Sequence[_Gain]) -> tuple[Step, ...]:
    """One step per set of options, with all its names; filling first."""
    steps = sorted(
        {CANDIDATES.index(gain.step): gain.step for gain in gains}.values(), key=lambda s: s.use != "fill_holes"
    )
    return tuple(_only(step, [gain.name for gain in gains if gain.step == step]) for step in steps)


def _only(step: Step, names: Sequence[str]) -> Step:
    return Step(step.use, {"names": list(names), **step.options})


def _says(step: Step, unit: str) -> str:
    if "min_fraction" in step.options:
        return "without components below a third of the largest"
    if "min_mm3" in step.options:
        return f"without components below {step.options['min_mm3']:g} {unit}"
    return {"keep_largest": "largest component only", "fill_holes": "holes filled"}[step.use]
