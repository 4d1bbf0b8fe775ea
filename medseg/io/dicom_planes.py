"""One image plane of a DICOM file: its place, its scale, and what tells it from others at the same place."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medseg.io.dicom_values import Numbers, items, numbers, raw_value, text, whole

# What tells volumes of one series apart, most telling first.
KEYS: dict[str, str | int] = {
    "StackID": "StackID",
    "DataType": "DataType",  # tissue or flow of ultrasound
    "TemporalPositionIndex": "TemporalPositionIndex",
    "TemporalPositionIdentifier": "TemporalPositionIdentifier",
    "EchoNumbers": "EchoNumbers",
    "EchoTime": "EchoTime",
    "EffectiveEchoTime": "EffectiveEchoTime",
    "DiffusionBValue": "DiffusionBValue",
    "b-value": 0x0019100C,  # Siemens
    "b-value (GE)": 0x00431039,
    "b-value (Philips)": 0x20011003,
    "DiffusionGradientOrientation": "DiffusionGradientOrientation",
    "ImageType": "ImageType",
    "FrameType": "FrameType",
    "ComplexImageComponent": "ComplexImageComponent",
    "InversionTime": "InversionTime",
    "FlipAngle": "FlipAngle",
    "NominalCardiacTriggerDelayTime": "NominalCardiacTriggerDelayTime",
    "TriggerTime": "TriggerTime",
    "NominalPercentageOfCardiacPhase": "NominalPercentageOfCardiacPhase",
    "TemporalPositionTimeOffset": "TemporalPositionTimeOffset",
    "FrameReferenceTime": "FrameReferenceTime",
    "KVP": "KVP",
    "ConvolutionKernel": "ConvolutionKernel",
    "SequenceName": "SequenceName",
    "AcquisitionNumber": "AcquisitionNumber",
    "AcquisitionTime": "AcquisitionTime",
    "ContentTime": "ContentTime",
}
PLANE_TAGS: tuple[str | int, ...] = (
    *KEYS.values(),
    *"""ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    SliceThickness SpacingBetweenSlices RescaleSlope RescaleIntercept RescaleType Units ModalityLUTSequence
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence""".split(),
)
_GROUPS = """FrameContentSequence PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence
    PixelValueTransformationSequence MREchoSequence MRDiffusionSequence MRImageFrameTypeSequence
    PlanePositionVolumeSequence PlaneOrientationVolumeSequence ImageDataTypeSequence
    CTImageFrameTypeSequence TemporalPositionSequence CardiacSynchronizationSequence MRModifierSequence
    MRTimingAndRelatedParametersSequence CTReconstructionSequence CTXRayDetailsSequence""".split()
_BINARY = {
    "TemporalPositionIndex": "UL",
    "EffectiveEchoTime": "FD",
    "DiffusionBValue": "FD",
    "NominalCardiacTriggerDelayTime": "FD",
    "TemporalPositionTimeOffset": "FD",
    "DiffusionGradientOrientation": "FD",
    "b-value (Philips)": "FL",
    "NominalPercentageOfCardiacPhase": "FL",
}


@dataclass(frozen=True)
class ModalityLut:
    """A table from stored values to modality values: the first stored value it maps, then 16-bit entries."""

    first: int
    entries: tuple[int, ...]
    unit: str = ""


@dataclass(frozen=True)
class Plane:
    """One frame, counted from 0 within its file; lengths in mm. None is absent, () is there but no number."""

    frame: int
    position: Numbers
    orientation: Numbers
    spacing: Numbers
    detector_spacing: Numbers
    thickness: Numbers
    between: Numbers
    slope: Numbers
    intercept: Numbers
    unit: str
    lut: ModalityLut | None
    keys: tuple[tuple[str, str], ...]


def file_planes(dataset: Any, frames: int) -> tuple[Plane, ...] | str:
    """The planes of a file in stored order: one per frame of its functional groups, or a single one.

    A reason where the functional groups do not describe every frame. Empty for several frames without such groups.
    """
    per_frame = items([dataset], "PerFrameFunctionalGroupsSequence")
    shared = items([dataset], "SharedFunctionalGroupsSequence")
    if not per_frame and not shared:
        return (_plane([dataset], 0),) if frames == 1 else ()
    if len(per_frame) != frames and (per_frame or frames > 1):
        return f"holds {frames} frames, but functional groups for {len(per_frame)}"
    common = _places(shared[0]) if shared else []
    return tuple(_plane([*(_places(per_frame[i]) if per_frame else []), *common, dataset], i) for i in range(frames))


def _places(group: Any) -> list[Any]:
    """The data sets in which a functional group keeps its attributes."""
    places = [item for name in _GROUPS for item in items([group], name)]
    return places + [item for place in places for item in items([place], "DiffusionGradientDirectionSequence")]


def _plane(places: Sequence[Any], frame: int) -> Plane:
    found = {name: _key(places, name, keyword) for name, keyword in KEYS.items()}
    indices = numbers(places, "DimensionIndexValues", "UL") or ()
    found |= {f"DimensionIndexValues {i + 1}": f"{value:g}" for i, value in enumerate(indices)}
    return Plane(
        frame,
        numbers(places, "ImagePositionPatient") or numbers(places, "ImagePositionVolume", "FD"),
        numbers(places, "ImageOrientationPatient") or numbers(places, "ImageOrientationVolume", "FD"),
        numbers(places, "PixelSpacing"),
        numbers(places, "ImagerPixelSpacing") or numbers(places, "NominalScannedPixelSpacing"),
        numbers(places, "SliceThickness"),
        numbers(places, "SpacingBetweenSlices"),
        numbers(places, "RescaleSlope"),
        numbers(places, "RescaleIntercept"),
        text(places, "RescaleType") or text(places, "Units"),
        _lut(places),
        tuple((name, value) for name, value in found.items() if value),
    )


def _key(places: Sequence[Any], name: str, keyword: str | int) -> str:
    if name not in _BINARY:
        return text(places, keyword)
    return "\\".join(f"{value:g}" for value in numbers(places, keyword, _BINARY[name]) or ())


def _lut(places: Sequence[Any]) -> ModalityLut | None:
    """The table, without entries where it is damaged."""
    found = items(places, "ModalityLUTSequence")
    if not found:
        return None
    described, _, order = raw_value(found, "LUTDescriptor")
    raw = raw_value(found, "LUTData")[0]
    if len(described) != 6:
        return ModalityLut(0, ())
    signed = whole(places, "PixelRepresentation", 0) == 1
    count, first, _ = struct.unpack(order + ("HhH" if signed else "HHH"), described)
    count = count or 65536
    if len(raw) in {count, count + count % 2}:  # 8-bit entries, packed
        return ModalityLut(first, tuple(raw[:count]), text(found, "ModalityLUTType"))
    entries = struct.unpack(f"{order}{count}H", raw[: 2 * count]) if len(raw) >= 2 * count else ()
    return ModalityLut(first, entries, text(found, "ModalityLUTType"))
