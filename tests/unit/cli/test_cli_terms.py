import pytest

from medseg.cli.terms import pixel_spacing
from medseg.errors import PlanError


def test_a_pixel_spacing_is_one_number_or_two():
    assert pixel_spacing(()) is None
    assert pixel_spacing((0.2,)) == (0.2, 0.2)
    assert pixel_spacing((0.2, 0.3)) == (0.2, 0.3)


@pytest.mark.parametrize("values", [(0.0,), (-1.0, 1.0), (0.1, 0.2, 0.3), (float("nan"),), (float("inf"),)])
def test_what_is_no_pixel_spacing_is_refused(values):
    with pytest.raises(PlanError, match="no pixel spacing"):
        pixel_spacing(values)
