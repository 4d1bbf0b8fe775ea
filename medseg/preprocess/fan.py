"""The fan: the part of an ultrasound picture that shows tissue, without text, calipers, rulers and borders."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Shaped
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from medseg.types.geometry import Box
from medseg.types.image import Image, LabelMap
from medseg.types.plan import Preprocess

Mask = Bool[np.ndarray, "y x"]
_DARK = 0.02  # of the range of grey values: what is not tissue, at most
_FLAT = 0.012  # same, for borders
_MOVED = 0.025  # same, between the darkest and the brightest moment of a pixel
_FILLED = 0.6  # share of a small window that is tissue but not text
_PART = 0.2  # of the largest region, from which another one belongs to the fan
_EMPTY = 0.65  # share of flat pixels from which an area beside the fan is border with text on it
_LEAST = 0.02  # share of the picture below which nothing is a fan


def fan_mask(array: Shaped[np.ndarray, "z y x"], boxes: Sequence[Box] = ()) -> Bool[np.ndarray, "z y x"]:
    """The insonified area of each plane: the hull of its largest densely bright region, without the notch of the probe.

    Dark is within 4 % of the range (smallest value to 99.5th percentile) around the smallest value, or around the one
    value that much of the border has. Text, lines and rulers are not dense; dark vessels and shadows inside the fan are
    filled. `boxes`: where the scanner says that tissue is; nothing outside of them counts. A plane without any such
    region is all inside (of the boxes).
    """
    low, high = float(array.min()), float(np.percentile(array, 99.5))
    allowed = _allowed(array.shape[1:], boxes)
    mask = np.empty(array.shape, bool)
    for plane, out in zip(array, mask, strict=True):
        above = np.abs(plane.astype(np.float32) - _background(plane, low))
        fan = _fan(above > _DARK * (high - low), allowed)
        out[:] = _with_tissue_beside(fan, above <= _FLAT * (high - low)) & allowed
    return mask


def image_fan(image: Image) -> Bool[np.ndarray, "z y x"]:
    """`fan_mask` of a scan's brightest channel, within the boxes that its file states for its grid."""
    return fan_mask(image.array.max(axis=0), image.source.regions if image.source else ())


def has_fan(plan: Preprocess) -> bool:
    """Whether a plan takes its scans as ultrasound."""
    return any(step.use == "fan_z_score" for step in plan.intensity)


def blackened(image: Image, fan: Bool[np.ndarray, "z y x"]) -> Image:
    """The scan with its smallest value everywhere outside of the fan."""
    return replace(image, array=np.where(fan, image.array, image.array.min()))


def cut_to_fan(labels: LabelMap, fan: Bool[np.ndarray, "z y x"]) -> LabelMap:
    """Labels with background outside of the fan, ignored voxels apart; a warning counts the voxels that changes."""
    if labels.labels.ignore is not None:
        fan = fan | (labels.array == labels.labels.ignore)
    outside = int(np.count_nonzero(labels.array[~fan]))
    if not outside:
        return labels
    note = f"{outside} labelled pixels outside of the ultrasound fan are set to background"
    return replace(labels, array=np.where(fan, labels.array, 0), warnings=(*labels.warnings, note))


def scored(reference: LabelMap, image: Image, plan: Preprocess) -> LabelMap:
    """What counts of a reference: of a frame that the plan takes as ultrasound, only what lies in its fan."""
    flat = has_fan(plan) and image.geometry.shape[0] == 1
    return cut_to_fan(reference, image_fan(image)) if flat else reference


def cine_fan(frames: Iterable[Shaped[np.ndarray, "y x"]], boxes: Sequence[Box] = ()) -> Mask:
    """One fan of several frames: what moves is tissue, what stands still is text, ruler or border.

    Where less moves than a fifth of the fan of the brightest moment (a still picture), that is the fan.
    """
    darkest, brightest = None, None
    for frame in frames:
        darkest = frame.copy() if darkest is None else np.minimum(darkest, frame)
        brightest = frame.copy() if brightest is None else np.maximum(brightest, frame)
    if darkest is None or brightest is None:
        raise ValueError("no frames")
    moved = brightest.astype(np.float32) - darkest
    still = fan_mask(brightest[np.newaxis], boxes)[0]
    allowed = _allowed(still.shape, boxes)
    spread = float(np.percentile(brightest, 99.5)) - float(darkest.min())
    moving = _fan(moved > max(_MOVED * spread, 1e-6), allowed)
    return moving if 0.2 * still.sum() <= moving.sum() < allowed.sum() or still.sum() == moving.sum() else still


def _allowed(shape: tuple[int, ...], boxes: Sequence[Box]) -> Mask:
    allowed = np.zeros(shape, bool) if boxes else np.ones(shape, bool)
    for box in boxes:
        allowed[box.slices()[1:]] = True
    return allowed


def _background(plane: Shaped[np.ndarray, "y x"], low: float) -> float:
    """The value that at least a third of the border shares (a tinted desktop around the fan), else `low`."""
    border = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
    values, counts = np.unique(border, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() * 3 >= len(border) else low


def _fan(bright: Mask, allowed: Mask) -> Mask:
    region = _dense_region(bright & allowed)
    if region.sum() < _LEAST * allowed.sum():
        return allowed
    fan: Mask = _without_notch(_hull(region), region) & allowed
    return fan


def _with_tissue_beside(fan: Mask, flat: Mask) -> Mask:
    """The fan with every area beside it that is mostly not flat: dark tissue has noise, a border has none."""
    areas, count = ndimage.label(~fan)
    pixels = np.bincount(areas.ravel(), minlength=count + 1)
    empty = np.bincount(areas[flat], minlength=count + 1) >= _EMPTY * pixels
    empty[0] = False
    beside: Mask = ~empty[areas]
    return beside


def _dense_region(bright: Mask) -> Mask:
    """The largest region that is bright all over, others nearly as large (a shadow parts a fan), and their edges."""
    window = max(5, min(bright.shape) // 32 | 1)
    share = ndimage.uniform_filter(bright.astype(np.float32), window, mode="nearest")
    regions, count = ndimage.label(share > _FILLED)
    if count == 0:
        return np.zeros_like(bright)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    large = (sizes >= _PART * sizes.max())[regions]
    near = ndimage.maximum_filter(large, window)
    thick = ndimage.binary_opening(np.pad(bright, 2, mode="edge"), np.ones((3, 3), bool))[2:-2, 2:-2]
    region: Mask = large | (near & thick)
    return region


def _hull(region: Mask) -> Mask:
    rows = np.flatnonzero(region.any(axis=1))
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - 1 - region[rows, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    try:
        edges = ConvexHull(points).equations
    except QhullError:  # all points on one line
        return region
    y, x = (np.arange(n) for n in region.shape)
    left, right = np.zeros(len(y)), np.full(len(y), -1.0)
    right[rows[0] : rows[-1] + 1] = len(x)
    for normal_y, normal_x, offset in edges:
        if abs(normal_x) > 1e-9:
            crossing = -(offset + normal_y * y) / normal_x
            left, right = (left, np.minimum(right, crossing)) if normal_x > 0 else (np.maximum(left, crossing), right)
    inside: np.ndarray = (x >= left[:, None] - 1e-6) & (x <= right[:, None] + 1e-6)
    return inside


def _without_notch(hull: Mask, region: Mask) -> Mask:
    """The hull without the circular segment above a curved probe.

    The probe's arc ends in the two upper corners of the hull; how far it sags between them is the median over the
    columns of what the first bright voxel says, so that a shadow or a bright spot does not move it.
    """
    top_row = int(np.flatnonzero(hull.any(axis=1))[0])
    edge = np.flatnonzero(hull[top_row : top_row + 2].any(axis=0))
    left, right = float(edge[0]), float(edge[-1])
    half = (right - left) / 2
    if half < 4:
        return hull
    columns = np.arange(int(left) + 1, int(right))
    along = (columns - (left + right) / 2) / half
    first = region[:, columns].argmax(axis=0) - top_row
    sag = float(np.median(first / (1 - along**2)))
    if sag < 2 or sag > half:
        return hull
    radius = (half**2 + sag**2) / (2 * sag)
    y, x = np.indices(hull.shape)
    centre_x, centre_y = (left + right) / 2, top_row + sag - radius
    above = np.hypot(y - centre_y, x - centre_x) < radius - 0.5
    open_part: Mask = hull & ~(above & (x > left) & (x < right) & (y < top_row + sag))
    return open_part
