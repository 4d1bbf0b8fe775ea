from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

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


class _More(TypedDict, total=False):
    rates: list[int]


def typed(value: float, *, offset: float = 0.0, **more: Unpack[_More]) -> tuple[float, object]:
    return value + offset, more


def loose(value: float, **more: float) -> float:
    return value + sum(more.values())


def test_keywords_of_a_typed_dictionary_are_options_and_others_are_not():
    table = {"typed": typed, "loose": loose}
    assert resolve("typed", table, {"rates": [1]}, where="x")(3.0) == (3.0, {"rates": [1]})
    with pytest.raises(PlanError, match="no option rate") as caught:
        resolve("typed", table, {"rate": [1]}, where="x")
    assert "offset" in caught.value.hint and "rates" in caught.value.hint
    assert resolve("loose", table, {"anything": 2.0}, where="x")(1.0) == 3.0


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
        (":f", {}, "cannot import"),
        ("..lab:f", {}, "cannot import"),
    ],
)
def test_a_wrong_step_fails_at_once_and_says_what_would_do(use, options, says):
    with pytest.raises(PlanError, match=says) as caught:
        resolve(use, TABLE, options, where="training.losses")
    assert caught.value.where == "training.losses"


def plain(
    value: float,
    *,
    share: float = 1.0,
    count: int | None = None,
    deep: bool = True,
    rates: Sequence[int] = (1,),
    alpha: float | Sequence[float] | None = None,
    kind: Literal["a", "b"] = "a",
    anything: object = None,
) -> object:
    return value


GOOD = [
    *({"share": share} for share in (0, 0.5, 2)),
    *({"count": count} for count in (None, 3)),
    {"deep": False},
    *({"rates": rates} for rates in ([1, 2], (1,), [])),
    *({"alpha": alpha} for alpha in (None, 0.5, [0.1, 0.2])),
    *({"anything": value} for value in ("text", None, [1])),
    {"kind": "c"},  # it judges itself
]
WRONG = [
    *({"share": share} for share in (".5", "0,5", None, True, [0.5])),
    *({"count": count} for count in ("3", 2.5, False)),
    *({"deep": deep} for deep in ("False", 0, None)),
    *({"rates": rates} for rates in ("[1", 3, None)),
    *({"alpha": alpha} for alpha in ("null", False)),
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_options_of_the_kind_that_a_function_asks_for_are_bound(options):
    assert resolve("plain", {"plain": plain}, options, where="x")(1.0) == 1.0


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_text_and_null_in_place_of_numbers_lists_or_truth_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(PlanError, match=r"x: .plain. cannot take") as caught:
        resolve("plain", {"plain": plain}, options, where="x")
    assert f"{value!r} as {name}" in str(caught.value)
