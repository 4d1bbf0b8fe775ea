"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) through SimpleITK, which is imported on first use."""

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medseg.errors import GeometryError, ImageError
from medseg.io.files import whole_file
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source

_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "FLOAT": 4}
_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "DOUBLE": 8}
_META = (".mha", ".mhd")
_AGAIN = "copy or export the file again"
_ZLIB, _GZIP = 15, 31  # window bits of zlib.decompressobj


def read_itk(path: Path, *, channels_named: bool = False) -> Image:
    """Read a MetaImage or NRRD file: array (c, z, y, x), geometry in LPS mm.

    Vector voxels become channels, and so does a fourth axis if `channels_named`; float64 becomes float32. Where the
    header states no spacing, the unit is "px". Raises ImageError for truncated or damaged data (checksums are
    verified; ITK itself reads on), complex voxels and a fourth axis that nobody named; GeometryError for units of
    length other than mm.
    """
    header = _check_file(path)
    meta = path.suffix.lower() in _META
    image, array = _load(path, "MetaImageIO" if meta else "NrrdImageIO")
    if image.GetDimension() == 4 and not channels_named:
        what = f"is a 4D series of {len(array)} volumes"
        raise ImageError(what, where=path, hint="give one volume per file, or name its channels")
    stated = {"elementspacing", "elementsize"} if meta else {"space directions", "spacings"}
    warnings = []
    if not stated & set(header):
        warnings.append("states no spacing; lengths are in pixels")
    if not meta and "space directions" in header and "space" not in header:
        warnings.append("does not name its patient frame; LPS is assumed")
    geometry = _geometry(image, array.shape, pixels=not stated & set(header) or header.get("unit") == "px")
    names = tuple(str(i) for i in range(len(array)))
    return Image(array, geometry, names, Source((path,), "metaimage" if meta else "nrrd"), tuple(warnings))


def write_itk(array: Shaped[np.ndarray, "*k z y x"], geometry: Geometry, path: Path) -> None:
    """Write (z, y, x), or (k, z, y, x) as vectors of k, to .mha or .nrrd, compressed.

    Raises ImageError if the file that was written is not whole.
    """
    import SimpleITK as sitk

    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 4:
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)), isVector=True)
    else:
        image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection([value for row in geometry.direction for value in row])
    if geometry.unit == "px":
        image.SetMetaData("unit", "px")
    with whole_file(path) as temporary:
        lower = temporary.with_suffix(path.suffix.lower())  # ITK takes .MHA for a header with data elsewhere
        try:
            sitk.WriteImage(image, str(lower), useCompression=True)
            _check_file(lower)  # ITK does not report a full disk
            lower.replace(temporary)
        except (RuntimeError, ImageError) as error:
            raise ImageError("cannot be written", where=path, hint="check free space and permissions") from error
        finally:
            if lower != temporary:
                lower.unlink(missing_ok=True)


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's own warnings off the terminal while a block runs."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def read_pixels(path: Path, *, io: str) -> tuple[Any, Any]:
    """The SimpleITK image in a file and its voxels as ITK orders them; `io` names the ITK reader.

    Raises ImageError with ITK's reason.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise ImageError(f"cannot be decoded ({reason})", where=path, hint=_AGAIN) from error
    return image, sitk.GetArrayFromImage(image)


def _load(path: Path, io: str) -> tuple[Any, Shaped[np.ndarray, "c z y x"]]:
    image, array = read_pixels(path, io=io)
    if array.dtype.kind not in "iuf":
        raise ImageError("has complex voxels", where=path, hint="save one number per voxel")
    if image.GetDimension() > 4 or (image.GetDimension() == 4 and image.GetNumberOfComponentsPerPixel() > 1):
        raise ImageError(f"has {image.GetDimension()} axes", where=path, hint="split it into one file per time")
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() < 4:
        array = array[np.newaxis]
    if image.GetDimension() == 2:
        array = array[:, np.newaxis]
    with np.errstate(over="ignore"):
        dtype = np.float32 if array.dtype.kind == "f" else array.dtype
        return image, np.ascontiguousarray(array, dtype=dtype)


def _geometry(image: Any, shape: tuple[int, ...], *, pixels: bool) -> Geometry:
    axes = image.GetDimension()
    spatial = min(axes, 3)
    direction = np.eye(3)
    direction[:spatial, :spatial] = np.reshape(image.GetDirection(), (axes, axes))[:spatial, :spatial]
    origin = [*image.GetOrigin()[:spatial], 0.0][:3]
    dx, dy, dz = [*image.GetSpacing()[:spatial], 1.0][:3]
    rows = [tuple(float(v) for v in row) for row in direction]
    return Geometry(
        (shape[1], shape[2], shape[3]),
        (dz, dy, dx),
        (origin[0], origin[1], origin[2]),
        (rows[0], rows[1], rows[2]),  # type: ignore[arg-type]
        unit="px" if pixels else "mm",
    )


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Header fields with lower-case keys, and the byte after the header."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(1 << 16):
            text = line.decode("utf-8", "replace").strip()
            found = re.match(r"\s*([\w ]+?)\s*(?:=|:=?)\s*(.*)$", text)
            if found:
                fields[found[1].lower()] = found[2]
            if not text or text.lower().startswith("elementdatafile") or file.tell() > 1 << 20:
                break
        return fields, file.tell()


def _check_file(path: Path) -> dict[str, str]:
    """The header fields of a file whose data is whole."""
    header, start = _header(path)
    (_check_meta if path.suffix.lower() in _META else _check_nrrd)(header, start, path)
    return header


def _check_meta(header: dict[str, str], start: int, path: Path) -> None:
    name = header.get("elementdatafile", "")
    size = _BYTES.get(header.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY"))
    numbers = header.get("dimsize", "").split()
    if not name or not size or not numbers or not all(n.isdigit() for n in numbers):
        raise ImageError("is not a MetaImage of numbers", where=path, hint=_AGAIN)
    expected = size * int(header.get("elementnumberofchannels", "1"))
    for n in numbers:
        expected *= int(n)
    local = name.upper() == "LOCAL"
    data = path if local else _beside(path, name)
    if header.get("compresseddata", "").lower() in ("true", "1"):
        _check_stream(data, start if local else 0, _ZLIB, expected)
    elif header.get("binarydata", "true").lower() in ("true", "1"):
        skip = start if local else max(0, int(header.get("headersize", "0")))
        _check_length(data.stat().st_size - skip, expected, data)


def _check_nrrd(header: dict[str, str], start: int, path: Path) -> None:
    units = set(re.findall(r'"([^"]*)"', header.get("space units", ""))) - {"", "mm", "millimeter", "millimetre"}
    if units:
        raise GeometryError(f"space units are {sorted(units)}", where=path, hint="convert the header to mm")
    name = header.get("data file", header.get("datafile", ""))
    data = _beside(path, name) if name else path
    if header.get("encoding", "").lower() in ("gzip", "gz") and "line skip" not in header:
        _check_stream(data, 0 if name else start, _GZIP, None)


def _beside(path: Path, name: str) -> Path:
    data = path.parent / name
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError("is spread over several files", where=path, hint="save it as one .mha or .nrrd file")
    if not data.is_file():
        raise ImageError(f'its data file "{name}" is missing', where=path, hint="keep header and data together")
    return data


def _check_stream(path: Path, start: int, bits: int, expected: int | None) -> None:
    """Decompress to the end without keeping anything, so that zlib compares its checksum."""
    engine = zlib.decompressobj(bits)
    length = 0
    with path.open("rb") as file:
        file.seek(start)
        while not engine.eof and (block := file.read(1 << 16)):
            try:
                length += len(engine.decompress(block))
            except zlib.error as error:
                raise ImageError(f"compressed data is damaged ({error})", where=path, hint=_AGAIN) from error
    if not engine.eof:
        raise ImageError("compressed data is cut off", where=path, hint=_AGAIN)
    if expected is not None:
        _check_length(length, expected, path)


def _check_length(held: int, expected: int, path: Path) -> None:
    if held < expected:
        raise ImageError(f"is cut off: holds {max(held, 0)} of {expected} bytes", where=path, hint=_AGAIN)
