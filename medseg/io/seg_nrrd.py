"""3D Slicer's segmentations (.seg.nrrd): label maps with names, colours and codes, in layers where segments overlap."""

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medseg.errors import ImageError
from medseg.io.files import whole_file
from medseg.io.itk import read_itk
from medseg.io.itk_voxels import read_header
from medseg.io.segments import Segment, Segments, overlaps, unique_names
from medseg.io.terminology import Concept, colour, concept, plain_text
from medseg.types.image import LabelMap
from medseg.types.labels import Code, Label, Labels

_LEVEL = 4  # of gzip; label maps gain little from more
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class _Placed:
    """A class and the layer and value it gets."""

    label: Label
    layer: int
    value: int


def write_seg_nrrd(labels: LabelMap, path: Path) -> None:
    """Write every class as a segment with its name, colour, code, value and extent, whole or not at all.

    Values are those of other label maps; regions that overlap are stored in several layers. Plane by plane.
    """
    placed = _layers(labels.labels)
    tables = _tables(labels, placed)
    header = _header(labels, placed, tables.dtype)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header.encode("utf-8"))
        with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as stream:
            for plane in labels.array:
                stream.write(np.ascontiguousarray(tables[plane]).data)  # the layer is the fastest axis


def read_seg_nrrd(path: Path) -> Segments:
    """Read a segmentation of 3D Slicer with all its layers.

    Values are those of the file; segments of different layers may share one. Segments that overlap are told in the
    warnings. Raises ImageError for files that name no segment or hold values that no segment has, and what `read_itk`
    raises.
    """
    fields, _ = read_header(path)
    described = _described(fields)
    if not described:
        hint = "rename it to .nrrd if it is a plain label map"
        raise ImageError("names no segments", where=path, hint=hint)
    image = read_itk(path, channels_named=True)
    layers = image.array
    if layers.dtype.kind not in "iu":
        raise ImageError(f"has voxels of type {layers.dtype}", where=path, hint="save it again from 3D Slicer")
    wrong = [segment.name for segment in described if not 0 <= segment.layer < len(layers)]
    if wrong:
        raise ImageError(f"has no layer for {wrong[0]}", where=path, hint="save it again from 3D Slicer")
    for layer, voxels in enumerate(layers):
        known = {segment.value for segment in described if segment.layer == layer} | {0}
        stray = sorted({value for plane in voxels for value in _values(plane)} - known)
        if stray:
            what = f"holds values {stray[:10]} that no segment has"
            raise ImageError(what, where=path, hint="save it again from 3D Slicer")
    notes = tuple(note for note in image.warnings if "list of volumes" not in note)  # that is what layers are
    result = Segments(layers, image.geometry, tuple(described), None, notes)
    shared = [f'{count} voxels lie in "{one}" and in "{other}"' for one, other, count in overlaps(result)]
    return Segments(layers, image.geometry, result.items, None, (*notes, *shared))


def _layers(labels: Labels) -> list[_Placed]:
    """Each class in the first layer where none of its voxels, and not its value, is taken."""
    taken: list[tuple[set[int], set[int]]] = []
    placed = []
    for item in labels.items:
        layer = 0
        while layer < len(taken) and (taken[layer][0] & set(item.stored) or item.written in taken[layer][1]):
            layer += 1
        if layer == len(taken):
            taken.append((set(), set()))
        taken[layer][0].update(item.stored)
        taken[layer][1].add(item.written)
        placed.append(_Placed(item, layer, item.written))
    return placed


def _tables(labels: LabelMap, placed: Sequence[_Placed]) -> Shaped[np.ndarray, "v l"]:
    """What each value of the label map becomes in each layer."""
    stored = [value for item in placed for value in item.label.stored]
    top = max(int(labels.array.max()), *stored)
    dtype = np.uint8 if max(item.value for item in placed) < 256 else np.uint16
    table = np.zeros((top + 1, 1 + max(item.layer for item in placed)), dtype)
    for item in placed:
        table[list(item.label.stored), item.layer] = item.value
    return table


def _header(labels: LabelMap, placed: Sequence[_Placed], dtype: np.dtype) -> str:
    z, y, x = labels.geometry.shape
    columns = np.array(labels.geometry.direction) * labels.geometry.spacing_mm[::-1]
    axes = [f"({','.join(repr(float(v)) for v in column)})" for column in columns.T]
    count = 1 + max(item.layer for item in placed)
    many = count > 1
    lines = [
        "NRRD0004",
        f"type: {'unsigned char' if dtype.itemsize == 1 else 'unsigned short'}",
        f"dimension: {4 if many else 3}",
        "space: left-posterior-superior",
        f"sizes: {f'{count} ' if many else ''}{x} {y} {z}",
        f"space directions: {'none ' if many else ''}{' '.join(axes)}",
        f"kinds: {'list ' if many else ''}domain domain domain",
        *(["endian: little"] if dtype.itemsize > 1 else []),
        "encoding: gzip",
        f"space origin: ({','.join(repr(float(v)) for v in labels.geometry.origin_mm)})",
        *([] if labels.geometry.unit == "mm" else ["unit:=px"]),
    ]
    extents = _extents(labels)
    for number, item in enumerate(placed):
        lines += _segment_lines(number, item, extents)
    lines += [
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    return "\n".join(lines) + "\n\n"


def _segment_lines(number: int, item: _Placed, extents: Mapping[int, np.ndarray]) -> Iterator[str]:
    boxes = [extents[value] for value in item.label.stored if value in extents]
    box = [0, -1, 0, -1, 0, -1]  # of nothing
    if boxes:
        low, high = np.min(boxes, axis=0)[:, 0], np.max(boxes, axis=0)[:, 1]
        box = [int(v) for pair in zip(low[::-1], high[::-1], strict=True) for v in pair]
    key, red_green_blue = f"Segment{number}", colour(number)
    yield f"{key}_Color:={' '.join(f'{part / 255:.6g}' for part in red_green_blue)}"
    yield f"{key}_ColorAutoGenerated:=0"
    yield f"{key}_Extent:={' '.join(map(str, box))}"
    yield f"{key}_ID:=Segment_{number + 1}"
    yield f"{key}_LabelValue:={item.value}"
    yield f"{key}_Layer:={item.layer}"
    yield f"{key}_Name:={plain_text(item.label.name, 256)}"
    yield f"{key}_NameAutoGenerated:=0"
    yield f"{key}_Tags:={_terminology(concept(item.label))}|"


def _extents(labels: LabelMap) -> dict[int, np.ndarray]:
    """First and last index (z, y, x) of the voxels of every value that occurs."""
    found: dict[int, np.ndarray] = {}
    for z, plane in enumerate(labels.array):
        for value in _values(plane):
            if value:
                mask = plane == value
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                box = np.array([[z, z], [rows[0], rows[-1]], [columns[0], columns[-1]]])
                old = found.get(value, box)
                found[value] = np.stack([np.minimum(old[:, 0], box[:, 0]), np.maximum(old[:, 1], box[:, 1])], axis=1)
    return found


def _values(plane: np.ndarray) -> list[int]:
    """The values of a plane."""
    if plane.dtype.kind == "i" or plane.dtype.itemsize > 2:
        return [int(value) for value in np.unique(plane)]
    return [int(value) for value in np.flatnonzero(np.bincount(plane.ravel()))]


def _terminology(meant: Concept) -> str:
    side = _triple(meant.side) if meant.side else "^^"
    parts = (_CONTEXT, _triple(meant.category), _triple(meant.kind), side, _REGIONS, "^^", "^^")
    return f"TerminologyEntry:{'~'.join(parts)}"


def _triple(code: Code) -> str:
    return "^".join(re.sub(r"[~^|]", " ", plain_text(text)) for text in (code.scheme, code.value, code.meaning))


def _described(fields: Mapping[str, str]) -> list[Segment]:
    """Segments of a header, its keys in lower case without underscores."""
    numbers = sorted({int(found[1]) for key in fields if (found := re.fullmatch(r"segment(\d{1,5})[a-z]+", key))})
    names = unique_names([fields.get(f"segment{n}name") or fields.get(f"segment{n}id", "") for n in numbers])
    described = []
    for place, (number, name) in enumerate(zip(numbers, names, strict=True)):
        key = f"segment{number}"
        value, layer = fields.get(key + "labelvalue"), fields.get(key + "layer")
        try:
            described.append(
                Segment(
                    name,
                    1 if value is None else int(value),  # files before layers: one component per segment
                    int(layer) if layer is not None else (place if value is None else 0),
                    _coded(fields.get(key + "tags", "")),
                    _stated_colour(fields.get(key + "color", "")),
                )
            )
        except ValueError:
            return []
    return described


def _coded(tags: str) -> Code | None:
    """The type of a terminology entry."""
    found = re.search(r"TerminologyEntry:([^|]*)", tags)
    parts = found[1].split("~") if found else []
    triple = parts[2].split("^") if len(parts) > 2 else []
    return Code(triple[0], triple[1], triple[2]) if len(triple) == 3 and triple[1] else None


def _stated_colour(text: str) -> tuple[int, int, int] | None:
    parts = [float(part) for part in text.split()]
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        return None
    red, green, blue = (round(part * 255) for part in parts)
    return red, green, blue
