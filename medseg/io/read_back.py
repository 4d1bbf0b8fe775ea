"""What a written file holds, read in another way than it was written: moments of every class, plane by plane.

NIfTI through its bytes and nibabel's header, MetaImage and NRRD through SimpleITK, a DICOM SEG through the place that
each frame states, an RT Structure Set through the voxels its contours enclose.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float64, Shaped
from nibabel.spatialimages import HeaderDataError

from medseg.errors import ImageError
from medseg.io.moments import Moment, class_sums, from_points, placed, value_sums
from medseg.io.segments import unique_names
from medseg.io.terminology import plain_text
from medseg.types.image import Image
from medseg.types.labels import Labels

_AGAIN = "predict again; check the disk"


def read_back(path: Path, form: str, labels: Labels, scan: Image) -> tuple[Moment, ...]:
    """Moments of every class in the file, in the order of `labels`; in pixels where `has_place` is False.

    `scan` is what the prediction lies on; only its grid and source are used. Raises MedsegError where the file cannot
    be read to its end or holds other classes.
    """
    if form == "nii.gz":
        return _nifti(path, labels)
    if form in ("mha", "nrrd"):
        return _itk(path, labels)
    if form == "png":
        return _picture(path, labels)
    if form == "seg.nrrd":
        return _slicer(path, labels)
    if form == "dicom-seg":
        return _dicom_seg(path, labels)
    return _rtstruct(path, labels, scan)


def has_place(form: str, scan: Image) -> bool:
    """Whether files of a format say where in the patient they lie."""
    ultrasound = scan.source is not None and scan.source.format == "dicom-us"
    return form != "png" and not (form == "dicom-seg" and ultrasound)


def _nifti(path: Path, labels: Labels) -> tuple[Moment, ...]:
    try:
        with gzip.open(path) as stream:
            header = nib.Nifti1Header.from_fileobj(stream)
            stream.seek(int(header["vox_offset"]))
            sums = value_sums(_planes(stream, header, path))
            more = stream.read(1)  # also where gzip compares its checksum
    except (EOFError, gzip.BadGzipFile, zlib.error, HeaderDataError) as error:
        raise ImageError(f"cannot be read back ({error})", where=path, hint=_AGAIN) from error
    if more:
        raise ImageError("holds more than its header says", where=path, hint=_AGAIN)
    ras = header.get_best_affine()
    return placed(class_sums(sums, labels), np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras[:, [2, 1, 0, 3]])


def _planes(stream: Any, header: Any, path: Path) -> Iterator[Shaped[np.ndarray, "y x"]]:
    x, y, z = (*header.get_data_shape(), 1, 1)[:3]
    dtype = header.get_data_dtype()
    for _ in range(z):
        data = stream.read(x * y * dtype.itemsize)
        if len(data) < x * y * dtype.itemsize:
            raise ImageError("is cut off", where=path, hint=_AGAIN)
        yield np.frombuffer(data, dtype).reshape(y, x)


def _itk(path: Path, labels: Labels) -> tuple[Moment, ...]:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ImageError("cannot be read back", where=path, hint=_AGAIN) from error
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return placed(class_sums(value_sums(sitk.GetArrayViewFromImage(image)), labels), affine)


def _picture(path: Path, labels: Labels) -> tuple[Moment, ...]:
    import SimpleITK as sitk

    try:
        plane = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
    except RuntimeError as error:
        raise ImageError("cannot be read back", where=path, hint=_AGAIN) from error
    return placed(class_sums(value_sums([plane]), labels), np.eye(4)[[2, 1, 0, 3]])


def _slicer(path: Path, labels: Labels) -> tuple[Moment, ...]:
    from medseg.io.seg_nrrd import read_seg_nrrd

    found = read_seg_nrrd(path)
    wanted = unique_names([plain_text(name, 256) for name in labels.names()])
    _check_names([item.name for item in found.items], wanted, path)
    tables = [value_sums(layer) for layer in found.layers]
    rows = [tables[item.layer][item.value : item.value + 1].sum(axis=0) for item in found.items]
    return placed(np.stack(rows), found.geometry.affine())


def _dicom_seg(path: Path, labels: Labels) -> tuple[Moment, ...]:
    from medseg.io.dicom_seg_frames import open_seg
    from medseg.io.dicom_seg_reader import regular_step, segment_sums

    seg = open_seg(path)
    _check_names([name for _, name, _ in seg.segments], [plain_text(name) for name in labels.names()], path)
    totals: Float64[np.ndarray, "n 4"] = np.zeros((len(seg.segments) + 1, 4))
    for number, sums in segment_sums(seg):
        totals[number] += sums
    frame = seg.frames[0]
    area = float(np.linalg.norm(np.cross(frame.row_step_mm, frame.column_step_mm)))
    return from_points([(row[0], row[1:]) for row in totals[1:]], area * regular_step(seg))


def _rtstruct(path: Path, labels: Labels, scan: Image) -> tuple[Moment, ...]:
    from medseg.io.rtstruct import check_rtstruct, written_masks

    check_rtstruct(path, labels)
    rows = [value_sums(plane.view(np.uint8) for plane in mask) for mask in written_masks(path, scan, labels)]
    sums = np.stack([row[1] if len(row) > 1 else np.zeros(4) for row in rows])
    return placed(sums, scan.geometry.affine())


def _check_names(found: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    if list(found) != list(wanted):
        raise ImageError(f"holds the classes {list(found)}, not {list(wanted)}", where=path, hint=_AGAIN)
