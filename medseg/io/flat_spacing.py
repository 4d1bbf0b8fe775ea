"""The spacing of flat images that state none."""

from dataclasses import replace

from medseg.types.geometry import Geometry
from medseg.types.image import Image


def with_spacing(geometry: Geometry, spacing_mm: tuple[float, float] | None) -> Geometry:
    """The grid of a flat image that states no spacing, with `spacing_mm` (y, x); any other as it is."""
    if spacing_mm is None or geometry.unit != "px" or geometry.shape[0] != 1:
        return geometry
    return replace(geometry, spacing_mm=(1.0, *spacing_mm), unit="mm")


def image_with_spacing(image: Image, spacing_mm: tuple[float, float]) -> Image:
    """The image with `spacing_mm` (y, x), or with a warning where it states a spacing of its own."""
    if image.geometry.unit == "px" and image.geometry.shape[0] == 1:
        return replace(image, geometry=with_spacing(image.geometry, spacing_mm))
    if image.source is not None and image.source.format == "dicom-us":  # the reader has taken it
        return image
    return replace(image, warnings=(*image.warnings, "states a spacing of its own; the given one is not used"))
