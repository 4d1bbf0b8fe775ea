"""Label maps that name their structures: DICOM SEG, RTSTRUCT and 3D Slicer's .seg.nrrd."""

import warnings as python_warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ImageError
from medseg.io.label_names import choose, paint
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Labels

if TYPE_CHECKING:
    from medseg.io.segments import Segments

ENDINGS = (".seg.nrrd", ".seg.dcm", ".rtstruct.dcm", ".dcm")  # longest first where one ends in another
_MODALITIES = ("SEG", "RTSTRUCT")


def is_named(path: Path) -> bool:
    """Whether a file holds named structures instead of values that `dataset.json` explains."""
    return _kind(path) is not None


def read_named_labels(path: Path, labels: Labels, image: Image | None) -> LabelMap:
    """The structures named like `labels`, with their values, on the grid of `image`, if there is one.

    Raises ImageError where DICOM is to be read without its image, GeometryError where a file lies elsewhere, and what
    the reader of each format raises.
    """
    kind = _kind(path)
    if kind == "seg.nrrd":
        from medseg.io.seg_nrrd import read_seg_nrrd

        return _labelled(read_seg_nrrd(path), labels, image, path)
    if image is None:
        hint = "give it as the label of its image in a data set"
        raise ImageError("can only be read together with the image it was drawn on", where=path, hint=hint)
    if kind == "SEG":
        from medseg.io.dicom_seg_reader import read_seg

        return _labelled(read_seg(path, image.geometry), labels, image, path)
    from medseg.io.rtstruct import read_rtstruct

    return read_rtstruct(path, image, labels)


def _labelled(segments: "Segments", labels: Labels, image: Image | None, path: Path) -> LabelMap:
    from medseg.io.lattice import move
    from medseg.io.segments import overlaps

    chosen, notes = choose([item.name for item in segments.items], labels, where=path)
    geometry = segments.geometry if image is None else image.geometry
    moved = replace(segments, layers=move(segments.layers, segments.geometry, geometry, where=path))
    masks = ((label, moved.mask(segments.items[index])) for index, label in chosen)
    array, shared = paint(masks, labels, geometry.shape)
    told = {f'{count} voxels lie in "{one}" and in "{other}"' for one, other, count in overlaps(segments)}
    rest = [note for note in segments.warnings if note not in told]  # `paint` tells of those that matter
    source = image.source if image is not None else None
    if segments.series_uid and source is not None and source.series_uid not in (None, segments.series_uid):
        rest.append("was drawn on another series of the same frame of reference")
    return LabelMap(array, geometry, labels, (*notes, *rest, *shared))


def _kind(path: Path) -> str | None:
    if path.name.lower().endswith(".seg.nrrd"):
        return "seg.nrrd"
    if path.suffix.lower() in (".nii", ".gz", ".nrrd", ".mha", ".png") or not path.is_file():
        return None
    import pydicom

    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            modality = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality")
    except Exception:  # whatever is wrong with it is told by the reader of images
        return None
    return str(modality) if modality in _MODALITIES else None
