"""JSON from files nobody vouches for: limited in size and depth, every number finite, no key twice."""

import json
import math
from pathlib import Path
from typing import Any

from medseg.errors import BundleError

_LARGEST_JSON = 64 << 20  # bytes; a manifest or plan is never near it
_HINT = "copy the whole bundle again"


def read_json(path: Path) -> Any:
    """The value in a regular file. Raises BundleError for links, special and oversized files, and as `parse_json`."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_JSON:
        what = "is a link, no regular file or far too large" if path.exists() or path.is_symlink() else "is missing"
        raise BundleError(what, where=path, hint=_HINT)
    return parse_json(path.read_bytes(), where=path)


def parse_json(text: bytes, *, where: Path) -> Any:
    """The value of UTF-8 text. Raises BundleError for text that is no JSON, NaN, infinity, doubled keys and depth."""
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=once, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise BundleError("is nested too deeply", where=where, hint=_HINT) from error
    except ValueError as error:
        raise BundleError(f"is no JSON that can be used ({error})", where=where, hint=_HINT) from error


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The table of an object's pairs, for `json.loads`; raises ValueError for a key that is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'the key "{key[:60]}" is there twice')
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number
