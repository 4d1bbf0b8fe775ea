"""Landmark files: 3D Slicer's .mrk.json and .fcsv, and .csv in mm; points are LPS (x, y, z) in mm in memory."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from medseg.errors import DatasetError, ImageError, MedsegError
from medseg.io.files import write_text
from medseg.types.landmarks import Landmarks

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)
_TO_LPS = {"LPS": 1.0, "1": 1.0, "RAS": -1.0, "0": -1.0}  # sign of x and y; early versions wrote numbers
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_UPRIGHT = [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]
_CONFIDENCE = re.compile(r"confidence (\d+(?:\.\d+)?(?:e-?\d+)?)")
_FORMATS = "use .mrk.json, .fcsv or .csv"
_PIXELS = ("px", "pixel", "pixels")
_Unit = Literal["mm", "px"]
_Row = tuple[str, Sequence[float], float | None]


def read_landmarks(path: Path) -> Landmarks:
    """Read .mrk.json (all point lists of the file), .fcsv, or .csv with the columns name, x_mm, y_mm, z_mm (LPS).

    In a CSV file z_mm may be absent (0), a column confidence may follow, and empty coordinates are a landmark without
    a place, as is the status "undefined" in 3D Slicer's. Points of pictures without a spacing have columns x_px, y_px,
    z_px, or px as their unit. RAS files are turned to LPS; a file that names no system is
    taken as 3D Slicer takes it (.mrk.json LPS, .fcsv RAS), with a warning.
    Raises ImageError for other formats, units and systems, for damaged files and for names used twice.
    """
    name = path.name.lower()
    reader = _read_markups if name.endswith(".json") else _READERS.get(path.suffix.lower())
    if reader is None:
        raise ImageError("is no landmark file", where=path, hint=_FORMATS)
    try:
        rows, warnings, unit = reader(path.read_text(encoding="utf-8-sig"))
        names = tuple(row[0] for row in rows)
        points = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 3)
        stated = [np.nan if row[2] is None else row[2] for row in rows]
        confidence = None if np.isnan(stated).all() else np.array(stated, dtype=np.float64)
        return Landmarks(names, points, confidence, tuple(warnings), unit)
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror})", where=path, hint="check the path") from error
    except MedsegError as error:
        raise ImageError(error.what, where=path, hint=error.hint) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        what = f"is no landmark file of its kind ({type(error).__name__}: {error})"
        raise ImageError(what, where=path, hint="save the landmarks again") from error


def write_landmarks(landmarks: Landmarks, path: Path) -> None:
    """Write .mrk.json, .fcsv or .csv in LPS mm by the name of `path`, whole or not at all.

    .mrk.json and .csv keep landmarks without a place, and say so where points are in pixels; .mrk.json has the
    confidence in the description. Raises ImageError for other names, and for .fcsv if a landmark has no place or points
    are in pixels.
    """
    name = path.name.lower()
    if name.endswith(".mrk.json"):
        write_text(path, _markups(landmarks))
    elif name.endswith(".fcsv"):
        if len(landmarks.placed()) < len(landmarks.names):
            raise ImageError("cannot hold landmarks without a place", where=path, hint="use .mrk.json or .csv")
        if landmarks.unit != "mm":
            raise ImageError("cannot say that points are in pixels", where=path, hint="use .mrk.json or .csv")
        write_text(path, _fcsv(landmarks))
    elif name.endswith(".csv"):
        write_text(path, _table(landmarks))
    else:
        raise ImageError("is no name of a landmark file", where=path, hint=_FORMATS)


def _read_markups(text: str) -> tuple[list[_Row], list[str], _Unit]:
    content = json.loads(text)
    lists = [one for one in content["markups"] if one.get("type", "Fiducial") == "Fiducial"]
    others = len(content["markups"]) - len(lists)
    warnings = [f"{others} markups that are no point lists are left out"] if others else []
    rows: list[_Row] = []
    units = set()
    for markup in lists:
        sign = _sign(markup.get("coordinateSystem"), "LPS", warnings)
        stated = markup.get("coordinateUnits", "mm")
        units.add(stated[0] if isinstance(stated, list) and stated else stated)
        rows += [_control_point(point, sign, number) for number, point in enumerate(markup["controlPoints"], start=1)]
    if not (units <= {"mm"} or units <= set(_PIXELS)):
        raise DatasetError(f"coordinates are in {', '.join(sorted(map(repr, units)))}", hint="convert them to mm")
    return rows, warnings, "px" if units & set(_PIXELS) else "mm"


def _control_point(point: Any, sign: float, number: int) -> _Row:
    name = str(point.get("label") or "").strip() or str(point.get("id") or number)
    stated = _CONFIDENCE.search(str(point.get("description") or ""))
    confidence = float(stated[1]) if stated else None
    position = point.get("position")
    if point.get("positionStatus", "defined") != "defined" or position is None:
        return name, [math.nan] * 3, confidence
    return name, _lps(position, sign, name), confidence


def _read_fcsv(text: str) -> tuple[list[_Row], list[str], _Unit]:
    head = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
    stated = {key.strip().lower(): value.strip() for key, _, value in (line.partition("=") for line in head)}
    warnings: list[str] = []
    sign = _sign(stated.get("coordinatesystem"), "RAS", warnings)
    columns = stated.get("columns", _FCSV_COLUMNS).split(",")
    rows: list[_Row] = []
    for cells in csv.reader(line for line in text.splitlines() if line.strip() and not line.startswith("#")):
        row = dict(zip(columns, cells, strict=False))
        name = (row.get("label") or "").strip() or row["id"].strip()
        rows.append((name, _lps([row["x"], row["y"], row["z"]], sign, name), None))
    return rows, warnings, "mm"


def _read_table(text: str) -> tuple[list[_Row], list[str], _Unit]:
    table = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in table.fieldnames or []]
    unit: _Unit = "px" if "x_px" in columns else "mm"
    x, y, z = (f"{axis}_{unit}" for axis in "xyz")
    if not {"name", x, y} <= set(columns):
        raise DatasetError("has no columns name, x_mm, y_mm and z_mm", hint="name them in the first line; LPS, in mm")
    table.fieldnames = columns
    rows: list[_Row] = []
    for row in table:
        cells = [row[x], row[y], row[z] if z in columns else "0"]
        known = [cell.strip() for cell in cells[: 3 if z in columns else 2]]
        point = _lps(cells, 1.0, row["name"]) if any(known) else [math.nan] * 3
        confidence = (row.get("confidence") or "").strip()
        rows.append((row["name"].strip(), point, float(confidence) if confidence else None))
    return rows, [], unit


_READERS = {".fcsv": _read_fcsv, ".csv": _read_table}


def _sign(system: object, usual: str, warnings: list[str]) -> float:
    """1 for LPS, -1 for RAS; `usual` where a file does not say."""
    if system is None:
        warnings.append(f"names no coordinate system; {usual} is assumed")
        system = usual
    if str(system).upper() not in _TO_LPS:
        raise DatasetError(f"coordinate system is {system!r}", hint="save the points in LPS or RAS")
    return _TO_LPS[str(system).upper()]


def _lps(position: Sequence[object], sign: float, name: str) -> list[float]:
    try:
        x, y, z = (float(str(value)) for value in position)
    except ValueError as error:
        raise DatasetError(f'landmark "{name}" has no three coordinates', hint="correct them") from error
    if not all(math.isfinite(value) for value in (x, y, z)):
        raise DatasetError(f'landmark "{name}" has a place that is no number', hint="correct it or leave it empty")
    return [sign * x, sign * y, z]


def _markups(landmarks: Landmarks) -> str:
    points = []
    for index, name in enumerate(landmarks.names):
        placed = not np.isnan(landmarks.points_mm[index, 0])
        points.append({
            "id": str(index + 1),
            "label": name,
            "description": "" if _stated(landmarks, index) is None else f"confidence {_stated(landmarks, index):.4g}",
            "associatedNodeID": "",
            "position": _rounded(landmarks.points_mm[index]) if placed else [0.0, 0.0, 0.0],
            "orientation": _UPRIGHT,
            "selected": True,
            "locked": True,
            "visibility": True,
            "positionStatus": "defined" if placed else "undefined",
        })  # fmt: skip
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": landmarks.unit, "controlPoints": points}
    return json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1, ensure_ascii=False) + "\n"


def _fcsv(landmarks: Landmarks) -> str:
    text = io.StringIO()
    text.write(f"# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n")
    writer = csv.writer(text, lineterminator="\n")
    for index, name in enumerate(landmarks.names):
        writer.writerow([index + 1, *_rounded(landmarks.points_mm[index]), 0, 0, 0, 1, 1, 1, 1, name, "", ""])
    return text.getvalue()


def _table(landmarks: Landmarks) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has = landmarks.confidence is not None
    writer.writerow(["name", *(f"{axis}_{landmarks.unit}" for axis in "xyz")] + (["confidence"] if has else []))
    for index, name in enumerate(landmarks.names):
        point = landmarks.points_mm[index]
        cells = ["", "", ""] if np.isnan(point[0]) else _rounded(point)
        stated = _stated(landmarks, index)
        writer.writerow([name, *cells] + (["" if stated is None else f"{stated:.4g}"] if has else []))
    return text.getvalue()


def _stated(landmarks: Landmarks, index: int) -> float | None:
    value = math.nan if landmarks.confidence is None else float(landmarks.confidence[index])
    return None if math.isnan(value) else value


def _rounded(point: Float64[np.ndarray, " 3"]) -> list[float]:
    return [round(float(value), 6) + 0.0 for value in point]
