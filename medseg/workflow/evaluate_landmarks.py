"""medseg evaluate on landmark files: score points against references of the same name."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import DatasetError, MedsegError
from medseg.io.dataset_files import entries
from medseg.io.dataset_points import POINT_ENDINGS, on_grid, point_stem
from medseg.io.datasets import stated_spacing
from medseg.io.files import write_text
from medseg.io.images import is_image
from medseg.io.landmarks import read_landmarks
from medseg.metrics.landmarks import SDR_MM, check_units, score_landmarks, summarise_landmarks
from medseg.types.geometry import Geometry
from medseg.types.landmarks import Landmarks
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import LandmarkScores

_LOG = logging.getLogger("medseg")


def evaluate_landmarks(
    predictions: Path | str,
    references: Path | str,
    *,
    second_reader: Path | str | None = None,
    report: Report = silent,
) -> tuple[LandmarkScores, ...]:
    """Radial errors of every reference, paired with the prediction of the same name; two folders, or two files.

    In mm, or in pixels (see `check_units`); pixels of pictures become mm where the others are in mm and the
    dataset.json beside the references states a spacing. Files are .mrk.json, .fcsv or .csv; where a case has several,
    the first of these is read. `second_reader`: files of another person, whose distance to the reference is given
    beside, where they can be read and are in the same unit. A reference whose prediction is missing, unreadable or in
    another unit is a failed case, last in the result, and all its landmarks are missing. Writes nothing.
    Raises DatasetError if there is no reference or no name in common.
    """
    predictions, references = Path(predictions), Path(references)
    truth, guess = point_files(references), point_files(predictions)
    if references.is_file() and predictions.is_file() and truth and guess:
        guess = dict(zip(truth, guess.values(), strict=True))
    if not truth or not set(truth) & set(guess):
        what = f"none of {len(guess)} predictions has the name of one of {len(truth)} references"
        raise DatasetError(what, where=references, hint="give folders whose landmark files are named alike")
    extra = sorted(set(guess) - set(truth))
    if extra:
        _LOG.warning("no reference for %d predictions: %s", len(extra), ", ".join(extra[:10]))
    spacing_mm = stated_spacing(references)
    others = {} if second_reader is None else point_files(Path(second_reader))
    if second_reader is not None and references.is_file() and Path(second_reader).is_file():
        others = dict(zip(truth, others.values(), strict=False))
    scores = []
    for number, (name, path) in enumerate(truth.items(), start=1):
        scores.append(_score(name, guess.get(name), path, others.get(name), spacing_mm))
        report(Progress("evaluate", number, len(truth)))
    return tuple(sorted(scores, key=lambda case: case.status != "ok"))


def what_to_score(predictions: Path, references: Path) -> tuple[bool, bool]:
    """Whether there are label maps to score, and landmarks: as the references are, a file or what lies in a folder.

    Where a folder holds both, landmarks count if predictions have them too, and images, which may be the scans, if
    predictions are no landmarks alone.
    """
    points = point_files(references)
    if not references.is_dir():
        return not points, bool(points)
    masks, found = _images(references), bool(set(points) & set(point_files(predictions)))
    if masks and found and predictions.is_dir():
        masks = _images(predictions)
        if not masks:
            _LOG.warning("images among the references are not scored: the predictions are landmarks alone")
    return masks or not points, bool(points) and (not masks or found)


def _images(folder: Path) -> bool:
    return any(is_image(file) for file in entries(folder))


def point_files(path: Path) -> dict[str, Path]:
    """Landmark files of a folder (not below it), or one file, by name without ending; nothing if there are none."""
    if not path.exists():
        raise DatasetError("does not exist", where=path, hint="give a folder of landmark files")
    if path.is_file():
        return {point_stem(path): path} if point_stem(path) else {}
    files = [file for file in entries(path) if file.is_file() and point_stem(file)]
    rank = {file: next(i for i, end in enumerate(POINT_ENDINGS) if file.name.lower().endswith(end)) for file in files}
    named: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (rank[file], file.name)):
        named.setdefault(point_stem(file), file)
    return dict(sorted(named.items()))


def write_landmark_scores(scores: Sequence[LandmarkScores], out: Path) -> None:
    """Write `landmarks.json` (summary, then every case) and `landmarks.csv` (a row per case and landmark) to a folder.

    Missing landmarks are null in JSON and empty in CSV.
    """
    cases = [{**asdict(case), "errors_mm": _numbers(case.errors_mm)} for case in scores]
    content = {"summary": summarise_landmarks(scores), "cases": cases}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / "landmarks.json", text + "\n")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "landmark", "unit", "status", "error", "radial_error_mm", "reader_mm"])
    for case in scores:
        for name, error in _numbers(case.errors_mm or {"": math.nan}).items():
            facts = [case.case_id, name, case.unit, case.status, case.error]
            writer.writerow([*facts, error, case.reader_mm.get(name)])
    write_text(out / "landmarks.csv", table.getvalue())


def format_landmark_table(scores: Sequence[LandmarkScores]) -> str:
    """The summary as text: a line per landmark, one for all and for a second reader, and every failed case."""
    rows = landmark_rows(summarise_landmarks(scores))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"failed: {case.case_id}: {case.error}" for case in scores if case.status == "failed"]
    return "\n".join(lines)


def landmark_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a table of what `summarise_landmarks` returns, its heads first."""
    limits = [f"{limit:g}" for limit in SDR_MM]
    unit = summary["unit"]
    shares = [f"SDR {limit} {unit}" for limit in limits]
    heads = ["landmark", f"mean {unit}", "SD", "median", "largest", *shares, "n", "missing"]
    parts = [*summary["landmarks"].items(), ("all", summary["all"])]
    if "reader" in summary:
        parts.append(("second reader", summary["reader"]["all"]))
    rows = [heads]
    for name, part in parts:
        distances = [_short(part[key]) for key in ("mean_mm", "sd_mm", "median_mm", "largest_mm")]
        shares = [_percent(part["sdr"][limit]) for limit in limits]
        rows.append([name, *distances, *shares, str(part["n"]), str(part["missing"])])
    return rows


def _score(
    name: str, prediction: Path | None, reference: Path, second: Path | None, spacing_mm: tuple[float, float] | None
) -> LandmarkScores:
    missing: Mapping[str, float] = {}
    try:
        truth = _read(name, reference)
        missing = dict.fromkeys(truth.placed(), math.nan)
        if prediction is None:
            raise DatasetError("no prediction", where=reference, hint="predict this case")
        found = _read(name, prediction)
        found, truth = _in_unit_of(truth, found, spacing_mm), _in_unit_of(found, truth, spacing_mm)
        check_units(name, found, truth)
        return score_landmarks(name, found, truth, _other_reader(name, second, found, truth, spacing_mm))
    except MedsegError as error:
        return LandmarkScores(name, missing, status="failed", error=str(error))


def _read(name: str, path: Path) -> Landmarks:
    points = read_landmarks(path)
    for note in points.warnings:
        _LOG.warning("%s: %s: %s", name, path.name, note)
    return points


def _in_unit_of(other: Landmarks, points: Landmarks, spacing_mm: tuple[float, float] | None) -> Landmarks:
    """Points of a picture in pixels as mm, if others are in mm and the data set states the spacing (y, x)."""
    flat = not np.nan_to_num(points.points_mm[:, 2]).any()
    if spacing_mm is None or (points.unit, other.unit) != ("px", "mm") or not flat:
        return points
    return on_grid(points, Geometry((1, 1, 1), (1.0, *spacing_mm)))


def _other_reader(
    name: str, path: Path | None, found: Landmarks, truth: Landmarks, spacing_mm: tuple[float, float] | None
) -> Landmarks | None:
    """The points of a second reader, if they can be compared; a prediction is not worse for one that cannot."""
    if path is None:
        return None
    try:
        other = _in_unit_of(found, _read(name, path), spacing_mm)
        check_units(name, found, truth, other)
    except MedsegError as error:
        _LOG.warning("%s: the second reader is left out: %s", name, error)
        return None
    return other


def _numbers(errors: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(error) else error for name, error in errors.items()}


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
