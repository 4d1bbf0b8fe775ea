import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.metrics.landmarks import (
    SDR_MM,
    check_units,
    radial_errors,
    score_landmarks,
    success_rate,
    summarise_landmarks,
)
from medseg.types.landmarks import Landmarks
from medseg.types.result import LandmarkScores

NAMES = tuple("abcdefg")


def cases(count=6, seed=0):
    """Predictions, references and second readers with unknown places here and there, names in any order."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        reference = rng.uniform(-50, 50, (len(NAMES), 3))
        sets = []
        for spread, unknown in ((2.0, 0.15), (0.0, 0.2), (1.0, 0.3)):
            points = reference + rng.normal(0, spread, reference.shape)
            points[rng.random(len(NAMES)) < unknown] = np.nan
            order = rng.permutation(len(NAMES))
            sets.append(Landmarks(tuple(NAMES[i] for i in order), points[order]))
        yield f"case {number}", *sets


def by_loops(one, other):
    """Distances of one file's points to another's, spelled out."""
    found = []
    for i, name in enumerate(other.names):
        if math.isnan(other.points_mm[i, 0]):
            continue
        distance = math.nan
        for j, same in enumerate(one.names):
            if same == name:
                distance = math.sqrt(sum((one.points_mm[j, k] - other.points_mm[i, k]) ** 2 for k in range(3)))
        found.append((name, distance))
    return found


def test_radial_errors_are_euclidean_distances_by_name():
    for _, prediction, reference, _ in cases():
        expected = by_loops(prediction, reference)
        found = radial_errors(prediction, reference)
        assert list(found) == [name for name, _ in expected]
        np.testing.assert_allclose(list(found.values()), [distance for _, distance in expected])


def test_the_summary_is_that_of_plain_loops_over_cases_and_landmarks():
    scores = [score_landmarks(*case) for case in cases()]
    found = summarise_landmarks(scores)
    json.dumps(found, allow_nan=False)
    rows = [
        (name, distance)
        for _, prediction, reference, _ in cases()
        for name, distance in by_loops(prediction, reference)
    ]
    for name in (*NAMES, None):
        mine = [distance for other, distance in rows if name in (other, None)]
        known = [distance for distance in mine if not math.isnan(distance)]
        row = found["all"] if name is None else found["landmarks"][name]
        assert (row["n"], row["missing"]) == (len(mine), len(mine) - len(known))
        assert row["mean_mm"] == pytest.approx(statistics.mean(known))
        assert row["sd_mm"] == pytest.approx(statistics.stdev(known))
        assert row["median_mm"] == pytest.approx(statistics.median(known))
        assert row["largest_mm"] == pytest.approx(max(known))
        for limit in (2.0, 2.5, 3.0, 4.0):
            hits = 0
            for distance in mine:
                if distance <= limit:
                    hits += 1
            assert row["sdr"][f"{limit:g}"] == pytest.approx(hits / len(mine))
    readers = [d for _, _, reference, second in cases() for _, d in by_loops(second, reference) if not math.isnan(d)]
    assert found["reader"]["all"]["n"] == len(readers) and found["reader"]["all"]["missing"] == 0
    assert found["reader"]["all"]["mean_mm"] == pytest.approx(statistics.mean(readers))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_errors_scale_with_the_scan(scale):
    for _, prediction, reference, _ in cases(2):
        larger = [Landmarks(part.names, scale * part.points_mm) for part in (prediction, reference)]
        np.testing.assert_allclose(
            list(radial_errors(*larger).values()), [scale * e for e in radial_errors(prediction, reference).values()]
        )


def test_a_missing_prediction_lowers_the_success_rate_and_is_not_in_the_mean():
    found = summarise_landmarks([LandmarkScores("a", {"tip": 1.0}), LandmarkScores("b", {"tip": math.nan})])
    assert found["all"] == found["landmarks"]["tip"]
    assert (found["all"]["mean_mm"], found["all"]["missing"], found["all"]["sdr"]["4"]) == (1.0, 1, 0.5)
    assert found["all"]["sd_mm"] is None and "reader" not in found


def test_the_limit_itself_is_a_success():
    assert [success_rate([limit], limit) for limit in SDR_MM] == [1.0] * 4
    assert success_rate([math.nextafter(2.0, 3.0)], 2.0) == 0.0
    assert math.isnan(success_rate([], 2.0))


def test_nothing_placed_gives_no_numbers_and_no_error():
    empty = Landmarks(("a",), np.full((1, 3), np.nan))
    scores = score_landmarks("x", Landmarks(("a", "b"), np.zeros((2, 3))), empty)
    assert scores.errors_mm == {} and scores.extra == ("a", "b")
    found = summarise_landmarks([scores])
    assert found["all"]["n"] == 0 and found["all"]["mean_mm"] is None and found["all"]["sdr"]["2"] is None
    assert found["landmarks"] == {}


@pytest.mark.parametrize("units", [("px", "mm", None), ("mm", "px", None), ("mm", "mm", "px"), ("px", "px", "mm")])
def test_points_in_mm_and_in_pixels_are_not_compared(units):
    files = [None if unit is None else Landmarks(("tip",), np.full((1, 3), 1.0), unit=unit) for unit in units]
    with pytest.raises(GeometryError, match=rf"^case_7: prediction is in {units[0]}, reference is in {units[1]}"):
        check_units("case_7", *files)
    flat = Landmarks(("tip",), np.array([[1.0, 2.0, 0.0]]))
    check_units("case_7", replace(flat, unit="px"), flat, flat)  # a viewer's mm of a picture without a spacing
    for unit in ("mm", "px"):
        same = Landmarks(("tip",), np.zeros((1, 3)), unit=unit)
        check_units("case_7", same, same, same)
        assert score_landmarks("case_7", same, same, same).unit == unit
