"""What a safetensors file says about its tensors, without reading them."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import BundleError
from medseg.io.plain_json import parse_json

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
_LONGEST_HEADER = 16 << 20  # bytes; 100,000 tensors need less
_KEYS = ("dtype", "shape", "data_offsets")
_REFUSE = "do not use this file"


@dataclass(frozen=True)
class Tensor:
    """Type and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_tensor_table(path: Path) -> Mapping[str, Tensor]:
    """Names, types and shapes; together they must account for every byte of the file, once.

    Raises BundleError for files that are no safetensors, have oversized headers, or whose tensors overlap, leave gaps
    or reach beyond the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise BundleError("is no safetensors file", where=path, hint=_REFUSE)
        text = file.read(length)
    header = parse_json(text, where=path)
    if not isinstance(header, dict):
        raise BundleError("is no safetensors file", where=path, hint=_REFUSE)
    header.pop("__metadata__", None)
    places = sorted(_place(name, entry, path) for name, entry in header.items())
    end = 0
    for first, last, name, _ in places:
        if first != end:
            raise BundleError(f"tensor {name!r} does not start where another ends", where=path, hint=_REFUSE)
        end = last
    if end != size - 8 - length:
        raise BundleError(f"its tensors take {end} bytes of {size - 8 - length}", where=path, hint=_REFUSE)
    return {name: Tensor(header[name]["dtype"], shape) for _, _, name, shape in places}


def _place(name: str, entry: Any, path: Path) -> tuple[int, int, str, tuple[int, ...]]:
    """First and last byte, name and shape of one entry of the header."""
    known = isinstance(entry, dict) and set(entry) == set(_KEYS)
    dtype, shape, offsets = (entry[key] for key in _KEYS) if known else ("", [], [])
    if str(dtype) not in _BYTES or not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise BundleError(f"tensor {name!r} is not described right", where=path, hint=_REFUSE)
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[str(dtype)]:
        raise BundleError(f"tensor {name!r} has another size than its shape", where=path, hint=_REFUSE)
    return offsets[0], offsets[1], name, tuple(shape)


def _whole(values: Any) -> bool:
    """Whether `values` is a short list of numbers 0, 1, 2, ... that fit 63 bits."""
    if not isinstance(values, list) or len(values) > 64:
        return False
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
