"""The type checker behind the array shapes in signatures, switched on for every test (see conftest.py)."""

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """`function` with its arguments and result checked if its signature names the shape of an array."""
    hints = getattr(function, "__annotations__", {})
    return _checked(function) if any("jaxtyping" in repr(hint) for hint in hints.values()) else function
