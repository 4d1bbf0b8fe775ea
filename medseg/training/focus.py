"""Which case and class a training patch shows; what the epoch before has taught may change it.

What a sampler knows is numbers by name that are saved with the position. They change between two epochs only, so that
a patch stays a function of (seed, step, index) and of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseg.errors import PlanError
from medseg.io.cache import CachedCase
from medseg.losses.build import Loss, LossValue
from medseg.plugins import resolve
from medseg.training.sampling import draw_of, draw_voxel, has_class
from medseg.training.step import overlaps
from medseg.types.geometry import Size3
from medseg.types.labels import Labels
from medseg.types.plan import Step
from medseg.types.tensors import Batch, NetworkOutput

Known = Mapping[str, Sequence[float]]
Cases = Sequence[CachedCase]
NOTHING: Known = MappingProxyType({})
_TRIES = 1000


class Choice(NamedTuple):
    """A case, a voxel of it where the sample must show foreground, and how much the sample's loss counts."""

    case: CachedCase
    voxel: Size3 | None
    weight: float = 1.0


@dataclass(frozen=True)
class Sampler:
    """How a sample is chosen among the cases, and what is learnt for the next epoch.

    `choose(rng, forced, known)`: what a sample shows, `forced` to show foreground or not.
    `look(logits, target)`: numbers (b, ...) about each sample, added up per case over an epoch; None looks at nothing.
    `learn(known, seen, row)`: what is known in the next epoch, from the sums by case and the epoch's row of metrics;
    None learns nothing.
    """

    choose: Callable[[np.random.Generator, bool, Known], Choice]
    look: Callable[[Tensor, Tensor], Tensor] | None = None
    learn: Callable[[Known, Known, Mapping[str, float]], Known] | None = None


def uniform_classes(cases: Cases, labels: Labels) -> Sampler:
    """A case drawn uniformly; a forced sample shows a class drawn uniformly among those it has (Isensee 2021)."""

    def choose(rng: np.random.Generator, forced: bool, known: Known) -> Choice:
        case = cases[int(rng.integers(len(cases)))]
        return Choice(case, draw_voxel(rng, case.foreground, labels) if forced else None)

    return Sampler(choose)


def dice_driven(cases: Cases, labels: Labels) -> Sampler:
    """Forced samples show class c with the share (1 - Dice_c) / sum_k (1 - Dice_k) (Pouyanfar 2018).

    Dice is that of the last epoch: of the validation patches, or of the training patches where nothing is validated.
    The class is drawn first, among those that any case has, then a case that has it. In the first epoch, and where all
    are perfect, classes are drawn uniformly; one without a Dice counts with the mean of the others.
    """
    having = [[case for case in cases if has_class(case.foreground, item)] for item in labels.items]
    there = np.array([float(bool(some)) for some in having])

    def choose(rng: np.random.Generator, forced: bool, known: Known) -> Choice:
        if not forced or not there.any():
            return Choice(cases[int(rng.integers(len(cases)))], None)
        shares = there * known.get("shares", there)
        bounds = np.cumsum(shares if shares.any() else there)
        chosen = int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))
        case = having[chosen][int(rng.integers(len(having[chosen])))]
        return Choice(case, draw_of(rng, case.foreground, labels.items[chosen]))

    def look(logits: Tensor, target: Tensor) -> Tensor:
        return torch.stack([overlaps(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))])

    def learn(known: Known, seen: Known, row: Mapping[str, float]) -> Known:
        measured = [row.get(f"dice {name}", math.nan) for name in labels.names()]
        if "dice" not in row:
            counts = np.reshape(list(seen.values()), (-1, 3, len(labels.items))).sum(0)
            measured = [2 * both / (p + y) if p + y else math.nan for both, p, y in counts.T.tolist()]
        return {"shares": class_shares(measured)}

    return Sampler(choose, look, learn)


def dynamic(cases: Cases, labels: Labels, *, floor: float = 0.05, reweight: bool = False) -> Sampler:
    """A drawn sample is kept with a chance that falls with what the network knows of it (after Lin 2013).

    A sample is a case with a class: the one a forced sample shows, else the background. Its margin is the mean over
    its voxels, in the patches of the last epoch that had any, of p_true - max p_other. It is kept for sure where the
    margin is negative or not known, else with exp(-margin * n_c / min n), at least `floor`, where n_c is the number of
    cases that have class c. What is not kept is drawn again. `reweight` makes up for it in the loss: a sample counts
    with the mean chance of all that could have been drawn by its own, so that the expected loss is that of uniform
    sampling; losses are then taken sample by sample, and a critic's is not weighted.
    """
    if not 0 < floor <= 1:
        hint = "above 0, so that nothing is lost for ever, up to 1"
        raise PlanError(f"floor {floor}", where="sampling.focus", hint=hint)
    drawn = {case.case_id: _rows(case, labels) or [0] for case in cases}
    options = {True: drawn, False: {name: [0] for name in drawn}}
    sizes = [len(cases), *(sum(has_class(case.foreground, item) for case in cases) for item in labels.items)]

    def choose(rng: np.random.Generator, forced: bool, known: Known) -> Choice:
        for _ in range(_TRIES):  # all fail once in 10^22 samples with a floor of 0.05; then the last one is taken
            case = cases[int(rng.integers(len(cases)))]
            rows = options[forced][case.case_id]
            shown = rows[int(rng.integers(len(rows)))]
            chances = known.get(case.case_id)
            chance = 1.0 if chances is None else chances[shown]
            if chances is None or rng.random() < chance:
                break
        weight = mean_chance(known, options[forced]) / chance if reweight else 1.0
        return Choice(case, draw_of(rng, case.foreground, labels.items[shown - 1]) if shown else None, weight)

    def learn(known: Known, seen: Known, row: Mapping[str, float]) -> Known:
        chances = {name: list(values) for name, values in known.items()}
        for name, numbers in seen.items():
            own = chances.setdefault(name, [1.0] * len(sizes))
            for c, (total, count) in enumerate(np.reshape(numbers, (2, len(sizes))).T.tolist()):
                own[c] = keep_chance(total / count, sizes[c], sizes, floor) if count else own[c]
        return chances

    return Sampler(choose, margins, learn)


FOCUS: Mapping[str, Callable[..., Sampler]] = MappingProxyType(
    {"dice_driven": dice_driven, "dynamic": dynamic, "uniform_classes": uniform_classes}
)


def build_sampler(step: Step, cases: Cases, labels: Labels, *, validated: bool = False) -> Sampler:
    """The sampler of a plan; `validated`: whether epochs end with a Dice per class.

    Raises PlanError for unknown names and options.
    """
    built: Sampler = resolve(step.use, FOCUS, step.options, where="sampling.focus")(cases, labels)
    return replace(built, look=None) if step.use == "dice_driven" and validated else built


def class_shares(dice: Sequence[float]) -> list[float]:
    """(1 - Dice_c) / sum_k (1 - Dice_k), of which NaN counts as the mean of the others; all perfect: all the same.

    >>> class_shares([0.9, 0.6, 1.0])
    [0.2, 0.8, 0.0]
    """
    known = [value for value in dice if not math.isnan(value)]
    mean = sum(known) / len(known) if known else 0.0
    lacking = [max(0.0, round(1 - (mean if math.isnan(value) else value), 12)) for value in dice]
    total = sum(lacking)
    return [lack / total if total else 1 / len(lacking) for lack in lacking]


def keep_chance(margin: float, size: float, sizes: Sequence[float], floor: float) -> float:
    """1 for a negative margin, else exp(-margin * size / smallest of `sizes` above 0), at least `floor`.

    >>> [round(keep_chance(margin, 8, (8, 2), 0.05), 4) for margin in (-0.1, 0.5, 0.9)]
    [1.0, 0.1353, 0.05]
    """
    smallest = min((n for n in sizes if n > 0), default=1)
    return 1.0 if margin < 0 else max(floor, math.exp(-margin * size / smallest))


def mean_chance(known: Known, options: Mapping[str, Sequence[int]]) -> float:
    """The chance to be kept of what is drawn: a case, then one of its `options`, which number its known chances.

    >>> mean_chance({"a": [0.5, 0.1, 0.3]}, {"a": [1, 2], "b": [0]})
    0.6
    """
    means = []
    for name, rows in options.items():
        chances = known.get(name)
        means.append(1.0 if chances is None else sum(chances[n] for n in rows) / len(rows))
    return sum(means) / len(means)


def _rows(case: CachedCase, labels: Labels) -> list[int]:
    """Numbers of the classes that a case has, from 1."""
    return [n for n, item in enumerate(labels.items, start=1) if has_class(case.foreground, item)]


def margins(logits: Float[Tensor, "b k *s"], target: Tensor) -> Float[Tensor, "b 2 c"]:
    """Per sample and class, background first: the sum of p_true - max p_other over its voxels, and their number.

    Of regions a voxel's margin is 2 p - 1 in each region it is in, and 1 - 2 max p where it is in none.
    """
    if logits.shape[1] == target.shape[1]:
        p = logits.float().sigmoid()
        outside = (target == 0).all(1, keepdim=True)
        values = torch.cat([1 - 2 * p.amax(1, keepdim=True), 2 * p - 1], dim=1)
        where = torch.cat([outside, target > 0], dim=1)
        return torch.stack([(values * where).flatten(2).sum(2), where.flatten(2).sum(2).float()], dim=1)
    p = logits.float().softmax(1).flatten(2)
    classes = target.flatten(1)
    index = classes[:, None].clamp_min(0).long()
    values = (p.gather(1, index) - p.scatter(1, index, -1.0).amax(1, keepdim=True))[:, 0]
    own = [classes == number for number in range(p.shape[1])]
    pairs = [torch.stack([(values * mine).sum(1), mine.sum(1).float()], dim=1) for mine in own]
    return torch.stack(pairs, dim=2)


def listening(loss: Loss, sampler: Sampler, heard: list[list[float]]) -> Loss:
    """The loss, which also puts what `sampler` wants to know of each sample at the end of `heard`."""
    look = sampler.look
    if look is None:
        return loss

    def heard_loss(output: NetworkOutput, batch: Batch) -> LossValue:
        with torch.no_grad():  # sample by sample, since the planner does not count what a look takes
            pairs = zip(output.logits[0].detach().unbind(), batch.target.unbind(), strict=True)
            numbers = torch.cat([look(logits[None], target[None]) for logits, target in pairs])
            heard.extend(numbers.flatten(1).double().tolist())
        return loss(output, batch)

    return heard_loss


def learnt(sampler: Sampler, known: Known, seen: Known, row: Mapping[str, float]) -> Known:
    """What the sampler goes by in the next epoch."""
    return known if sampler.learn is None else sampler.learn(known, seen, row)


def gathered(seen: Known, names: Sequence[str], numbers: Sequence[Sequence[float]]) -> Known:
    """`seen` with the numbers of each sample added to those of its case."""
    sums = dict(seen)
    for name, values in zip(names, numbers, strict=True):
        before = sums.get(name, [0.0] * len(values))
        sums[name] = [a + b for a, b in zip(before, values, strict=True)]
    return sums
