"""All metrics of a case, and their summary."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.io.pairs import check_label_grid
from medseg.metrics.cases import score_case, summarise
from medseg.metrics.surface import hd95_mm, nsd
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels

LABELS = Labels((Label("a", (1,)), Label("b", (2,)), Label("c", (3,))), ignore=9)


def _map(array, labels=LABELS, **geometry):
    array = np.asarray(array, np.uint8)
    return LabelMap(array, Geometry(array.shape, **({"spacing_mm": (2.0, 1.0, 0.5)} | geometry)), labels)


def _noise(seed, shape=(6, 9, 12)):
    return np.random.default_rng(seed).integers(0, 3, shape)


def test_cropping_changes_nothing_and_volumes_are_millilitres():
    one, two = _noise(1), _noise(2)
    scores = score_case("x", _map(one), _map(two))
    for name, value in (("a", 1), ("b", 2)):
        row = scores.labels[name]
        assert row.hd95_mm == pytest.approx(hd95_mm(one == value, two == value, (2.0, 1.0, 0.5)))
        assert row.nsd == pytest.approx(nsd(one == value, two == value, (2.0, 1.0, 0.5), 1.0))
        assert row.volume_ml == pytest.approx((one == value).sum() / 1000)
        assert row.dice == pytest.approx(
            2 * ((one == value) & (two == value)).sum() / ((one == value).sum() + (two == value).sum())
        )
    assert scores.labels["c"].state == "both_empty" and math.isnan(scores.labels["c"].dice)


def test_one_slice_of_a_volume_is_measured_in_three_dimensions():
    one, two = np.zeros((2, 5, 9, 9), np.uint8)
    one[2, 2:7, 2:7] = 1
    two[2, 3:6, 3:6] = 1
    row = score_case("x", _map(one), _map(two)).labels["a"]
    assert row.hd95_mm == pytest.approx(hd95_mm(one == 1, two == 1, (2.0, 1.0, 0.5)))
    assert row.nsd == pytest.approx(nsd(one == 1, two == 1, (2.0, 1.0, 0.5), 1.0))


def test_states_name_the_empty_side():
    scores = score_case("x", _map([[[1, 0, 3, 0]]]), _map([[[0, 2, 3, 0]]])).labels
    assert [scores[n].state for n in "abc"] == ["empty_reference", "empty_prediction", "both"]
    assert (scores["a"].dice, scores["a"].hd95_mm, scores["a"].nsd) == (0.0, math.inf, 0.0)


def test_ignored_voxels_count_on_neither_side():
    scores = score_case("x", _map([[[1, 1, 1, 1]]]), _map([[[1, 1, 9, 9]]])).labels["a"]
    assert scores.dice == 1.0 and scores.volume_ml == scores.reference_ml


def test_regions_are_unions_and_written_values_are_used():
    regions = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
    scores = score_case("x", _map([[[1, 2, 2, 0]]], regions), _map([[[1, 1, 2, 0]]], regions)).labels
    assert scores["whole"].dice == 1.0 and scores["core"].dice == pytest.approx(2 / 3)
    other = Labels((Label("a", (3,), write=1),))
    assert score_case("x", _map([[[1, 1, 0]]], other), _map([[[3, 3, 0]]], other)).labels["a"].dice == 1.0


def test_grids_that_differ_are_refused_and_rounding_is_not():
    reference = _map(np.ones((2, 3, 4)))
    close = replace(reference, geometry=replace(reference.geometry, origin_mm=(0.004, 0.0, 0.0)))
    assert score_case("x", close, reference).labels["a"].dice == 1.0
    far = replace(reference, geometry=replace(reference.geometry, origin_mm=(0.1, 0.0, 0.0)))
    with pytest.raises(GeometryError, match=r"case_7.*0.1 mm apart"):
        score_case("case_7", far, reference)
    with pytest.raises(GeometryError, match="shape"):
        score_case("x", _map(np.ones((2, 3, 5))), reference)


@pytest.mark.parametrize(("side", "limit"), [(0.2, 0.01), (3.0, 0.03)])
def test_the_limit_of_grids_is_that_of_reading(side, limit):
    """0.01 mm or 1 % of a voxel, whichever is more, as `medseg check` and training have it."""
    reference = _map(np.ones((2, 3, 4)), spacing_mm=(side,) * 3)
    for share, same in ((0.9, True), (1.1, False)):
        moved = replace(reference.geometry, origin_mm=(share * limit, 0.0, 0.0))
        if same:
            assert len(check_label_grid(reference.geometry, moved)) == 1
            assert score_case("x", replace(reference, geometry=moved), reference).labels["a"].dice == 1.0
            continue
        with pytest.raises(GeometryError):
            check_label_grid(reference.geometry, moved)
        with pytest.raises(GeometryError, match="mm apart"):
            score_case("x", replace(reference, geometry=moved), reference)


def test_a_map_without_a_spacing_lies_on_the_grid_of_the_other():
    """As reading an image and a label map takes it; the distances are in mm."""
    bare = _map([[[1, 1, 0, 0]]], spacing_mm=(1.0, 1.0, 1.0), unit="px")
    placed = _map([[[1, 1, 1, 0]]], spacing_mm=(1.0, 0.5, 0.5))
    assert len(check_label_grid(placed.geometry, bare.geometry)) == 1
    scores = score_case("x", bare, placed)
    assert scores.unit == "mm" and scores.labels["a"].hd95_mm <= 0.5
    assert score_case("x", placed, bare).unit == "mm"


def test_pixels_have_no_millilitres():
    scores = score_case("x", _map([[[1]]], unit="px"), _map([[[1]]], unit="px"))
    assert scores.unit == "px" and math.isnan(scores.labels["a"].volume_ml)


def test_the_summary_counts_undefined_and_infinite_apart():
    truth = _map([[[1, 1, 0, 2, 0]]])
    cases = [
        score_case("good", truth, truth),
        score_case("false", _map([[[1, 1, 0, 2, 2]]]), _map([[[1, 1, 0, 0, 0]]])),
    ]
    result = json.loads(json.dumps(summarise(cases), allow_nan=False))
    b, c = result["labels"]["b"], result["labels"]["c"]
    assert (b["dice"]["mean"], b["dice"]["n"], b["hd95_mm"]["n_infinite"], b["hd95_mm"]["mean"]) == (0.5, 2, 1, 0.0)
    assert c["dice"] == {"mean": None, "median": None, "std": None, "n": 0, "n_undefined": 2, "n_infinite": 0}
    assert c["states"] == {"both_empty": 2} and b["states"] == {"both": 1, "empty_reference": 1}
    assert b["lesions"] == {"lesions": 1, "found": 1, "false": 1, "f1": pytest.approx(2 / 3)}
    assert result["mean"]["dice"] == pytest.approx(0.75) and result["cases"] == 2 and result["unit"] == "mm"
