"""Decode the pixels of single-frame DICOM files into one volume in scanner units."""

import os
import threading
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Shaped
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit

from medseg.errors import DicomError, ImageError
from medseg.io.itk import read_pixels

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_AGAIN = "export the series again"
_INT16 = np.iinfo(np.int16)
_ERROR_STREAM = threading.Lock()  # file descriptor 2 belongs to the whole process


def read_volume(files: Sequence[Path], headers: Sequence[Any]) -> Shaped[np.ndarray, "c z y x"]:
    """Decode files in the given order; rescale slope and intercept are applied slice by slice.

    int16 where every value is a whole number that fits, else float32. MONOCHROME1 (white is low) is inverted within
    the stored range except in CT, whose rescaled values are HU. Values in padding areas stay as stored. Colours come
    as three channels. Raises DicomError naming the file.
    """
    rescaled = {"RescaleSlope" in header and "RescaleIntercept" in header for header in headers}
    if len(rescaled) > 1:
        odd = next(i for i, header in enumerate(headers) if "RescaleSlope" not in header)
        raise DicomError(f"lacks {tag_name('RescaleSlope')}, which other slices have", where=files[odd], hint=_AGAIN)
    volume = np.empty((0, 0, 0, 0), dtype=np.int16)
    for index, (path, header) in enumerate(zip(files, headers, strict=True)):
        planes = _planes(path, header)
        if index == 0:
            volume = np.empty((planes.shape[0], len(files), *planes.shape[1:]), dtype=np.int16)
        if planes.shape != (volume.shape[0], *volume.shape[2:]):
            raise DicomError(f"decodes to {planes.shape}, unlike the first slice", where=path, hint=_AGAIN)
        if volume.dtype == np.int16 and not _fits_int16(planes):
            volume = volume.astype(np.float32)
        volume[:, index] = planes
    return volume


def white_is_low(header: Any) -> bool:
    """Whether stored grey values are to be inverted: MONOCHROME1, but not in CT, where values are HU."""
    return bool(header.get("PhotometricInterpretation") == "MONOCHROME1" and header.get("Modality") != "CT")


def tag_name(keyword: str) -> str:
    """A keyword with its tag.

    >>> tag_name("PixelSpacing")
    'PixelSpacing (0028,0030)'
    """
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _planes(path: Path, header: Any) -> Shaped[np.ndarray, "c y x"]:
    """One slice in scanner units."""
    if "ModalityLUTSequence" in header:
        raise DicomError(f"has a {tag_name('ModalityLUTSequence')}, not a slope", where=path, hint="not supported yet")
    grey = str(header.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if grey and (syntax is None or syntax in _NATIVE):
        plane = _rescale(_native(path), header, path)[np.newaxis]
        return _inverted(plane, header) if white_is_low(header) else plane
    try:
        with _quiet_decoder(syntax == JPEGExtended12Bit):
            _, pixels = read_pixels(path, io="GDCMImageIO")
    except ImageError as error:
        raise DicomError(error.what, where=path, hint=error.hint) from error
    pixels = pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels
    plane = pixels[0]  # GDCM has applied slope and intercept, and inverted MONOCHROME1
    rows, columns = int(header.Rows), int(header.Columns)
    if plane.shape[:2] != (rows, columns):
        raise DicomError(f"decodes to {plane.shape[:2]}, not {(rows, columns)}", where=path, hint=_AGAIN)
    if plane.ndim == 3:
        return np.moveaxis(plane, -1, 0)
    undo = header.get("PhotometricInterpretation") == "MONOCHROME1" and not white_is_low(header)
    return _inverted(plane[np.newaxis], header) if undo else plane[np.newaxis]


def _native(path: Path) -> Shaped[np.ndarray, "y x"]:
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:  # file without preamble
                implicit, little = dataset.original_encoding
                native = (
                    (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian) if little else ExplicitVRBigEndian
                )
                dataset.file_meta.TransferSyntaxUID = native
            pixels = dataset.pixel_array
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise DicomError(f"pixels cannot be decoded ({error})", where=path, hint=_AGAIN) from error
    if pixels.ndim != 2:
        raise DicomError(f"holds pixels of shape {pixels.shape}", where=path, hint=_AGAIN)
    return np.asarray(pixels)


def _rescale(raw: Shaped[np.ndarray, "y x"], header: Any, path: Path) -> Shaped[np.ndarray, "y x"]:
    slope, intercept = _slope(header, path)
    if raw.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        return (raw * slope + intercept).astype(np.float32)
    if (slope, intercept) == (1.0, 0.0):
        return raw
    return raw.astype(np.int64) * int(slope) + int(intercept)


def _slope(header: Any, path: Path) -> tuple[float, float]:
    try:
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    except (TypeError, ValueError) as error:
        raise DicomError(f"{tag_name('RescaleSlope')} is no number", where=path, hint=_AGAIN) from error
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise DicomError(f"{tag_name('RescaleSlope')} is {slope}", where=path, hint=_AGAIN)
    return slope, intercept


def _inverted(planes: Shaped[np.ndarray, "c y x"], header: Any) -> Shaped[np.ndarray, "c y x"]:
    """Mirrored within the stored range, in rescaled values."""
    slope, intercept = _slope(header, Path())
    top = -1 if header.get("PixelRepresentation", 0) else 2 ** int(header.BitsStored) - 1
    mirror = slope * top + 2 * intercept
    if mirror.is_integer() and planes.dtype.kind in "iu":
        return int(mirror) - planes.astype(np.int64)
    return (mirror - planes).astype(np.float32)


def _fits_int16(planes: Shaped[np.ndarray, "c y x"]) -> bool:
    if planes.dtype.kind not in "iu":
        return False
    return bool(planes.min() >= _INT16.min and planes.max() <= _INT16.max)


@contextmanager
def _quiet_decoder(needed: bool) -> Iterator[None]:
    """Keep the JPEG library's notes on 12-bit data, written straight to the error stream, off the terminal."""
    if not needed:
        yield
        return
    with _ERROR_STREAM, Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
