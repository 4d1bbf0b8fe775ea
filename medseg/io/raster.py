"""Flat image files: PNG and BMP through Pillow, TIFF (single or stack) through tifffile."""

import re
import warnings as python_warnings
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Shaped
from PIL import Image as Picture
from PIL import ImageSequence

from medseg.errors import ImageError
from medseg.io.files import whole_file
from medseg.io.itk import read_pixels
from medseg.types.geometry import Geometry, Vec3
from medseg.types.image import Image, Source

_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "nm": 1e-6}
_AGAIN = "copy or export the file again"
_ALPHA = "transparency is dropped"
Found = tuple[Shaped[np.ndarray, "c z y x"], tuple[str, ...], Vec3 | None]


def read_raster(path: Path, *, stored_values: bool = False) -> Image:
    """Read PNG, BMP or TIFF: array (c, z, y, x), z = 1 or the pages of a TIFF.

    Palettes are expanded to RGB and white-is-zero is inverted, unless `stored_values` (label maps: the number in the
    file counts). Transparency is dropped with a warning. Resolution tags describe printing and are ignored; only
    ImageJ and OME metadata in a metric unit give a spacing in mm, else the unit is "px". Raises ImageError for files
    that are damaged, animated, or hold pages that are no stack.
    """
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        try:
            if path.suffix.lower() in (".tif", ".tiff"):
                array, notes, spacing = _tiff(path, stored_values)
            else:
                array, notes, spacing = _flat(path, stored_values)
        except (OSError, ValueError, SyntaxError, IndexError, KeyError, tifffile.TiffFileError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ImageError(f"cannot be decoded ({error})", where=path, hint=_AGAIN) from error
        except Picture.DecompressionBombError as error:
            raise ImageError("is too large for a 2D image", where=path, hint="save it as NIfTI") from error
    if array.dtype.kind not in "iuf":
        raise ImageError(f"has voxels of type {array.dtype}", where=path, hint="save grey or RGB values")
    dtype = np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    array = np.ascontiguousarray(array, dtype=dtype)
    shape = (array.shape[1], array.shape[2], array.shape[3])
    geometry = Geometry(shape, spacing or (1.0, 1.0, 1.0), unit="mm" if spacing else "px")
    names = tuple(str(i) for i in range(len(array)))
    kind = path.suffix.lower().lstrip(".").replace("tiff", "tif")
    return Image(array, geometry, names, Source((path,), kind), notes)


def write_raster(array: Shaped[np.ndarray, "z y x"], geometry: Geometry, path: Path) -> None:
    """Write one slice, uint8 or uint16, as PNG or TIFF; a TIFF keeps a spacing in mm (ImageJ metadata)."""
    if array.shape[0] != 1:
        raise ImageError(f"{array.shape[0]} slices do not fit a flat image", where=path, hint="write .nii.gz")
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".png":
            Picture.fromarray(np.ascontiguousarray(array[0])).save(temporary, format="PNG")
        elif geometry.unit == "mm":
            _, dy, dx = geometry.spacing_mm
            extra: dict[str, Any] = {"resolution": (1 / dx, 1 / dy), "metadata": {"unit": "mm", "axes": "YX"}}
            tifffile.imwrite(temporary, array[0], imagej=True, **extra)
        else:
            tifffile.imwrite(temporary, array[0], compression="zlib", metadata=None)


def _flat(path: Path, stored_values: bool) -> Found:
    with Picture.open(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ImageError("is animated", where=path, hint="save one file per frame")
        depth, colour = _png_kind(path) if picture.format == "PNG" else (8, 0)
        if depth == 16 and colour in (2, 4, 6):  # Pillow would round these to 8 bit
            pixels = read_pixels(path, io="PNGImageIO")[1]
        else:
            pixels = _pixels(picture, stored_values)
        notes: tuple[str, ...] = ()
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            pixels, notes = pixels[..., :-1], (_ALPHA,)
        if depth < 8 and colour == 0 and pixels.dtype == np.uint8 and picture.mode == "L":
            pixels = pixels // (255 // (2**depth - 1))  # Pillow stretches 2 and 4 bit
    planes = pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return planes[:, np.newaxis], notes, None


def _pixels(picture: Any, stored_values: bool) -> Any:
    if picture.mode == "P" and not stored_values:
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    pixels = np.array(picture)
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _png_kind(path: Path) -> tuple[int, int]:
    """Bit depth and colour type of the PNG header."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24], head[25]


def _tiff(path: Path, stored_values: bool) -> Found:
    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ImageError(f"holds {len(file.series)} unlike images", where=path, hint="save one image per file")
        series, page = file.series[0], file.pages[0]
        axes = series.axes
        try:
            pixels = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            pixels, axes = _frames(path)
        spacing = _spacing(file, page)
        colours = getattr(page, "colormap", None)
        bits = int(page.bitspersample)
        photometric, extra = int(page.photometric), tuple(int(e) for e in page.extrasamples)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    array, notes = _ordered(pixels, axes, path)
    if (photometric == 2 and len(array) > 3) or any(e in (1, 2) for e in extra):
        array, notes = array[: 3 if photometric == 2 else -1], (*notes, _ALPHA)
    if not stored_values and photometric == 3 and colours is not None:
        array = (colours[:, array[0]] >> 8).astype(np.uint8)
    if not stored_values and photometric == 0 and array.dtype.kind == "u":
        white = array.dtype.type(2**bits - 1)
        array, notes = white - array, (*notes, "white-is-zero values are inverted")
    return array, notes, spacing


def _frames(path: Path) -> tuple[Any, str]:
    """Pages of a TIFF whose compression tifffile lacks."""
    with Picture.open(path) as picture:
        if picture.mode in ("CMYK", "YCbCr", "LAB"):
            raise ImageError(f"has {picture.mode} colours", where=path, hint="save it as grey or RGB")
        pages = np.stack([np.asarray(page) for page in ImageSequence.Iterator(picture)])
    return pages, "ZYXS" if pages.ndim == 4 else "ZYX"


def _ordered(pixels: Any, axes: str, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Any TIFF axis order to (c, z, y, x)."""
    long = [(axis, size) for axis, size in zip(axes, pixels.shape, strict=True) if size > 1 or axis in "YX"]
    pixels = pixels.reshape([size for _, size in long])
    kinds = ["c" if axis in "SC" else axis.lower() if axis in "YX" else "z" for axis, _ in long]
    if len(set(kinds)) < len(kinds) or not {"y", "x"} <= set(kinds):
        raise ImageError(f"has axes {axes} of {pixels.shape}", where=path, hint="save it as one stack of slices")
    for kind in "zc":
        if kind not in kinds:
            pixels, kinds = pixels[np.newaxis], [kind, *kinds]
    notes = ("time points are taken as slices",) if "T" in [axis for axis, _ in long] else ()
    return np.transpose(pixels, [kinds.index(kind) for kind in "czyx"]), notes


def _spacing(file: Any, page: Any) -> Vec3 | None:
    """Spacing (z, y, x) in mm where ImageJ or OME metadata state one."""
    if file.is_ome:
        return _ome_spacing(str(file.ome_metadata))
    metadata = file.imagej_metadata or {}
    scale = _MM.get(str(metadata.get("unit", "")).replace("\\u00B5", "µ").lower())
    tags = page.tags
    if scale is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    per_unit = [tags[name].value[0] / tags[name].value[1] for name in ("YResolution", "XResolution")]
    if min(per_unit) <= 0:
        return None
    dz = float(metadata.get("spacing", 1.0 / scale)) * scale
    return dz, scale / per_unit[0], scale / per_unit[1]


def _ome_spacing(xml: str) -> Vec3 | None:
    sizes: list[float] = []
    for axis in "ZYX":
        size = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        scale = _MM.get(unit[1].lower() if unit else "µm")
        if size and scale and float(size[1]) > 0:
            sizes.append(float(size[1]) * scale)
        elif axis == "Z":
            sizes.append(1.0)
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else None
