"""Decode one frame of a DICOM ultrasound file, grey or RGB, without reading the others."""

import re
import tempfile
import warnings as python_warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Shaped
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseg.errors import DicomError, ImageError
from medseg.io.dicom_codecs import code_size, quiet_decoder
from medseg.io.identifiers import shown_uid
from medseg.io.itk import read_pixels

PIXEL_TAGS = """Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames BitsAllocated
    BitsStored HighBit PixelRepresentation RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableData BluePaletteColorLookupTableData AlphaPaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData""".split()
_COLOURS = {"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_RCT": 3, "YBR_ICT": 3, "PALETTE COLOR": 1}
_GREY = {"MONOCHROME1": 1, "MONOCHROME2": 1}
_GDCM = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_LARGEST = 64_000_000  # pixels of a frame; no scanner makes a tenth of it
_AGAIN = "export the file again"
_MARKED = re.compile(rb"JFIF|Adobe")  # a code that says itself which colours it holds
_JPEG_FRAME = re.compile(rb"\xff[\xc0\xc1]\x00\x11\x08.{4}\x03.(.)..(.)", re.DOTALL)  # sampling of two components


def frame_size(header: Any, path: Path) -> tuple[int, int, int, int]:
    """Frames, rows, columns and channels of the decoded image; raises DicomError where they cannot be right."""
    try:
        frames, rows, columns = (int(header.get(name) or 0) for name in ("NumberOfFrames", "Rows", "Columns"))
        samples, bits = int(header.get("SamplesPerPixel") or 0), int(header.get("BitsAllocated") or 0)
        frames = frames or 1
    except (TypeError, ValueError) as error:
        raise DicomError("size of the image is no number", where=path, hint=_AGAIN) from error
    colours, syntax = str(header.get("PhotometricInterpretation", "")), _syntax(header, path)
    if (_COLOURS | _GREY).get(colours) != samples or bits not in (8, 16) or (samples == 3 and bits != 8):
        raise DicomError(
            f"has {samples} samples of {bits} bit, {colours or 'no colour space'}", where=path, hint=_AGAIN
        )
    if min(frames, rows, columns) < 1 or rows * columns > _LARGEST:
        raise DicomError(f"has {frames} frames of {rows} x {columns}", where=path, hint=_AGAIN)
    if frames * _least_bytes(syntax, rows * columns * samples * bits // 8, colours) > path.stat().st_size:
        raise DicomError(f"is too short for {frames} frames of {rows} x {columns}", where=path, hint="copy it again")
    return frames, rows, columns, 3 if colours in _COLOURS else 1


def read_frame(path: Path, header: Any, number: int) -> Shaped[np.ndarray, "c y x"]:
    """Frame `number`, from 0: RGB as uint8 (3, y, x), grey as stored (1, y, x), white high.

    Raises DicomError where it cannot be decoded or has another size than the header says.
    """
    syntax = _syntax(header, path)
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        # damaged run lengths are decoded with a warning only
        python_warnings.filterwarnings("error", module=r"pydicom\.pixels\.decoders\.rle")
        try:
            code = _checked_code(path, header, number, syntax)
            if syntax in _GDCM:
                pixels = _by_gdcm(code, header, syntax)
            else:
                with path.open("rb") as file:
                    pixels = pixel_array(file, index=number)
            planes = _planes(pixels, header)
        except OSError as error:
            if error.errno:
                raise
            raise DicomError(f"frame {number + 1} cannot be decoded", where=path, hint=_AGAIN) from error
        except Exception as error:  # decoders raise many kinds on damaged files
            what = f"frame {number + 1} cannot be decoded ({syntax.name}: {_reason(error)})"
            raise DicomError(what, where=path, hint=_AGAIN) from error
    if planes.shape[1:] != (header.Rows, header.Columns):
        raise DicomError(f"frame {number + 1} decodes to {planes.shape[1:]}", where=path, hint=_AGAIN)
    return planes


class _BadCode(ValueError):
    """A code stream that contradicts the header; its text quotes no tag."""


def _reason(error: Exception) -> str:
    """Texts of libraries may quote the patient; the kind of error does not."""
    return str(error) if isinstance(error, _BadCode) else type(error).__name__


def _planes(pixels: np.ndarray, header: Any) -> Shaped[np.ndarray, "c y x"]:
    colours = str(header.PhotometricInterpretation)
    if colours == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)[..., :3]
        if pixels.dtype == np.uint16 and _lut_top(header) > 255:
            pixels = pixels >> 8
    if colours in _COLOURS:
        return np.moveaxis(pixels, -1, 0).astype(np.uint8)
    stored, high = int(header.BitsStored), int(header.get("HighBit") or header.BitsStored - 1)
    if not header.get("PixelRepresentation"):
        pixels = (pixels >> (high + 1 - stored)) & (2**stored - 1)  # other bits may hold overlays
        if colours == "MONOCHROME1":
            pixels = 2**stored - 1 - pixels
    elif colours == "MONOCHROME1":
        pixels = -1 - pixels
    return pixels[np.newaxis]


def _lut_top(header: Any) -> int:
    """Largest entry of the palette; some writers store 8-bit colours in its 16-bit entries unscaled."""
    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    tables = [np.frombuffer(header[name].value, "<u2") for name in names if name in header]
    return max((int(table.max()) for table in tables if table.size), default=65535)


def _syntax(header: Any, path: Path) -> UID:
    syntax = header.file_meta.get("TransferSyntaxUID")
    known = isinstance(syntax, UID) and not syntax.is_private and syntax.is_transfer_syntax
    if not known or syntax == DeflatedExplicitVRLittleEndian:
        name = "deflated" if known else f"in transfer syntax {shown_uid(str(syntax or '')) or 'unknown'}"
        raise DicomError(f"is {name}, which is not read for ultrasound", where=path, hint="export it uncompressed")
    return syntax


def _checked_code(path: Path, header: Any, number: int, syntax: UID) -> bytes:
    """The code stream of one JPEG or JPEG 2000 frame, whole and of the right size; nothing for other syntaxes.

    Decoders fill up in silence what a cut stream lacks, and take memory for whatever size it states.
    """
    if not syntax.is_encapsulated or syntax == RLELossless:
        return b""
    with path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])
        file.read(12)  # tag, OB and undefined length of PixelData
        code: bytes = get_frame(file, number, number_of_frames=int(header.get("NumberOfFrames") or 1))
    size = code_size(code, str(syntax))
    if size is not None and size != (header.Rows, header.Columns):
        raise _BadCode(f"its code states {size[0]} x {size[1]} pixels")
    if size is not None and b"\xff\xd9" not in code[-16:]:
        raise _BadCode("its code is cut short")
    if header.PhotometricInterpretation == "RGB" and _is_subsampled(code) and not _MARKED.search(code[:256]):
        raise _BadCode("its code holds YCbCr, the header says RGB")
    return code


def _is_subsampled(code: bytes) -> bool:
    """Whether a JPEG code has fewer samples of the second colour than of the first, as only YCbCr has."""
    found = _JPEG_FRAME.search(code[:65536])
    return found is not None and found[1] != found[2]


def _by_gdcm(code: bytes, header: Any, syntax: UID) -> np.ndarray:
    """One frame as a file of its own through GDCM, for codes that pydicom and Pillow lack."""
    single = pydicom.Dataset()
    single.file_meta = FileMetaDataset()
    single.file_meta.TransferSyntaxUID = syntax
    single.SOPClassUID, single.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"
    for name in PIXEL_TAGS[:10]:
        if name in header and name != "NumberOfFrames":
            setattr(single, name, header[name].value)
    if header.SamplesPerPixel == 1:
        single.PhotometricInterpretation = "MONOCHROME2"  # palette and inversion are applied by the caller
    single.PixelData = encapsulate([code])
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        bare = Path(folder) / "frame.dcm"
        single.save_as(bare, enforce_file_format=True)
        try:
            with quiet_decoder():
                _, pixels = read_pixels(bare, io="GDCMImageIO")
        except ImageError as error:
            raise _BadCode("damaged code stream") from error
    frame: np.ndarray = pixels[0]
    return frame


def _least_bytes(syntax: UID, raw: int, colours: str) -> int:
    """Bytes that a frame takes at least in the file."""
    if syntax.is_encapsulated:
        return 64 if syntax == RLELossless else 8
    return raw * 2 // 3 if colours == "YBR_FULL_422" else raw
