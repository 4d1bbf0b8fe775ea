"""Label maps that name their structures: DICOM SEG, RTSTRUCT and 3D Slicer's .seg.nrrd."""

import warnings as python_warnings
from pathlib import Path

from medseg.errors import ImageError
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Labels

ENDINGS = (".seg.nrrd", ".seg.dcm", ".rtstruct.dcm", ".dcm")  # longest first where one ends in another
_MODALITIES = ("RTSTRUCT",)


def is_named(path: Path) -> bool:
    """Whether a file holds named structures instead of values that `dataset.json` explains."""
    return _kind(path) is not None


def read_named_labels(path: Path, labels: Labels, image: Image | None) -> LabelMap:
    """The structures named like `labels`, with their values, on the grid of `image`.

    Raises ImageError where DICOM is to be read without its image, and what the reader of each format raises.
    """
    from medseg.io.rtstruct import read_rtstruct

    if image is None:
        hint = "give it as the label of its image in a data set"
        raise ImageError("can only be read together with the image it was drawn on", where=path, hint=hint)
    return read_rtstruct(path, image, labels)


def _kind(path: Path) -> str | None:
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
