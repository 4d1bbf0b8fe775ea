"""A DICOM Segmentation as it stands in its file: segments, frames with their place, and masks read one by one.

Independent of the writer: only tags and bits, no library that knows about segmentations.
"""

import struct
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float64, Shaped
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID

from medseg.errors import DicomError
from medseg.io.dicom_headers import open_data_set
from medseg.types.labels import Code

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_LARGEST = 1 << 26  # pixels of one frame; nothing real comes near
_UNDEFINED = 0xFFFFFFFF
_SURE, _RATIO = 1 << 26, 1000  # bytes of compressed frames: no more than this, or this many times the file
_AGAIN = "export the segmentation again"


@dataclass(frozen=True)
class SegFrame:
    """One frame: its segment (0 in a labelmap), the first pixel's centre and the steps to the next row and column.

    A file without a frame of reference (2D ultrasound) has pixels and the number of the source frame for coordinates.
    """

    index: int
    segment: int
    position_mm: tuple[float, float, float]
    row_step_mm: tuple[float, float, float]
    column_step_mm: tuple[float, float, float]

    def points(self, sums: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
        """Sum of the LPS points of pixels, from their number and the sums of their rows and columns."""
        steps = np.array([self.position_mm, self.row_step_mm, self.column_step_mm])
        summed: np.ndarray = sums @ steps
        return summed


@dataclass(frozen=True)
class SegFile:
    """What a SEG says but for its pixels; `step_mm` is the distance of its planes, NaN if unstated.

    `kind` is BINARY, FRACTIONAL or LABELMAP; segments are (number, name, code) in file order, background left out.
    """

    path: Path
    kind: str
    segments: tuple[tuple[int, str, Code | None], ...]
    frames: tuple[SegFrame, ...]
    shape: tuple[int, int]
    step_mm: float
    frame_of_reference_uid: str | None
    series_uid: str | None
    highest: int
    syntax: str
    bits: int
    offset: int

    def sheet_normal(self) -> Float64[np.ndarray, " 3"]:
        """Unit normal of the first frame, x cross y."""
        frame = self.frames[0]
        normal = np.cross(frame.column_step_mm, frame.row_step_mm)
        unit: np.ndarray = normal / np.linalg.norm(normal)
        return unit


def open_seg(path: Path) -> SegFile:
    """Read everything but the pixels.

    Raises DicomError for what is no SEG, holds fewer frames than it says, or has segments or frames without a place.
    """
    try:
        with path.open("rb") as file, python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            opened = open_data_set(file)
            if not opened.little:
                raise ValueError("big-endian pixels are not read")
            data = read_dataset(opened.file, opened.implicit, True, stop_when=_at_pixels)
            offset, length = _pixel_bytes(opened.file, opened.implicit)
            return _described(path, data, opened.syntax, offset, length)
    except (InvalidDicomError, struct.error) as error:
        raise DicomError("is not a DICOM file with pixels", where=path, hint=_AGAIN) from error
    except (DicomError, OSError):
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DicomError(f"lacks what a segmentation must say ({error})", where=path, hint=_AGAIN) from error


def read_frames(seg: SegFile, frames: Sequence[SegFrame]) -> Iterator[Shaped[np.ndarray, "y x"]]:
    """The stored pixels of these frames, in their order, one at a time; 0 and 1 in kind BINARY.

    Raises DicomError where the file is cut short or a frame cannot be decoded.
    """
    if UID(seg.syntax).is_encapsulated:
        yield from _decoded(seg, [frame.index for frame in frames])
        return
    with seg.path.open("rb") as file:
        opened = open_data_set(file).file  # in memory if deflated
        for frame in frames:
            yield _native(opened, seg, frame.index)


def _decoded(seg: SegFile, indices: list[int]) -> Iterator[Shaped[np.ndarray, "y x"]]:
    if not indices:
        return
    count = 0
    try:
        for pixels in iter_pixels(seg.path, indices=indices, raw=True):
            count += 1
            yield pixels
    except Exception as error:  # decoders raise many kinds on damaged data
        what = (
            f"frame {indices[count] + 1 if count < len(indices) else count} cannot be decoded ({type(error).__name__})"
        )
        raise DicomError(what, where=seg.path, hint=_AGAIN) from error


def _at_pixels(tag: Any, vr: str | None, length: int) -> bool:
    return bool(tag >= 0x7FE00010)


def _native(file: BinaryIO, seg: SegFile, index: int) -> Shaped[np.ndarray, "y x"]:
    pixels = seg.shape[0] * seg.shape[1]
    first, last = index * pixels * seg.bits, (index + 1) * pixels * seg.bits
    file.seek(seg.offset + first // 8)
    raw = np.frombuffer(file.read((last + 7) // 8 - first // 8), np.uint8)
    if len(raw) * 8 < last - first // 8 * 8:
        raise DicomError(f"is cut off in frame {index + 1}", where=seg.path, hint=_AGAIN)
    if seg.bits == 1:
        return np.unpackbits(raw, bitorder="little")[first % 8 :][:pixels].reshape(seg.shape)
    return raw.view(np.uint8 if seg.bits == 8 else "<u2").reshape(seg.shape)


def _pixel_bytes(file: BinaryIO, implicit: bool) -> tuple[int, int]:
    """Where the pixels of native data begin, and how many bytes they are (-1 if in fragments)."""
    head = file.read(8)
    (length,) = struct.unpack("<I", head[4:8] if implicit else file.read(4))
    return file.tell(), -1 if length == _UNDEFINED else length


def _described(path: Path, data: Any, syntax: str, offset: int, length: int) -> SegFile:
    if str(data.get("SOPClassUID")) not in _CLASSES:
        raise DicomError("is no DICOM Segmentation", where=path, hint="give a SEG object")
    kind, shape = str(data.SegmentationType), (int(data.Rows), int(data.Columns))
    bits, count = int(data.BitsAllocated), int(data.NumberOfFrames)
    groups = data.PerFrameFunctionalGroupsSequence
    if (
        kind not in ("BINARY", "FRACTIONAL", "LABELMAP")
        or bits not in (1, 8, 16)
        or not 0 < shape[0] * shape[1] <= _LARGEST
    ):
        raise DicomError(f"is of kind {kind} with {bits} bits and {shape} pixels", where=path, hint=_AGAIN)
    if not UID(syntax).is_transfer_syntax:
        raise DicomError("names no transfer syntax", where=path, hint=_AGAIN)
    most = length if length >= 0 else max(_SURE, _RATIO * path.stat().st_size)
    if len(groups) != count or most * 8 < count * shape[0] * shape[1] * bits:
        raise DicomError(f"does not hold the {count} frames it announces", where=path, hint=_AGAIN)
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    in_patient = bool(data.get("FrameOfReferenceUID"))
    frames = tuple(_frame(i, own, shared, kind, in_patient) for i, own in enumerate(groups))
    segments = tuple(_segment(item) for item in data.SegmentSequence)
    known = {number for number, _, _ in segments}
    if not known - {0} or len(known) < len(segments) or not 0 <= min(known) <= max(known) < 1 << 16 or not frames:
        raise DicomError("has no frames or no segments with numbers of their own", where=path, hint=_AGAIN)
    if kind != "LABELMAP" and {frame.segment for frame in frames} - known:
        raise DicomError("has frames of segments that it does not describe", where=path, hint=_AGAIN)
    series = data.get("ReferencedSeriesSequence") or []
    return SegFile(
        path,
        kind,
        tuple(segment for segment in segments if segment[0] != 0),
        frames,
        shape,
        _step(_group(groups[0], shared, "PixelMeasuresSequence")) if in_patient else 1.0,
        str(data.get("FrameOfReferenceUID") or "") or None,
        str(series[0].SeriesInstanceUID) if len(series) == 1 else None,
        int(data.get("MaximumFractionalValue") or 1),
        syntax,
        bits,
        offset,
    )


def _segment(item: Any) -> tuple[int, str, Code | None]:
    found = item.get("SegmentedPropertyTypeCodeSequence")
    code = None
    value = (found and (found[0].get("CodeValue") or found[0].get("LongCodeValue"))) or None
    if value:
        scheme, meaning = (str(found[0].get(name) or "") for name in ("CodingSchemeDesignator", "CodeMeaning"))
        code = Code(scheme, str(value), meaning)
    return int(item.SegmentNumber), str(item.get("SegmentLabel") or ""), code


def _frame(index: int, own: Any, shared: Any, kind: str, in_patient: bool) -> SegFrame:
    segment = 0
    if kind != "LABELMAP":
        segment = int(_group(own, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    if not in_patient:  # 2D ultrasound: pixel on pixel of the source frame, whose number is the third coordinate
        drawn_on = own.DerivationImageSequence[0].SourceImageSequence[0]
        number = float(drawn_on.get("ReferencedFrameNumber") or 1)
        return SegFrame(index, segment, (0.0, 0.0, number - 1), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    x, y, z = (float(v) for v in _group(own, shared, "PlanePositionSequence").ImagePositionPatient)
    cosines = np.array(_group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
    dy, dx = (float(v) for v in _group(own, shared, "PixelMeasuresSequence").PixelSpacing)
    along_row, along_column = (cosines[0] * dx).tolist(), (cosines[1] * dy).tolist()
    if not np.isfinite([x, y, z, *along_row, *along_column]).all() or min(dx, dy) <= 0:
        raise ValueError(f"frame {index + 1} has no place")
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-3):
        raise ValueError(f"axes of frame {index + 1} are not at right angles")
    return SegFrame(index, segment, (x, y, z), tuple(along_column), tuple(along_row))


def _group(own: Any, shared: Any, keyword: str) -> Any:
    found = own.get(keyword) or shared.get(keyword)
    if not found:
        raise ValueError(keyword)
    return found[0]


def _step(measures: Any) -> float:
    """Distance of planes as stated: between slices, else the thickness of one."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = abs(float(measures.get(name) or 0))
        if np.isfinite(value) and value > 0:
            return value
    return float("nan")
