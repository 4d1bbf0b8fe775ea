"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): places through SimpleITK, which is imported on first use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medseg.errors import ImageError
from medseg.io.files import whole_file
from medseg.io.itk_place import header_place
from medseg.io.itk_voxels import META, check_voxels, read_header, read_voxels, stored_voxels
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source

_AGAIN = "copy or export the file again"


def read_itk(path: Path, *, channels_named: bool = False) -> Image:
    """Read a MetaImage or NRRD file: array (c, z, y, x), geometry in LPS mm.

    Vector voxels become channels, and so does a fourth axis if `channels_named`; float64 becomes float32. Where the
    header states no spacing, the unit is "px". Raises ImageError for truncated or damaged data (checksums are
    verified; ITK itself reads on), complex voxels and a fourth axis that nobody named; GeometryError for units of
    length other than mm.
    """
    fields, end = read_header(path)
    meta = path.suffix.lower() in META
    stored = stored_voxels(fields, end, path)
    info = _information(path, "MetaImageIO" if meta else "NrrdImageIO")
    sizes = [n for axis, n in enumerate(stored.sizes) if axis != stored.channel_axis]
    if list(info.GetSize()) != sizes or len(sizes) > 4 or len(sizes) < 2:
        raise ImageError(f"has axes of {stored.sizes}", where=path, hint="save one volume per file")
    if len(sizes) == 4 and (not channels_named or stored.channel_axis is not None):
        what = f"is a 4D series of {sizes[3]} volumes"
        raise ImageError(what, where=path, hint="give one volume per file, or name its channels")
    geometry, notes = header_place(info, fields, stored, path)
    array, more = read_voxels(stored, path)
    array = array.reshape(-1, *geometry.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
        array = np.ascontiguousarray(array, dtype=dtype)
    names = tuple(str(i) for i in range(len(array)))
    files = (path,) if stored.data == path else (path, stored.data)
    return Image(array, geometry, names, Source(files, "metaimage" if meta else "nrrd"), (*notes, *more))


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
            check_voxels(stored_voxels(*read_header(lower), lower))  # ITK does not report a full disk
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
        raise ImageError(f"cannot be decoded ({_reason(error)})", where=path, hint=_AGAIN) from error
    return image, sitk.GetArrayFromImage(image)


def _information(path: Path, io: str) -> Any:
    """What ITK reads of a header: sizes and place, no voxels."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"its header cannot be read ({_reason(error)})", where=path, hint=_AGAIN) from error
    return reader


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
