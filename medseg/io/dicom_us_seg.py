"""Write labels of ultrasound frames as a DICOM Segmentation (SEG) that refers to the frames of their file.

2D ultrasound has no frame of reference, positions or slice thickness: a frame of the SEG lies on the source frame it
refers to, pixel on pixel, and takes its size from there. highdicom writes such an object for one source frame; the
frames of a cine are then put in its place.
"""

import warnings as python_warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from jaxtyping import Bool
from pydicom.dataset import Dataset as DicomDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import iter_pixels
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import RLELossless

import medseg
from medseg.errors import DicomError
from medseg.io.dicom_seg import derived_uid, highdicom_module, instance_uid, segment_descriptions
from medseg.io.dicom_seg_source import about_source
from medseg.io.files import whole_file
from medseg.io.terminology import plain_text
from medseg.types.image import LabelMap, Source
from medseg.types.result import Provenance

Mask = Bool[np.ndarray, "y x"]
_ONE_FRAME = "1.2.840.10008.5.1.4.1.1.6.1"
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_SEGMENT, _SEGMENT_GROUP = 0x0062000B, 0x0062000A
_TEMPORAL, _CONTENT_GROUP = 0x00209128, 0x00209111


def write_us_seg(
    labels: LabelMap,
    source: Source,
    path: Path,
    made_by: Provenance,
    *,
    kind: Literal["binary", "labelmap"] = "binary",
) -> None:
    """Write labels (frames, y, x) of an ultrasound file; frames without any class are left out, as are empty masks.

    Every frame names its source frame; `TemporalPositionIndex` counts source frames from 1. UIDs as for `write_seg`.
    The file is read again and compared pixel by pixel before it gets its name.
    Raises DicomError without highdicom, for a source without UIDs, and for classes that overlap in kind "labelmap".
    """
    highdicom = highdicom_module()
    if kind == "labelmap" and labels.labels.are_regions():
        raise DicomError("classes that overlap do not fit kind labelmap", where=path, hint="write kind binary")
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # about values of the source that the standard would have otherwise
        header = _header(source.files[0])
        data = _one_frame(highdicom, labels, header, made_by, kind)
        data.PatientOrientation = None  # unknown, but has to be there without positions
        _refer_to(data, header.SOPClassUID)
        if kind == "binary":
            _put_masks(data, labels)
        else:
            _put_numbers(data, labels)
        with whole_file(path) as temporary:
            data.save_as(temporary, enforce_file_format=True)
            _compare(temporary, labels, path)


def is_us_seg(path: Path) -> bool:
    """Whether a DICOM file lacks a frame of reference, as the SEG of 2D ultrasound does."""
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"])
    return not header.get("FrameOfReferenceUID")


def check_us_seg(path: Path) -> None:
    """Raise DicomError unless every frame of a SEG that `write_us_seg` made can be decoded."""
    try:
        data = pydicom.dcmread(path)
        frames = sum(1 for _ in _frames(data))
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DicomError("cannot be read to its end", where=path, hint="predict again") from error
    if frames != data.NumberOfFrames or len(data.PerFrameFunctionalGroupsSequence) != frames:
        raise DicomError(f"holds {frames} of {data.NumberOfFrames} frames", where=path, hint="predict again")


def _frames(data: Any) -> Iterator[np.ndarray]:
    """Frames one by one; pydicom unpacks bits only of frames that begin with a byte."""
    if data.BitsAllocated != 1:
        yield from iter_pixels(data)
        return
    size = data.Rows * data.Columns
    for number in range(data.NumberOfFrames):
        first, last = number * size, (number + 1) * size
        packed = np.frombuffer(data.PixelData[first // 8 : -(-last // 8)], np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:size]
        yield bits.reshape(data.Rows, data.Columns)


def _compare(written: Path, labels: LabelMap, path: Path) -> None:
    """Raise DicomError where a file does not hold every labelled pixel at its frame and segment, and no other."""
    data = pydicom.dcmread(written)
    items = labels.labels.items
    found = 0
    for group, pixels in zip(data.PerFrameFunctionalGroupsSequence, _frames(data), strict=True):
        frame = labels.array[group.FrameContentSequence[0].TemporalPositionIndex - 1]
        if data.SegmentationType == "BINARY":
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            right = np.array_equal(pixels, np.isin(frame, items[number - 1].stored))
        else:
            right = all(np.array_equal(pixels == n, np.isin(frame, item.stored)) for n, item in enumerate(items, 1))
        if not right:
            raise DicomError("does not hold what was predicted", where=path, hint="report this, and write nii.gz")
        found += int(np.count_nonzero(pixels))
    expected = sum(int(np.isin(frame, item.stored).sum()) for frame in labels.array for item in items)
    if found != expected:
        raise DicomError(f"holds {found} of {expected} labelled pixels", where=path, hint="report this, write nii.gz")


def _header(path: Path) -> Any:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom raises many kinds on damaged files
        what = f"header cannot be read ({type(error).__name__})"
        raise DicomError(what, where=path, hint="export it again") from error
    missing = [name for name in _UIDS if not header.get(name)]
    if missing:
        raise DicomError(f"lacks {', '.join(missing)}, which a DICOM SEG refers to", where=path, hint="write nii.gz")
    return header


def _one_frame(highdicom: Any, labels: LabelMap, header: Any, made_by: Provenance, kind: str) -> Any:
    """The SEG of a single empty frame: patient, study, series, segments and equipment are those of the final one."""
    source = DicomDataset()
    source.update(about_source(header))
    for name in (*_UIDS, "Rows", "Columns"):
        setattr(source, name, header.get(name))
    source.SOPClassUID = _ONE_FRAME
    series = derived_uid(header.SeriesInstanceUID, made_by, kind)
    model = plain_text(made_by.model)
    texts = (model, *labels.labels.names(), *(item.code.meaning for item in labels.labels.items if item.code))
    encoding = {} if all(text.isascii() for text in texts) else {"specific_character_set": "ISO_IR 192"}
    return highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=np.zeros((1, *labels.geometry.shape[1:]), np.uint8),
        segmentation_type=kind.upper(),
        segment_descriptions=segment_descriptions(highdicom, labels.labels, made_by),
        series_instance_uid=series,
        series_number=min(int(header.get("SeriesNumber") or 0) + 1000, 2**31 - 1),
        sop_instance_uid=instance_uid(series, header.SOPInstanceUID, labels),
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name=model,
        software_versions=plain_text(f"medseg {medseg.__version__}"),
        device_serial_number=made_by.bundle_sha256[:16] or "none",
        content_label="SEGMENTATION",
        content_description=model,
        series_description=plain_text(f"medseg {made_by.model}"),
        omit_empty_frames=False,
        **encoding,
    )


def _refer_to(data: Any, sop_class: str) -> None:
    """Name the true class of the source, of which highdicom saw one frame."""
    shown = [*data.ReferencedSeriesSequence[0].ReferencedInstanceSequence, *data.get("SourceImageSequence", ())]
    shown += data.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    for item in shown:
        item.ReferencedSOPClassUID = sop_class


def _put_masks(data: Any, labels: LabelMap) -> None:
    """One frame per segment and source frame that shows it, segment by segment, 1 bit per pixel."""
    places = [(n, z) for n, item in enumerate(labels.labels.items, 1) for z in _shown(labels, item.stored)]
    places = places or [(1, 0)]  # a SEG has at least one frame
    _index(data, ((_SEGMENT, _SEGMENT_GROUP, "Segment"), (_TEMPORAL, _CONTENT_GROUP, "Source Frame")))
    data.SegmentsOverlap = "UNDEFINED" if labels.labels.are_regions() else "NO"
    template = data.PerFrameFunctionalGroupsSequence[0]
    groups = []
    for segment, z in places:
        group = _frame_group(template, z, [segment, z + 1], framed=len(labels.array) > 1)
        identity = DicomDataset()
        identity.ReferencedSegmentNumber = segment
        group.SegmentIdentificationSequence = [identity]
        groups.append(group)
    if "SegmentIdentificationSequence" in data.SharedFunctionalGroupsSequence[0]:
        del data.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    items = labels.labels.items
    _put(data, groups, _packed(np.isin(labels.array[z], items[n - 1].stored) for n, z in places))


def _put_numbers(data: Any, labels: LabelMap) -> None:
    """One frame of segment numbers per source frame that shows any class, run-length encoded."""
    values = [value for item in labels.labels.items for value in item.stored]
    shown = _shown(labels, values) or [0]
    _index(data, ((_TEMPORAL, _CONTENT_GROUP, "Source Frame"),))
    template, framed = data.PerFrameFunctionalGroupsSequence[0], len(labels.array) > 1
    groups = [_frame_group(template, z, [z + 1], framed=framed) for z in shown]
    table = np.zeros(max(int(labels.array.max()), *values) + 1, f"<u{data.BitsAllocated // 8}")
    for number, item in enumerate(labels.labels.items, start=1):
        table[list(item.stored)] = number
    frames = (RLELosslessEncoder.encode(table[labels.array[z]], **_pixel_options(data)) for z in shown)
    _put(data, groups, encapsulate(list(frames)))
    data.file_meta.TransferSyntaxUID = RLELossless
    data["PixelData"].VR = "OB"


def _shown(labels: LabelMap, values: Iterable[int]) -> list[int]:
    """Frames that hold any of the values."""
    wanted = list(values)
    return [z for z, frame in enumerate(labels.array) if np.isin(frame, wanted).any()]


def _index(data: Any, dimensions: Iterable[tuple[int, int, str]]) -> None:
    organisation = data.DimensionOrganizationSequence[0].DimensionOrganizationUID
    data.DimensionIndexSequence = []
    for pointer, group, name in dimensions:
        item = DicomDataset()
        item.DimensionOrganizationUID = organisation
        item.DimensionIndexPointer, item.FunctionalGroupPointer = pointer, group
        item.DimensionDescriptionLabel = name
        data.DimensionIndexSequence.append(item)


def _frame_group(template: Any, z: int, index: list[int], *, framed: bool) -> Any:
    """What is said of one frame; `framed`: the source has several, so that one of them is named."""
    group = deepcopy(template)
    if framed:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = z + 1
    content = DicomDataset()
    content.DimensionIndexValues, content.TemporalPositionIndex = index, z + 1
    group.FrameContentSequence = [content]
    return group


def _put(data: Any, groups: list[Any], pixels: bytes) -> None:
    data.PerFrameFunctionalGroupsSequence = groups
    data.NumberOfFrames = len(groups)
    data.PixelData = pixels


def _packed(masks: Iterator[Mask]) -> bytes:
    """Bits of all masks one after the other, the first in the lowest bit, of even length."""
    out, rest = bytearray(), np.zeros(0, bool)
    for mask in masks:
        bits = np.concatenate([rest, mask.ravel()])
        whole = len(bits) // 8 * 8
        out += np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    out += np.packbits(rest, bitorder="little").tobytes()
    out += b"\0" * (len(out) % 2)
    return bytes(out)


def _pixel_options(data: Any) -> dict[str, Any]:
    return {
        "rows": data.Rows,
        "columns": data.Columns,
        "samples_per_pixel": 1,
        "bits_allocated": data.BitsAllocated,
        "bits_stored": data.BitsStored,
        "pixel_representation": 0,
        "photometric_interpretation": data.PhotometricInterpretation,
        "number_of_frames": 1,
    }
