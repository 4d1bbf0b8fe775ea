"""Endless, seeded, resumable batches."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from medseg.augment.chain import build_augment, margin
from medseg.augment.mixup import build_mixing
from medseg.errors import MedsegError, PlanError, TrainingError
from medseg.io.cache import CachedCase
from medseg.training.focus import NOTHING, Known, Sampler, build_sampler
from medseg.training.sampling import (
    MIX,
    TRAIN,
    VALIDATE,
    centred_box,
    draw_box,
    draw_point,
    draw_voxel,
    generators,
    grow,
    is_forced,
    read_patch,
)
from medseg.types.geometry import AXES, MOST_ANISOTROPIC, Box, Size3, slice_across
from medseg.types.labels import Labels
from medseg.types.plan import Direction, Plan
from medseg.types.tensors import Batch, Patch

T = TypeVar("T")
Drawn = tuple[Patch, torch.Generator]


def batches(
    plan: Plan,
    cases: Sequence[CachedCase],
    *,
    device: torch.device,
    start: int = 0,
    workers: int = 0,
    augment_on: torch.device | None = None,
    known: Known = NOTHING,
) -> Generator[Batch, None, None]:
    """The batches of steps `start`, `start + 1`, ...; the same ones however often training was interrupted.

    `known` is what the plan's sampler has learnt in the epochs before; a stream serves as long as that stays.
    `workers` threads load ahead (0: load when asked); they augment too, unless `augment_on` names another device.
    Raises TrainingError with the case id if a patch cannot be read.
    """
    sampling = plan.sampling
    augment = build_augment(plan.training.augment, patch=sampling.patch)
    late = augment_on is not None and augment_on.type != "cpu"
    sampler = build_sampler(sampling.focus, cases, plan.labels)

    def load(step: int, index: int) -> Drawn:
        patch, rng = draw_sample(plan, sampler, step, index, known)
        return (patch, rng) if late else (augment(patch, rng), rng)

    jobs = (partial(load, step, index) for step in count(start) for index in range(sampling.batch))
    groups = _grouped(_in_order(jobs, workers, ahead=2 * sampling.batch + workers), sampling.batch)
    mix = build_mixing(plan.training.augment)

    def batch(drawn: Sequence[Drawn]) -> Batch:  # single patches on the device are gone when it returns
        return _stacked([augment(_moved(patch, device), rng) if late else patch for patch, rng in drawn], plan, device)

    for step, drawn in enumerate(groups, start):
        yield mix(batch(drawn), generators(plan.training.seed, MIX, step, 0)[0])


def validation_batches(
    plan: Plan, cases: Sequence[CachedCase], *, steps: int, device: torch.device, workers: int = 0
) -> Iterator[Batch]:
    """`steps` batches that are the same in every epoch, without augmentation, going round all `cases`."""

    def load(step: int, index: int) -> Patch:
        case = cases[(step * plan.sampling.batch + index) % len(cases)]
        place, _ = generators(plan.training.seed, VALIDATE, step, index)
        forced = is_forced(step, index, plan.sampling.batch, plan.sampling.foreground_fraction)
        voxel = draw_voxel(place, case.foreground, plan.labels) if forced else None
        return _read(plan, case, place, (forced, voxel), plan.sampling.patch)

    jobs = (partial(load, step, index) for step in range(steps) for index in range(plan.sampling.batch))
    for patches in _grouped(_in_order(jobs, workers, ahead=2 * plan.sampling.batch + workers), plan.sampling.batch):
        yield _stacked(patches, plan, device)


def draw_sample(plan: Plan, sampler: Sampler, step: int, index: int, known: Known = NOTHING) -> Drawn:
    """Sample `index` of `step` before augmentation, with the margin that augmentation needs, and its generator."""
    place, rng = generators(plan.training.seed, TRAIN, step, index)
    forced = is_forced(step, index, plan.sampling.batch, plan.sampling.foreground_fraction)
    case, voxel, weight = sampler.choose(place, forced, known)
    patch = _read(plan, case, place, (forced, voxel), margin(plan.training.augment, plan.sampling.patch, rng))
    return replace(patch, weight=weight), rng


def drawn_cases(plan: Plan, sampler: Sampler, step: int, known: Known = NOTHING) -> list[str]:
    """The case of every sample of `step`."""
    sampling = plan.sampling
    found = []
    for index in range(sampling.batch):
        place, _ = generators(plan.training.seed, TRAIN, step, index)
        case, _, _ = sampler.choose(place, is_forced(step, index, sampling.batch, sampling.foreground_fraction), known)
        found.append(case.case_id)
    return found


def encode_target(labels: Tensor, meaning: Labels) -> Tensor:
    """Label values (b, 1, *s) as int64 class indices (b, 1, *s), or as 0/1 per region (b, r, *s); ignored = -1.

    >>> from medseg.types.labels import Label
    >>> encode_target(torch.tensor([[[0, 5, 9]]]), Labels((Label("a", (5,)),), ignore=9)).tolist()
    [[[0, 1, -1]]]
    """
    values = sorted(meaning.known() | {0} | ({meaning.ignore} if meaning.ignore is not None else set()))
    rows = len(meaning.items) if meaning.are_regions() else 1
    table = torch.zeros(rows, values[-1] + 1, dtype=torch.int64)
    for number, item in enumerate(meaning.items):
        row, code = (number, 1) if meaning.are_regions() else (0, number + 1)
        table[row, list(item.values)] = code
    if meaning.ignore is not None:
        table[:, meaning.ignore] = -1
    table, flat = table.to(labels.device), labels[:, 0].long()
    return torch.stack([row[flat] for row in table], dim=1)


def _read(
    plan: Plan, case: CachedCase, place: np.random.Generator, shown: tuple[bool, Size3 | None], size: Size3
) -> Patch:
    """A patch; `shown` says whether it must show something, and which voxel of a class if there is one."""
    patch, across, (forced, voxel) = plan.sampling.patch, 0, shown
    try:
        if plan.sampling.directions:
            across = _draw_axis(place, case, plan.sampling.directions)
            patch, size = slice_across(patch, across), slice_across(size, across)
        if plan.landmarks:
            box = _with_points(place, case, patch, voxel or (draw_point(place, case) if forced else None))
        elif voxel is None and case.inside is not None and len(case.inside):
            box = centred_box(place, case.shape, patch, case.inside)
        else:
            box = draw_box(place, case.shape, patch, voxel)
        return read_patch(case, grow(box, size), ndim=plan.network.topology.ndim, across=across)
    except MedsegError as error:
        raise TrainingError(error.what, where=f"{case.case_id}: {error.where}", hint=error.hint) from error
    except Exception as error:
        raise TrainingError(
            f"cannot read a patch ({type(error).__name__}: {error})",
            where=case.case_id,
            hint="delete this case from the cache folder and train again",
        ) from error


def _draw_axis(place: np.random.Generator, case: CachedCase, directions: Sequence[Direction]) -> int:
    """The axis of a slice; raises PlanError for scans whose slices do not look alike along all of them."""
    spacing = case.geometry.spacing_mm
    if max(spacing) > MOST_ANISOTROPIC * min(spacing) * (1 + 1e-6):
        what = f"a spacing of {spacing} is too anisotropic for slices along every axis"
        raise PlanError(what, where="sampling.directions", hint="leave directions out")
    return AXES.index(directions[int(place.integers(len(directions)))])


def _with_points(place: np.random.Generator, case: CachedCase, patch: Size3, voxel: Size3 | None) -> Box:
    """A patch box that lies in the scan, or holds all of a smaller one, so that no landmark is cut off needlessly."""
    if voxel is None:
        return draw_box(place, case.shape, patch, None)
    return centred_box(place, case.shape, patch, np.array([voxel], np.int32))


def _stacked(patches: Sequence[Patch], plan: Plan, device: torch.device) -> Batch:
    image = torch.stack([patch.image for patch in patches])
    values = torch.stack([patch.labels for patch in patches])
    if device.type == "cuda" and image.device.type == "cpu":
        image, values = image.pin_memory(), values.pin_memory()
    image, values = image.to(device, non_blocking=True), values.to(device, non_blocking=True)
    points = _inside(patches, plan).to(device) if plan.landmarks else None
    weights = [patch.weight for patch in patches]
    weight = None if all(w == 1 for w in weights) else torch.tensor(weights, device=device)
    known = [patch.rater for patch in patches if patch.rater is not None]
    raters = torch.tensor(known, device=device) if known else None
    return Batch(image, encode_target(values, plan.labels), points, _spacing(plan), weight=weight, raters=raters)


def _inside(patches: Sequence[Patch], plan: Plan) -> Tensor:
    """The points (b, n, d) of all patches; NaN where one lies outside of its patch."""
    ndim = plan.network.topology.ndim
    unknown = torch.full((len(plan.landmarks), ndim), torch.nan)
    points = torch.stack([unknown if patch.points is None else patch.points for patch in patches])
    size = points.new_tensor(plan.sampling.patch[3 - ndim :])
    out = ((points < -0.5) | (points > size - 0.5)).any(-1, keepdim=True)
    return points.masked_fill(out, torch.nan)


def _spacing(plan: Plan) -> tuple[float, ...] | None:
    """Spacing of the network's voxels along its axes; None where the plan states none along one."""
    known = plan.network.topology.spacing_mm or plan.preprocess.spacing_mm
    axes = [spacing for spacing in known[3 - plan.network.topology.ndim :] if spacing is not None]
    return tuple(axes) if len(axes) == plan.network.topology.ndim else None


def _moved(patch: Patch, device: torch.device) -> Patch:
    return replace(patch, image=patch.image.to(device), labels=patch.labels.to(device))


def _grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while group := list(islice(source, size)):
        yield group


def _in_order(jobs: Iterator[Callable[[], T]], workers: int, *, ahead: int) -> Iterator[T]:
    """Results in the order of `jobs`, with at most `ahead` begun or waiting; errors surface in their turn."""
    if workers < 1:
        yield from (job() for job in jobs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        waiting: deque[Future[T]] = deque(pool.submit(job) for job in islice(jobs, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
