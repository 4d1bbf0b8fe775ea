"""TIFF, single or stack, through tifffile; what pages promise is compared with the file before they are decoded."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from jaxtyping import Shaped
from PIL import Image as Picture
from PIL import ImageSequence

from medseg.errors import ImageError
from medseg.types.geometry import Vec3

ALPHA = "transparency is dropped"
TURNED = "its orientation tag asks for a turned display; pixels are read as stored"
Found = tuple[Shaped[np.ndarray, "c z y x"], tuple[str, ...], Vec3 | None]
_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "nm": 1e-6}
_AGAIN = "copy or export the file again"
_MOST_PAGES = 100_000
_LARGEST_RATIO = 4096  # no compression of TIFF packs more bytes into one


def read_tiff(path: Path, stored_values: bool) -> Found:
    """The pages as (c, z, y, x), notes, and the spacing in mm where ImageJ or OME metadata state one.

    Only the file itself is read, whatever its metadata say of others. Raises ImageError for pages that are missing,
    unlike, cut off, or promise more than the file can hold, and whatever tifffile raises on damaged files.
    """
    _check_pages(path)
    with _complaints() as complaints, tifffile.TiffFile(path, _multifile=False) as file:
        if len(file.series) != 1:
            raise ImageError(f"holds {len(file.series)} unlike images", where=path, hint="save one image per file")
        series, page = file.series[0], file.pages[0]
        _check_alone(file, path)
        _check_held(series, path)
        axes = series.axes
        try:
            pixels = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            pixels, axes = _frames(path)
        spacing = _spacing(file, page)
        turned = page.tags.valueof("Orientation", 1) not in (0, 1)
        colours = getattr(page, "colormap", None)
        bits = int(page.bitspersample)
        photometric, extra = int(page.photometric), tuple(int(e) for e in page.extrasamples)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    array, notes = _ordered(pixels, axes, path)
    if (photometric == 2 and len(array) > 3) or any(e in (1, 2) for e in extra):
        array, notes = array[: 3 if photometric == 2 else -1], (*notes, ALPHA)
    if not stored_values and photometric == 3 and colours is not None:
        array = (colours[:, array[0]] >> 8).astype(np.uint8)
    if not stored_values and photometric == 0 and array.dtype.kind == "u":
        white = array.dtype.type(2**bits - 1)
        array, notes = white - array, (*notes, "white-is-zero values are inverted")
    return array, (*notes, *((TURNED,) if turned else ()), *complaints[:3]), spacing


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs as doubtful while a block runs, kept off the terminal."""
    found: list[str] = []
    logger = logging.getLogger("tifffile")

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            found.append("damaged TIFF: " + re.sub(r"^<[^>]*> ", "", record.getMessage()))
        return False

    logger.addFilter(keep)
    try:
        yield found
    finally:
        logger.removeFilter(keep)


def _check_pages(path: Path) -> None:
    """Raise ImageError for a chain of pages that has a loop, leaves the file or is longer than any stack."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[:2] not in (b"II", b"MM"):
            raise ImageError("is no TIFF file", where=path, hint=_AGAIN)
        order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        large = int.from_bytes(head[2:4], order) == 43
        word, entry, start = (8, 20, 8) if large else (2, 12, 4)
        pointer = 8 if large else 4
        at, seen = int.from_bytes(head[start : start + pointer], order), set[int]()
        while at:
            if at in seen or len(seen) > _MOST_PAGES:
                raise ImageError("its pages form a loop", where=path, hint=_AGAIN)
            seen.add(at)
            file.seek(at)
            entries = int.from_bytes(file.read(word), order)
            file.seek(at + word + entry * entries)
            link = file.read(pointer)
            if len(link) < pointer or at + word > size:
                raise ImageError("its list of pages is cut off", where=path, hint=_AGAIN)
            at = int.from_bytes(link, order)


def _check_alone(file: Any, path: Path) -> None:
    """Raise ImageError where OME metadata place some of the pages in other files."""
    xml = str(file.ome_metadata) if file.is_ome else ""
    own = re.search(r'<OME[^>]*\bUUID="([^"]+)"', xml)
    if set(re.findall(r"<UUID[^>]*>\s*([^<\s]+)", xml)) - ({own[1]} if own else set()):
        raise ImageError("is one of several files of an OME image", where=path, hint="save it as one file")


def _check_held(series: Any, path: Path) -> None:
    """Raise ImageError unless every strip or tile of every page lies in the file and can hold its share."""
    size = path.stat().st_size
    if series.dataoffset is not None:
        if series.dataoffset + series.nbytes > size:
            raise ImageError(f"is cut off: {series.nbytes} bytes are promised", where=path, hint=_AGAIN)
        return
    for number, page in enumerate(series.pages):
        if page is None:
            raise ImageError(f"page {number} is missing or in another file", where=path, hint="save one whole file")
        counts, offsets = page.databytecounts, page.dataoffsets
        if len(counts) != math.prod(page.chunked) or len(offsets) != len(counts):
            raise ImageError(f"page {number} lacks some of its strips", where=path, hint=_AGAIN)
        if min(counts) <= 0 or min(offsets) <= 0 or max(o + c for o, c in zip(offsets, counts, strict=True)) > size:
            raise ImageError(f"page {number} is cut off or lacks some of its strips", where=path, hint=_AGAIN)
        ratio = 1 if page.compression == 1 else _LARGEST_RATIO
        if page.size * page.keyframe.bitspersample // 8 > ratio * sum(counts):
            raise ImageError(
                f"page {number} promises {page.nbytes} bytes and cannot hold them", where=path, hint=_AGAIN
            )


def _frames(path: Path) -> tuple[Any, str]:
    """Pages of a TIFF whose compression tifffile lacks."""
    with Picture.open(path, formats=("TIFF",)) as picture:
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
