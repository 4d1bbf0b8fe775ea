"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz, .hdr with .img); nothing is unpacked that the header does not promise."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from nibabel.spatialimages import HeaderDataError

from medseg.errors import ImageError
from medseg.io.byte_stream import ByteStream
from medseg.io.files import whole_file
from medseg.io.nifti_geometry import PIXELS, header_geometry, ras_affine
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source

_TIME = {8: "seconds", 16: "milliseconds", 24: "microseconds", 32: "hertz", 40: "ppm", 48: "radians per second"}
_AGAIN = "copy or export the file again"
_SURPLUS = 64 << 20  # bytes after the voxels that are read on to reach the checksum
_LONGEST_NIFTI1 = 32767  # voxels along an axis


def read_nifti(path: Path, *, channels_named: bool = False) -> Image:
    """Read a whole NIfTI file: array (c, z, y, x), geometry in LPS mm (see `header_geometry`).

    A fourth (or fifth, after a single time point) axis becomes channels; one whose unit is a time is refused unless
    `channels_named` says that the caller knows its points as channels. Integers stay as stored unless a slope or
    intercept applies; all else is float32. The voxels of a `.hdr` come from the `.img` or `.img.gz` beside it.

    Raises ImageError for damaged or truncated files (the checksum of compressed data is verified), for files that
    unpack to far more than the header promises, and for colour or complex voxels; GeometryError for affines that are
    sheared, singular or not finite.
    """
    with ByteStream(path) as stream:
        header, single, start = _header(stream)
        shape, notes = _shape(header, path, channels_named)
        geometry, doubts = header_geometry(header, (shape[1], shape[2], shape[3]), path)
        files = (path,) if single else (path, _image_file(path))
        if single:
            stored, more = _voxels(stream, header, start, shape)
    if not single:
        with ByteStream(files[-1]) as stream:
            stored, more = _voxels(stream, header, 0, shape)
    array, scaling = _scaled(stored, header, path)
    names = tuple(str(i) for i in range(len(array)))
    return Image(array, geometry, names, Source(files, "nifti"), (*notes, *doubts, *more, *scaling))


def write_nifti(array: Shaped[np.ndarray, "*k z y x"], geometry: Geometry, path: Path) -> None:
    """Write (z, y, x), or (k, z, y, x) as 4D, with equal sform and qform, both coded 1; gzip if `path` ends in .gz.

    Raises ImageError for axes longer than NIfTI-1 can state.
    """
    if max(array.shape) > _LONGEST_NIFTI1:
        raise ImageError(
            f"{max(array.shape)} voxels along an axis do not fit NIfTI-1", where=path, hint="write .nrrd or .mha"
        )
    affine = ras_affine(geometry)
    image = nib.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    if geometry.unit == "px":
        image.header["descrip"] = PIXELS
    with whole_file(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            level = 6 if array.dtype.kind in "ui" else 1
            with gzip.GzipFile("", "wb", level, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _header(stream: ByteStream) -> tuple[Any, bool, int]:
    """The header, whether the voxels are in the same file, and the bytes read so far."""
    path = stream.path
    data = stream.take(348)
    if data[344:348] in (b"n+1\0", b"ni1\0"):
        header, single, size = nib.Nifti1Header(data, check=False), data[345:346] == b"+", 348
    elif data[4:8] in (b"n+2\0", b"ni2\0"):
        data += stream.take(540 - 348)
        if len(data) < 540:
            raise ImageError("its header is cut off", where=path, hint=_AGAIN)
        header, single, size = nib.Nifti2Header(data, check=False), data[5:6] == b"+", 540
    elif len(data) == 348 and {data[:4], data[3::-1]} & {(348).to_bytes(4, "little")}:
        raise ImageError(
            "is Analyze 7.5, which does not say where left and right are", where=path, hint="convert it to NIfTI"
        )
    else:
        raise ImageError("is not a NIfTI file", where=path, hint=_AGAIN)
    if int(header["sizeof_hdr"]) != size:
        raise ImageError("its header is damaged (sizeof_hdr)", where=path, hint=_AGAIN)
    if not single and not path.name.lower().endswith((".hdr", ".hdr.gz")):
        raise ImageError("is only the header of a .hdr and .img pair", where=path, hint="give the .hdr file")
    return header, single, size


def _image_file(path: Path) -> Path:
    """The file beside a `.hdr` that holds its voxels."""
    stem = path.name[: path.name.lower().rindex(".hdr")]
    names = {f"{stem}{suffix}".lower() for suffix in (".img", ".img.gz")}
    found = sorted(file for file in path.parent.iterdir() if file.name.lower() in names)
    if len(found) != 1:
        what = f"several files hold its voxels: {', '.join(file.name for file in found)}" if found else "has no .img"
        raise ImageError(what, where=path, hint="keep the .hdr and one .img beside each other")
    return found[0]


def _shape(header: Any, path: Path, channels_named: bool) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """Voxels (c, z, y, x), and a note where it is a guess that the fourth axis holds channels."""
    sizes = [int(n) for n in header["dim"]]
    axes = sizes[0]
    if not 2 <= axes <= 7 or min(sizes[1 : axes + 1]) < 1:
        raise ImageError(f"header states impossible dimensions {sizes}", where=path, hint=_AGAIN)
    x, y, z, *rest = [*sizes[1 : axes + 1], 1, 1][: max(axes, 3)]
    more = [n for n in rest if n > 1]
    if len(more) > 1:
        raise ImageError(f"has {axes} axes {sizes[1 : axes + 1]}", where=path, hint="split it into one file per time")
    if not more or channels_named or rest[0] == 1:
        return (more[0] if more else 1, z, y, x), ()
    unit = _TIME.get(int(header["xyzt_units"]) & 0x38)
    if unit:
        raise ImageError(
            f"is a 4D series of {more[0]} volumes over time (its fourth axis is in {unit})",
            where=path,
            hint="give one volume per file, or name its channels",
        )
    return (more[0], z, y, x), (f"its fourth axis is taken as {more[0]} channels",)


def _voxels(
    stream: ByteStream, header: Any, at: int, shape: Sequence[int]
) -> tuple[Shaped[np.ndarray, "c z y x"], tuple[str, ...]]:
    """The stored voxels, read from a stream that is `at` bytes from its start, and a note about what lies behind."""
    path = stream.path
    dtype, notes = _dtype(header, path)
    stated = float(header["vox_offset"])
    if not math.isfinite(stated) or stated != int(stated) or (stated != 0 and stated < at):
        raise ImageError(f"vox_offset is {stated:g}", where=path, hint=_AGAIN)
    start = int(stated) or (header.single_vox_offset if at else 0)
    promised = math.prod(shape) * dtype.itemsize
    if start + promised > stream.most:
        held = max(0, stream.size - start)
        raise ImageError(
            f"is cut off: its header promises {promised} bytes of voxels and the file can hold {held}",
            where=path,
            hint=_AGAIN,
        )
    stream.skip(start - at)
    raw = np.empty(promised, np.uint8)
    held = stream.fill(raw)
    if held < promised:
        raise ImageError(
            f"is cut off: holds {held // dtype.itemsize} of {math.prod(shape)} voxels", where=path, hint=_AGAIN
        )
    surplus = stream.skip(_SURPLUS + 1)
    if surplus > _SURPLUS:
        raise ImageError("holds far more bytes than its header promises voxels", where=path, hint=_AGAIN)
    behind = (f"{surplus} bytes behind the voxels are left out",) if surplus else ()
    return raw.view(dtype).reshape(shape), (*notes, *behind)


def _dtype(header: Any, path: Path) -> tuple[np.dtype[Any], tuple[str, ...]]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        raise ImageError(f"has unknown voxel type {int(header['datatype'])}", where=path, hint=_AGAIN) from error
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "colour or binary"
        raise ImageError(f"has {kind} voxels", where=path, hint="save one number per voxel, one file per channel")
    bits = int(header["bitpix"])
    if bits == 8 * dtype.itemsize:
        return dtype, ()
    return dtype, (f"bitpix is {bits} where the voxel type has {8 * dtype.itemsize} bits; the type is used",)


def _scaled(
    stored: Shaped[np.ndarray, "c z y x"], header: Any, path: Path
) -> tuple[Shaped[np.ndarray, "c z y x"], tuple[str, ...]]:
    """Scanner units: slope times stored plus intercept; a slope of 0 or NaN means that there is none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    none = slope == 0 or math.isnan(slope)
    if math.isinf(slope) or (not none and not math.isfinite(inter)):
        raise ImageError(f"intensity scaling is not finite ({slope:g}, {inter:g})", where=path, hint=_AGAIN)
    ignored = none and math.isfinite(inter) and inter != 0
    notes = (f"intercept {inter:g} is not applied because no slope is stated",) if ignored else ()
    plain = none or (slope == 1 and inter == 0)
    if plain and stored.dtype.kind in "iu":
        return stored.astype(stored.dtype.newbyteorder("="), copy=False), notes
    with np.errstate(over="ignore", invalid="ignore"):
        array = stored.astype(np.float32, copy=False)
        if not plain:
            array *= np.float32(slope)
            array += np.float32(inter)
    return array, notes
