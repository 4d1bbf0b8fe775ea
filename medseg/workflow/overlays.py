"""Pictures of a scan with label maps and landmarks on it, in patient orientation."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt
from PIL import Image as Pillow
from PIL import ImageDraw

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
from medseg.workflow.point_marks import COLOURS, PointMark, draw_points, point_marks

_FILL = 0.4


@dataclass(frozen=True)
class _Plane:
    """One view of a volume in (S, P, L) order: the axis it cuts, which drawn axes are flipped, and its edge letters."""

    axis: int
    flip_rows: bool
    letters: tuple[str, str, str, str]  # left, right, top, bottom


_PLANES = (
    _Plane(0, False, ("R", "L", "A", "P")),
    _Plane(1, True, ("R", "L", "S", "I")),
    _Plane(2, True, ("A", "P", "S", "I")),
)


def label_colours(labels: Labels) -> dict[str, str]:
    """Colour of each class as "#rrggbb", the same in every picture.

    >>> label_colours(Labels((Label("mandible", (1,)),)))
    {'mandible': '#e6550d'}
    """
    return {item.name: COLOURS[i % len(COLOURS)] for i, item in enumerate(labels.items)}


def overlay_png(
    image: Image,
    prediction: LabelMap | None,
    reference: LabelMap | None = None,
    *,
    landmarks: Landmarks | None = None,
    reference_landmarks: Landmarks | None = None,
    channel: int = 0,
    size: int = 300,
) -> bytes:
    """A PNG of the slices that show most label: prediction filled, reference outlined, same colour per class.

    Landmarks are crosses with their names and those of the reference rings, joined by a line, wherever they lie before
    or behind the slice; without labels the slice is that in the middle of the landmarks. 3D scans show three planes in
    radiological convention (the patient's left is on the right side of the picture, letters at the edges), 2D images
    one picture as stored; pixels are square in mm and the longer side of a plane has `size` pixels. The grey window is
    the 1st to 99th percentile of the scan.

    Raises GeometryError if a label map has another shape than the scan.
    """
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels is not None and labels.array.shape != image.geometry.shape:
            raise GeometryError(
                f"{name} has shape {labels.array.shape}, the scan {image.geometry.shape}",
                hint="give label maps on the scan's own grid",
            )
    flat = image.geometry.shape[0] == 1
    order = (0, 1, 2) if flat else _patient_axes(image.geometry)
    grey = _turn(_window(image.array[channel]), image.geometry, order, flat)
    spacing = tuple(image.geometry.spacing_mm[a] for a in order)
    nothing = np.zeros(grey.shape, np.uint8)
    filled = nothing if prediction is None else _turn(_classes(prediction), image.geometry, order, flat)
    outlined = None if reference is None else _turn(_classes(reference), image.geometry, order, flat)
    signs = [1] * 3 if flat else _signs(image.geometry, order)
    marks = point_marks(landmarks, reference_landmarks, image.geometry, order, signs)
    planes = (_Plane(0, False, ("", "", "", "")),) if flat else _PLANES
    pictures = [_draw(grey, filled, outlined, spacing, plane, size, marks) for plane in planes]
    return _png(pictures)


def _patient_axes(geometry: Geometry) -> tuple[int, int, int]:
    """Array axes (z, y, x indices) that run closest along S, P and L."""
    along = np.abs(np.array(geometry.direction))[::-1, ::-1]  # rows S, P, L; columns array axes z, y, x
    best = max(permutations(range(3)), key=lambda p: sum(along[row, column] for row, column in enumerate(p)))
    return best[0], best[1], best[2]


def _turn(array: Shaped[np.ndarray, "z y x"], geometry: Geometry, order: Sequence[int], flat: bool) -> np.ndarray:
    """The array with axes (S, P, L), each rising towards that side of the patient; 2D images stay as stored."""
    if flat:
        return array
    turned: np.ndarray = array.transpose(order)
    flips = tuple(i for i, sign in enumerate(_signs(geometry, order)) if sign < 0)
    flipped: np.ndarray = np.flip(turned, flips)
    return flipped


def _signs(geometry: Geometry, order: Sequence[int]) -> list[int]:
    """Whether each axis of a turned array ran towards S, P, L before, or away (-1)."""
    cosines = np.array(geometry.direction)[::-1, ::-1]
    return [-1 if cosines[row, axis] < 0 else 1 for row, axis in enumerate(order)]


def _window(voxels: Shaped[np.ndarray, "z y x"]) -> Float32[np.ndarray, "z y x"]:
    values = voxels.astype(np.float32)
    low, high = (np.float32(limit) for limit in np.percentile(values, (1, 99)))
    scaled: Float32[np.ndarray, "z y x"] = np.clip((values - low) / max(high - low, np.float32(1e-6)), 0, 1)
    return scaled


def _classes(labels: LabelMap) -> UInt[np.ndarray, "z y x"]:
    """Class number 1, 2, ... per voxel, later classes over earlier ones."""
    numbers = np.zeros(labels.array.shape, np.uint8 if len(labels.labels.items) < 256 else np.uint16)
    for number, item in enumerate(labels.labels.items, start=1):
        numbers[np.isin(labels.array, _values(item))] = number
    return numbers


def _values(item: Label) -> list[int]:
    return sorted({item.written, *item.values})


def _draw(
    grey: np.ndarray,
    filled: np.ndarray,
    outlined: np.ndarray | None,
    spacing: Sequence[float],
    plane: _Plane,
    size: int,
    marks: Sequence[PointMark] = (),
) -> Pillow.Image:
    others = (0 if plane.axis else 1, 2 if plane.axis < 2 else 1)
    index = _slice(filled if outlined is None or not outlined.any() else outlined, plane.axis, marks)
    step = [spacing[a] for a in others]
    rows, columns = (grey.shape[a] * s for a, s in zip(others, step, strict=True))
    scale = size / max(rows, columns)
    shape = max(1, round(columns * scale)), max(1, round(rows * scale))

    def view(volume: np.ndarray, resample: Pillow.Resampling) -> np.ndarray:
        cut = np.take(volume, index, axis=plane.axis)
        cut = np.ascontiguousarray(np.flipud(cut) if plane.flip_rows else cut)
        return np.asarray(Pillow.fromarray(cut).resize(shape, resample))

    tone = view((grey * 255).astype(np.uint8), Pillow.Resampling.BICUBIC)
    canvas = np.repeat(tone[..., None], 3, axis=2).astype(np.float32)
    canvas = _paint(canvas, view(filled, Pillow.Resampling.NEAREST), outline=False)
    if outlined is not None:
        canvas = _paint(canvas, view(outlined, Pillow.Resampling.NEAREST), outline=True)
    picture = Pillow.fromarray(canvas.astype(np.uint8))
    _letters(picture, plane.letters)
    draw_points(picture, marks, others, grey.shape, flip_rows=plane.flip_rows)
    return picture


def _slice(shown: np.ndarray, axis: int, marks: Sequence[PointMark]) -> int:
    """The slice with most label; without labels that in the middle of the landmarks, or of the scan."""
    counts = (shown > 0).sum(axis=tuple(a for a in range(3) if a != axis))
    if counts.any():
        return int(counts.argmax())
    places = [place[axis] for mark in marks for place in (mark.found, mark.wanted) if place is not None]
    count = int(shown.shape[axis])
    middle = round(float(np.median(places))) if places else count // 2
    return min(max(middle, 0), count - 1)


def _paint(canvas: np.ndarray, numbers: np.ndarray, *, outline: bool) -> np.ndarray:
    for number in np.unique(numbers[numbers > 0]):
        colour = np.array(Pillow.new("RGB", (1, 1), COLOURS[(int(number) - 1) % len(COLOURS)]).getpixel((0, 0)))
        mask = numbers == number
        mask, weight = (_edge(mask), 1.0) if outline else (mask, _FILL)
        canvas[mask] = (1 - weight) * canvas[mask] + weight * colour
    return canvas


def _edge(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The pixels of a mask whose distance to its outside is at most two pixels."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Bool[np.ndarray, "y x"] = mask & ~inner
    return edge


def _letters(picture: Pillow.Image, letters: tuple[str, str, str, str]) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    places = ((3, height // 2), (width - 9, height // 2), (width // 2, 2), (width // 2, height - 13))
    for letter, place in zip(letters, places, strict=True):
        draw.text(place, letter, fill="#ffffff", stroke_width=1, stroke_fill="#000000")


def _png(pictures: Sequence[Pillow.Image]) -> bytes:
    """The pictures side by side, 4 pixels apart."""
    width = sum(p.width for p in pictures) + 4 * (len(pictures) - 1)
    sheet = Pillow.new("RGB", (width, max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + 4
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
