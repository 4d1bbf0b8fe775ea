"""Landmarks of a prepared image: one window that covers all of it, averaged over members and mirrors."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from medseg.errors import BundleError, ImageError, PlanError
from medseg.types.geometry import Geometry, Size3
from medseg.types.image import Image, Slab
from medseg.types.landmarks import Landmarks
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.sides import channel_swap, swapped_order
from medseg.types.tensors import NetworkOutput

WholeForward = Callable[[Float[Tensor, "b c z y x"]], NetworkOutput]
UNSURE = 0.1  # landmarks of less confidence are named in a warning
_SIGMAS = 3.0
_SLAB_ROWS = 16


@dataclass(frozen=True, eq=False)
class Whole:
    """What one pass over a whole image finds: landmarks, and the mean logits of networks that segment too."""

    landmarks: Landmarks
    logits: Float32[np.ndarray, "k z y x"] | None = None

    def slabs(self) -> Iterator[Slab]:
        """The logits in slabs along z, as `predict_scores` gives them."""
        rows = 0 if self.logits is None else self.logits.shape[1]
        for start in range(0, rows, _SLAB_ROWS):
            yield Slab(start, self.logits[:, start : start + _SLAB_ROWS])  # type: ignore[index]


def predict_whole(
    members: Sequence[WholeForward], image: Image, plan: Plan, *, device: torch.device, report: Report = silent
) -> Whole:
    """Landmarks in mm, and logits on the image's grid if there are any, of a prepared image in one window.

    The window is the image, padded with 0 on both sides as in training to the plan's patch, or beyond it to a multiple
    of the network's divisor. Points and logits are turned back from every mirror, left and right exchanged, and are
    averaged. Confidence is about heat maps averaged in the same way: for probability maps the mass within three times
    the loss's sigma (and a voxel at least) of the landmark, so members that disagree and maps that spread both lower
    it; for regressed maps their height there. It is no probability of being right.
    Raises ImageError for other channels, and for 2D networks more than one slice; BundleError for what is not finite.
    """
    _check(image, plan)
    size, before = window(image.geometry.shape, plan)
    shape = image.geometry.shape
    around = [(b, n - m - b) for b, n, m in zip(before, size, shape, strict=True)]
    voxels = torch.from_numpy(np.pad(np.asarray(image.array, np.float32), [(0, 0), *around]))[None].to(device)
    views = list(itertools.product(members, _mirrors(plan, size)))
    total: _Sum | None = None
    for number, (member, axes) in enumerate(views, start=1):
        found = _turned_back(member(voxels.flip([2 + axis for axis in axes])), axes, size, plan)
        total = found if total is None else total.plus(found)
        report(Progress("landmarks", number, len(views)))
    if total is None:
        raise BundleError("there is no network to predict with", hint="give at least one fold")
    mean = total.divided(len(views))
    points = mean.points - np.array(before)
    confidence = [_confidence(*pair, image.geometry, plan) for pair in zip(mean.heatmaps, mean.points, strict=True)]
    mm = np.c_[points, np.ones(len(points))] @ image.geometry.affine().T
    found_here = Landmarks(plan.landmarks, mm[:, :3], np.array(confidence), unit=image.geometry.unit)
    return Whole(found_here, None if mean.logits is None else _cut(mean.logits, before, shape))


def window(shape: Size3, plan: Plan) -> tuple[Size3, Size3]:
    """Size (z, y, x) of the one window that covers an image of this shape, and the voxels that lie before the image."""
    steps = zip(shape, plan.sampling.patch, plan.network.topology.divisor(), strict=True)
    size = [max(patch, -(-n // step) * step) for n, patch, step in steps]
    before = [(m - n) // 2 for m, n in zip(size, shape, strict=True)]
    return (size[0], size[1], size[2]), (before[0], before[1], before[2])


def within_scan(landmarks: Landmarks, scan: Geometry) -> Landmarks:
    """The landmarks without those outside of the scan's voxels, which are missing, and warnings that name them.

    Warnings also name landmarks whose confidence is below a tenth, and say where a scan has no mm.
    """
    voxels = np.c_[landmarks.points_mm, np.ones(len(landmarks.names))] @ np.linalg.inv(scan.affine()).T
    lowest, highest = np.array([-0.5] * 3) - 1e-3, np.array(scan.shape) - 0.5 + 1e-3
    outside = ((voxels[:, :3] < lowest) | (voxels[:, :3] > highest)).any(axis=1)
    points = np.where(outside[:, None], np.nan, landmarks.points_mm)
    notes = list(landmarks.warnings)
    if outside.any():
        notes.append(f"missing, because found outside of the scan: landmarks {_listed(landmarks, outside)}")
    if landmarks.confidence is not None:
        unsure = (landmarks.confidence < UNSURE) & ~outside
        if unsure.any():
            notes.append(f"not sure of landmarks {_listed(landmarks, unsure)}: confidence below {UNSURE}")
    if scan.unit == "px":
        notes.append("landmarks are in pixels, because the scan states no spacing")
    return replace(landmarks, points_mm=points, warnings=tuple(notes))


@dataclass(frozen=True, eq=False)
class _Sum:
    points: Float64[np.ndarray, "n 3"]
    heatmaps: Float[Tensor, "n z y x"]
    logits: Float[Tensor, "k z y x"] | None

    def plus(self, other: "_Sum") -> "_Sum":
        logits = None if self.logits is None or other.logits is None else self.logits.add_(other.logits)
        return _Sum(self.points + other.points, self.heatmaps.add_(other.heatmaps), logits)

    def divided(self, count: int) -> "_Sum":
        logits = None if self.logits is None else self.logits / count
        return _Sum(self.points / count, self.heatmaps / count, logits)


def _mirrors(plan: Plan, size: Size3) -> list[tuple[int, ...]]:
    axes = [axis for axis in sorted(set(plan.inference.mirror_axes)) if size[axis] > 1]
    return [some for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]


def _turned_back(output: NetworkOutput, axes: tuple[int, ...], size: Size3, plan: Plan) -> _Sum:
    """What one mirrored pass found, in the image's own frame: float32 maps, points in voxels (z, y, x)."""
    if output.heatmaps is None or output.points is None or output.points.shape[1] != len(plan.landmarks):
        found = None if output.points is None else output.points.shape[1]
        what = f"the network finds {found or 'no'} landmarks, the plan has {len(plan.landmarks)}"
        raise BundleError(what, hint="the plan's landmarks do not fit its network")
    dims = [1 + axis for axis in axes]
    places = output.points[0].double().cpu().numpy()
    points = np.c_[np.zeros((len(places), 3 - places.shape[1])), places]
    for axis in axes:
        points[:, axis] = size[axis] - 1 - points[:, axis]
    heights = _heights(output.heatmaps[0].float(), plan).reshape(len(points), *size).flip(dims)
    logits = output.logits[0][0].float().reshape(-1, *size).flip(dims) if output.logits else None
    if not np.isfinite(points).all() or not bool(heights.isfinite().all()):
        raise BundleError("the network returned NaN or Inf", hint="predict in fp32, or train again")
    if plan.inference.swap_axis in axes:
        order = list(swapped_order(plan.landmarks, plan.inference.swap_points))
        points, heights = points[order], heights[order]
        swap = channel_swap(plan.labels, plan.inference.swap_axis, plan.inference.swap_labels)
        logits = logits[list(swap.order)] if swap is not None and logits is not None else logits
    return _Sum(points, heights, logits)


def _heights(heatmaps: Tensor, plan: Plan) -> Tensor:
    """Heat maps without logarithms: logits of a heat-map head as heights from 0 to 1."""
    logit = any(step.use == "heatmap" and step.options.get("values") == "logit" for step in plan.network.heads)
    return heatmaps.sigmoid() if logit else heatmaps.clone()


def _confidence(
    heatmap: Float[Tensor, "z y x"], point: Float64[np.ndarray, " 3"], geometry: Geometry, plan: Plan
) -> float:
    """From 0 to 1; `point` in voxels of the heat map."""
    size = heatmap.shape
    if any(step.use == "heatmap" for step in plan.network.heads):
        z, y, x = (min(max(round(p), 0), n - 1) for p, n in zip(point.tolist(), size, strict=True))
        return min(max(float(heatmap[z, y, x]), 0.0), 1.0)
    radius = [max(_SIGMAS * _sigma_mm(plan, geometry) / s, 1.0) for s in geometry.spacing_mm]
    limits = zip(point.tolist(), radius, size, strict=True)
    ends = [(min(max(int(p - r), 0), n - 1), min(max(int(p + r) + 2, 1), n)) for p, r, n in limits]
    far = torch.zeros((), dtype=torch.float64)
    for axis, (first, last) in enumerate(ends):
        along = ((torch.arange(first, last, dtype=torch.float64) - point[axis]) / radius[axis]).square()
        far = far + along.reshape([-1 if other == axis else 1 for other in range(3)])
    part = heatmap[tuple(slice(first, last) for first, last in ends)].double().cpu()
    return min(float(part[far <= 1].sum()), 1.0)


def _sigma_mm(plan: Plan, geometry: Geometry) -> float:
    """The width that the loss asked the probability maps to have."""
    first = 3 - plan.network.topology.ndim
    asked = [term.options.get("sigma_mm") for term in plan.training.losses if term.use == "dsnt"]
    stated = [float(value) for value in asked if isinstance(value, (int, float))]
    return stated[0] if stated else min(geometry.spacing_mm[first:])


def _cut(logits: Tensor, before: Size3, shape: Size3) -> Float32[np.ndarray, "k z y x"]:
    z, y, x = (slice(b, b + n) for b, n in zip(before, shape, strict=True))
    scores = logits[:, z, y, x].float().cpu().numpy()
    if not np.isfinite(scores).all():
        raise BundleError("the network returned NaN or Inf", hint="predict in fp32, or train again")
    return np.ascontiguousarray(scores)


def _check(image: Image, plan: Plan) -> None:
    if not plan.landmarks:
        raise PlanError("has no landmarks", where="landmarks", hint="this model only segments")
    if image.array.shape[0] != len(plan.channels):
        hint = f"the model needs {len(plan.channels)}: {', '.join(plan.channels)}"
        raise ImageError(f"has {image.array.shape[0]} channels", hint=hint)
    if plan.network.topology.ndim == 2 and image.geometry.shape[0] != 1:
        what = f"has {image.geometry.shape[0]} slices, and this model finds landmarks in one"
        raise ImageError(what, hint="give single images, or train a 3D model")


def _listed(landmarks: Landmarks, chosen: np.ndarray) -> str:
    return ", ".join(f'"{landmarks.names[index]}"' for index in np.flatnonzero(chosen))
