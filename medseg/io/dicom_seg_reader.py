"""Read a DICOM Segmentation as label maps on a grid of voxels, exactly or not at all."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from medseg.errors import DicomError, GeometryError
from medseg.io.dicom_seg_frames import SegFile, SegFrame, open_seg, read_frames
from medseg.io.segments import Segment, Segments, overlaps, unique_names
from medseg.types.geometry import Geometry

_OFF_VOXEL = 0.1  # of a voxel, which rounding of positions may take
_ROUNDING_MM = 0.0202  # positions of images and of frames, both with two decimals
_SURE = 1 << 30  # voxels of a grid that few frames may span
_OTHER = "give the images that it was drawn on, or resample it first"


def read_seg(path: Path, onto: Geometry | None = None, *, threshold: float = 0.5) -> Segments:
    """Read a binary, fractional or labelmap SEG onto the grid of its images, or onto the grid its own frames make.

    Frames may be in any order, leave out planes, and run along the axes of `onto` in any direction; they must lie on
    its voxels (within a tenth). Fractions from `threshold` on belong to a segment. Segments that overlap come in
    layers, with a warning that says how many voxels they share.

    Raises GeometryError where frames lie off the voxels, outside of the grid, in another frame of reference or on no
    regular grid; DicomError for files that are no SEG or are damaged.
    """
    seg = open_seg(path)
    if seg.frame_of_reference_uid is None:
        raise GeometryError("states no frame of reference, so it has no place in the patient", where=path, hint=_OTHER)
    geometry = _own_grid(seg) if onto is None else onto
    theirs, ours = seg.frame_of_reference_uid, geometry.frame_of_reference_uid
    if theirs and ours and theirs != ours:
        raise GeometryError("has another frame of reference than the image", where=path, hint=_OTHER)
    names = unique_names([name for _, name, _ in seg.segments])
    described = zip(seg.segments, names, strict=True)
    items = [Segment(name, number, 0, code) for (number, _, code), name in described]
    layers, placed, notes = (_labelmap if seg.kind == "LABELMAP" else _masks)(seg, items, geometry, threshold)
    result = Segments(layers, geometry, tuple(placed), seg.series_uid, tuple(notes))
    shared = [f'{count} voxels lie in "{one}" and in "{other}"' for one, other, count in overlaps(result)]
    return Segments(layers, geometry, result.items, seg.series_uid, (*notes, *shared))


def regular_step(seg: SegFile) -> float:
    """Distance of planes in mm: as stated where positions agree with it, else the smallest between frames.

    Raises GeometryError where frames lie on no regular stack of planes.
    """
    heights = np.unique([round(float(np.dot(frame.position_mm, seg.sheet_normal())), 4) for frame in seg.frames])
    gaps = np.diff(heights)
    gaps = gaps[gaps > _ROUNDING_MM]
    for step in (seg.step_mm, float(gaps.min()) if len(gaps) else float("nan")):
        if np.isfinite(step) and _are_multiples(heights - heights[0], step):
            return step
    if not len(gaps):
        return 1.0
    raise GeometryError("frames lie on no regular stack of planes", where=seg.path, hint=_OTHER)


def _are_multiples(heights: Float64[np.ndarray, " n"], step: float) -> bool:
    off = np.abs(heights - np.round(heights / step) * step)
    return bool(off.max(initial=0.0) <= max(0.05 * step, min(_ROUNDING_MM, 0.4 * step)))


def _own_grid(seg: SegFile) -> Geometry:
    first = seg.frames[0]
    for frame in seg.frames:
        steps = np.array([frame.row_step_mm, frame.column_step_mm]) - [first.row_step_mm, first.column_step_mm]
        if np.abs(steps).max() * max(seg.shape) > _ROUNDING_MM:
            raise GeometryError("frames have several orientations or pixel sizes", where=seg.path, hint=_OTHER)
    step, normal = regular_step(seg), seg.sheet_normal()
    points = np.array([frame.position_mm for frame in seg.frames])
    heights = points @ normal
    low = int(np.argmin(heights))
    inward = points - points[low]
    sideways = np.abs(inward - np.outer(inward @ normal, normal)).max()
    if sideways > _ROUNDING_MM:
        raise GeometryError(
            f"frames are displaced by {sideways:.3g} mm within their plane", where=seg.path, hint=_OTHER
        )
    slices = round(float(np.ptp(heights)) / step) + 1
    if slices * seg.shape[0] * seg.shape[1] > max(_SURE, 16 * len(seg.frames) * seg.shape[0] * seg.shape[1]):
        raise GeometryError(f"its frames span {slices} planes", where=seg.path, hint=_OTHER)
    dy, dx = (float(np.linalg.norm(axis)) for axis in (first.row_step_mm, first.column_step_mm))
    columns = np.stack([np.array(first.column_step_mm) / dx, np.array(first.row_step_mm) / dy, normal], axis=1)
    rows = [tuple(float(v) for v in row) for row in columns]
    x, y, z = (float(v) for v in points[low])
    shape = (slices, *seg.shape)
    return Geometry(shape, (step, dy, dx), (x, y, z), (rows[0], rows[1], rows[2]), seg.frame_of_reference_uid)  # type: ignore[arg-type]


def _masks(
    seg: SegFile, items: list[Segment], geometry: Geometry, threshold: float
) -> tuple[Shaped[np.ndarray, "l z y x"], list[Segment], list[str]]:
    """One layer as long as segments keep apart; a segment that meets another goes to the first layer it fits in."""
    dtype = np.uint8 if max(item.value for item in items) < 256 else np.uint16
    layers = [np.zeros(geometry.shape, dtype)]
    lowest = threshold * seg.highest if seg.kind == "FRACTIONAL" else 0.5
    placed, notes = [], []
    for item in items:
        frames = [frame for frame in seg.frames if frame.segment == item.value]
        layer = 0
        while not _paint(layers[layer], seg, frames, item.value, geometry, lowest):
            layer += 1
            if layer == len(layers):
                layers.append(np.zeros(geometry.shape, dtype))
        placed.append(Segment(item.name, item.value, layer, item.code))
    if seg.kind == "FRACTIONAL":
        notes.append(f"fractions from {threshold:g} on are taken as inside")
    return np.stack(layers) if len(layers) > 1 else layers[0][np.newaxis], placed, notes


def _paint(
    layer: Shaped[np.ndarray, "z y x"],
    seg: SegFile,
    frames: list[SegFrame],
    value: int,
    geometry: Geometry,
    lowest: float,
) -> bool:
    """Put a segment's frames into a layer; False, and the layer as before, where another one is in the way."""
    for frame, pixels in zip(frames, read_frames(seg, frames), strict=True):
        inside = pixels >= lowest
        if not inside.any():
            continue
        place = _view(layer, frame, geometry, seg)
        if (inside & (place != 0) & (place != value)).any():
            layer[layer == value] = 0
            return False
        place[inside] = value
    return True


def _labelmap(
    seg: SegFile, items: list[Segment], geometry: Geometry, threshold: float
) -> tuple[Shaped[np.ndarray, "l z y x"], list[Segment], list[str]]:
    known = np.zeros(1 << 16, bool)
    known[[0, *(item.value for item in items)]] = True
    layer = np.zeros(geometry.shape, np.uint8 if seg.bits == 8 else np.uint16)
    for frame, pixels in zip(seg.frames, read_frames(seg, seg.frames), strict=True):
        if not known[pixels].all():
            raise DicomError("has voxels of segments that it does not describe", where=seg.path, hint=_OTHER)
        inside = pixels != 0
        if inside.any():
            _view(layer, frame, geometry, seg)[inside] = pixels[inside]
    return layer[np.newaxis], items, []


def _view(
    layer: Shaped[np.ndarray, "z y x"], frame: SegFrame, geometry: Geometry, seg: SegFile
) -> Shaped[np.ndarray, "y x"]:
    """The voxels of a layer (in C order) that the pixels of a frame stand for, to be written to."""
    to_index = np.linalg.inv(geometry.affine())
    start = (to_index @ [*frame.position_mm, 1.0])[:3]
    steps = np.stack([to_index[:3, :3] @ frame.row_step_mm, to_index[:3, :3] @ frame.column_step_mm])
    first, whole_steps = np.rint(start).astype(np.int64), np.rint(steps).astype(np.int64)
    drift = np.abs(steps - whole_steps) * [[seg.shape[0]], [seg.shape[1]]]
    allowed = np.maximum(_OFF_VOXEL, np.minimum(_ROUNDING_MM / np.array(geometry.spacing_mm), 0.4))
    single = np.abs(whole_steps).sum(axis=1)
    crooked = (single != 1).any() or np.count_nonzero(whole_steps.any(axis=0)) != 2
    if crooked or (np.abs(start - first) + drift.sum(axis=0) > allowed).any():
        raise GeometryError(f"frame {frame.index + 1} does not lie on voxels of the image", where=seg.path, hint=_OTHER)
    last = first + (np.array(seg.shape) - 1) @ whole_steps
    if min(first.min(), last.min()) < 0 or (np.maximum(first, last) >= geometry.shape).any():
        raise GeometryError(f"frame {frame.index + 1} reaches beyond the image", where=seg.path, hint=_OTHER)
    strides = np.array(layer.strides)
    row, column = (int(step @ strides) for step in whole_steps)
    view: np.ndarray = np.ndarray(seg.shape, layer.dtype, layer.data, int(first @ strides), (row, column))
    return view


def segment_sums(seg: SegFile) -> Iterator[tuple[int, Float64[np.ndarray, " 4"]]]:
    """Per frame and segment: its number, its voxels and the sum of their LPS points, from the frame's own place."""
    axes = np.arange(seg.shape[0]), np.arange(seg.shape[1])
    for frame, pixels in zip(seg.frames, read_frames(seg, seg.frames), strict=True):
        held = np.flatnonzero(np.bincount(pixels.ravel())) if seg.kind == "LABELMAP" else [frame.segment]
        numbers = [int(number) for number in held if number]
        for number in numbers:
            mask = pixels == number if seg.kind == "LABELMAP" else pixels != 0
            down, across = mask.sum(axis=1), mask.sum(axis=0)
            sums = np.array([down.sum(), down @ axes[0], across @ axes[1]], float)
            yield number, np.array([sums[0], *frame.points(sums)])
