"""DICOM ultrasound: spacing from its regions, single frames as images, cines as frames over time."""

import warnings as python_warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from medseg.errors import DicomError
from medseg.io.dicom_us_frames import PIXEL_TAGS, frame_size, read_frame
from medseg.types.cine import Cine
from medseg.types.geometry import Box, Geometry
from medseg.types.image import Image, Source

FORMAT = "dicom-us"
Spacing = tuple[float, float]

_CLASSES = {f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("3", "3.1", "6", "6.1")}
_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"  # enhanced: frames are planes of a volume
_TAGS = """SOPClassUID Modality SeriesInstanceUID ImagePositionPatient PixelSpacing SequenceOfUltrasoundRegions
    FrameIncrementPointer FrameTime FrameTimeVector CineRate""".split()
_FRAME_TIME, _FRAME_TIME_VECTOR = 0x00181063, 0x00181065
_TWO_D, _TISSUE, _COLOUR_FLOW, _CM = 1, 1, 2, 3
_SPACING = "state the pixel spacing with --spacing MM"
_DEEPEST_MM = 400  # no scan head sees deeper


def is_ultrasound(header: Any) -> bool:
    """Whether a DICOM header is of a 2D ultrasound file: its frames have no place in the patient and are no slices."""
    if header.get("ImagePositionPatient") is not None or header.get("SOPClassUID") == _VOLUME:
        return False
    return header.get("SOPClassUID") in _CLASSES or header.get("Modality") in ("US", "IVUS")


def read_ultrasound(path: Path, *, spacing_mm: Spacing | None = None) -> Image:
    """A single frame as an image of one slice; errors and `spacing_mm` as for `open_cine`.

    Raises DicomError for a cine, whose frames are time and no slices.
    """
    cine = open_cine(path, spacing_mm=spacing_mm)
    if cine.count > 1:
        raise DicomError(
            f"is a cine: {cine.count} frames over time, no slices of a volume",
            where=path,
            hint="predict it with a 2D model, which labels each frame",
        )
    return Image(cine.read(0), cine.geometry, cine.channels, cine.source, cine.warnings)


def open_cine(path: Path, *, spacing_mm: Spacing | None = None) -> Cine:
    """An ultrasound file of one or more frames; no pixel is decoded yet.

    Pixel spacing comes from SequenceOfUltrasoundRegions (its 2D regions in cm), else from PixelSpacing. `spacing_mm`,
    (y, x), counts instead of both, with a warning if it differs from them. Colours are RGB, three channels.

    Raises DicomError without any spacing, with regions that contradict each other, PixelSpacing or the size of the
    image (it was cropped or scaled later), and for damaged headers.
    """
    header = _header(path)
    frames, rows, columns, channels = frame_size(header, path)
    boxes, stated, notes = _spacing(header, path, rows, columns, required=spacing_mm is None)
    dy, dx = spacing_mm or stated or (0.0, 0.0)
    if spacing_mm and stated and not np.allclose(spacing_mm, stated, rtol=0.01):
        notes = (*notes, f"the file states a spacing of {_mm(stated)}; the given {_mm(spacing_mm)} is used")
    if rows * dy > _DEEPEST_MM:
        notes = (*notes, f"is {rows * dy:.0f} mm high by its spacing, deeper than ultrasound reaches")
    times, time_notes = _times(header, frames)

    def read(number: int) -> np.ndarray:
        return read_frame(path, header, number)[:, np.newaxis]

    uid = str(header.get("SeriesInstanceUID", "")) or None
    source = Source((path,), FORMAT, uid, boxes)
    names = tuple(str(i) for i in range(channels))
    geometry = Geometry((1, rows, columns), (1.0, dy, dx))
    return Cine(frames, geometry, names, source, read, times, (*notes, *time_notes))


def is_cine(path: Path) -> bool:
    """Whether a file is DICOM ultrasound of more than one frame; False for whatever cannot be read."""
    try:
        header = _header(path)
        return frame_size(header, path)[0] > 1
    except (DicomError, OSError):
        return False


def _header(path: Path) -> Any:
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *PIXEL_TAGS])
            for element in header.iterall():
                element.value  # noqa: B018  so that damage shows here
            ultrasound = is_ultrasound(header)
    except InvalidDicomError as error:
        raise DicomError("is not a DICOM file", where=path, hint="check the path") from error
    except Exception as error:  # pydicom raises many kinds on damaged files, OSError without a number among them
        if isinstance(error, OSError) and error.errno:
            raise
        raise DicomError(
            f"header cannot be read ({type(error).__name__})", where=path, hint="export it again"
        ) from error
    if not ultrasound:
        raise DicomError("is no 2D ultrasound", where=path, hint="read it as a series")
    return header


def _spacing(
    header: Any, path: Path, rows: int, columns: int, *, required: bool
) -> tuple[tuple[Box, ...], Spacing | None, tuple[str, ...]]:
    """Boxes of tissue, the spacing (y, x) in mm, and warnings; no spacing only where it is not `required`."""
    try:
        regions = _regions(header)
        pixel = _pixel_spacing(header)
        boxes = tuple(_box(region) for region in regions)
        spacings = [_region_mm(region) for region in regions]
        problem = _problem(boxes, spacings, pixel, (rows, columns))
    except (TypeError, ValueError, KeyError):
        boxes, spacings, pixel = (), [], None
        problem = "has an ultrasound region or a spacing without sensible numbers"
    if problem and required:
        raise DicomError(problem, where=path, hint=_SPACING)
    if problem:
        return (), None, (problem,)
    return tuple(_clip(box, rows, columns) for box in boxes), spacings[0] if spacings else pixel, ()


def _problem(boxes: Sequence[Box], spacings: Sequence[Spacing], pixel: Spacing | None, size: tuple[int, int]) -> str:
    """Why the header does not state one spacing; empty if it does."""
    if any(box.stop[1] > size[0] + 1 or box.stop[2] > size[1] + 1 for box in boxes):  # some scanners count from 1
        return "has ultrasound regions beyond its edges: it was cropped or scaled later"
    if any(not np.allclose(other, spacings[0], rtol=0.01) for other in spacings):
        return f"has regions of unlike pixel spacing ({', '.join(sorted({_mm(s) for s in spacings}))})"
    if pixel and spacings and not np.allclose(pixel, spacings[0], rtol=0.01):
        return f"states {_mm(pixel)} as PixelSpacing and {_mm(spacings[0])} in its ultrasound regions"
    return "" if pixel or spacings else "states no pixel spacing, neither in ultrasound regions nor as PixelSpacing"


def _regions(header: Any) -> list[Any]:
    """The 2D regions in cm: those of tissue, or of colour flow where there is none of tissue."""
    found = [
        region
        for region in header.get("SequenceOfUltrasoundRegions") or ()
        if int(region.get("RegionSpatialFormat", 0)) == _TWO_D
        and int(region.get("PhysicalUnitsXDirection", 0)) == _CM
        and int(region.get("PhysicalUnitsYDirection", 0)) == _CM
    ]
    tissue = [region for region in found if int(region.get("RegionDataType", 0)) == _TISSUE]
    return tissue or [region for region in found if int(region.get("RegionDataType", 0)) == _COLOUR_FLOW]


def _region_mm(region: Any) -> Spacing:
    """Spacing (y, x) in mm; a negative delta only tells the direction of its axis."""
    dy, dx = (abs(float(region[name].value)) * 10 for name in ("PhysicalDeltaY", "PhysicalDeltaX"))
    if not (np.isfinite([dy, dx]).all() and min(dy, dx) > 0):
        raise ValueError
    return dy, dx


def _box(region: Any) -> Box:
    x0, y0, x1, y1 = (int(region[f"RegionLocation{end}"].value) for end in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise ValueError
    return Box((0, y0, x0), (1, y1 + 1, x1 + 1))


def _clip(box: Box, rows: int, columns: int) -> Box:
    return Box(box.start, (1, min(box.stop[1], rows), min(box.stop[2], columns)))


def _pixel_spacing(header: Any) -> Spacing | None:
    value = header.get("PixelSpacing")
    if not value:
        return None
    dy, dx = (float(v) for v in value)
    if not (np.isfinite([dy, dx]).all() and min(dy, dx) > 0):
        raise ValueError
    return dy, dx


def _times(header: Any, frames: int) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Seconds since the first frame by FrameTimeVector, FrameTime or CineRate; none with a warning."""
    if frames == 1:
        return (), ()
    try:
        pointer = header.get("FrameIncrementPointer")
        vector = header.get("FrameTimeVector")
        if pointer == _FRAME_TIME_VECTOR or (vector and pointer != _FRAME_TIME):
            steps = [float(v) / 1000 for v in vector]
        else:
            ms, rate = float(header.get("FrameTime") or 0), float(header.get("CineRate") or 0)
            steps = [0.0] + [ms / 1000 if ms else 1 / rate] * (frames - 1)
        if len(steps) == frames and np.isfinite(steps).all() and min(steps[1:]) > 0:
            return tuple(round(float(t), 6) for t in np.cumsum([0.0, *steps[1:]])), ()
    except (TypeError, ValueError, ZeroDivisionError):
        pass
    return (), ("states no usable frame times; frames are numbered only",)


def _mm(spacing: Spacing) -> str:
    return f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"
