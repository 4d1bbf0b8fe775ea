"""Landmarks drawn on pictures: crosses where they were found, rings where they should be, and their names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from medseg.types.geometry import Geometry
from medseg.types.landmarks import Landmarks

COLOURS = (
    "#e6550d",
    "#1f9ed1",
    "#31a354",
    "#d6409f",
    "#e8c000",
    "#8c6bb1",
    "#00b3a4",
    "#c0392b",
    "#7f8c8d",
    "#5dade2",
)
_ARM = 4  # pixels
Place = tuple[float, float, float]


@dataclass(frozen=True)
class PointMark:
    """One landmark: its name, colour, and places in voxels of a turned scan, where it was found and should be."""

    name: str
    colour: str
    found: Place | None
    wanted: Place | None


def point_marks(
    found: Landmarks | None, wanted: Landmarks | None, geometry: Geometry, order: Sequence[int], signs: Sequence[int]
) -> tuple[PointMark, ...]:
    """What to draw on a scan whose axes were put into `order` and flipped where `signs` are -1."""
    sides = [{} if points is None else _places(points, geometry, order, signs) for points in (found, wanted)]
    names = list(dict.fromkeys(name for points in (wanted, found) if points is not None for name in points.names))
    marks = [
        PointMark(name, COLOURS[number % len(COLOURS)], sides[0].get(name), sides[1].get(name))
        for number, name in enumerate(names)
    ]
    return tuple(mark for mark in marks if mark.found is not None or mark.wanted is not None)


def draw_points(
    picture: Pillow.Image,
    marks: Sequence[PointMark],
    axes: tuple[int, int],
    shape: Sequence[int],
    *,
    flip_rows: bool,
) -> None:
    """Draw landmarks on the picture of one plane, whose rows and columns are the `axes` of a volume of `shape`."""
    draw = ImageDraw.Draw(picture)
    columns, rows = picture.size

    def pixel(place: Place | None) -> tuple[float, float] | None:
        if place is None:
            return None
        row = (place[axes[0]] + 0.5) * rows / shape[axes[0]] - 0.5
        return (place[axes[1]] + 0.5) * columns / shape[axes[1]] - 0.5, rows - 1 - row if flip_rows else row

    drawn = [(mark, pixel(mark.found), pixel(mark.wanted)) for mark in marks]
    for mark, found, wanted in drawn:
        if found is not None and wanted is not None:
            draw.line((*found, *wanted), fill=mark.colour, width=1)
        if wanted is not None:
            x, y = wanted
            draw.ellipse((x - _ARM, y - _ARM, x + _ARM, y + _ARM), outline=mark.colour, width=1)
        if found is not None:
            x, y = found
            draw.line((x - _ARM, y, x + _ARM, y), fill=mark.colour, width=1)
            draw.line((x, y - _ARM, x, y + _ARM), fill=mark.colour, width=1)
    for mark, found, wanted in drawn:  # over all marks
        x, y = found or wanted or (0.0, 0.0)
        width = draw.textlength(mark.name)
        left = x + _ARM + 2 if x + _ARM + 2 + width <= columns else x - _ARM - 2 - width
        draw.text((left, y - _ARM - 2), mark.name, fill="#ffffff", stroke_width=1, stroke_fill="#000000")


def _places(points: Landmarks, geometry: Geometry, order: Sequence[int], signs: Sequence[int]) -> dict[str, Place]:
    voxels = geometry.to_voxels(points.points_mm)[:, list(order)]
    for axis, sign in enumerate(signs):
        if sign < 0:
            voxels[:, axis] = geometry.shape[order[axis]] - 1 - voxels[:, axis]
    return {
        name: (float(z), float(y), float(x))
        for name, (z, y, x) in zip(points.names, voxels, strict=True)
        if not np.isnan(z)
    }
