"""Distances between landmarks, and their summary over cases."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medseg.errors import GeometryError
from medseg.types.landmarks import Landmarks
from medseg.types.result import LandmarkScores

SDR_MM = (2.0, 2.5, 3.0, 4.0)


def radial_errors(prediction: Landmarks, reference: Landmarks) -> dict[str, float]:
    """Distance in mm of every landmark that the reference places, by name; NaN where the prediction does not.

    >>> one = Landmarks(("a", "b"), np.array([[0.0, 3.0, 4.0], [1.0, 1.0, 1.0]]))
    >>> radial_errors(Landmarks(("a",), np.zeros((1, 3))), one)
    {'a': 5.0, 'b': nan}
    """
    found = prediction.placed()
    return {
        name: math.dist(found[name], place) if name in found else math.nan for name, place in reference.placed().items()
    }


def success_rate(errors_mm: Sequence[float], within_mm: float) -> float:
    """Share of landmarks found within a distance, the limit included (Wang 2015); NaN is not found. NaN without any.

    >>> success_rate([1.0, 2.0, 2.1, math.nan], 2.0)
    0.5
    """
    if not errors_mm:
        return math.nan
    return sum(error <= within_mm for error in errors_mm) / len(errors_mm)


def check_units(case_id: str, prediction: Landmarks, reference: Landmarks, second: Landmarks | None = None) -> None:
    """Raise GeometryError unless the files of a case are all in mm or all in pixels.

    "mm" in a plane (z = 0) beside found pixels are pixels: viewers take a picture without a spacing for one with 1 mm.
    """
    files: dict[str, Landmarks | None] = {"prediction": prediction, "reference": reference, "second reader": second}
    flat = prediction.unit == "px"
    units = {
        name: "px" if flat and not np.nan_to_num(one.points_mm[:, 2]).any() else one.unit
        for name, one in files.items()
        if one is not None
    }
    if len(set(units.values())) > 1:
        what = ", ".join(f"{name} is in {unit}" for name, unit in units.items())
        hint = "give all in mm or all in pixels; medseg predict --spacing finds points of pictures in mm"
        raise GeometryError(what, where=case_id, hint=hint)


def score_landmarks(
    case_id: str, prediction: Landmarks, reference: Landmarks, second: Landmarks | None = None
) -> LandmarkScores:
    """Radial errors of one case, and the distance of a second reader to the reference where both place a landmark.

    All are in one unit (see `check_units`): pixels if the prediction or the reference says so, else mm.
    """
    apart = {} if second is None else radial_errors(second, reference)
    return LandmarkScores(
        case_id,
        radial_errors(prediction, reference),
        {name: error for name, error in apart.items() if not math.isnan(error)},
        tuple(name for name in prediction.placed() if name not in reference.placed()),
        unit="px" if "px" in (prediction.unit, reference.unit) else "mm",
    )


def summarise_landmarks(scores: Sequence[LandmarkScores]) -> dict[str, object]:
    """Per landmark and over all of them, ready for JSON: mean, SD, median and largest radial error, and success rates.

    `n` landmarks are placed by the references; the `missing` among them have no prediction: they enter no mean, but are
    not found in the success rate (SDR) at 2, 2.5, 3 and 4 mm. "all" pools the landmarks of all cases. "reader" has the
    same of a second reader's distances, where there is one. Failed cases whose references were read have every landmark
    missing. SD is that of a sample; null stands where no number exists.
    """
    names = list(dict.fromkeys(name for case in scores for name in case.errors_mm))
    summary: dict[str, object] = {
        "cases": sum(case.status == "ok" for case in scores),
        "failed": sum(case.status == "failed" for case in scores),
        "unit": "/".join(sorted({case.unit for case in scores if case.status == "ok"})) or "mm",
        "all": _spread([error for case in scores for error in case.errors_mm.values()]),
        "landmarks": {name: _spread(_of(name, [case.errors_mm for case in scores])) for name in names},
    }
    readers = [case.reader_mm for case in scores if case.reader_mm]
    if readers:
        every = [error for reader in readers for error in reader.values()]
        summary["reader"] = {"all": _spread(every), "landmarks": {name: _spread(_of(name, readers)) for name in names}}
    return summary


def _of(name: str, cases: Sequence[Mapping[str, float]]) -> list[float]:
    return [case[name] for case in cases if name in case]


def _spread(errors_mm: Sequence[float]) -> dict[str, object]:
    known = [error for error in errors_mm if not math.isnan(error)]
    return {
        "n": len(errors_mm),
        "missing": len(errors_mm) - len(known),
        "mean_mm": float(np.mean(known)) if known else None,
        "sd_mm": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "median_mm": float(np.median(known)) if known else None,
        "largest_mm": max(known) if known else None,
        "sdr": {f"{limit:g}": success_rate(errors_mm, limit) if errors_mm else None for limit in SDR_MM},
    }
