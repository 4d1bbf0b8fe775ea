"""Values of DICOM data elements, straight from their bytes: never an exception, never a guess."""

import math
import struct
from collections.abc import Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement

Numbers = tuple[float, ...] | None  # None: absent or empty; (): there, but not numbers
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_LONGEST = 1 << 16  # bytes of a value that is turned into text or numbers


def tag_name(keyword: str) -> str:
    """A keyword with its tag.

    >>> tag_name("PixelSpacing")
    'PixelSpacing (0028,0030)'
    """
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def text(places: Sequence[Any], keyword: str | int) -> str:
    """The value as ASCII with "\\" between its parts; "" where it is absent. The first place that has it counts.

    What cannot be printed becomes "?", so that no file can talk to a terminal.
    """
    raw = raw_value(places, keyword)[0]
    return printable(raw[:_LONGEST].decode("ascii", "replace").strip(" \0\r\n"))


def printable(value: str) -> str:
    """Text without control characters.

    >>> printable("a\\x1b[31m")
    'a?[31m'
    """
    return value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)


def numbers(places: Sequence[Any], keyword: str | int, vr: str = "DS") -> Numbers:
    """All numbers of the value; `vr` is what a file with implicit VR does not say."""
    raw, stated, order = raw_value(places, keyword)
    if not raw.strip(b" \0" if (stated or vr) not in _BINARY else b""):
        return None
    if len(raw) > _LONGEST:
        return ()
    kind = _BINARY.get(stated or vr)
    try:
        if kind:
            found = tuple(float(value) for (value,) in struct.iter_unpack(order + kind, raw))
        else:
            found = tuple(float(part) for part in raw.decode("ascii").strip(" \0\r\n").split("\\"))
    except (ValueError, struct.error):
        return ()
    return found if all(math.isfinite(value) for value in found) else ()


def whole(places: Sequence[Any], keyword: str | int, default: int, vr: str = "US") -> int:
    """One whole number; `default` where the element is absent, -1 where it is no whole number from 0 up."""
    found = numbers(places, keyword, vr)
    if found is None:
        return default
    return int(found[0]) if found and found[0] >= 0 and found[0].is_integer() else -1


def items(places: Sequence[Any], keyword: str) -> tuple[Any, ...]:
    """The items of a sequence, as data sets; none where it is absent or damaged."""
    tag = tag_for_keyword(keyword)
    for place in places:
        if tag in place:
            try:
                return tuple(place[tag].value)
            except Exception:  # pydicom raises many kinds on damaged sequences, RecursionError among them
                return ()
    return ()


def raw_value(places: Sequence[Any], keyword: str | int) -> tuple[bytes, str | None, str]:
    """Bytes (empty where absent), the value representation if the file states a known one, and "<" or ">"."""
    tag = keyword if isinstance(keyword, int) else tag_for_keyword(keyword)
    for place in places:
        if tag in place:
            element = place.get_item(tag)
            if not isinstance(element, RawDataElement):  # pydicom has turned it into Python values already
                values = element.value if hasattr(element.value, "append") else [element.value]
                return "\\".join("" if v is None else str(v) for v in values).encode("ascii", "replace"), "DS", "<"
            stated = None if element.VR in {None, "UN"} else element.VR
            return element.value or b"", stated, "<" if element.is_little_endian else ">"
    return b"", None, "<"
