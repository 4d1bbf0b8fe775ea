"""Flat image files: PNG and BMP through Pillow, TIFF (see `tiff.py`)."""

import warnings as python_warnings
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Shaped
from PIL import Image as Picture

from medseg.errors import ImageError, MedsegError
from medseg.io.byte_stream import LARGEST_RATIO
from medseg.io.files import whole_file
from medseg.io.itk import read_pixels
from medseg.io.tiff import ALPHA, TURNED, Found, read_tiff
from medseg.types.geometry import Geometry
from medseg.types.image import Image, Source

RASTER = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_AGAIN = "copy or export the file again"
_FORMATS = ("PNG", "BMP", "JPEG")  # by content; Pillow would run other programs for some others


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
                array, notes, spacing = read_tiff(path, stored_values)
            else:
                array, notes, spacing = _flat(path, stored_values)
        except (MedsegError, MemoryError):
            raise
        except Picture.DecompressionBombError as error:
            raise ImageError("is too large for a 2D image", where=path, hint="save it as NIfTI") from error
        except Exception as error:  # decoders raise many kinds on damaged files
            if isinstance(error, OSError) and error.errno:
                raise
            raise ImageError(f"cannot be decoded ({error or type(error).__name__})", where=path, hint=_AGAIN) from error
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
    with Picture.open(path, formats=_FORMATS) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise ImageError("is animated", where=path, hint="save one file per frame")
        depth, colour = _png_kind(path) if picture.format == "PNG" else (8, 0)
        promised = picture.width * picture.height * len(picture.getbands()) * depth // 8
        if promised > LARGEST_RATIO * path.stat().st_size:
            raise ImageError(f"its header promises {promised} bytes, which it cannot hold", where=path, hint=_AGAIN)
        if depth == 16 and colour in (2, 4, 6):  # Pillow would round these to 8 bit
            pixels = read_pixels(path, io="PNGImageIO")[1]
        else:
            pixels = _pixels(picture, stored_values)
        notes = ("is a JPEG file, whose grey values are approximate",) if picture.format == "JPEG" else ()
        if picture.getexif().get(274, 1) not in (0, 1):
            notes = (*notes, TURNED)
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            pixels, notes = pixels[..., :-1], (*notes, ALPHA)
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
