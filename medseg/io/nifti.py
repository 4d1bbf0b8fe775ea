"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz); the only place where their RAS frame meets LPS."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from nibabel.spatialimages import HeaderDataError

from medseg.errors import GeometryError, ImageError
from medseg.io.files import whole_file
from medseg.types.geometry import Geometry, Size3
from medseg.types.image import Image, Source

_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # spatial part of xyzt_units; unknown means mm
_PIXELS = b"medseg: no physical spacing"
_AGAIN = "copy or export the file again"


def read_nifti(path: Path) -> Image:
    """Read a whole NIfTI file: array (c, z, y, x), geometry in LPS mm.

    The sform is used where its code is set, else the qform, else pixdim alone with a warning; where sform and qform
    are both set and differ by more than a tenth of a voxel, a warning says so. A fourth (or fifth, after a single
    time point) axis becomes channels. Integers stay as stored unless a slope or intercept applies; all else is
    float32. Spatial units other than mm are converted.

    Raises ImageError for damaged or truncated files (the checksum of compressed data is verified) and for colour or
    complex voxels; GeometryError for affines that are sheared, singular or not finite.
    """
    data = _whole(path)
    header = _header(data, path)
    array = _voxels(data, header, path)
    _, z, y, x = array.shape
    geometry, warnings = _geometry(header, (z, y, x), path)
    names = tuple(str(i) for i in range(len(array)))
    return Image(array, geometry, names, Source((path,), "nifti"), warnings)


def write_nifti(array: Shaped[np.ndarray, "*k z y x"], geometry: Geometry, path: Path) -> None:
    """Write (z, y, x), or (k, z, y, x) as 4D, with equal sform and qform, both coded 1; gzip if `path` ends in .gz."""
    affine = _ras(geometry)
    image = nib.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    if geometry.unit == "px":
        image.header["descrip"] = _PIXELS
    with whole_file(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            level = 6 if array.dtype.kind in "ui" else 1
            with gzip.GzipFile("", "wb", level, file, mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)


def _whole(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError(f"compressed data is damaged or cut off ({error})", where=path, hint=_AGAIN) from error


def _header(data: bytes, path: Path) -> Any:
    if data[344:348] == b"n+1\0" and len(data) >= 348:
        return nib.Nifti1Header(data[:348], check=False)
    if data[4:8] == b"n+2\0" and len(data) >= 540:
        return nib.Nifti2Header(data[:540], check=False)
    raise ImageError("is not a single-file NIfTI", where=path, hint=_AGAIN)


def _voxels(data: bytes, header: Any, path: Path) -> Shaped[np.ndarray, "c z y x"]:
    shape = _shape(header, path)
    dtype = _dtype(header, path)
    offset = int(header["vox_offset"]) or header.single_vox_offset
    count = int(np.prod(shape, dtype=object))
    if len(data) < offset + count * dtype.itemsize:
        held = max(0, len(data) - offset) // dtype.itemsize
        raise ImageError(f"is cut off: holds {held} of {count} voxels", where=path, hint=_AGAIN)
    stored = np.frombuffer(data, dtype, count, offset).reshape(shape[::-1])
    return _scaled(stored, header, path)


def _shape(header: Any, path: Path) -> tuple[int, int, int, int]:
    """Voxels along x, y, z and channels."""
    sizes = [int(n) for n in header["dim"]]
    axes = sizes[0]
    if not 2 <= axes <= 7 or min(sizes[1 : axes + 1]) < 1:
        raise ImageError(f"header states impossible dimensions {sizes}", where=path, hint=_AGAIN)
    x, y, z, *rest = [*sizes[1 : axes + 1], 1, 1][: max(axes, 3)]
    more = [n for n in rest if n > 1]
    if len(more) > 1:
        raise ImageError(f"has {axes} axes {sizes[1 : axes + 1]}", where=path, hint="split it into one file per time")
    return x, y, z, more[0] if more else 1


def _dtype(header: Any, path: Path) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        raise ImageError(f"has unknown voxel type {int(header['datatype'])}", where=path, hint=_AGAIN) from error
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "colour or binary"
        raise ImageError(f"has {kind} voxels", where=path, hint="save one number per voxel, one file per channel")
    return dtype


def _scaled(stored: Shaped[np.ndarray, "c z y x"], header: Any, path: Path) -> Shaped[np.ndarray, "c z y x"]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise ImageError(f"intensity scaling is not finite ({error})", where=path, hint=_AGAIN) from error
    plain = slope is None or (slope == 1 and inter == 0)
    if plain and stored.dtype.kind in "iu":
        return stored.astype(stored.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        array = stored.astype(np.float32)
        if not plain:
            array *= np.float32(slope)
            array += np.float32(inter)
    return array


def _geometry(header: Any, shape: Size3, path: Path) -> tuple[Geometry, tuple[str, ...]]:
    unit = _TO_MM.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise GeometryError("has an unknown unit of length", where=path, hint="set xyzt_units to mm")
    matrices = [
        matrix for matrix in (_coded(header, "sform", path), _coded(header, "qform", path)) if matrix is not None
    ]
    if not matrices:
        hint = "orientation is not stored; x is taken as towards the left, y as posterior, z as superior"
        return _grid(_from_pixdim(header, shape, path), unit, shape, header, path), (hint,)
    geometry = _grid(matrices[0], unit, shape, header, path)
    if len(matrices) == 2:
        return geometry, _disagreement(geometry, matrices[1], unit, header, path)
    return geometry, ()


def _coded(header: Any, form: str, path: Path) -> Any:
    """The sform or qform in RAS, or None where its code is 0."""
    try:
        matrix, _ = getattr(header, f"get_{form}")(coded=True)
    except (HeaderDataError, ValueError) as error:
        if int(header["sform_code"]) > 0 and form == "qform":
            return None
        raise GeometryError(f"{form} is invalid ({error})", where=path, hint="correct the header") from error
    return matrix


def _from_pixdim(header: Any, shape: Size3, path: Path) -> Any:
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


def _grid(ras: Any, unit: float, shape: Size3, header: Any, path: Path) -> Geometry:
    matrix = np.asarray(ras, dtype=float)[:3] * unit
    matrix[:2] *= -1
    columns, origin = matrix[:, :3], matrix[:, 3]
    if shape[0] == 1 and not columns[:, 2].any():
        normal = np.cross(columns[:, 0], columns[:, 1])
        columns[:, 2] = normal / max(float(np.linalg.norm(normal)), 1e-12)
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(matrix).all() or lengths.min() < 1e-9:
        raise GeometryError("affine is singular or not finite", where=path, hint="correct sform or qform in the header")
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
        unit="px" if bytes(header["descrip"].item()).startswith(_PIXELS) else "mm",
    )


def _disagreement(sform: Geometry, qform: Any, unit: float, header: Any, path: Path) -> tuple[str, ...]:
    try:
        apart = sform.corner_distance_mm(_grid(qform, unit, sform.shape, header, path))
    except GeometryError:
        return ("qform is not a valid grid; the sform is used",)
    if apart <= 0.1 * min(sform.spacing_mm):
        return ()
    return (f"sform and qform differ by up to {apart:.3g} mm; the sform is used",)


def _ras(geometry: Geometry) -> Any:
    matrix = np.array(geometry.affine())[:, [2, 1, 0, 3]]
    matrix[:2] *= -1
    return matrix
