"""The files a prediction leaves: one per format, named after its case, whole or not at all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import ImageError
from medseg.io.images import read_labels, write_labels
from medseg.types.image import Image, Source
from medseg.types.labels import Labels
from medseg.types.result import Prediction, Provenance

Format = Literal["nii.gz", "nrrd", "mha", "png", "seg.nrrd", "dicom-seg", "rtstruct", "gif"]
SegKind = Literal["binary", "labelmap"]
_SUFFIX = {"dicom-seg": "seg.dcm", "rtstruct": "rtstruct.dcm"}  # of the others it is their own name
_LIKE = {
    ".mha": "mha",
    ".mhd": "mha",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".png": "png",
    ".bmp": "png",
    ".jpg": "png",
    ".jpeg": "png",
}
_NEED_DICOM = ("dicom-seg", "rtstruct")


def format_like(path: Path) -> str:
    """The format of label maps for a scan: its own, or NIfTI where that holds no label map.

    >>> format_like(Path("a/scan.MHD")), format_like(Path("a/series"))
    ('mha', 'nii.gz')
    """
    return _LIKE.get(path.suffix.lower(), "nii.gz")


def output_name(case_id: str, form: str) -> str:
    """The file of a case in one format.

    >>> output_name("head", "dicom-seg"), output_name("head", "seg.nrrd")
    ('head.seg.dcm', 'head.seg.nrrd')
    """
    return f"{case_id}.{_SUFFIX.get(form, form)}"


def landmark_names(case_id: str) -> tuple[str, ...]:
    """The files of a case with landmarks: for 3D Slicer, and as a table.

    >>> landmark_names("head")
    ('head.mrk.json', 'head.landmarks.csv')
    """
    return f"{case_id}.mrk.json", f"{case_id}.landmarks.csv"


def check_formats(source: Source | None, formats: Sequence[str], labels: Labels, seg_kind: SegKind) -> None:
    """Raise ImageError for what is known to fail before anything is predicted.

    DICOM objects need a scan that was read from DICOM; a labelmap SEG cannot hold classes that overlap.
    """
    if "gif" in formats:
        raise ImageError("--format gif is for ultrasound cines", hint="use nii.gz, or png for one slice")
    needed = [form for form in formats if form in _NEED_DICOM]
    if needed and (source is None or not source.format.startswith("dicom")):
        where = source.files[0] if source is not None and source.files else ""
        hint = "use nii.gz, nrrd, seg.nrrd or mha for scans that are not DICOM"
        raise ImageError(f"--format {needed[0]} needs a scan that was read from DICOM", where=where, hint=hint)
    if "dicom-seg" in formats and seg_kind == "labelmap" and labels.are_regions():
        hint = "use --seg-kind binary"
        raise ImageError("classes that overlap do not fit a DICOM SEG of kind labelmap", hint=hint)


def write_results(
    prediction: Prediction,
    out: Path,
    case_id: str,
    formats: Sequence[str],
    made_by: Provenance,
    *,
    seg_kind: SegKind = "binary",
) -> tuple[str, ...]:
    """Write the label map to `out` in every format; returns the names of the files.

    Raises MedsegError where a format cannot hold it; files of the formats before are then there.
    """
    names = []
    for form in formats:
        name = output_name(case_id, form)
        _write(prediction, form, out / name, made_by, seg_kind)
        names.append(name)
    return tuple(names)


def check_whole(path: Path, form: str, labels: Labels) -> None:
    """Raise MedsegError or OSError unless a file that `write_results` made is there and can be read to its end."""
    if form == "rtstruct":
        from medseg.io.rtstruct import check_rtstruct

        check_rtstruct(path, labels)
        return
    if form == "seg.nrrd":
        from medseg.io.seg_nrrd import read_seg_nrrd

        read_seg_nrrd(path)
    elif form == "dicom-seg":
        from medseg.io.dicom_seg_reader import read_seg
        from medseg.io.dicom_us_seg import check_us_seg, is_us_seg

        if is_us_seg(path):
            check_us_seg(path)
        else:
            read_seg(path)
    else:
        read_labels(path, labels, predicted=True)


def _write(prediction: Prediction, form: str, path: Path, made_by: Provenance, seg_kind: SegKind) -> None:
    """One format; a new one is a branch here and in `check_whole`."""
    if form in ("nii.gz", "nrrd", "mha", "png"):
        write_labels(prediction.labels, path)
    elif form == "dicom-seg" and prediction.source is not None and prediction.source.format == "dicom-us":
        from medseg.io.dicom_us_seg import write_us_seg

        write_us_seg(prediction.labels, prediction.source, path, made_by, kind=seg_kind)
    elif form == "dicom-seg" and prediction.source is not None:
        from medseg.io.dicom_seg import write_seg

        write_seg(prediction.labels, prediction.source, path, made_by, kind=seg_kind)
    elif form == "seg.nrrd":
        from medseg.io.seg_nrrd import write_seg_nrrd

        write_seg_nrrd(prediction.labels, path)
    elif form == "rtstruct":
        from medseg.io.rtstruct import write_rtstruct

        write_rtstruct(prediction.labels, scan_of(prediction), path)
    else:
        raise ImageError(f'"{form}" is no format', where=path, hint="see medseg predict --help")


def scan_of(prediction: Prediction) -> Image:
    """The scan a prediction was made of, as far as files need it: grid and source, no grey values."""
    geometry = prediction.labels.geometry
    nothing = np.broadcast_to(np.zeros((), np.uint8), (1, *geometry.shape))
    return replace(Image(nothing, geometry, ("0",)), source=prediction.source)
