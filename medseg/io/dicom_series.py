"""Find DICOM series in a folder and read one as a regular volume."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DicomError, MedsegError
from medseg.io.dicom_groups import along_normal, group_slices, unplaced
from medseg.io.dicom_headers import Header, Slice, read_header
from medseg.io.dicom_kinds import Kind
from medseg.io.dicom_layout import Layout, lay_out
from medseg.io.dicom_pixels import check_volume, read_volume, same_pixels
from medseg.io.dicom_tilt import unshear
from medseg.io.dicom_us import open_cine, read_ultrasound
from medseg.io.dicom_values import tag_name
from medseg.types.image import Image, Source


@dataclass(frozen=True)
class Series:
    """Image planes of one series, frame of reference, orientation and matrix, sorted along the slice normal.

    A series whose positions repeat becomes one record per volume; `part` says which ("EchoTime 4.6"). `files` are the
    files of the planes in their order, each once; `slices` the planes themselves.
    """

    uid: str
    modality: str
    description: str
    files: tuple[Path, ...]
    matrix: tuple[int, int] = (0, 0)
    study_uid: str = ""
    kind: Kind = "volume"
    part: str = ""
    slices: tuple[Slice, ...] = ()

    @property
    def summary(self) -> str:
        """What tells it from others without patient data: modality, rows x columns, files or frames, part."""
        framed = any(one.header.frames > 1 for one in self.slices)
        count = f"{len(self.slices)} frames" if framed else f"{len(self.files)} files"
        part = f", {self.part}" if self.part else ""
        return f"{self.modality or 'unknown'} {self.matrix[0]} x {self.matrix[1]}, {count}{part}"


def find_series(folder: Path) -> tuple[tuple[Series, ...], dict[Path, str]]:
    """All image series in a folder and its subfolders, and for every other file the reason it is none of them.

    Only headers are read. Nothing is raised for bad files; hidden files are passed over.
    """
    return group_files(sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name[0] != "."))


def group_files(files: Iterable[Path]) -> tuple[tuple[Series, ...], dict[Path, str]]:
    """As `find_series`, for files given one by one."""
    read = {path: read_header(path) for path in files}
    found, refused = group_headers([header for header in read.values() if isinstance(header, Header)])
    wrong = {path: reason for path, reason in read.items() if isinstance(reason, str)}
    return found, {path: reason for path, reason in (wrong | refused).items()}


def group_headers(headers: Sequence[Header]) -> tuple[tuple[Series, ...], dict[Path, str]]:
    """As `group_files`, for headers already read; files are opened only where `group_slices` must compare pixels."""
    cines = [header for header in headers if header.kind == "ultrasound" and not header.planes]
    others = [header for header in headers if header.kind != "ultrasound" or header.planes]
    groups, refused = group_slices(others)
    found = [*(_series(group, part) for group, part in groups), *(_cine(header) for header in cines)]
    ordered = sorted(found, key=lambda series: (series.uid, min(series.files), _first_frame(series)))
    return tuple(ordered), {others[index].path: reason for index, reason in refused.items()}


def choose_volume(found: Sequence[Series]) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The one volume among panoramas and other images without a place, with a note on those; else all as they are."""
    volumes = tuple(series for series in found if not _is_unplaced(series))
    aside = [series.summary for series in found if _is_unplaced(series)]
    if len(volumes) != 1 or not aside:
        return tuple(found), ()
    return volumes, (f"images without a position in the patient are left out ({'; '.join(aside[:3])})",)


def _is_unplaced(series: Series) -> bool:
    lost = series.kind == "volume" and not any(one.plane.position for one in series.slices)
    return series.kind == "projection" or lost


def series_layout(series: Series) -> Layout:
    """The grid a series would be read on, its planes in array order; no pixels are decoded.

    Raises DicomError as `read_series` does, but for code streams that do not decode and copies that differ.
    """
    if not series.files:
        raise DicomError("series without files", where=series.uid, hint="give at least one file")
    if _is_flat_ultrasound(series):
        with _named(series.files[0]):
            cine = open_cine(series.files[0])
        return Layout(series.slices, cine.geometry, (0.0, 0.0), (), cine.warnings)
    layout = lay_out(_slices(series))
    check_volume(layout.slices)
    return layout


def check_copies(layout: Layout) -> None:
    """Raise DicomError where slices at one place do not hold the same pixels; only these are read."""
    for kept, other in layout.copies:
        if not same_pixels(kept, other):
            planes = (*layout.slices, *(copy for _, copy in layout.copies))
            folders = {one.header.path.parent for one in planes}
            several = "the series holds several volumes (time, echo, b-value) or doubled files; split it"
            apart = f"the files of this series come from {len(folders)} folders; give one of these folders alone"
            raise DicomError(
                f"lies at the same position as {kept.header.path.parent.name}/{kept.header.path.name}, other pixels",
                where=other.name,
                hint=apart if len(folders) > 1 else several,
            )


def read_series(series: Series, *, spacing_mm: tuple[float, float] | None = None) -> Image:
    """Read one series as a volume: array (c, z, y, x), slices along the normal of the image plane, geometry LPS mm.

    Geometry comes from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone, the distance of slices
    from their positions; a single slice takes SpacingBetweenSlices, else SliceThickness, else 1 mm with a warning.
    Values are rescaled (HU in CT); see `read_volume`. Copies of slices with equal pixels are left out, and planes
    sheared by a tilted gantry are resampled within themselves onto a right-angled grid, both with a warning. 2D
    ultrasound is read by `read_ultrasound`, which `spacing_mm` is for.

    Raises DicomError, naming file and tag, for slices that are missing, doubled, uneven by more than 1 %, unlike each
    other, truncated, or without a position or pixel spacing.
    """
    if _is_flat_ultrasound(series):
        with _named(series.files[0]):
            return read_ultrasound(series.files[0], spacing_mm=spacing_mm)
    layout = series_layout(series)
    check_copies(layout)
    array, warnings = read_volume(layout.slices)
    geometry = layout.geometry
    if any(layout.shear_mm):
        array, geometry = unshear(array, geometry, layout.shear_mm)
        warnings = (*warnings, _tilt(layout))
    if not series.uid:
        warnings = (*warnings, f"{tag_name('SeriesInstanceUID')} is missing; the files are taken as one series")
    framed = layout.slices[0].header.frames > 1
    files = tuple(dict.fromkeys(one.header.path for one in layout.slices))
    frames = tuple(tuple(one.plane.frame + 1 for one in layout.slices if one.header.path == path) for path in files)
    kind = "dicom-enhanced" if framed else "dicom"
    source = Source(files, kind, series.uid or None, frames=frames if framed else ())
    names = tuple(str(i) for i in range(len(array)))
    return Image(array, geometry, names, source, (*layout.warnings, *warnings))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What pydicom raises on damaged values, of many kinds, as an error that names the file."""
    try:
        yield
    except MedsegError:
        raise
    except Exception as error:
        raise DicomError(f"is damaged ({type(error).__name__})", where=path, hint="copy the file again") from error


def _tilt(layout: Layout) -> str:
    y, x = layout.shear_mm
    return (
        f"gantry tilt or sheared stack: slices lie {abs(y):.3g} mm (rows) and {abs(x):.3g} mm (columns) beside each "
        "other; they are resampled onto a right-angled grid by linear interpolation"
    )


def _is_flat_ultrasound(series: Series) -> bool:
    """Whether it is one ultrasound file whose frames have no place in the patient."""
    return series.kind == "ultrasound" and len(series.files) == 1 and not any(s.plane.position for s in series.slices)


def _cine(header: Header) -> Series:
    """One ultrasound file whose frames are time."""
    return Series(
        header.series_uid,
        header.modality,
        header.description,
        (header.path,),
        (header.pixels.rows, header.pixels.columns),
        header.study_uid,
        header.kind,
        f"{header.frames} frames over time",
    )


def _first_frame(series: Series) -> int:
    return series.slices[0].plane.frame if series.slices else 0


def _series(group: tuple[Slice, ...], part: str) -> Series:
    along = along_normal([one.plane for one in group])
    if along is not None:
        group = tuple(group[i] for i in sorted(range(len(group)), key=along.__getitem__))
    first = group[0].header
    return Series(
        first.series_uid,
        first.modality,
        first.description,
        tuple(dict.fromkeys(one.header.path for one in group)),
        (first.pixels.rows, first.pixels.columns),
        first.study_uid,
        first.kind,
        part,
        group,
    )


def _slices(series: Series) -> tuple[Slice, ...]:
    """The planes of its files, read again where the record does not have those of exactly these files."""
    files = dict.fromkeys(series.files)
    if {one.header.path for one in series.slices} == set(files):
        return series.slices
    slices: list[Slice] = []
    for path in files:
        header = read_header(path)
        reason = header if isinstance(header, str) else unplaced(header)
        if isinstance(header, str) or reason:
            raise DicomError(str(reason), where=path, hint="leave this file out")
        slices += [Slice(header, plane) for plane in header.planes]
    return tuple(slices)
