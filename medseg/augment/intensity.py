"""Changes of grey values only; labels stay.

Every function is `(Patch, torch.Generator, *, options) -> Patch`. Parameters come from the CPU generator, so that they
are the same on every device; only noise fields are drawn where the image lies.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medseg.types.tensors import Patch


def noise(patch: Patch, rng: torch.Generator, *, p: float = 0.1, std: float = 0.1) -> Patch:
    """Add Gaussian noise; its standard deviation is uniform in [0, `std`] network units."""
    fires, share = uniforms(rng, 2)
    if fires >= p:
        return patch
    return replace(patch, image=patch.image + normal_field(patch.image, rng) * (share * std))


def speckle(patch: Patch, rng: torch.Generator, *, p: float = 0.3, std: float = 0.2) -> Patch:
    """Multiply the height above the darkest voxel by 1 + Gaussian noise, as ultrasound does."""
    fires, share = uniforms(rng, 2)
    if fires >= p:
        return patch
    floor = patch.image.flatten(1).amin(1).reshape(-1, *[1] * (patch.image.ndim - 1))
    factor = 1 + normal_field(patch.image, rng) * (share * std)
    return replace(patch, image=floor + (patch.image - floor) * factor)


def erase(
    patch: Patch, rng: torch.Generator, *, p: float = 0.2, low: float = 0.1, high: float = 0.3, boxes: int = 1
) -> Patch:
    """Fill boxes with noise of each channel's mean and deviation, so that no single place decides (Zhong 2020).

    Sides are uniform in [`low`, `high`] of the patch's, places uniform within it.
    """
    if uniforms(rng, 1)[0] >= p:
        return patch
    image, axes = patch.image.clone(), tuple(range(1, patch.image.ndim))
    mean, std = patch.image.mean(axes, keepdim=True), patch.image.std(axes, keepdim=True)
    for _ in range(boxes):
        shares = uniforms(rng, 2 * len(axes))
        sides = [max(1, round(n * (low + (high - low) * s))) for n, s in zip(image.shape[1:], shares[::2], strict=True)]
        starts = [int((n - k + 1) * s) for n, k, s in zip(image.shape[1:], sides, shares[1::2], strict=True)]
        box = image[(slice(None), *(slice(start, start + k) for start, k in zip(starts, sides, strict=True)))]
        box.copy_(mean + std * normal_field(box, rng))
    return replace(patch, image=image)


def blur(
    patch: Patch,
    rng: torch.Generator,
    *,
    p: float = 0.2,
    p_channel: float = 0.5,
    low: float = 0.5,
    high: float = 1.0,
    in_plane: bool = False,
) -> Patch:
    """Gaussian blur, sigma in voxels uniform in [`low`, `high`] per axis; edges reflect."""
    if uniforms(rng, 1)[0] >= p:
        return patch
    image = patch.image.clone()
    for channel in range(image.shape[0]):
        fires, *shares = uniforms(rng, image.ndim)
        if fires < p_channel:
            sigmas = [low + (high - low) * share for share in shares]
            image[channel] = _along_axes(
                image[channel], [_gauss(n, s) for n, s in zip(image.shape[1:], sigmas, strict=True)], in_plane
            )
    return replace(patch, image=image)


def low_resolution(
    patch: Patch,
    rng: torch.Generator,
    *,
    p: float = 0.25,
    p_channel: float = 0.5,
    low: float = 0.5,
    high: float = 1.0,
    in_plane: bool = False,
) -> Patch:
    """Keep every n-th voxel (nearest) and interpolate linearly back; the shape is multiplied by [`low`, `high`]."""
    if uniforms(rng, 1)[0] >= p:
        return patch
    image = patch.image.clone()
    for channel in range(image.shape[0]):
        fires, share = uniforms(rng, 2)
        if fires < p_channel:
            factor = low + (high - low) * share
            image[channel] = _along_axes(image[channel], [_down_up(n, factor) for n in image.shape[1:]], in_plane)
    return replace(patch, image=image)


def brightness(patch: Patch, rng: torch.Generator, *, p: float = 0.15, low: float = 0.75, high: float = 1.25) -> Patch:
    """Multiply each channel by a factor that is below or above 1 with equal chance."""
    if uniforms(rng, 1)[0] >= p:
        return patch
    return replace(patch, image=patch.image * _per_channel(patch.image, _factors(rng, patch.image.shape[0], low, high)))


def contrast(patch: Patch, rng: torch.Generator, *, p: float = 0.15, low: float = 0.75, high: float = 1.25) -> Patch:
    """Stretch each channel around its mean by a factor, clipped to the range it had."""
    if uniforms(rng, 1)[0] >= p:
        return patch
    flat = patch.image.flatten(1)
    factor = _per_channel(flat, _factors(rng, flat.shape[0], low, high))
    mean, least, most = flat.mean(1, keepdim=True), flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    changed = ((flat - mean).mul_(factor).add_(mean)).clamp_(least, most)
    return replace(patch, image=changed.reshape(patch.image.shape))


def gamma(
    patch: Patch,
    rng: torch.Generator,
    *,
    p: float = 0.3,
    low: float = 0.7,
    high: float = 1.5,
    invert: bool = False,
) -> Patch:
    """Power law on each channel's range, mean and standard deviation kept; `invert` works on the negative image."""
    if uniforms(rng, 1)[0] >= p:
        return patch
    flat = patch.image.flatten(1)
    exponent = _per_channel(flat, _factors(rng, flat.shape[0], low, high))
    least, most = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = (most - least).clamp_min(1e-7)
    unit = (most - flat if invert else flat - least).div_(span).clamp_(0, 1).log_().mul_(exponent).exp_()
    changed = unit.neg_() if invert else unit
    spread, mean = torch.std_mean(flat, 1, keepdim=True)
    now_spread, now_mean = torch.std_mean(changed, 1, keepdim=True)
    changed.sub_(now_mean).mul_(spread / now_spread.clamp_min(1e-7)).add_(mean)
    return replace(patch, image=changed.reshape(patch.image.shape))


def uniforms(rng: torch.Generator, count: int) -> list[float]:
    """Numbers in [0, 1) from the CPU generator."""
    return [float(value) for value in torch.rand(count, generator=rng).tolist()]


def normal_field(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal values on the device of `like`, determined by the CPU generator's state."""
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=rng, dtype=like.dtype)
    seed = int(torch.randint(2**62, (1,), generator=rng))
    local = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=local, dtype=like.dtype, device=like.device)


def _factors(rng: torch.Generator, count: int, low: float, high: float) -> list[float]:
    """Below 1 or above 1 by a coin where the range allows both, then uniform."""
    values = []
    for _ in range(count):
        coin, share = uniforms(rng, 2)
        below = low < 1 and (coin < 0.5 or high <= 1)
        start, stop = (low, min(high, 1.0)) if below else (max(low, 1.0), high)
        values.append(start + (stop - start) * share)
    return values


def _per_channel(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def _along_axes(channel: Tensor, matrices: Sequence[Tensor], in_plane: bool) -> Tensor:
    """Apply one small (n, n) matrix along each axis of (z, y, x) or (y, x); cheaper than convolutions."""
    shape = channel.shape
    *first, rows, columns = [matrix.to(channel) for matrix in matrices]
    channel = rows @ channel @ columns.T
    if first and not in_plane:
        channel = (first[0] @ channel.reshape(shape[0], -1)).reshape(shape)
    return channel


def _gauss(n: int, sigma: float) -> Tensor:
    if n == 1:
        return torch.ones(1, 1)
    taps = torch.arange(-3, 4)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    source = torch.arange(n)[:, None] + taps
    period = 2 * n - 2
    source = source.remainder(period)
    source = torch.where(source >= n, period - source, source)
    return torch.zeros(n, n).scatter_add_(1, source, (weights / weights.sum()).expand(n, -1))


def _down_up(n: int, factor: float) -> Tensor:
    coarse = max(1, round(n * factor))
    kept = ((torch.arange(coarse) + 0.5) * (n / coarse)).long().clamp_max(n - 1)
    place = ((torch.arange(n) + 0.5) * (coarse / n) - 0.5).clamp(0, coarse - 1)
    left = place.long()
    right = (left + 1).clamp_max(coarse - 1)
    weight = place - left
    matrix = torch.zeros(n, n)
    matrix.scatter_add_(1, kept[left][:, None], (1 - weight)[:, None])
    return matrix.scatter_add_(1, kept[right][:, None], weight[:, None])
