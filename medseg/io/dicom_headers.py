"""What a DICOM file says about its image, read from its tags alone: one frozen record a file."""

import stat
import struct
import warnings as python_warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseg.io.dicom_kinds import Kind, image_kind, known_modality, no_plane, not_an_image
from medseg.io.dicom_planes import PLANE_TAGS, Plane, file_planes
from medseg.io.dicom_values import printable, text, whole

INFLATED_LIMIT = 1 << 30  # bytes a deflated file may grow to
_OVERLAYS = tuple(0x60000102 + 0x20000 * i for i in range(16))  # OverlayBitPosition
_KEYWORDS = """SpecificCharacterSet SOPClassUID SOPInstanceUID Modality SeriesDescription StudyInstanceUID
    SeriesInstanceUID FrameOfReferenceUID ImageType InstanceNumber NumberOfFrames ConcatenationUID Rows Columns
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit
    PixelRepresentation""".split()
_TAGS = [Tag(name if isinstance(name, int) else tag_for_keyword(name) or 0) for name in (*_KEYWORDS, *PLANE_TAGS)]
_TAGS += [Tag(tag) for tag in _OVERLAYS]
_UNDEFINED = 0xFFFFFFFF
_FORMS = {  # the tag of the pixel element, little and big endian
    b"\xe0\x7f\x10\x00": "int",
    b"\x7f\xe0\x00\x10": "int",
    b"\xe0\x7f\x08\x00": "float",
    b"\x7f\xe0\x00\x08": "float",
    b"\xe0\x7f\x09\x00": "double",
    b"\x7f\xe0\x00\x09": "double",
}
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"UN", b"OL", b"OV")


@dataclass(frozen=True)
class Pixels:
    """How one file stores its pixels; `offset` and `length` are bytes of the (inflated) file, length -1: fragments."""

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: bool
    allocated: int
    stored: int
    high: int
    signed: bool
    form: str  # "int", "float" or "double"; "" where there are none
    offset: int
    length: int
    overlays: bool  # overlay planes lie in unused bits
    swapped: bool  # bytes lie in words, most significant first


@dataclass(frozen=True)
class Header:
    """One DICOM image file without its pixels and without the patient; picklable.

    `frames` is what the file says; `planes` has one record per frame, or none where a multi-frame file does not place
    its frames (cines, projections).
    """

    path: Path
    kind: Kind
    syntax: str
    sop_class: str
    sop_uid: str
    modality: str
    study_uid: str
    series_uid: str
    frame_uid: str
    concatenation_uid: str
    description: str
    image_type: tuple[str, ...]
    number: int
    frames: int
    pixels: Pixels
    planes: tuple[Plane, ...]
    bytes: int


@dataclass(frozen=True)
class Slice:
    """One image plane and the file it lies in."""

    header: Header
    plane: Plane

    @property
    def name(self) -> str:
        """Path, and the frame (from 1) where the file has several; for messages."""
        path = str(self.header.path)
        return f"{path} frame {self.plane.frame + 1}" if self.header.frames > 1 else path


def read_header(path: Path) -> Header | str:
    """The header of an image file, or the reason why it holds no image that could belong to a scan.

    Only regular files are opened, and pixels are not read. Never raises for what a file holds.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size == 0:
            return "is empty" if stat.S_ISREG(state.st_mode) else "is no regular file"
        with path.open("rb") as file, python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            return _read(path, file, state.st_size)
    except InvalidDicomError:
        return "is not a DICOM file"
    except OSError as error:
        return f"cannot be opened ({error.strerror or type(error).__name__})"
    except Exception as error:  # pydicom raises many kinds on damaged files, RecursionError among them
        return f"header cannot be read ({type(error).__name__})"


@dataclass(frozen=True)
class DataSet:
    """A file at the start of its data set, in memory if it was deflated, and how it is encoded."""

    file: BinaryIO
    syntax: str
    sop_class: str  # as the meta header states it
    implicit: bool
    little: bool


def open_data_set(file: BinaryIO) -> DataSet:
    """Read the meta header of an open file.

    Raises InvalidDicomError for what does not begin like DICOM, ValueError for damaged or too large deflated data.
    """
    start = file.read(2)
    file.seek(0)
    read_preamble(file, start in {b"\x02\x00", b"\x08\x00", b"\x00\x08"})  # old files have no preamble
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax, sop_class = text([meta], "TransferSyntaxUID"), text([meta], "MediaStorageSOPClassUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return DataSet(_inflated(file), syntax, sop_class, False, True)
    if not syntax:
        syntax = _guessed(file)
    return DataSet(file, syntax, sop_class, syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)


def _inflated(file: BinaryIO) -> BinaryIO:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(file.read(), INFLATED_LIMIT)
    except zlib.error as error:
        raise ValueError("deflated data are damaged") from error
    if not stream.eof:
        raise ValueError("deflated data are cut short or too large")
    return BytesIO(data)


def _guessed(file: BinaryIO) -> str:
    """The syntax of a file that does not state one, from the look of its first element."""
    at = file.tell()
    first = file.read(6)
    file.seek(at)
    if not (first[4:6].isalpha() and first[4:6].isupper()):
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRBigEndian if first[:1] == b"\0" else ExplicitVRLittleEndian)


def _read(path: Path, file: BinaryIO, size: int) -> Header | str:
    try:
        opened = open_data_set(file)
    except ValueError as error:
        return str(error)
    data = read_dataset(opened.file, opened.implicit, opened.little, stop_when=_at_pixels, specific_tags=_TAGS)
    places = [data]
    sop_class, modality = text(places, "SOPClassUID") or opened.sop_class, text(places, "Modality")
    image_type = tuple(part.strip().upper() for part in text(places, "ImageType").split("\\"))
    reason = not_an_image(sop_class, modality) or no_plane(image_type)
    pixels = reason or _pixels(data, opened)
    frames = whole(places, "NumberOfFrames", 1, "IS") or 1
    if isinstance(pixels, str) or frames < 0:
        return pixels if isinstance(pixels, str) else "number of frames is no number"
    planes = file_planes(data, frames)
    if isinstance(planes, str):
        return planes
    return Header(
        path,
        image_kind(modality, image_type, placed=bool(planes and planes[0].position)),
        opened.syntax,
        sop_class,
        text(places, "SOPInstanceUID"),
        known_modality(modality),
        text(places, "StudyInstanceUID"),
        text(places, "SeriesInstanceUID"),
        text(places, "FrameOfReferenceUID"),
        text(places, "ConcatenationUID"),
        _description(data),
        image_type,
        whole(places, "InstanceNumber", 0, "IS"),
        frames,
        pixels,
        planes,
        size,
    )


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return 0x7FE00008 <= tag <= 0x7FE00010


def _pixels(data: Any, opened: DataSet) -> Pixels | str:
    places = [data]
    rows, columns = whole(places, "Rows", 0), whole(places, "Columns", 0)
    if rows < 0 or columns < 0:
        return "size of the image is no number"
    head = opened.file.read(12)
    form = _FORMS.get(head[:4], "") if len(head) == 12 else ""
    if rows == 0 or columns == 0 or not (form or text(places, "SeriesInstanceUID")):
        return "holds no pixels"
    if not form:  # a slice that lost its pixels: its series must not go on without it
        head = b"\0" * 12
    long = not opened.implicit and head[4:6] in _LONG_VR
    short = not opened.implicit and not long
    field = head[8:12] if long else head[6:8] if short else head[4:8]
    (length,) = struct.unpack(("<" if opened.little else ">") + ("H" if short else "I"), field)
    allocated = whole(places, "BitsAllocated", 16)
    stored = whole(places, "BitsStored", allocated)
    return Pixels(
        rows,
        columns,
        whole(places, "SamplesPerPixel", 1),
        text(places, "PhotometricInterpretation"),
        whole(places, "PlanarConfiguration", 0) == 1,
        allocated,
        stored,
        whole(places, "HighBit", stored - 1),
        whole(places, "PixelRepresentation", 0) == 1,
        form,
        opened.file.tell() - (0 if long else 4),
        -1 if length == _UNDEFINED else length,
        any(whole(places, tag, 0) for tag in _OVERLAYS),
        allocated == 8 and not opened.little and head[4:6] == b"OW",
    )


def _description(data: Any) -> str:
    try:
        return printable(str(data.get("SeriesDescription", "") or ""))
    except Exception:  # an unknown character set
        return ""
