"""Build the augmentation of a plan."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from medseg.augment.intensity import blur, brightness, contrast, gamma, low_resolution, noise, speckle
from medseg.augment.spatial import affine, centre_crop, mirror
from medseg.plugins import resolve
from medseg.types.geometry import Size3
from medseg.types.plan import Step
from medseg.types.tensors import Patch

Augment = Callable[..., Patch]

AUGMENT: Mapping[str, Augment] = MappingProxyType(
    {
        "affine": affine,
        "blur": blur,
        "brightness": brightness,
        "contrast": contrast,
        "gamma": gamma,
        "low_resolution": low_resolution,
        "mirror": mirror,
        "noise": noise,
        "speckle": speckle,
    }
)


def build_augment(steps: Sequence[Step], *, patch: Size3 | None = None) -> Callable[[Patch, torch.Generator], Patch]:
    """All steps in order as one function; the same generator state gives the same patch.

    `patch` (z, y, x) is the size to return where more was loaded (see `margin`); steps that have an option `size` are
    given it, and whatever is left over is cropped. Raises PlanError for an unknown step or option.
    """
    chain = [_bind(step, f"training.augment[{number}]", patch) for number, step in enumerate(steps)]

    def augment(sample: Patch, rng: torch.Generator) -> Patch:
        for function in chain:
            sample = function(sample, rng)
        return sample if patch is None else centre_crop(sample, patch[4 - sample.image.ndim :])

    return augment


def margin(steps: Sequence[Step], patch: Size3) -> Size3:
    """The size (z, y, x) to load so that rotation or zoom rarely reaches beyond it.

    Covers every rotation about one axis and every zoom; extreme combinations see some padding, because loading for
    those would more than double the voxels.

    >>> margin([Step("affine")], (40, 40, 40)), margin([Step("mirror")], (1, 64, 64))
    ((65, 65, 65), (1, 64, 64))
    """
    z, y, x = patch
    for step in steps:
        if step.use == "affine":
            bound = inspect.signature(affine).bind_partial(**step.options)
            bound.apply_defaults()
            z, y, x = _enlarged((z, y, x), **{name: bound.arguments[name] for name in _REACH})
    return z, y, x


_REACH = ("degrees", "scale_high", "in_plane", "p")


def _enlarged(patch: Size3, *, degrees: float, scale_high: float, in_plane: bool, p: float) -> Size3:
    if p <= 0:
        return patch
    angle = math.radians(min(abs(degrees), 90.0))
    zoom = math.sqrt(max(scale_high, 1.0)) if angle else max(scale_high, 1.0)
    flat = in_plane or patch[0] == 1
    grown = []
    for axis, n in enumerate(patch):
        others = [m for k, m in enumerate(patch) if k != axis and not (flat and k == 0)]
        reach = max(_extent(n, m, angle) for m in others)
        grown.append(n if flat and axis == 0 else math.ceil(round(reach * zoom, 6)))
    return grown[0], grown[1], grown[2]


def _extent(n: int, m: int, angle: float) -> float:
    """Widest bounding box of an n x m rectangle turned by at most `angle`."""
    best = min(angle, math.atan2(m, n))
    return n * math.cos(best) + m * math.sin(best)


def _bind(step: Step, where: str, patch: Size3 | None) -> Augment:
    options = dict(step.options)
    function = resolve(step.use, AUGMENT, options, where=where)
    takes = inspect.signature(function).parameters
    if patch is not None and "size" in takes and "size" not in options:
        return resolve(step.use, AUGMENT, {**options, "size": patch}, where=where)
    return function
