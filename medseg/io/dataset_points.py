"""Landmarks of a data set: one file per case in `landmarksTr`, named like the case."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from medseg.errors import DatasetError, MedsegError
from medseg.io.dataset_json import Header, error, warning
from medseg.io.landmarks import read_landmarks
from medseg.io.pairs import read_scan
from medseg.types.dataset import Case, Dataset, Fault
from medseg.types.geometry import Geometry
from medseg.types.landmarks import Landmarks

_LOG = logging.getLogger("medseg")
_EDGE = 1e-3  # voxels by which a landmark may lie outside of its scan
FOLDER = "landmarksTr"
POINT_ENDINGS = (".mrk.json", ".fcsv", ".landmarks.csv", ".csv")


def point_stem(path: Path) -> str:
    """File name without the ending of a landmark file; "" for other files.

    >>> point_stem(Path("a/case.01.mrk.json")), point_stem(Path("notes.txt"))
    ('case.01', '')
    """
    ending = next((known for known in POINT_ENDINGS if path.name.lower().endswith(known)), None)
    return path.name[: -len(ending)] if ending else ""


def find_points(folder: Path, header: Header, faults: list[Fault]) -> dict[str, Path]:
    """The landmark file of every case that has one; nothing where `dataset.json` speaks of no landmarks."""
    place = folder / FOLDER
    if header.landmarks is None:
        return {}
    if not place.is_dir():
        faults.append(error("no such folder", "create it with a landmark file per case", file=FOLDER))
        return {}
    found: dict[str, Path] = {}
    for path in sorted(path for path in place.iterdir() if not path.name.startswith(".")):
        case, file = point_stem(path), f"{FOLDER}/{path.name}"
        if not case or not path.is_file():
            faults.append(warning("is no landmark file and is left out", f"use {', '.join(POINT_ENDINGS)}", file=file))
        elif case in found:
            what = f"has two landmark files, {found[case].name} too"
            faults.append(error(what, "keep one of them", case=case, file=file))
        else:
            found[case] = path
    return found


def with_points(found: Sequence[Case], points: Mapping[str, Path], header: Header, faults: list[Fault]) -> list[Case]:
    """The cases with their landmark files; without label maps, a case without landmarks is none."""
    known = {case.id for case in found} | {fault.case for fault in faults}
    for name in sorted(set(points) - known):
        what, fix = "image is missing for these landmarks", "restore the image or remove the file"
        faults.append(error(what, fix, case=name, file=f"{FOLDER}/{points[name].name}"))
    if header.labels.items:
        return [replace(case, landmarks=points.get(case.id)) for case in found]
    for case in found:
        if case.id not in points and header.count == len(points):
            file = "/".join(case.images[0].parts[-2:])
            what, fix = "image without landmarks is left out", "move it to imagesTs"
            faults.append(warning(what, fix, case=case.id, file=file))
        elif case.id not in points:
            fix = "add the file or move the image to imagesTs"
            faults.append(error("landmark file is missing", fix, case=case.id, file=f"{FOLDER}/{case.id}.mrk.json"))
    return [replace(case, landmarks=points[case.id]) for case in found if case.id in points]


def point_names(header: Header, points: Mapping[str, Path], faults: list[Fault]) -> tuple[str, ...]:
    """The names that `dataset.json` states, else those of all files in the order in which they come."""
    if header.landmarks:
        return header.landmarks
    names: dict[str, None] = {}
    for case, path in sorted(points.items()):
        try:
            names |= dict.fromkeys(read_landmarks(path).names)
        except MedsegError as problem:
            faults.append(error(problem.what, problem.hint, case=case, file=f"{FOLDER}/{path.name}"))
    if points and not names:
        faults.append(error("no landmark file names a landmark", "add landmarks to the files", file=FOLDER))
    return tuple(names)


def read_points(case: Case, dataset: Dataset, grid: Geometry | None = None) -> Float64[np.ndarray, "n 3"]:
    """Places (x, y, z) of the data set's landmarks, in its order, in mm LPS; NaN where a case does not know one.

    In pixels where the scan has no spacing (see `on_grid`). Names that the data set does not have are left out. Raises
    ImageError for unreadable files, DatasetError where none of its names is a landmark of the data set, or where the
    unit of the points is not the scan's; where the scan has been read and its `grid` is given, also where all of them
    lie outside of it, and what is doubtful in the file is logged.
    """
    places = np.full((len(dataset.landmarks), 3), np.nan)
    if case.landmarks is None:
        return places
    read = read_landmarks(case.landmarks)
    known = [name for name in read.names if name in dataset.landmarks]
    if read.names and not known:
        hint = f"names are {', '.join(dataset.landmarks[:8])}"
        raise DatasetError("holds no landmark of the data set", where=case.landmarks, hint=hint)
    read = _in_unit_of_scan(read, case, dataset) if grid is None else on_grid(read, grid, where=case.landmarks)
    for name in known:
        places[dataset.landmarks.index(name)] = read.points_mm[read.names.index(name)]
    for note in read.warnings if grid is not None else ():
        _LOG.warning("%s: landmarks: %s", case.id, note)
    placed = int((~np.isnan(places[:, 0])).sum())
    if grid is not None and placed and not within(grid, places).any():
        what, hint = f"its landmarks ({placed}) all lie outside of the scan", "medseg check says how far"
        raise DatasetError(what, where=case.landmarks, hint=hint)
    return places


def within(grid: Geometry, points: Float64[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    """Which points, in the grid's unit, lie in one of its voxels; those without a place do not."""
    places = grid.to_voxels(points)
    inside: np.ndarray = np.all((places >= -0.5 - _EDGE) & (places <= np.array(grid.shape) - 0.5 + _EDGE), axis=1)
    return inside


def on_grid(points: Landmarks, grid: Geometry, *, where: object = "") -> Landmarks:
    """Points in the unit of the scan whose grid this is: mm, or pixels where it states no spacing.

    Pixels of a flat image with a spacing become mm: x is the column, y the row, 0 the middle of the first pixel.
    "mm" in a flat image without a spacing are pixels, since viewers take such an image for one with 1 mm. Raises
    DatasetError for pixels in a volume in mm, and for mm in a volume without a spacing.

    >>> found = Landmarks(("tip",), np.array([[2.0, 1.0, 0.0]]), unit="px")
    >>> on_grid(found, Geometry((1, 4, 5), (1.0, 0.25, 0.5))).placed()
    {'tip': (1.0, 0.25, 0.0)}
    """
    if points.unit == grid.unit:
        return points
    flat = grid.shape[0] == 1
    if points.unit == "mm" and flat:
        return replace(points, unit="px")
    if points.unit == "mm":
        hint = "state the spacing in the image file, or give the points in pixels"
        raise DatasetError("is in mm, but its scan states no spacing", where=where, hint=hint)
    if not flat:
        what = "is in pixels, but its scan is a volume in mm"
        raise DatasetError(what, where=where, hint="give the points in mm, LPS")
    return replace(points, points_mm=grid.to_points_mm(points.points_mm[:, ::-1]), unit="mm")


def _in_unit_of_scan(points: Landmarks, case: Case, dataset: Dataset) -> Landmarks:
    """The same points `on_grid` of their scan, which is read only if its unit may be another."""
    if points.unit == "mm":
        return points
    return on_grid(points, read_scan(case, dataset).geometry, where=case.landmarks)
