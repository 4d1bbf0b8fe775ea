"""Where a NIfTI header says its voxels lie: sform, else qform, else pixdim alone; RAS becomes LPS here."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from nibabel.spatialimages import HeaderDataError

from medseg.errors import GeometryError
from medseg.types.geometry import Geometry, Size3

PIXELS = b"medseg: no physical spacing"  # in `descrip`
_UNITS = {0: ("mm", 1.0), 1: ("m", 1000.0), 2: ("mm", 1.0), 3: ("um", 0.001)}  # spatial part of xyzt_units
_CODES = range(6)
_FIX = "correct sform or qform in the header"
Matrix = Float64[np.ndarray, "4 4"]


def header_geometry(header: Any, shape: Size3, path: Path) -> tuple[Geometry, tuple[str, ...]]:
    """The grid in LPS mm and what was doubtful about it.

    The sform counts where its code is set, else the qform, else pixdim alone with a warning. Warnings also name a
    qform, or a pixdim, that contradicts the sform by more than a tenth of a voxel, and lengths that are not in mm.

    Raises GeometryError for affines that are sheared, singular or not finite, unknown codes and unknown units.
    """
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS:
        raise GeometryError("has an unknown unit of length", where=path, hint="set xyzt_units to mm")
    name, unit = _UNITS[code]
    notes = () if name == "mm" else (f"lengths are in {name} and become mm",)
    for form in ("sform_code", "qform_code"):
        if int(header[form]) not in _CODES:
            raise GeometryError(f"{form} {int(header[form])} is not defined", where=path, hint=_FIX)
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if has_sform:
        grid = _grid(_sform(header), unit, shape, header, path)
        return grid, (*notes, *_disagreement(grid, unit, header, path, has_qform=has_qform))
    if has_qform:
        return _grid(_qform(header, path), unit, shape, header, path), notes
    pixels = bytes(header["descrip"].item()).startswith(PIXELS)
    doubt = "orientation is not stored; x is taken as towards the left, y as posterior, z as superior"
    return _grid(_from_pixdim(header, shape, path), unit, shape, header, path), notes if pixels else (*notes, doubt)


def ras_affine(geometry: Geometry) -> Matrix:
    """The NIfTI affine of a grid: index (x, y, z, 1) to RAS mm."""
    matrix = np.array(geometry.affine())[:, [2, 1, 0, 3]]
    matrix[:2] *= -1
    return matrix


def _sform(header: Any) -> Matrix:
    matrix: Matrix = np.asarray(header.get_sform(), dtype=float)
    return matrix


def _qform(header: Any, path: Path) -> Matrix:
    filled = header.copy()
    if float(filled["pixdim"][0]) == 0:
        filled["pixdim"][0] = 1  # as the standard asks
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are refused by `_grid`
            matrix: Matrix = np.asarray(filled.get_qform(), dtype=float)
    except (HeaderDataError, ValueError) as error:
        raise GeometryError(f"qform is invalid ({error})", where=path, hint=_FIX) from error
    return matrix


def _from_pixdim(header: Any, shape: Size3, path: Path) -> Matrix:
    zooms = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    if shape[0] == 1 and not zooms[2] > 0:
        zooms[2] = 1.0
    if not (np.isfinite(zooms).all() and zooms.min() > 0):
        raise GeometryError(
            f"has neither orientation nor a spacing (pixdim {zooms.tolist()})",
            where=path,
            hint="set the sform, or pixdim, in the header",
        )
    return np.diag([-zooms[0], -zooms[1], zooms[2], 1.0])


def _grid(ras: Matrix, unit: float, shape: Size3, header: Any, path: Path) -> Geometry:
    with np.errstate(all="ignore"):
        matrix = ras[:3] * unit
    matrix[:2] *= -1
    columns, origin = matrix[:, :3], matrix[:, 3]
    if not np.isfinite(matrix).all():
        raise GeometryError("affine is singular or not finite", where=path, hint=_FIX)
    if shape[0] == 1 and not columns[:, 2].any():
        normal = np.cross(columns[:, 0], columns[:, 1])
        columns[:, 2] = normal / max(float(np.linalg.norm(normal)), 1e-12)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(columns, axis=0)
    if lengths.min() < 1e-9 or not np.isfinite(lengths).all():
        raise GeometryError("affine is singular or not finite", where=path, hint=_FIX)
    unit_columns = columns / lengths
    if not np.allclose(unit_columns.T @ unit_columns, np.eye(3), atol=1e-3):
        raise GeometryError(
            "affine is sheared: its axes are not at right angles", where=path, hint="resample it on a regular grid"
        )
    rows = [tuple(float(v) for v in row) for row in unit_columns]
    dx, dy, dz = (float(v) for v in lengths)
    return Geometry(
        shape,
        (dz, dy, dx),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        (rows[0], rows[1], rows[2]),  # type: ignore[arg-type]
        unit="px" if bytes(header["descrip"].item()).startswith(PIXELS) else "mm",
    )


def _disagreement(sform: Geometry, unit: float, header: Any, path: Path, *, has_qform: bool) -> tuple[str, ...]:
    """What the rest of the header says against the sform that is used."""
    if not has_qform:
        stated = np.abs(np.asarray(header["pixdim"][3:0:-1], dtype=float)) * unit
        used = np.array(sform.spacing_mm)
        if not (stated > 0).all() or np.allclose(stated, used, rtol=0.01):
            return ()
        return (f"pixdim states voxels of {_by(stated)} mm and the sform of {_by(used)}; the sform is used",)
    try:
        apart = sform.corner_distance_mm(_grid(_qform(header, path), unit, sform.shape, header, path))
    except GeometryError:
        return ("qform is not a valid grid; the sform is used",)
    if apart <= 0.1 * min(sform.spacing_mm):
        return ()
    return (f"sform and qform differ by up to {apart:.3g} mm; the sform is used",)


def _by(zyx: Float64[np.ndarray, "3"]) -> str:
    return " x ".join(f"{value:.4g}" for value in zyx[::-1])
