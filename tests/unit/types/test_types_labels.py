import pytest

from medseg.errors import PlanError
from medseg.types.labels import Label, Labels

CLASSES = Labels((Label("liver", (1,)), Label("spleen", (7,))), ignore=255)
REGIONS = Labels((Label("whole", (1, 2, 3), write=1), Label("core", (2, 3), write=2), Label("enhancing", (3,))))


def test_exclusive_classes_have_a_background_output_and_regions_do_not():
    assert (CLASSES.are_regions(), CLASSES.outputs()) == (False, 3)
    assert (REGIONS.are_regions(), REGIONS.outputs()) == (True, 3)


def test_known_values_leave_out_ignore_and_background():
    assert CLASSES.known() == {1, 7}
    assert REGIONS.known() == {1, 2, 3}


def test_written_value_defaults_to_the_first():
    assert [item.written for item in REGIONS.items] == [1, 2, 3]


@pytest.mark.parametrize(
    ("items", "ignore"),
    [
        ((Label("a", (1,)), Label("a", (2,))), None),
        ((Label("a", (0,)),), None),
        ((Label("a", ()),), None),
        ((Label("a", (1,)),), 1),
    ],
)
def test_contradictory_labels_are_refused(items, ignore):
    with pytest.raises(PlanError):
        Labels(items, ignore)
