"""What cone-beam CT does to a scan: metal streaks, cupping, rings, drifting grey values, a field of view that ends.

Every function is `(Patch, torch.Generator, *, options) -> Patch`. The rotation axis is z: patterns lie in slices
(y, x). Heights are shares of the patch's own spread (its standard deviation per channel), whatever the grey values
mean.
"""

from dataclasses import replace

import torch
from torch import Tensor

from medseg.augment.intensity import uniforms
from medseg.types.tensors import Patch

_BRIGHT = 0.002  # of all voxels: where metal may be


def metal_streak(
    patch: Patch, rng: torch.Generator, *, p: float = 0.2, height: float = 1.0, rays: int = 12, reach: float = 0.35
) -> Patch:
    """Bright and dark rays from one of the brightest voxels, in its slice and, fading, its neighbours.

    They fade within `reach` times the smaller in-plane size. The metal's own voxels become as bright as the brightest.
    """
    fires, which, share, turn, phase = uniforms(rng, 5)
    if fires >= p:
        return patch
    z, y, x = _bright_voxel(patch.image, which)
    dz, dy, dx = _offsets(patch.image, (z, y, x))
    radius = torch.hypot(dy, dx)
    length = reach * min(patch.image.shape[-2:])
    pattern = torch.cos(rays * (torch.atan2(dy, dx) - 6.2832 * turn)) + 0.5 * torch.cos(
        (2 * rays + 1) * (torch.atan2(dy, dx) - 6.2832 * phase)
    )
    streak = pattern * torch.exp(-radius / length) * torch.exp(-0.5 * (dz / 1.5) ** 2)
    size = (0.3 + 0.7 * share) * height * _spread(patch.image)
    image = patch.image + _shaped(streak, patch.image) * size
    metal = _shaped((radius <= 1.5) & (dz.abs() <= 1), patch.image)
    most = patch.image.flatten(1).amax(1).reshape(size.shape)
    return replace(patch, image=torch.where(metal, torch.maximum(image, most), image))


def cupping(patch: Patch, rng: torch.Generator, *, p: float = 0.2, height: float = 0.5) -> Patch:
    """Beam hardening and scatter: values sink (or rise) towards the middle of the slice, up to `height` at its edge."""
    fires, share, up, across = uniforms(rng, 4)
    if fires >= p:
        return patch
    rows, columns = patch.image.shape[-2:]
    middle = (rows * (0.25 + 0.5 * up), columns * (0.25 + 0.5 * across))
    _, dy, dx = _offsets(patch.image, (0.0, *middle))
    bowl = (dy / rows) ** 2 + (dx / columns) ** 2
    bowl = _shaped(bowl - bowl.mean(), patch.image) / bowl.max()
    return replace(patch, image=patch.image + bowl * (2 * share - 1) * height * _spread(patch.image))


def ring(patch: Patch, rng: torch.Generator, *, p: float = 0.15, height: float = 0.5, rings: int = 3) -> Patch:
    """Detector pixels that read wrong: `rings` thin bright or dark circles around one axis, through all slices."""
    fires, up, across, *shares = uniforms(rng, 3 + 2 * rings)
    if fires >= p:
        return patch
    rows, columns = patch.image.shape[-2:]
    _, dy, dx = _offsets(patch.image, (0.0, rows * (0.25 + 0.5 * up), columns * (0.25 + 0.5 * across)))
    radius = torch.hypot(dy, dx)
    total = torch.zeros_like(radius)
    for where, strength in zip(shares[::2], shares[1::2], strict=True):
        total = total + (2 * strength - 1) * torch.exp(-0.5 * (radius - where * min(rows, columns) / 2) ** 2)
    return replace(patch, image=patch.image + _shaped(total, patch.image) * height * _spread(patch.image))


def offset(patch: Patch, rng: torch.Generator, *, p: float = 0.2, height: float = 0.5) -> Patch:
    """Grey values that are no HU: all of a channel moved up or down by up to `height`."""
    fires, *shares = uniforms(rng, 1 + patch.image.shape[0])
    if fires >= p:
        return patch
    spread = _spread(patch.image)
    moved = (2 * torch.tensor(shares) - 1).to(patch.image).reshape(spread.shape)
    return replace(patch, image=patch.image + moved * height * spread)


def truncation(patch: Patch, rng: torch.Generator, *, p: float = 0.1, smallest: float = 0.6) -> Patch:
    """A field of view that ends: outside of a cylinder along z the image has its lowest value and no labels or points.

    The cylinder's diameter is `smallest` to 1 times the in-plane diagonal, its axis near the middle.
    """
    fires, size, up, across = uniforms(rng, 4)
    if fires >= p:
        return patch
    rows, columns = patch.image.shape[-2:]
    middle = (rows * (0.4 + 0.2 * up) - 0.5, columns * (0.4 + 0.2 * across) - 0.5)
    radius = (smallest + (1 - smallest) * size) * (rows**2 + columns**2) ** 0.5 / 2
    _, dy, dx = _offsets(patch.image, (0.0, *middle))
    seen = _shaped(torch.hypot(dy, dx) <= radius, patch.image)
    floor = patch.image.flatten(1).amin(1).reshape(-1, *[1] * (patch.image.ndim - 1))
    points = patch.points
    if points is not None:
        apart = points[:, -2:] - points.new_tensor(middle)
        points = points.masked_fill((apart.norm(dim=1) > radius)[:, None], torch.nan)
    image, labels = torch.where(seen, patch.image, floor), patch.labels * seen
    return replace(patch, image=image, labels=labels, points=points)


def _bright_voxel(image: Tensor, which: float) -> tuple[float, float, float]:
    """One of the brightest voxels of the first channel, as (z, y, x); 2D has z 0."""
    flat = image[0].flatten()
    brightest = flat.topk(max(1, round(_BRIGHT * len(flat)))).indices
    index = int(brightest[int(which * len(brightest))])
    rows, columns = image.shape[-2:]
    return float(index // (rows * columns)), float(index // columns % rows), float(index % columns)


def _offsets(image: Tensor, middle: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels from `middle` along z, y and x, shaped (z, 1, 1), (1, y, 1) and (1, 1, x)."""
    sizes = (1, *image.shape[1:])[-3:]
    z, y, x = (torch.arange(n, device=image.device) - m for n, m in zip(sizes, middle, strict=True))
    return z[:, None, None], y[None, :, None], x[None, None]


def _shaped(field: Tensor, image: Tensor) -> Tensor:
    """A field (z, y, x), or (1, y, x), to go with (c, *s)."""
    return field.squeeze(0) if image.ndim == 3 else field


def _spread(image: Tensor) -> Tensor:
    return image.flatten(1).std(1).reshape(-1, *[1] * (image.ndim - 1))
