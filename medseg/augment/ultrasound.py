"""What ultrasound machines and tissue do to a picture; only grey values change.

Every function is `(Patch, torch.Generator, *, options) -> Patch`. Depth runs down the rows of the patch, away from the
probe: `axis` (z, y, x = 0, 1, 2) names another one, except for `shadow`. Brightness is the height above the darkest
voxel of the patch, so that what shows nothing stays black.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from medseg.augment.intensity import uniforms
from medseg.errors import PlanError
from medseg.types.tensors import Patch


def time_gain(
    patch: Patch, rng: torch.Generator, *, p: float = 0.2, decibel: float = 3.0, knots: int = 4, axis: int = 1
) -> Patch:
    """Another setting of the time-gain sliders: a gain per depth, linear between `knots` values within +-`decibel`."""
    fires, *shares = uniforms(rng, 1 + knots)
    if fires >= p:
        return patch
    n = patch.image.shape[_dim(patch, axis)]
    places = torch.linspace(0, knots - 1, n) if n > 1 else torch.zeros(1)
    values = torch.tensor(shares) * 2 - 1
    left = places.long().clamp_max(max(knots - 2, 0))
    right = (left + 1).clamp_max(knots - 1)
    gain = torch.lerp(values[left], values[right], places - left) * decibel
    return _brighter(patch, _along(patch, 10 ** (gain / 20), axis))


def attenuation(patch: Patch, rng: torch.Generator, *, p: float = 0.2, decibel: float = 6.0, axis: int = 1) -> Patch:
    """Tissue that absorbs more: brightness falls exponentially with depth, by up to `decibel` at the far end."""
    fires, share = uniforms(rng, 2)
    if fires >= p:
        return patch
    n = patch.image.shape[_dim(patch, axis)]
    depth = torch.linspace(0, 1, n) if n > 1 else torch.zeros(1)
    return _brighter(patch, _along(patch, 10 ** (-depth * share * decibel / 20), axis))


def shadow(
    patch: Patch,
    rng: torch.Generator,
    *,
    p: float = 0.15,
    strength: float = 0.8,
    degrees: float = 12.0,
    apex: float = 0.3,
) -> Patch:
    """An acoustic shadow: a soft-edged sector, up to `degrees` to each side, darkened by up to `strength`.

    It starts at a random depth in the upper two thirds and fans out from the probe, which sits `apex` times the height
    above the middle of the first row. In 3D it runs through all slices.
    """
    fires, dark, width, turn, start = uniforms(rng, 5)
    if fires >= p:
        return patch
    rows, columns = patch.image.shape[-2:]
    y = torch.arange(rows)[:, None] + 0.5 + apex * rows
    x = torch.arange(columns)[None] + 0.5 - columns / 2
    widest = math.atan2(columns / 2, (apex + 1) * rows)
    centre, half = (2 * turn - 1) * widest, math.radians(degrees) * (0.3 + 0.7 * width)
    across = (torch.atan2(x, y) - centre).abs() / half
    below = torch.hypot(x, y) - (apex + start * 2 / 3) * rows
    inside = (1.5 - across).mul(2).clamp(0, 1) * (below / (0.05 * rows) + 0.5).clamp(0, 1)
    return _brighter(patch, (1 - dark * strength * inside).to(patch.image.device))


def _brighter(patch: Patch, factor: Tensor) -> Patch:
    """Height above the darkest voxel of each channel, times `factor`."""
    floor = patch.image.flatten(1).amin(1).reshape(-1, *[1] * (patch.image.ndim - 1))
    return replace(patch, image=floor + (patch.image - floor) * factor)


def _dim(patch: Patch, axis: int) -> int:
    ndim = patch.image.ndim - 1
    if axis not in range(3 - ndim, 3):
        raise PlanError(f"depth along axis {axis} of a {ndim}D patch", where="axis", hint="z, y, x = 0, 1, 2")
    return axis - 3


def _along(patch: Patch, values: Tensor, axis: int) -> Tensor:
    """Values per depth, shaped to be multiplied with (c, *s)."""
    shape = [1] * patch.image.ndim
    shape[_dim(patch, axis)] = len(values)
    return values.to(patch.image).reshape(shape)
