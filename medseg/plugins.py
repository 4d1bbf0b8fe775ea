"""Turn a step's name into a function: a built-in table, or "module:function" of the user's own code."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, Unpack, get_args, get_origin

from medseg.errors import PlanError

F = TypeVar("F", bound=Callable[..., Any])


def resolve(use: str, table: Mapping[str, F], options: Mapping[str, Any], *, where: str) -> F:
    """The function named `use` with `options` bound; fails now, not at epoch 1.

    Raises PlanError if the name is unknown, an option is not a keyword of the function, or text or null is given where
    the function asks for true or false, a number, or a list.
    """
    function = _foreign(use, where) if ":" in use else table.get(use)
    if function is None:
        raise PlanError(
            f'unknown name "{use}"', where=where, hint=f'use one of {", ".join(sorted(table))}, or "module:function"'
        )
    _check_options(use, function, options, where)
    bound: Any = partial(function, **options)
    return bound  # type: ignore[no-any-return]


def _check_options(use: str, function: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise PlanError(
            f'"{use}" is no function whose options can be read', where=where, hint="wrap it in one"
        ) from error
    keywords = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    others = [_named(p) for p in parameters if p.kind is p.VAR_KEYWORD]
    more = {name for names in others for name in names or ()}
    unknown = sorted(set(options) - keywords - more)
    if unknown and None not in others:
        allowed = sorted({p.name for p in parameters if p.kind is p.KEYWORD_ONLY} | more)
        raise PlanError(f'"{use}" has no option {", ".join(unknown)}', where=where, hint=f"options are {allowed}")
    required = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    missing = sorted(required - set(options) - _CONTEXT)
    if missing:
        raise PlanError(f'"{use}" needs option {", ".join(missing)}', where=where, hint="add it to options")
    for parameter in parameters:
        if parameter.name in options and not _fits(options[parameter.name], parameter.annotation):
            what = f'"{use}" cannot take {options[parameter.name]!r} as {parameter.name}'
            raise PlanError(
                what, where=where, hint="write true or false, a number such as 0.5, or a list such as [1, 2]"
            )


def _fits(value: object, annotation: Any) -> bool:
    """Whether an option is of the kind that a function asks for, where that is a plain one; others judge themselves."""
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return any(_fits(value, one) for one in get_args(annotation))
    if get_origin(annotation) in (Sequence, list, tuple):
        return isinstance(value, (list, tuple))
    if annotation is NoneType or annotation is None:
        return value is None
    if annotation is bool or isinstance(value, bool):
        return isinstance(value, bool) and annotation not in (int, float)
    return annotation not in (int, float) or isinstance(value, int if annotation is int else (int, float))


def _named(parameter: inspect.Parameter) -> tuple[str, ...] | None:
    """The keywords that `**options: Unpack[Options]` stands for, or None for any."""
    if get_origin(parameter.annotation) is not Unpack:
        return None
    return tuple(get_args(parameter.annotation)[0].__annotations__)


# Given by medseg when it builds, never by the plan.
_CONTEXT = frozenset({"channels", "classes", "in_channels", "outputs", "scales"})


def code_ref(use: str) -> str | None:
    """The module of a "module:function" name, or None for a built-in one.

    >>> code_ref("my_lab.losses:cl_dice"), code_ref("dice_ce")
    ('my_lab.losses', None)
    """
    return use.split(":", 1)[0] if ":" in use else None


def _foreign(use: str, where: str) -> Any:
    module, _, name = use.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise PlanError(
            f'cannot import "{use}" ({error})', where=where, hint="install it or correct the name"
        ) from error
