"""Stored values of single frames: where a frame's bytes lie in its file, and their decoding."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped
from pydicom.uid import DeflatedExplicitVRLittleEndian as Deflated
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medseg.errors import DicomError
from medseg.io.dicom_codecs import code_size, decode
from medseg.io.dicom_headers import Header, Pixels, open_data_set
from medseg.io.dicom_kinds import known_colours
from medseg.io.dicom_values import tag_name

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, Deflated)
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_AGAIN = "export the series again"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff")  # of JPEG and JPEG 2000 streams
_DENSEST = 1000  # decoded bytes per compressed byte, above which small files are taken for bombs
_SMALL = 64 << 20  # decoded bytes of a frame that are always allowed
Span = tuple[int, int]  # offset and length in bytes


def check_frames(header: Header) -> None:
    """Refuse what cannot be decoded, or claims more pixels than its file can hold, before anything is allocated.

    Raises DicomError naming file and tag.
    """
    pixels = header.pixels
    _check_layout(header)
    need = frame_bytes(pixels) * header.frames
    if _is_native(header):
        if pixels.length < 0:
            raise DicomError("native pixels have no length", where=header.path, hint=_AGAIN)
        held = pixels.length if header.syntax == Deflated else min(pixels.length, header.bytes - pixels.offset)
        if held < need:
            raise DicomError(
                f"pixel data are truncated: {held} bytes of {need}", where=header.path, hint="copy the file again"
            )
        if held - need > 1 and not _is_padding(header, need, held):
            raise DicomError(
                f"holds {held} bytes of pixels where {tag_name('Rows')} and {tag_name('Columns')} say {need}",
                where=header.path,
                hint=_AGAIN,
            )
        return
    packed = sum(length for spans in _spans(header) for _, length in spans)
    if need > _SMALL and need > _DENSEST * packed:
        raise DicomError(
            f"{packed} bytes cannot hold an image of {pixels.rows} x {pixels.columns}", where=header.path, hint=_AGAIN
        )


def frame_bytes(pixels: Pixels) -> int:
    """Bytes of one decoded frame as stored."""
    return pixels.rows * pixels.columns * pixels.samples * pixels.allocated // 8


def stored_frame(header: Header, frame: int) -> Shaped[np.ndarray, "y x"] | Shaped[np.ndarray, "s y x"]:
    """The values of one frame before any rescaling, in native byte order; colours are RGB.

    Bits outside BitsStored may still be set. Raises DicomError naming the file.
    """
    try:
        if _is_native(header):
            return _native(header, frame)
        with header.path.open("rb") as file:
            code = b"".join(_read(file, span, header.path) for span in _spans(header)[frame])
    except OSError as error:
        raise DicomError(f"cannot be read ({error.strerror})", where=header.path, hint="copy the file again") from error
    pixels = header.pixels
    stated = code_size(code, header.syntax)
    if stated not in {None, (pixels.rows, pixels.columns)}:
        size = f"is {stated[0]} x {stated[1]}" if stated and all(stated) else "has no size"
        raise DicomError(
            f"its compressed image {size}, its header says {pixels.rows} x {pixels.columns}",
            where=header.path,
            hint=_AGAIN,
        )
    found = decode(code, header)
    if pixels.samples == 1:
        return found.reshape(pixels.rows, pixels.columns)
    return np.moveaxis(found.reshape(pixels.rows, pixels.columns, pixels.samples), -1, 0)


def _is_padding(header: Header, need: int, held: int) -> bool:
    """Whether what follows the last frame is less than a frame, and nothing but zeros."""
    if header.syntax == Deflated or held - need >= frame_bytes(header.pixels):
        return False
    with header.path.open("rb") as file:
        return not any(_read(file, (header.pixels.offset + need, held - need), header.path))


def is_plain(header: Header) -> bool:
    """Whether stored values keep all their allocated bits: native and run-length files."""
    return _is_native(header) or header.syntax == RLELossless


def _is_native(header: Header) -> bool:
    return header.syntax in _NATIVE


def _check_layout(header: Header) -> None:
    pixels, path = header.pixels, header.path
    if not pixels.form:
        raise DicomError("holds no pixels; it is cut short or a header alone", where=path, hint="copy the file again")
    allowed = {"int": (8, 16, 32), "float": (32,), "double": (64,)}[pixels.form]
    if pixels.allocated not in allowed:
        raise DicomError(f"{tag_name('BitsAllocated')} is {pixels.allocated}", where=path, hint="not supported")
    aligned = is_plain(header) or pixels.stored == pixels.high + 1
    fits = 1 <= pixels.stored <= pixels.allocated and pixels.stored <= pixels.high + 1 <= pixels.allocated
    if not fits or not aligned:
        raise DicomError(
            f"{tag_name('BitsStored')} {pixels.stored} and {tag_name('HighBit')} {pixels.high} do not fit",
            where=path,
            hint=_AGAIN,
        )
    if pixels.samples not in {1, 3}:
        raise DicomError(f"{tag_name('SamplesPerPixel')} is {pixels.samples}", where=path, hint="not supported")
    allowed_colours = {1: ("MONOCHROME1", "MONOCHROME2"), 3: ("RGB", "YBR_FULL", "YBR_RCT", "YBR_ICT", "YBR_FULL_422")}
    native_422 = _is_native(header) and pixels.photometric == "YBR_FULL_422"
    if pixels.photometric not in allowed_colours[pixels.samples] or native_422:
        raise DicomError(
            f"{tag_name('PhotometricInterpretation')} is {known_colours(pixels.photometric)}",
            where=path,
            hint="only grey values and RGB make a volume",
        )


def _native(header: Header, frame: int) -> Shaped[np.ndarray, "y x"] | Shaped[np.ndarray, "s y x"]:
    pixels = header.pixels
    size = frame_bytes(pixels)
    kind = "f" if pixels.form != "int" else "i" if pixels.signed else "u"
    dtype = np.dtype(f"{'>' if header.syntax == ExplicitVRBigEndian else '<'}{kind}{pixels.allocated // 8}")
    with header.path.open("rb") as file:
        opened = open_data_set(file).file if header.syntax == Deflated else file
        start, odd = frame * size, frame * size % 2 if pixels.swapped else 0
        data = _read(opened, (pixels.offset + start - odd, size + (odd + size) % 2 * pixels.swapped + odd), header.path)
    if pixels.swapped:
        data = np.frombuffer(data, np.uint16).byteswap().tobytes()[odd : odd + size]
    flat = np.frombuffer(data, dtype)
    flat = flat.astype(dtype.newbyteorder("="), copy=False)
    if pixels.samples == 1:
        return flat.reshape(pixels.rows, pixels.columns)
    if pixels.planar:
        found = flat.reshape(pixels.samples, pixels.rows, pixels.columns)
    else:
        found = np.moveaxis(flat.reshape(pixels.rows, pixels.columns, pixels.samples), -1, 0)
    return _rgb(found) if pixels.photometric == "YBR_FULL" else found


def _rgb(ybr: Shaped[np.ndarray, "s y x"]) -> Shaped[np.ndarray, "s y x"]:
    """Full-range YCbCr of 8 bits to RGB (PS3.3 C.7.6.3.1.2)."""
    matrix = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    centred = ybr.astype(np.float64) - np.array([0, 128, 128]).reshape(3, 1, 1)
    return np.clip(np.rint(np.tensordot(matrix, centred, axes=1)), 0, 255).astype(np.uint8)


def _read(file: BinaryIO, span: Span, path: Path) -> bytes:
    file.seek(span[0])
    data = file.read(span[1])
    if len(data) < span[1]:
        raise DicomError(
            f"pixel data are truncated: {len(data)} bytes of {span[1]}", where=path, hint="copy the file again"
        )
    return data


def _spans(header: Header) -> tuple[tuple[Span, ...], ...]:
    offset, length = header.pixels.offset, header.pixels.length
    end = header.bytes if length < 0 else min(offset + length, header.bytes)
    return _frame_spans(header.path, offset, header.frames, end, header.path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _frame_spans(path: Path, offset: int, frames: int, end: int, changed: int) -> tuple[tuple[Span, ...], ...]:
    """Where the fragments of every frame lie, for a file as it was when last changed.

    Raises DicomError where that cannot be told.
    """
    with path.open("rb") as file:
        table, fragments = _fragments(file, offset, end, path)
        if frames == 1:
            return (tuple(fragments),)
        if len(fragments) == frames:
            return tuple((span,) for span in fragments)
        starts = _starts(file, table, fragments, frames)
    if len(starts) != frames or starts[0] != 0:
        raise DicomError(
            f"{len(fragments)} fragments of compressed pixels cannot be shared out to {frames} frames",
            where=path,
            hint=_AGAIN,
        )
    ends = [*starts[1:], len(fragments)]
    return tuple(tuple(fragments[a:b]) for a, b in zip(starts, ends, strict=True))


def _fragments(file: BinaryIO, offset: int, end: int, path: Path) -> tuple[bytes, list[Span]]:
    """The offset table and every fragment up to the end mark, or up to `end`."""
    found: list[Span] = []
    at = offset
    while at < end:
        head = _read(file, (at, 8), path)
        if head[:4] == _END:
            break
        (length,) = struct.unpack("<I", head[4:])
        if head[:4] != _ITEM or at + 8 + length > end:
            raise DicomError("pixel data are truncated or not encapsulated", where=path, hint="copy the file again")
        found.append((at + 8, length))
        at += 8 + length
    if len(found) < 2:
        raise DicomError("holds no compressed pixels", where=path, hint="copy the file again")
    return _read(file, found[0], path), found[1:]


def _starts(file: BinaryIO, table: bytes, fragments: Sequence[Span], frames: int) -> list[int]:
    """Index of every frame's first fragment, by the offset table, else by the marks compressed streams begin with."""
    if len(table) == 4 * frames:
        first = fragments[0][0] - 8
        index = {at - 8 - first: i for i, (at, _) in enumerate(fragments)}
        starts = [index.get(offset, -1) for offset in struct.unpack(f"<{frames}I", table)]
        return starts if -1 not in starts and sorted(set(starts)) == starts else []
    heads = []
    for at, _ in fragments:
        file.seek(at)
        heads.append(file.read(3))
    return [i for i, head in enumerate(heads) if head in _STARTS]
