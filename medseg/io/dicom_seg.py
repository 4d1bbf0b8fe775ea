"""Write a label map as a DICOM Segmentation (SEG) that refers to the series it was predicted on.

highdicom writes the object; it is imported on first use and comes with `pip install 'medseg[dicom]'`.
"""

import hashlib
import re
import uuid
import warnings as python_warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

import medseg
from medseg.errors import DicomError
from medseg.io.dicom_seg_source import SourceImages, decimal, source_images
from medseg.io.files import whole_file
from medseg.io.terminology import colour, concept, plain_text
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap, Source
from medseg.types.labels import Code, Labels
from medseg.types.result import Provenance

_UIDS = uuid.UUID("6a1a2c1e-6c6f-5d35-9a0e-5d7b1f2f8c11")  # the name space of all UIDs derived here
_NEED = "pip install 'medseg[dicom]'"


def write_seg(
    labels: LabelMap,
    source: Source,
    path: Path,
    made_by: Provenance,
    *,
    kind: Literal["binary", "labelmap"] = "binary",
) -> None:
    """Write one segment per class, also for classes that are empty; a region is the union of its values.

    Patient and study are those of the source, whose every image is referred to. Frames lie on the planes of the source
    where the grid does, else (a sheared stack that was straightened) they state planes of their own. UIDs follow from
    the source series, the model and its settings, and for the instance also from the voxels: the same result written
    twice is one object in a PACS, another result of the same model joins the series.

    Raises DicomError without highdicom, for sources that lack UIDs, and for classes that overlap in kind "labelmap".
    """
    highdicom = highdicom_module()
    if kind == "labelmap" and labels.labels.are_regions():
        raise DicomError("classes that overlap do not fit kind labelmap", where=path, hint="write kind binary")
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # about values of the source that the standard would have otherwise
        images = source_images(source, labels.geometry)
        try:
            data = _segmentation(highdicom, labels, images, made_by, kind)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            detail = f" {error}" if isinstance(error, KeyError) else ""  # other texts may quote the patient
            what = f"highdicom does not take it as the source of a SEG ({type(error).__name__}{detail})"
            raise DicomError(what, where=source.files[0], hint="write seg.nrrd or nii.gz") from error
        with whole_file(path) as temporary:
            data.save_as(temporary, enforce_file_format=True)


def highdicom_module() -> Any:
    """The library, or DicomError with the command that installs it."""
    try:
        import highdicom
    except ImportError as error:
        raise DicomError("a DICOM SEG needs highdicom, which is not installed", hint=_NEED) from error
    return highdicom


def _segmentation(highdicom: Any, labels: LabelMap, images: SourceImages, made_by: Provenance, kind: str) -> Any:
    first = images.images[0]
    series = derived_uid(first.SeriesInstanceUID, made_by, kind)
    used = _used_planes(labels)
    follows = images.aligned and len(used) > 0
    planes = list(range(labels.geometry.shape[0])) if follows else used or [0]  # a SEG has at least one frame
    place = {} if follows else _place(highdicom, labels.geometry, [images.positions_mm[z] for z in planes])
    model, version = plain_text(made_by.model), plain_text(f"medseg {medseg.__version__}")
    simple = re.fullmatch(r"ISO_IR \d+", str(first.get("SpecificCharacterSet") or "ISO_IR 6"))
    encoding = {} if simple and _is_ascii(model, labels.labels) else {"specific_character_set": "ISO_IR 192"}
    rle = "1.2.840.10008.1.2.5"
    return highdicom.seg.Segmentation(
        source_images=list(images.images),
        pixel_array=Stack(labels, planes, one_per_class=labels.labels.are_regions()),
        segmentation_type="BINARY" if kind == "binary" else "LABELMAP",
        segment_descriptions=segment_descriptions(highdicom, labels.labels, made_by),
        series_instance_uid=series,
        series_number=min(int(first.get("SeriesNumber") or 0) + 1000, 2**31 - 1),
        sop_instance_uid=instance_uid(series, first.SOPInstanceUID, labels),
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name=model,
        software_versions=version,
        device_serial_number=made_by.bundle_sha256[:16] or "none",
        content_label="SEGMENTATION",
        content_description=model,
        series_description=plain_text(f"medseg {made_by.model}"),
        transfer_syntax_uid="1.2.840.10008.1.2.1" if kind == "binary" else rle,
        **place,
        **encoding,
    )


def derived_uid(series_uid: str, made_by: Provenance, *more: str) -> str:
    """A UID that the same source series, model, settings and version of medseg always give."""
    settings = [f"{name}={value}" for name, value in sorted(made_by.settings.items())]
    parts = [str(series_uid), made_by.bundle_sha256, made_by.model, medseg.__version__, *settings, *more]
    return f"2.25.{uuid.uuid5(_UIDS, chr(10).join(parts)).int}"


def instance_uid(series: str, source_uid: str, labels: LabelMap) -> str:
    """As `derived_uid`, for these voxels at this place."""
    digest = hashlib.sha256(repr((str(source_uid), labels.geometry)).encode())
    for plane in labels.array:
        digest.update(np.ascontiguousarray(plane).data)
    return f"2.25.{uuid.uuid5(_UIDS, series + digest.hexdigest()).int}"


def _used_planes(labels: LabelMap) -> list[int]:
    """Slices that hold any class."""
    values = np.array([value for item in labels.labels.items for value in item.stored])
    table = np.zeros(int(max(values.max(), labels.array.max())) + 1, bool)
    table[values] = True
    return [z for z, plane in enumerate(labels.array) if table[plane].any()]


def _place(highdicom: Any, geometry: Geometry, positions: list[tuple[float, ...]]) -> dict[str, Any]:
    """The planes of the frames, said rather than taken from the source."""
    dz, dy, dx = (decimal(value) for value in geometry.spacing_mm)
    cosines = [decimal(value) for axis in (0, 1) for value in np.array(geometry.direction)[:, axis]]
    patient = highdicom.CoordinateSystemNames.PATIENT
    return {
        "pixel_measures": highdicom.PixelMeasuresSequence([dy, dx], dz, dz),
        "plane_orientation": highdicom.PlaneOrientationSequence(patient, cosines),
        "plane_positions": [highdicom.PlanePositionSequence(patient, list(position)) for position in positions],
    }


def _is_ascii(model: str, labels: Labels) -> bool:
    return all(text.isascii() for text in (model, *labels.names(), *(i.code.meaning for i in labels.items if i.code)))


def segment_descriptions(highdicom: Any, labels: Labels, made_by: Provenance) -> list[Any]:
    """Descriptions in class order: number, name, concept, colour, and the model that drew it."""
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=plain_text(made_by.model),
        family=_code(highdicom, Code("DCM", "123110", "Artificial Intelligence")),
        version=plain_text(f"medseg {medseg.__version__} bundle {made_by.bundle_sha256[:16]}"),
        source="medseg",
        parameters={"bundle_sha256": made_by.bundle_sha256, **made_by.settings},
    )
    described = []
    for number, item in enumerate(labels.items, start=1):
        meant = concept(item)
        segment = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=plain_text(item.name),
            segmented_property_category=_code(highdicom, meant.category),
            segmented_property_type=_code(highdicom, meant.kind),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*colour(number - 1)),
        )
        if meant.side is not None:
            kind = segment.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [_code(highdicom, meant.side)]
        described.append(segment)
    return described


def _code(highdicom: Any, code: Code) -> Any:
    return highdicom.sr.CodedConcept(plain_text(code.value, 256), plain_text(code.scheme, 16), plain_text(code.meaning))


class Stack:
    """The label map as highdicom reads it, slice by slice: segment numbers, or one mask per class in a last axis.

    It stands for an array that is never made, so that memory does not grow with classes or voxels.
    """

    def __init__(self, labels: LabelMap, planes: list[int], *, one_per_class: bool) -> None:
        items = labels.labels.items
        self._array, self._planes = labels.array, planes
        top = int(max(labels.array.max(), *(value for item in items for value in item.stored))) + 1
        self.dtype = np.dtype(np.uint8 if one_per_class or len(items) < 256 else np.uint16)
        self._table = np.zeros((top, len(items)) if one_per_class else (top,), self.dtype)
        for number, item in enumerate(items):
            if one_per_class:
                self._table[list(item.stored), number] = 1
            else:
                self._table[list(item.stored)] = number + 1
        self.shape = (len(planes), *labels.array.shape[1:], *self._table.shape[1:])
        self.ndim = len(self.shape)

    def __getitem__(self, index: int) -> "np.ndarray | Masks":
        values = self._array[self._planes[index]]
        return Masks(values, self._table) if self.ndim == 4 else self._table[values]

    def __iter__(self) -> Iterator["np.ndarray | Masks"]:
        return (self[index] for index in range(len(self._planes)))

    def max(self) -> int:
        """The largest entry there may be."""
        return int(self._table.max())

    def sum(self, axis: int) -> np.ndarray:
        """Per slice, the largest number of classes in one voxel: enough to see whether any overlap."""
        count = self._table.sum(axis=axis, dtype=np.uint16)
        return np.array([count[self._array[z]].max() for z in self._planes])

    def astype(self, dtype: Any) -> "Stack":
        """The same with entries of another type."""
        self.dtype = np.dtype(dtype)
        self._table = self._table.astype(dtype)
        return self


class Masks:
    """One slice of a `Stack` with an axis of classes, of which one is made at a time."""

    ndim = 3

    def __init__(self, values: Shaped[np.ndarray, "y x"], table: Shaped[np.ndarray, "v k"]) -> None:
        self._values, self._table, self.dtype = values, table, table.dtype

    def __getitem__(self, key: tuple[slice, slice, int]) -> np.ndarray:
        mask: np.ndarray = self._table[:, key[2]][self._values]
        return mask

    def any(self, **options: Any) -> bool:
        """Whether any class is there."""
        shown: np.ndarray = self._table.max(axis=1)
        return bool(shown[self._values].any())
