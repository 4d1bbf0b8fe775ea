"""Make the channels of an image those a model asks for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medseg.errors import ImageError
from medseg.io.raster import RASTER
from medseg.types.image import Image

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. ITU-R BT.601


def is_colour_picture(parts: Mapping[int, Path], channels: int) -> bool:
    """Whether the one file of a case, its channel 0, is a picture that has all three as colours (nnU-Net's layout).

    >>> is_colour_picture({0: Path("road_0000.png")}, 3), is_colour_picture({0: Path("brain_0000.nii.gz")}, 3)
    (True, False)
    """
    return channels == 3 and parts.keys() == {0} and parts[0].suffix.lower() in RASTER


def match_channels(image: Image, expected: int, path: Path) -> Image:
    """The image with `expected` channels (0 = as it is); colours become grey. Raises ImageError naming `path`."""
    count = len(image.array)
    if expected in (0, count):
        return image
    flat = image.source is not None and image.source.format in ("png", "tif", "bmp", "dicom", "dicom-us")
    if expected == 1 and count == 3 and flat:
        if same_channels(image.array):
            return replace(image, array=image.array[:1], channels=image.channels[:1])
        grey = np.tensordot(_LUMINANCE, image.array.astype(np.float32), axes=1)[np.newaxis]
        if image.array.dtype.kind in "iu":
            grey = np.rint(grey).astype(image.array.dtype)
        warnings = (*image.warnings, "colours are converted to grey by luminance")
        return replace(image, array=grey, channels=image.channels[:1], warnings=warnings)
    raise ImageError(
        f"has {count} channels where {expected} are expected", where=path, hint="give one file per channel"
    )


def same_channels(array: Shaped[np.ndarray, "c z y x"]) -> bool:
    """Whether every channel holds the same values."""
    return all(np.array_equal(array[0], other) for other in array[1:])
