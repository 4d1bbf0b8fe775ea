import pytest

from medseg.errors import PlanError
from medseg.plugins import resolve


def double(value: float, *, offset: float = 0.0) -> float:
    return 2 * value + offset


def needy(value: float, *, rate: float) -> float:
    return value * rate


TABLE = {"double": double, "needy": needy}


def test_a_built_in_name_is_bound_to_its_options():
    assert resolve("double", TABLE, {"offset": 1.0}, where="x")(3.0) == 7.0


def test_foreign_code_is_found_by_module_and_name():
    assert resolve("statistics:fmean", {}, {}, where="x")([3.0, 4.0]) == 3.5


@pytest.mark.parametrize(
    ("use", "options", "says"),
    [
        ("tripel", {}, "double"),
        ("double", {"ofset": 1.0}, "offset"),
        ("needy", {}, "rate"),
        ("no_such_module:f", {}, "no_such_module"),
        ("math:no_such_function", {}, "no_such_function"),
        ("math:hypot", {}, "wrap it"),
    ],
)
def test_a_wrong_step_fails_at_once_and_says_what_would_do(use, options, says):
    with pytest.raises(PlanError, match=says) as caught:
        resolve(use, TABLE, options, where="training.losses")
    assert caught.value.where == "training.losses"
