"""Frozen records to JSON and back, strictly: unknown fields and wrong types are errors."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from medseg.errors import MedsegError, PlanError
from medseg.io.files import write_text

T = TypeVar("T")
_WIDTH = 100


def read_record(path: Path, kind: type[T]) -> T:
    """Parse a JSON file into a frozen record.

    Raises PlanError naming file and field where the text does not fit the record.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read ({error})", where=path, hint="give the path of a JSON file") from error
    return parse_record(text, kind, where=str(path))


def parse_record(text: str, kind: type[T], *, where: str) -> T:
    """Parse JSON text into a frozen record; `where` names the source in errors."""
    try:
        adapter: Any = _adapter(cast(Any, kind))
        record: T = adapter.validate_json(text, strict=True)
        return record
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, MedsegError):
            field, message = cause.where or field, f"{cause.what}. {cause.hint}"
        else:
            message = first["msg"]
        raise PlanError(message, where=f"{where}: {field}" if field else where, hint="correct this field") from error
    except MedsegError as error:
        raise type(error)(error.what, where=f"{where}: {error.where}", hint=error.hint) from error
    except RecursionError as error:
        raise PlanError("nested too deeply", where=where, hint="this is no record of medseg") from error


def write_record(record: object, path: Path) -> None:
    """Write canonical, diff-friendly JSON: short lists on one line, fields in declared order."""
    write_text(path, format_record(record))


def format_record(record: object) -> str:
    """The text `write_record` writes; floats as the shortest text that reads back equal."""
    return _layout(to_plain(record), 0) + "\n"


def to_plain(record: object) -> Any:
    """A record as dicts, lists and scalars, in declared order."""
    if is_dataclass(record) and not isinstance(record, type):
        return {field.name: to_plain(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    if isinstance(record, Path):
        return record.as_posix()
    return record


def record_sha256(record: object) -> str:
    """Identity of a record, independent of layout."""
    text = json.dumps(to_plain(record), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def record_schema(kind: type) -> dict[str, Any]:
    """JSON Schema of a record, for editors and for plans/plan.schema.json."""
    return _adapter(kind).json_schema()


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(kind))


def _strict(kind: type[T]) -> type[T]:
    """Forbid unknown fields in `kind` and in every record it holds (pydantic reads this attribute)."""
    for record in _records_in(kind, set()):
        record.__pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
    return kind


def _records_in(kind: Any, seen: set[Any]) -> set[Any]:
    if is_dataclass(kind) and kind not in seen:
        seen.add(kind)
        for field in fields(kind):
            _records_in(field.type, seen)
    for part in getattr(kind, "__args__", ()):
        _records_in(part, seen)
    return seen


def _layout(value: Any, indent: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or (len(flat) + indent <= _WIDTH and indent > 0):
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        rows = [f"{json.dumps(key, ensure_ascii=False)}: {_layout(item, indent + 2)}" for key, item in value.items()]
        left, right = "{", "}"
    else:
        rows = [_layout(item, indent + 2) for item in value]
        left, right = "[", "]"
    return left + "\n" + ",\n".join(pad + row for row in rows) + "\n" + " " * indent + right
