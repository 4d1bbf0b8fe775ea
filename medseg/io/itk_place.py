"""Where a MetaImage or NRRD header says its voxels lie; numbers that ITK would quietly replace are refused first."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from medseg.errors import GeometryError
from medseg.io.itk_voxels import META, Stored
from medseg.types.geometry import Geometry

_FRAMES = ("leftposteriorsuperior", "rightanteriorsuperior", "leftanteriorsuperior", "lps", "ras", "las")
_NO_PLACE = "orientation is not stated; x is taken as towards the left, y as posterior, z as superior"
_NO_ORIGIN = "does not state its origin; 0, 0, 0 is taken"
_MATRICES = ("transformmatrix", "rotation", "orientation")  # names of one field of MetaImage
_ORIGINS = ("offset", "position", "origin")
_SPACINGS = ("elementspacing", "elementsize")
_FIX = "correct the header"


def header_place(info: Any, fields: dict[str, str], stored: Stored, path: Path) -> tuple[Geometry, tuple[str, ...]]:
    """The grid of the first three axes in LPS mm as ITK reads it (`info`), and what was doubtful about it.

    Without a spacing the unit is "px". Raises GeometryError for numbers that are missing, not finite or stated twice,
    for singular or sheared directions, and for units of length other than mm.
    """
    meta = path.suffix.lower() in META
    sizes = [n for axis, n in enumerate(stored.sizes) if axis != stored.channel_axis]
    if meta:
        _check_meta(fields, len(sizes), path)
    else:
        _check_nrrd(fields, stored, path)
    axes, spatial = len(sizes), min(len(sizes), 3)
    direction = np.eye(3)
    direction[:spatial, :spatial] = np.reshape(info.GetDirection(), (axes, axes))[:spatial, :spatial]
    origin = [*info.GetOrigin()[:spatial], 0.0][:3]
    dx, dy, dz = [*info.GetSpacing()[:spatial], 1.0][:3]
    rows = [tuple(float(v) for v in row) for row in direction]
    x, y, z = [*sizes[:spatial], 1][:3]
    spaced = any(key in fields for key in (_SPACINGS if meta else ("spacedirections", "spacings")))
    geometry = Geometry(
        (z, y, x),
        (dz, dy, dx),
        (origin[0], origin[1], origin[2]),
        (rows[0], rows[1], rows[2]),  # type: ignore[arg-type]
        unit="mm" if spaced and fields.get("unit") != "px" else "px",
    )
    return geometry, _doubts(fields, meta, geometry.unit == "mm", spaced)


def _doubts(fields: dict[str, str], meta: bool, lengths: bool, spaced: bool) -> tuple[str, ...]:
    placed = any(key in fields for key in (_MATRICES if meta else ("spacedirections",)))
    notes = [] if spaced else ["states no spacing; lengths are in pixels"]
    if lengths and not placed:
        notes.append(_NO_PLACE)
    elif lengths and not any(key in fields for key in (_ORIGINS if meta else ("spaceorigin",))):
        notes.append(_NO_ORIGIN)
    frame = re.sub(r"[- ]", "", fields.get("space", "").lower()).removesuffix("time")
    if placed and not meta and frame not in _FRAMES:
        notes.append("does not name its patient frame; LPS is assumed")
    if not meta and "list" in fields.get("kinds", "").lower().split():
        notes.append("its list of volumes is taken as channels")
    return tuple(notes)


def _check_meta(fields: dict[str, str], axes: int, path: Path) -> None:
    for keys, count in ((_MATRICES, axes * axes), (_ORIGINS, axes), (_SPACINGS, axes)):
        stated = [_numbers(fields[key], count, key, path) for key in keys if key in fields]
        if keys is _SPACINGS:  # the size of a voxel may differ from its distance to the next
            continue
        if len(stated) > 1 and not all(np.array_equal(stated[0], other) for other in stated):
            raise GeometryError(f"states {keys[0]} twice, with other numbers", where=path, hint=_FIX)
        if keys is _MATRICES and stated:
            _check_directions(stated[0].reshape(axes, axes), path)


def _check_nrrd(fields: dict[str, str], stored: Stored, path: Path) -> None:
    units = set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) - {"", "mm", "millimeter", "millimetre"}
    if units:
        raise GeometryError(f"space units are {sorted(units)}", where=path, hint="convert the header to mm")
    vectors = re.findall(r"\(([^)]*)\)", fields.get("spacedirections", ""))
    rows = [_numbers(vector.replace(",", " "), None, "space directions", path) for vector in vectors]
    if rows and all(len(row) == len(rows) for row in rows):
        _check_directions(np.array(rows), path)
    if "spacings" in fields:
        words = fields["spacings"].split()
        kept = [word for axis, word in enumerate(words) if axis != stored.channel_axis]
        if len(words) != len(stored.sizes):
            raise GeometryError(f"spacings are {len(words)} for {len(stored.sizes)} axes", where=path, hint=_FIX)
        if _numbers(" ".join(kept), len(kept), "spacings", path).min() <= 0:
            raise GeometryError("spacings are not positive", where=path, hint=_FIX)


def _numbers(text: str, count: int | None, name: str, path: Path) -> Float64[np.ndarray, " n"]:
    """`count` finite numbers (any, if None)."""
    try:
        numbers = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise GeometryError(f"{name} is no list of numbers ({error})", where=path, hint=_FIX) from error
    if (count is not None and len(numbers) != count) or not np.isfinite(numbers).all():
        raise GeometryError(f"{name} is not {count or ''} finite numbers", where=path, hint=_FIX)
    return numbers


def _check_directions(matrix: Float64[np.ndarray, "n n"], path: Path) -> None:
    """Refuse what ITK would replace by the identity."""
    if abs(np.linalg.det(matrix)) < 1e-12:
        raise GeometryError("its orientation is singular", where=path, hint=_FIX)
