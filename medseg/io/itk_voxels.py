"""The voxels that a MetaImage or NRRD header promises, and no more bytes than those."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from medseg.errors import ImageError
from medseg.io.byte_stream import ByteStream

META = (".mha", ".mhd")
_META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"}
_META_TYPES |= {"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
_NRRD_TYPES = {"signed char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_NRRD_TYPES |= {"longlong": "i8", "ulonglong": "u8", "float": "f4", "double": "f8"}
_NRRD_TYPES |= {f"{sign}int{8 * size}{end}": f"{sign or 'i'}{size}" for sign in ("", "u") for size in (1, 2, 4, 8)
                for end in ("", "_t")}  # fmt: skip
_PLACES = {"domain", "space", "time", "???", "none"}  # kinds of axis that are no channels
_LONGEST_HEADER = 1 << 20
_LONGEST_TEXT = 64 << 20
_SURPLUS = 64 << 20  # bytes after the voxels that are read on to reach the checksum
_AGAIN = "copy or export the file again"


@dataclass(frozen=True)
class Stored:
    """How voxels are stored: `sizes` with the fastest axis first, of which `channel_axis` holds channels.

    `start` is a byte of `data`; -1 means that the voxels are the last bytes of the file.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    data: Path
    start: int
    packing: Literal["none", "gzip", "zlib", "text"]
    channel_axis: int | None


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """Header fields with lower-case keys without blanks, and the byte after the header.

    Raises ImageError for headers without an end, and for fields that are stated twice.
    """
    fields: dict[str, str] = {}
    nrrd = path.suffix.lower() not in META
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_HEADER):
            text = line.decode("utf-8", "replace").strip()
            if file.tell() > _LONGEST_HEADER:
                raise ImageError("its header has no end", where=path, hint=_AGAIN)
            found = re.match(r"([\w ]+?)\s*:=?\s*(.*)$" if nrrd else r"([\w ]+?)\s*=\s*(.*)$", text)
            if found and not text.startswith("#"):
                key = re.sub(r"[\s_]", "", found[1].lower())
                if key in fields:
                    raise ImageError(f'states "{found[1]}" twice', where=path, hint=_AGAIN)
                fields[key] = found[2]
            if not text if nrrd else text.lower().startswith("elementdatafile"):
                break
        return fields, file.tell()


def stored_voxels(fields: dict[str, str], end: int, path: Path) -> Stored:
    """What the header of `path` says about its voxels.

    Raises ImageError for what it lacks, for complex or colour-mapped voxels, and for data files outside the folder.
    """
    try:
        return (_meta if path.suffix.lower() in META else _nrrd)(fields, end, path)
    except ValueError as error:  # a number that is none
        raise ImageError(f"its header is damaged ({error})", where=path, hint=_AGAIN) from error


def read_voxels(stored: Stored, path: Path) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]:
    """The voxels, channels first if there are any, then the slowest axis; and a note about bytes behind them.

    Raises ImageError where the file cannot hold them, is damaged, or unpacks to far more.
    """
    count = math.prod(stored.sizes)
    promised = count * stored.dtype.itemsize
    if stored.packing == "text":
        raw = _text(stored, count)
        notes: tuple[str, ...] = ()
    else:
        start = stored.data.stat().st_size - promised if stored.start < 0 else stored.start
        with ByteStream(stored.data, start=max(start, 0), packing=stored.packing) as stream:
            if start < 0 or promised > stream.most:
                held = max(0, stream.size if start >= 0 else start + promised)
                raise ImageError(
                    f"is cut off: its header promises {promised} bytes of voxels, the file can hold {held}",
                    where=stored.data,
                    hint=_AGAIN,
                )
            raw, notes = _bytes(stream, stored, promised)
    array = raw.reshape(stored.sizes[::-1])
    if stored.channel_axis is not None:
        array = np.moveaxis(array, len(stored.sizes) - 1 - stored.channel_axis, 0)
    return array, notes


def check_voxels(stored: Stored) -> None:
    """Raise ImageError unless the file holds every promised byte, undamaged; nothing is kept in memory."""
    promised = math.prod(stored.sizes) * stored.dtype.itemsize
    packing = "none" if stored.packing == "text" else stored.packing
    with ByteStream(stored.data, start=max(stored.start, 0), packing=packing) as stream:
        if stream.skip(promised) < promised:
            raise ImageError("is cut off", where=stored.data, hint=_AGAIN)
        stream.skip(_SURPLUS)


def _bytes(stream: ByteStream, stored: Stored, promised: int) -> tuple[Any, tuple[str, ...]]:
    raw = np.empty(promised, np.uint8)
    held = stream.fill(raw)
    if held < promised:
        raise ImageError(f"is cut off: holds {held} of {promised} bytes", where=stored.data, hint=_AGAIN)
    surplus = stream.skip(_SURPLUS + 1)
    if surplus > _SURPLUS:
        raise ImageError("holds far more bytes than its header promises voxels", where=stored.data, hint=_AGAIN)
    return raw.view(stored.dtype), (f"{surplus} bytes behind the voxels are left out",) if surplus else ()


def _text(stored: Stored, count: int) -> Any:
    size = stored.data.stat().st_size - stored.start
    if size > _LONGEST_TEXT or 2 * count - 1 > size:
        what = "is cut off" if 2 * count - 1 > size else "holds too many voxels written as text"
        raise ImageError(what, where=stored.data, hint="save it with binary data")
    with stored.data.open("rb") as file:
        file.seek(stored.start)
        words = file.read().decode("ascii", "replace").replace(",", " ").split()
    if len(words) != count:
        raise ImageError(f"holds {len(words)} of {count} voxels", where=stored.data, hint=_AGAIN)
    try:
        return np.array([float(w) if stored.dtype.kind == "f" else int(w) for w in words], dtype=stored.dtype)
    except (ValueError, OverflowError) as error:
        raise ImageError(f"holds text that is no voxel ({error})", where=stored.data, hint=_AGAIN) from error


def _meta(fields: dict[str, str], end: int, path: Path) -> Stored:
    name = fields.get("elementdatafile", "")
    kind = fields.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY")
    sizes = _sizes(fields.get("dimsize", ""), fields.get("ndims", ""))
    if not name or kind not in _META_TYPES or not sizes:
        raise ImageError("is not a MetaImage of numbers", where=path, hint=_AGAIN)
    for key in ("elementtointensityfunctionslope", "elementtointensityfunctionoffset"):
        if float(fields.get(key, "0" if key.endswith("offset") else "1")) != key.endswith("slope"):
            raise ImageError("states a rescale that readers disagree on", where=path, hint="save scanner units instead")
    orders = [_true(fields[key]) for key in ("binarydatabyteordermsb", "elementbyteordermsb") if key in fields]
    if len(set(orders)) > 1:
        raise ImageError("states two byte orders", where=path, hint=_AGAIN)
    big = any(orders)
    local = name.upper() == "LOCAL"
    skip = int(fields.get("headersize", "0"))
    if skip < -1 or (local and skip):
        raise ImageError(f"HeaderSize is {skip}", where=path, hint=_AGAIN)
    packing: Literal["none", "zlib", "text"] = "zlib" if _true(fields.get("compresseddata", "")) else "none"
    if not _true(fields.get("binarydata", "true")):
        packing = "text"
    channels = int(fields.get("elementnumberofchannels", "1"))
    if channels < 1:
        raise ImageError(f"has {channels} channels", where=path, hint=_AGAIN)
    dtype = np.dtype(_META_TYPES[kind]).newbyteorder(">" if big else "<")
    data = path if local else _beside(path, name)
    axes = (channels, *sizes) if channels > 1 else sizes
    return Stored(axes, dtype, data, end if local else skip, packing, 0 if channels > 1 else None)


def _nrrd(fields: dict[str, str], end: int, path: Path) -> Stored:
    encoding, kind = fields.get("encoding", "").lower(), fields.get("type", "").lower()
    kind = re.sub(r"^unsigned ", "u", re.sub(r" int$|^signed (?!char)", "", kind)).replace("long long", "longlong")
    sizes = _sizes(fields.get("sizes", ""), fields.get("dimension", ""))
    if kind not in _NRRD_TYPES or not sizes:
        raise ImageError("is not a NRRD file of numbers", where=path, hint=_AGAIN)
    packings: dict[str, Literal["none", "gzip", "text"]] = {"raw": "none", "gzip": "gzip", "gz": "gzip"}
    packings |= {"txt": "text", "text": "text", "ascii": "text"}
    if encoding not in packings:
        raise ImageError(f'has encoding "{encoding}"', where=path, hint="save it with encoding raw or gzip")
    dtype = np.dtype(_NRRD_TYPES[kind])
    endian = fields.get("endian", "little" if dtype.itemsize == 1 or packings[encoding] == "text" else "").lower()
    if endian not in ("little", "big"):
        raise ImageError("does not state its byte order (endian)", where=path, hint=_AGAIN)
    name, skip = fields.get("datafile", ""), int(fields.get("byteskip", "0"))
    if int(fields.get("lineskip", "0")) or skip < -1 or (skip and (not name or packings[encoding] != "none")):
        raise ImageError("skips lines or bytes", where=path, hint="save it as one .nrrd file")
    data = _beside(path, name) if name else path
    channel_axis = _channel_axis(fields, len(sizes), path)
    start = skip if name else end
    return Stored(sizes, dtype.newbyteorder("<" if endian == "little" else ">"), data, start, packings[encoding],
                  channel_axis)  # fmt: skip


def _channel_axis(fields: dict[str, str], axes: int, path: Path) -> int | None:
    """The one axis that is no place in space or time, by its kind, else by its lack of a direction."""
    kinds = fields.get("kinds", "").lower().split()
    directions = re.findall(r"none|\([^)]*\)", fields.get("spacedirections", "").lower())
    if kinds and len(kinds) == axes and set(kinds) - {"???", "none"}:
        found = [i for i, kind in enumerate(kinds) if kind not in _PLACES]
    else:
        found = [i for i, vector in enumerate(directions) if vector == "none"]
    if "time" in kinds:
        raise ImageError("is a 4D series over time", where=path, hint="give one volume per file")
    if len(found) > 1:
        raise ImageError(f"has {len(found)} axes that are no place", where=path, hint="save one volume per file")
    if found and kinds and "complex" in kinds[found[0]]:
        raise ImageError("has complex voxels", where=path, hint="save one number per voxel")
    return found[0] if found else None


def _sizes(text: str, axes: str) -> tuple[int, ...]:
    """Voxels per axis, or none where they are no positive numbers or not as many as there are axes."""
    words = text.split()
    if not words or not all(w.isascii() and w.isdigit() and int(w) for w in words) or axes.strip() != str(len(words)):
        return ()
    return tuple(int(word) for word in words)


def _true(text: str) -> bool:
    return text[:1].lower() in ("t", "1")


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names; it must lie in the header's folder or below."""
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError("is spread over several files", where=path, hint="save it as one .mha or .nrrd file")
    home, data = path.parent.resolve(), path.parent / name
    if "\0" in name or "\\" in name or not data.resolve().is_relative_to(home):
        raise ImageError(f'its data file "{name}" lies outside its folder', where=path, hint="do not use this file")
    if not data.is_file():
        raise ImageError(f'its data file "{name}" is missing', where=path, hint="keep header and data together")
    return data
