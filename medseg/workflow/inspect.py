"""medseg inspect: which scans lie in a folder, their geometry, and why what cannot be read cannot."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

import medseg
from medseg.errors import DatasetError, MedsegError
from medseg.io.archives import unpacked
from medseg.io.dicom_frames import check_frames
from medseg.io.dicom_headers import Header
from medseg.io.dicom_layout import Layout
from medseg.io.dicom_scan import scan_headers, walk
from medseg.io.dicom_series import Series, check_copies, group_headers, series_layout
from medseg.io.identifiers import masked, masked_text, series_id, shown_uid
from medseg.io.images import image_stem, is_image, read_image
from medseg.io.processes import Limits, Lost, run_apart
from medseg.io.scans import files_beside, numbered, series_key, sorted_by_kind
from medseg.preprocess.orientation import orientation_code
from medseg.types.geometry import Geometry
from medseg.types.progress import Progress, Report, silent

_FEW = 8  # image files that are read sooner than processes start
_LIMITS = Limits(workers=2, seconds=600.0, memory_bytes=16 << 30)
_PLANES = ("sagittal", "coronal", "axial")
_Look = tuple[str | None, Geometry | None, tuple[str, ...]]


@dataclass(frozen=True)
class ScanInfo:
    """One scan: `id` as predict names it, `error` says why it cannot be read, `frames` counts those of a cine.

    `orientation`: patient directions of the array axes x, y, z, such as LPS; `plane`: axial, coronal or sagittal, and
    how far off. `geometry` is None where the file gives none. `path` is relative to what was inspected; parts of it
    that could name a patient are "*" unless identifiers are kept, and only then there is a `description`.
    """

    id: str
    format: str
    path: str
    files: int
    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    part: str = ""
    geometry: Geometry | None = None
    orientation: str = ""
    plane: str = ""
    frames: int = 1
    warnings: tuple[str, ...] = ()
    error: str | None = None
    description: str = ""


_Found = tuple[tuple[Path, ...], ScanInfo]  # with its files


@dataclass(frozen=True)
class LeftOut:
    """Files of one folder that are no part of any scan for one reason; `path` is the first of them."""

    path: str
    files: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What lies in a folder, file or archive."""

    schema: Literal["medseg.inspect/1"]
    medseg: str
    scans: tuple[ScanInfo, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class _Names:
    """How paths are shown."""

    root: Path
    keep_identifiers: bool

    def path(self, path: Path) -> str:
        if not self.keep_identifiers:
            return masked(path, self.root)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def text(self, text: str, files: Sequence[Path], *, series: bool = False) -> str:
        return text if self.keep_identifiers else masked_text(text, files, self.root, series=series)


def inspect(path: Path | str, *, keep_identifiers: bool = False, report: Report = silent) -> Inspection:
    """All scans in a folder and its subfolders, in an archive, or of one file, and every file that is part of none.

    DICOM is judged by headers (and doubled slices by their pixels), in parallel for many files; other formats are read
    whole. Names, ids and dates of
    patients are never in the result; names of folders and DICOM files, and descriptions of series, only on request.
    Raises DatasetError where there is no such path.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError("no such file or folder", where=path, hint="check the path")
    with unpacked(path) as root:
        files, refused = walk(root) if root.is_dir() else ((root,), {})
        names = _Names(root if root.is_dir() else root.parent, keep_identifiers)
        images, others, archives = sorted_by_kind(files)
        if root.is_file() and not is_image(root):
            others = files_beside(root)
        headers = scan_headers(others, report=report)
        found, wrong = _dicom_scans(headers, names)
        if root.is_file():
            found = [(files, one) for files, one in found if root in files]
            wrong = {file: reason for file, reason in wrong.items() if file == root}
        found += _image_scans(images, names, report)
        left_out = _left_out(refused | archives | wrong, names)
    found.sort(key=lambda pair: pair[0][0].absolute())
    ids = numbered([one.id for _, one in found])
    scans = tuple(replace(one, id=name) for (_, one), name in zip(found, ids, strict=True))
    return Inspection("medseg.inspect/1", medseg.__version__, scans, left_out)


def _dicom_scans(headers: Mapping[Path, Header | str], names: _Names) -> tuple[list[_Found], dict[Path, str]]:
    series, wrong = group_headers([header for header in headers.values() if isinstance(header, Header)])
    unread = {path: header for path, header in headers.items() if isinstance(header, str)}
    found = [(tuple(sorted(one.files)), _series_scan(one, headers[one.files[0]], names)) for one in series]
    return found, wrong | {path: reason for path, reason in unread.items() if path.name != "DICOMDIR"}


def _series_scan(series: Series, first: Header | str, names: _Names) -> ScanInfo:
    files = series.files
    frames = first.frames if isinstance(first, Header) else 1
    flat = series.kind == "ultrasound" and not (series.slices and series.slices[0].plane.position)
    scan = ScanInfo(
        series_id(series.modality, series_key(series, first)),
        "dicom-us" if flat else "dicom-enhanced" if frames > 1 else "dicom",
        names.path(files[0] if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))),
        len(files),
        shown_uid(series.study_uid),
        shown_uid(series.uid),
        series.modality,
        series.part,
        frames=frames if flat else 1,
        description=series.description if names.keep_identifiers else "",
    )
    try:
        layout = series_layout(series)
        if not flat:
            _check_pixels(layout)
    except MedsegError as error:
        return replace(scan, error=names.text(str(error), files, series=True))
    notes = [f"tilted gantry: planes lie {_pair(layout.shear_mm)} mm beside each other"] if any(layout.shear_mm) else []
    warnings = tuple(names.text(note, files, series=True) for note in (*layout.warnings, *notes))
    frame = layout.geometry.frame_of_reference_uid
    geometry = replace(layout.geometry, frame_of_reference_uid=frame and shown_uid(frame))
    return _placed(replace(scan, warnings=warnings), geometry)


def _check_pixels(layout: Layout) -> None:
    """Raise DicomError for what headers tell of pixels, and for slices at one place that differ."""
    for header in {one.header.path: one.header for one in layout.slices}.values():
        check_frames(header)
    check_copies(layout)


def _image_scans(paths: Sequence[Path], names: _Names, report: Report) -> list[_Found]:
    """Image files, read whole: their faults are rarely in the header."""
    looked: dict[int, _Look] = {}
    if len(paths) <= _FEW:
        answers: Iterable[tuple[int, _Look | Lost]] = ((i, _look(path)) for i, path in enumerate(paths))
    else:
        answers = run_apart(_looker, (), paths, _LIMITS)
    for number, (index, answer) in enumerate(answers, start=1):
        lost = f"{paths[index]}: cannot be read ({answer.reason})" if isinstance(answer, Lost) else None
        looked[index] = (lost, None, ()) if isinstance(answer, Lost) else answer
        report(Progress("files", number, len(paths)))
    found: list[_Found] = []
    for index, path in enumerate(paths):
        error, geometry, warnings = looked[index]
        form = path.name[len(image_stem(path)) + 1 :].lower()
        where = f"{names.path(path.parent)}/{path.name}".removeprefix("./")
        error = error and names.text(error, [path.parent])
        scan = ScanInfo(image_stem(path), form, where, 1, error=error, warnings=warnings)
        found.append(((path,), _placed(scan, geometry) if geometry is not None else scan))
    return found


def _looker() -> Callable[[Path], _Look]:
    return _look


def _look(path: Path) -> _Look:
    """Error, grid and warnings of an image file."""
    try:
        image = read_image([path])
    except MedsegError as error:
        return str(error), None, ()
    return None, image.geometry, image.warnings


def _placed(scan: ScanInfo, geometry: Geometry) -> ScanInfo:
    """With the grid, and how it lies in the patient where it says so."""
    if geometry.unit != "mm" or scan.format in ("dicom-us", "png", "bmp", "tif", "tiff"):
        return replace(scan, geometry=geometry)
    normal = np.abs(np.array(geometry.direction)[:, 2])
    off = float(np.degrees(np.arccos(min(1.0, normal.max()))))
    plane = _PLANES[int(normal.argmax())] + (f", {off:.0f} deg oblique" if off >= 0.5 else "")
    return replace(scan, geometry=geometry, orientation=orientation_code(geometry), plane=plane)


def _left_out(reasons: Mapping[Path, str], names: _Names) -> tuple[LeftOut, ...]:
    grouped: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(reasons):
        grouped.setdefault((path.parent, reasons[path]), []).append(path)
    return tuple(
        LeftOut(names.path(paths[0]), len(paths), names.text(reason, paths)) for (_, reason), paths in grouped.items()
    )


def _pair(numbers: tuple[float, float]) -> str:
    return " and ".join(f"{abs(number):.3g}" for number in numbers)
