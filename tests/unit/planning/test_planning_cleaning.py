import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.planning.cleaning import choose_cleaning
from medseg.postprocess.chain import clean
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step

SHAPE = (12, 24, 24)
NAMES = Labels((Label("organ", (1,)), Label("lesion", (2,))))


def label_map(array, labels=NAMES, spacing=(1.0, 1.0, 1.0)):
    array = np.asarray(array, np.uint8)
    return LabelMap(array, Geometry(array.shape, spacing), labels)


def organ():
    array = np.zeros(SHAPE, np.uint8)
    array[2:10, 2:12, 2:12] = 1
    return array


def with_specks(array, value, count, start=14):
    array = array.copy()
    for k in range(count):
        array[2 + 2 * k, start, start] = value
    return array


def test_nothing_is_done_where_nothing_helps():
    pairs = [(label_map(organ()), label_map(organ()))] * 2
    decision = choose_cleaning(pairs)
    assert decision.value == () and "2 validation cases: no step raises" in decision.reason
    assert choose_cleaning([]).value == ()


def test_specks_are_dropped_by_the_simplest_step_with_numbers():
    pairs = [(label_map(with_specks(organ(), 1, 4)), label_map(organ()))] * 3
    decision = choose_cleaning(pairs)
    (step,) = decision.value
    assert step.use == "drop_small" and step.options == {"names": ["organ"], "min_fraction": 0.3333}
    before = 2 * 800 / (2 * 800 + 4)
    assert f"organ without components below a third of the largest Dice {before:.4f} -> 1.0000" in decision.reason
    np.testing.assert_array_equal(clean(pairs[0][0], decision.value).array, organ())


def test_loaders_are_called_and_progress_reported():
    seen = []
    pair = (label_map(with_specks(organ(), 1, 4)), label_map(organ()))
    decision = choose_cleaning(
        (lambda: pair for _ in range(2)), report=lambda p: seen.append((p.done, p.total)), total=2
    )
    assert decision.value and seen == [(1, 2), (2, 2)]


def test_a_class_of_many_parts_keeps_them_and_loses_only_dust():
    """Two lesions, one a fifth of the other: a fraction would remove it, a volume in mm3 does not."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:9, 1:11, 1:11] = 2
    truth[1:5, 14:20, 14:20] = 2
    decision = choose_cleaning([(label_map(with_specks(truth, 2, 5, start=22)), label_map(truth))])
    (step,) = decision.value
    assert step.options == {"names": ["lesion"], "min_mm3": 10.0}


def test_volumes_are_physical():
    """Components of one voxel of 27 mm3 survive 10 mm3 and are dropped from 30 mm3 on."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:9, 1:11, 1:11] = 2
    truth[1:5, 14:20, 14:20] = 2
    pairs = [(label_map(with_specks(truth, 2, 5, start=22), spacing=(3.0,) * 3), label_map(truth, spacing=(3.0,) * 3))]
    assert choose_cleaning(pairs).value[0].options["min_mm3"] == 30.0


def test_a_gain_in_one_case_that_costs_more_in_another_is_refused():
    two = organ()
    two[2:6, 16:20, 16:20] = 1  # a real second part, 8 % of the first
    good = (label_map(two), label_map(two))
    specks = (label_map(with_specks(organ(), 1, 1)), label_map(organ()))
    decision = choose_cleaning([good, specks])
    assert [dict(step.options) for step in decision.value] == [{"names": ["organ"], "min_mm3": 10.0}]


def test_false_positives_on_empty_references_count():
    """Removing the only speck turns 0 into 1; a mean that skipped the case would not see it."""
    empty = np.zeros(SHAPE, np.uint8)
    pairs = [(label_map(with_specks(empty, 2, 1)), label_map(empty)), (label_map(empty), label_map(empty))]
    decision = choose_cleaning(pairs)
    assert [dict(step.options) for step in decision.value] == [{"names": ["lesion"], "min_mm3": 10.0}]
    assert "Dice 0.5000 -> 1.0000" in decision.reason


def test_holes_are_filled_where_the_truth_is_solid():
    hollow = organ()
    hollow[4:8, 5:9, 5:9] = 0
    decision = choose_cleaning([(label_map(hollow), label_map(organ()))])
    assert [(step.use, dict(step.options)) for step in decision.value] == [("fill_holes", {"names": ["organ"]})]


def test_an_outer_class_is_not_credited_with_what_an_inner_one_would_take():
    """A wall (1) around a lumen lies in a lesion (2) with holes of its own; the lumen is background in truth."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:11, 2:20, 2:20] = 2
    truth[4:8, 6:12, 6:12], truth[5:7, 7:11, 7:11] = 1, 0
    made = truth.copy()
    made[5, 15, 15:17] = 0  # two voxels of the lesion are missing, and the lumen has sixteen times as many
    assert choose_cleaning([(label_map(made), label_map(truth))] * 2).value == ()
    solid = truth.copy()
    solid[5:7, 7:11, 7:11] = 1
    decision = choose_cleaning([(label_map(made), label_map(solid))] * 2)
    assert [(step.use, step.options["names"]) for step in decision.value] == [("fill_holes", ["organ"])]


def test_equal_steps_of_several_classes_are_one_step_and_filling_comes_first():
    truth = organ()
    truth[2:8, 14:20, 2:8] = 2
    made = with_specks(with_specks(truth, 1, 3, start=14), 2, 3, start=22)
    (step,) = choose_cleaning([(label_map(made), label_map(truth))]).value
    assert step.options["names"] == ["organ", "lesion"]
    made[4:6, 4:6, 4:6] = 0
    made[made == 1] = np.where(with_specks(np.zeros(SHAPE, int), 1, 3, start=14)[made == 1], 0, 1)
    decision = choose_cleaning([(label_map(made), label_map(truth))])
    assert [(step.use, step.options["names"]) for step in decision.value] == [
        ("fill_holes", ["organ"]),
        ("drop_small", ["lesion"]),
    ]


def test_ignored_voxels_count_nowhere():
    labels = Labels((Label("organ", (1,)),), ignore=255)
    truth = with_specks(organ(), 255, 4)
    pairs = [(label_map(with_specks(organ(), 1, 4), labels), label_map(truth, labels))]
    assert choose_cleaning(pairs).value == ()


def test_regions_take_only_the_best_step():
    labels = Labels((Label("whole", (1, 2), write=1), Label("core", (2,))))
    truth = organ()
    truth[4:8, 4:8, 4:8] = 2
    made = with_specks(truth, 1, 4)
    decision = choose_cleaning([(label_map(made, labels), label_map(truth, labels))])
    (step,) = decision.value
    assert step.options["names"] == ["whole"]
    np.testing.assert_array_equal(clean(label_map(made, labels), decision.value).array, truth)


def test_grids_must_agree():
    with pytest.raises(GeometryError, match="different grids"):
        choose_cleaning([(label_map(organ()), label_map(organ(), spacing=(2.0, 1.0, 1.0)))])


def test_removing_everything_never_wins_by_the_scans_without_the_class():
    """Ten scans without organ get a small false positive, two with a large organ find a small part of it."""
    found = np.zeros(SHAPE, np.uint8)
    found[4, 4:7, 4:7] = 1
    pairs = [(label_map(found), label_map(np.zeros(SHAPE)))] * 10 + [(label_map(found), label_map(organ()))] * 2
    for step in choose_cleaning(pairs).value:
        assert clean(pairs[-1][0], (step,)).array.any()


@pytest.mark.parametrize("plane", [0, 5, SHAPE[0] - 1])
def test_a_ring_in_one_plane_of_a_volume_is_open_as_it_will_be_when_predicting(plane):
    """Cut to its box, the volume would be flat, where the same ring has a hole."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[plane, 4:12, 4:12] = 1
    made = truth.copy()
    made[plane, 7:9, 7:9] = 0
    np.testing.assert_array_equal(clean(label_map(made), [Step("fill_holes")]).array, made)
    assert choose_cleaning([(label_map(made), label_map(truth))]).value == ()
    (step,) = choose_cleaning([(label_map(made[plane][None]), label_map(truth[plane][None]))]).value
    assert step.use == "fill_holes"
