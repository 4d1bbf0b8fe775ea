"""Decode one compressed frame: JPEG, JPEG-LS and JPEG 2000 by GDCM (through SimpleITK), the rest by pydicom."""

import os
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from pydicom.config import IGNORE
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseg.errors import DicomError, ImageError
from medseg.io.dicom_headers import Header
from medseg.io.identifiers import shown_uid
from medseg.io.itk import read_pixels

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_J2K = (JPEG2000Lossless, JPEG2000)
_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_AGAIN = "export the series again"
_ERROR_STREAM = threading.Lock()  # file descriptor 2 belongs to the whole process
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7\0"


def decode(code: bytes, header: Header) -> Shaped[np.ndarray, "*any"]:
    """Stored values of one frame in the order y, x, sample. Raises DicomError naming the file."""
    syntax = header.syntax
    if syntax in (*_HTJ2K, RLELossless):  # GDCM refuses some run lengths, is slow, and mixes up deep colours
        return _decode_by_pydicom(code, header)
    if syntax not in (*_JPEG, *_J2K):
        raise DicomError(
            f"transfer syntax {_named(syntax)} is not supported",
            where=header.path,
            hint="export the series uncompressed",
        )
    if b"\xff\xd9" not in code[-16:]:  # decoders fill up what a cut stream lacks, without an error
        raise DicomError(
            f"{_named(syntax)} pixels are truncated: the end mark is missing",
            where=header.path,
            hint="copy the file again",
        )
    with _bare_file(code, header) as bare, quiet_decoder():
        try:
            _, found = read_pixels(bare, io="GDCMImageIO")
        except ImageError as error:
            raise DicomError(
                f"{_named(syntax)} pixels cannot be decoded; they are truncated or damaged",
                where=header.path,
                hint="copy the file again",
            ) from error
    return _checked(found, header)


def code_size(code: bytes, syntax: str) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states, before it is decoded; None for others."""
    if syntax in (*_J2K, *_HTJ2K):
        start = code[:256].find(b"\xff\x4f\xff\x51")  # some writers leave the boxes of a .jp2 file in front
        if start < 0 or len(code) < start + 24:
            return 0, 0
        right, below, left, above = struct.unpack(">4I", code[start + 8 : start + 24])
        return below - above, right - left
    if syntax not in _JPEG:
        return None
    at = 2
    while at + 9 <= len(code) and code[at] == 0xFF:
        if code[at + 1] in _FRAME_MARKERS:
            rows, columns = struct.unpack(">HH", code[at + 5 : at + 9])
            return rows, columns
        fill = code[at + 1] == 0xFF
        at += 1 if fill else 2 + struct.unpack(">H", code[at + 2 : at + 4])[0]
    return 0, 0


def _named(syntax: str) -> str:
    return f"{UID(syntax, IGNORE).name} ({syntax})" if shown_uid(syntax) == syntax else "no UID"


def _decode_by_pydicom(code: bytes, header: Header) -> Shaped[np.ndarray, "*any"]:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(UID(header.syntax, IGNORE))
    if not decoder.is_available:
        raise DicomError(
            f"transfer syntax {_named(header.syntax)} needs a decoder that is not installed",
            where=header.path,
            hint="pip install medseg[dicom], or export the series uncompressed",
        )
    pixels = header.pixels
    options = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": pixels.samples,
        "photometric_interpretation": pixels.photometric,
        "planar_configuration": 0,
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_representation": int(pixels.signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    empty = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it decodes damaged run lengths with a warning
            found, _ = decoder.as_array(empty + _item(code), index=0, **options)
    except Exception as error:  # plug-ins raise many kinds
        raise DicomError(f"{_named(header.syntax)} pixels cannot be decoded", where=header.path, hint=_AGAIN) from error
    return _checked(found, header)


def _checked(found: Shaped[np.ndarray, "*any"], header: Header) -> Shaped[np.ndarray, "*any"]:
    """The values with the sign the header says, after a look at their number."""
    pixels = header.pixels
    if found.size != pixels.rows * pixels.columns * pixels.samples:
        raise DicomError(
            f"decodes to {found.size} values, not {pixels.rows} x {pixels.columns} x {pixels.samples}",
            where=header.path,
            hint=_AGAIN,
        )
    if found.dtype.kind not in "iu" or found.dtype.itemsize * 8 != pixels.allocated:
        raise DicomError(f"decodes to {found.dtype}, not {pixels.allocated} bits", where=header.path, hint=_AGAIN)
    return found


@contextmanager
def _bare_file(code: bytes, header: Header) -> Iterator[Path]:
    """A DICOM file that holds this frame and nothing else, so that no other tag of the original meets the decoder."""
    handle, name = tempfile.mkstemp(prefix="medseg-", suffix=".dcm")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_bare_bytes(code, header))
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _bare_bytes(code: bytes, header: Header) -> bytes:
    pixels = header.pixels
    meta = b"".join(
        [
            _element(0x0002, 0x0002, b"UI", _SECONDARY_CAPTURE),
            _element(0x0002, 0x0003, b"UI", b"1.2\0"),
            _element(0x0002, 0x0010, b"UI", _even(header.syntax.encode("ascii"), b"\0")),
        ]
    )
    body = [
        _element(0x0008, 0x0016, b"UI", _SECONDARY_CAPTURE),
        _element(0x0008, 0x0018, b"UI", b"1.2\0"),
        _whole(0x0028, 0x0002, pixels.samples),
        _element(0x0028, 0x0004, b"CS", _even(_photometric(header), b" ")),
        *([_whole(0x0028, 0x0006, int(pixels.planar))] if pixels.samples > 1 else []),
        _whole(0x0028, 0x0010, pixels.rows),
        _whole(0x0028, 0x0011, pixels.columns),
        _whole(0x0028, 0x0100, pixels.allocated),
        _whole(0x0028, 0x0101, pixels.stored),
        _whole(0x0028, 0x0102, pixels.high),
        _whole(0x0028, 0x0103, int(pixels.signed)),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
        struct.pack("<HHI", 0xFFFE, 0xE000, 0),
        _item(code),
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ]
    length = _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta)))
    return b"\0" * 128 + b"DICM" + length + meta + b"".join(body)


def _photometric(header: Header) -> bytes:
    """MONOCHROME1 would be inverted by the decoder."""
    name = header.pixels.photometric
    return b"MONOCHROME2" if name == "MONOCHROME1" else name.encode("ascii")


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def _whole(group: int, element: int, value: int) -> bytes:
    return _element(group, element, b"US", struct.pack("<H", value))


def _item(code: bytes) -> bytes:
    padded = _even(code, b"\0")
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)) + padded


def _even(value: bytes, filler: bytes) -> bytes:
    return value + filler * (len(value) % 2)


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Keep the notes of the JPEG libraries, written straight to the error stream, off the terminal."""
    with _ERROR_STREAM, Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
