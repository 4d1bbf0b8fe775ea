"""Build the augmentation of a plan."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import MappingProxyType

import torch

from medseg.augment.cbct import cupping, metal_streak, offset, ring, truncation
from medseg.augment.elastic import elastic
from medseg.augment.intensity import blur, brightness, contrast, erase, gamma, low_resolution, noise, speckle
from medseg.augment.mixup import MIXING
from medseg.augment.spatial import affine, centre_crop, draw_matrix, mirror, rotation, shift_of
from medseg.augment.ultrasound import attenuation, shadow, time_gain
from medseg.plugins import resolve
from medseg.types.geometry import Size3
from medseg.types.plan import Step
from medseg.types.tensors import Patch

Augment = Callable[..., Patch]

AUGMENT: Mapping[str, Augment] = MappingProxyType(
    {
        "affine": affine,
        "attenuation": attenuation,
        "blur": blur,
        "brightness": brightness,
        "contrast": contrast,
        "cupping": cupping,
        "elastic": elastic,
        "erase": erase,
        "gamma": gamma,
        "low_resolution": low_resolution,
        "metal_streak": metal_streak,
        "mirror": mirror,
        "noise": noise,
        "offset": offset,
        "ring": ring,
        "shadow": shadow,
        "speckle": speckle,
        "time_gain": time_gain,
        "truncation": truncation,
    }
)


def build_augment(steps: Sequence[Step], *, patch: Size3 | None = None) -> Callable[[Patch, torch.Generator], Patch]:
    """All steps in order as one function; the same generator state gives the same patch.

    `patch` (z, y, x) is the size to return where more was loaded (see `margin`); steps that have an option `size` are
    given it, and whatever is left over is cropped. Steps that mix samples are left to `build_mixing`. Raises PlanError
    for an unknown step or option.
    """
    chain = [
        _bind(step, f"training.augment[{number}]", patch) for number, step in enumerate(steps) if step.use not in MIXING
    ]

    def augment(sample: Patch, rng: torch.Generator) -> Patch:
        for function in chain:
            sample = function(sample, rng)
        return sample if patch is None else centre_crop(sample, patch[4 - sample.image.ndim :])

    return augment


def margin(steps: Sequence[Step], patch: Size3, rng: torch.Generator | None = None) -> Size3:
    """The size (z, y, x) to load so that rotation and zoom do not reach beyond it.

    With the generator that will augment the patch (its state is left alone) it is what this patch needs, if "affine"
    comes first. Without, it holds every rotation and every zoom; only both near their extremes reach farther.

    >>> margin([Step("affine")], (40, 40, 40)), margin([Step("mirror")], (1, 64, 64))
    ((68, 69, 68), (1, 64, 64))
    """
    largest = patch
    for number, step in enumerate(steps):
        if step.use == "affine":
            bound = inspect.signature(affine).bind_partial(**step.options)
            bound.apply_defaults()
            options = {name: bound.arguments[name] for name in _DRAWN}
            flat = bound.arguments["in_plane"] or patch[0] == 1
            ahead = rng if number == 0 else None
            moves = [(m, shift_of(m, bound.arguments["pivot"], patch)) for m in _matrices(flat, ahead, **options)]
            largest = _reach(largest, moves, flat)
    return largest


_DRAWN = ("p", "degrees", "scale_low", "scale_high")


def _matrices(flat: bool, rng: torch.Generator | None, **options: float) -> list[torch.Tensor]:
    """The matrix that will be drawn from `rng`, or without one all that bound it."""
    if rng is not None:
        ahead = torch.Generator()
        ahead.set_state(rng.get_state())
        drawn = draw_matrix(ahead, flat=flat, **options)
        return [] if drawn is None else [drawn]
    if options["p"] <= 0:
        return []
    most = math.radians(min(abs(options["degrees"]), 90.0))
    angles = [most * share for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    turns = product(angles, repeat=1 if flat else 3)
    return [torch.eye(2 if flat else 3) * max(options["scale_high"], 1.0), *(rotation(turn) for turn in turns)]


def _reach(patch: Size3, moves: Sequence[tuple[torch.Tensor, torch.Tensor]], flat: bool) -> Size3:
    """The box about the centre that holds `patch` moved by each matrix and shift, at least the patch."""
    size = torch.tensor(patch[1:] if flat else patch, dtype=torch.float32)
    reach = torch.stack([size, *(matrix.abs() @ size + 2 * shift.abs() for matrix, shift in moves)]).amax(0)
    grown = reach.mul(1e3).round().div(1e3).ceil().int().tolist()
    z, y, x = [patch[0], *grown] if flat else grown
    return z, y, x


def _bind(step: Step, where: str, patch: Size3 | None) -> Augment:
    options = dict(step.options)
    function = resolve(step.use, AUGMENT, options, where=where)
    takes = inspect.signature(function).parameters
    if patch is not None and "size" in takes and "size" not in options:
        return resolve(step.use, AUGMENT, {**options, "size": patch}, where=where)
    return function
