"""Faults of the landmarks of a data set, as `medseg check` lists them."""

from collections.abc import Iterable, Mapping, Set

import numpy as np
from jaxtyping import Float64

from medseg.io.dataset_points import on_grid, within
from medseg.io.landmarks import read_landmarks
from medseg.types.dataset import Case, Dataset, Fault
from medseg.types.geometry import Geometry
from medseg.types.image import Image
from medseg.types.landmarks import Landmarks
from medseg.types.sides import paired_names

_NEAR_MM = 1e-3
_ONES = (1.0, 1.0, 1.0)
_SETTLED = "look at the file; reading goes on with this"


def point_faults(dataset: Dataset, case: Case, image: Image | None) -> tuple[list[Fault], frozenset[str]]:
    """Faults of one case's landmark file, and the landmarks of the data set that it places.

    Names that the data set does not have, places outside of the scan, two landmarks in one place, none placed, and left
    and right the wrong way round. Raises what `read_landmarks` and `on_grid` do.
    """
    if case.landmarks is None:
        return [], frozenset()
    points = read_landmarks(case.landmarks)
    if image is not None:
        points = on_grid(points, image.geometry, where=case.landmarks)
    file = case.landmarks.relative_to(dataset.root).as_posix()
    faults = [Fault(case.id, file, "warning", note, _SETTLED) for note in points.warnings]
    placed = frozenset(points.placed()) & frozenset(dataset.landmarks)
    faults += _names(case.id, file, points, dataset)
    faults += _double(case.id, file, points)
    if image is not None and placed:
        out = _outside(case.id, file, points, image.geometry, placed)
        lost = any(fault.severity == "error" for fault in out)
        faults += [*out, *([] if lost else _sides(case.id, file, points, image.geometry))]
    return faults, placed


def name_faults(dataset: Dataset, placed: Mapping[str, frozenset[str] | None]) -> list[Fault]:
    """Landmarks that no case places, cases without landmarks, and names of one side without the other."""
    faults = []
    known = [names for names in placed.values() if names is not None]
    seen: frozenset[str] = frozenset().union(*known)
    for name in dataset.landmarks if len(known) == len(dataset.cases) else ():
        if name not in seen:
            fix = "correct landmarks in dataset.json, or add cases that place it"
            faults.append(Fault("", "dataset.json", "warning", f'landmark "{name}" is placed in no case', fix))
    bare = [case.id for case in dataset.cases if dataset.landmarks and case.landmarks is None]
    if bare:
        what = f"{len(bare)} of {len(dataset.cases)} cases have no landmark file: {_some(bare)}"
        faults.append(Fault("", "landmarksTr", "warning", what, "add the files; or they train the labels only"))
    for names in (dataset.labels.names(), dataset.landmarks):
        alone = paired_names(names).unpaired
        if alone:
            what = f"names say left or right, but no other name is the partner: {_some(alone)}"
            fix = "name both sides alike; otherwise scans are not mirrored between left and right"
            faults.append(Fault("", "dataset.json", "warning", what, fix))
    return faults


def _names(case: str, file: str, points: Landmarks, dataset: Dataset) -> list[Fault]:
    unknown = [name for name in points.names if name not in dataset.landmarks]
    fix = f"correct them, or add them to the names in dataset.json ({_some(dataset.landmarks)} now)"
    if points.names and len(unknown) == len(points.names):
        return [Fault(case, file, "error", f"holds no landmark of the data set, but {_some(unknown)}", fix)]
    faults = []
    if unknown:
        faults.append(Fault(case, file, "warning", f"unknown landmarks are left out: {_some(unknown)}", fix))
    if not set(points.placed()) & set(dataset.landmarks):
        what = "no landmark is placed"
        faults.append(Fault(case, file, "warning", what, "place them, or remove the case"))
    return faults


def _double(case: str, file: str, points: Landmarks) -> list[Fault]:
    places = list(points.placed().items())
    twins = [
        f"{name} and {other}"
        for number, (name, place) in enumerate(places)
        for other, there in places[number + 1 :]
        if np.linalg.norm(np.subtract(place, there)) < _NEAR_MM
    ]
    what = f"landmarks lie in one place: {_some(twins)}"
    return [Fault(case, file, "warning", what, "right if they coincide; else place them again")] if twins else []


def _outside(case: str, file: str, points: Landmarks, geometry: Geometry, known: Set[str]) -> list[Fault]:
    """Landmarks beyond the scan's outermost voxels; an error if that is all of them, or most are pixels called mm."""
    names = [name for name in points.names if name in known]
    places = points.points_mm[[points.names.index(name) for name in names]]
    out = ~within(geometry, places)
    if not out.any():
        return []
    shown = _some([name for name, there in zip(names, out, strict=True) if there])
    unit = geometry.unit
    if out.all() and within(geometry, places * (-1, -1, 1)).all():
        fix = "write them in LPS, or say RAS in the file"
        return [Fault(case, file, "error", f"landmarks lie in the scan only if they are RAS: {shown}", fix)]
    pixels = geometry.shape[0] == 1 and within(Geometry(geometry.shape, _ONES), places).all()
    if out.mean() > 0.5 and pixels:
        fix = 'say that they are pixels: columns x_px and y_px, or "coordinateUnits": "px"'
        return [Fault(case, file, "error", f"landmarks lie in the picture only if they are pixels: {shown}", fix)]
    apart = np.clip(np.abs(_offset(places, geometry)) - np.array(geometry.shape) / 2, 0, None) * geometry.spacing_mm
    what = f"landmarks lie up to {np.linalg.norm(apart, axis=1).max():.4g} {unit} outside of the scan: {shown}"
    if out.all():
        return [Fault(case, file, "error", what, f"give the points of this scan, in LPS {unit}")]
    return [Fault(case, file, "warning", what, "right if the scan is cut off there; they are not learnt from")]


def _sides(case: str, file: str, points: Landmarks, geometry: Geometry) -> list[Fault]:
    """Left is at larger x in LPS; of flat images nobody knows."""
    if geometry.shape[0] == 1 or geometry.unit != "mm":
        return []
    placed = points.placed()
    wrong = [
        f"{left} and {right}"
        for left, right in paired_names(points.names).pairs
        if left in placed and right in placed and placed[left][0] < placed[right][0]
    ]
    what = f"the left landmark lies to the right of its partner: {_some(wrong)}"
    return (
        [Fault(case, file, "warning", what, "exchange the names, or correct the scan's orientation")] if wrong else []
    )


def _offset(places: Float64[np.ndarray, "n 3"], geometry: Geometry) -> Float64[np.ndarray, "n 3"]:
    """Voxels (z, y, x) from the middle of the scan."""
    offset: np.ndarray = geometry.to_voxels(places) - (np.array(geometry.shape) - 1) / 2
    return offset


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
