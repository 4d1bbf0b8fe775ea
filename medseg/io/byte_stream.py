"""The bytes of a file, compressed or not, a piece at a time: what is not asked for is never unpacked."""

import zlib
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from jaxtyping import UInt8

from medseg.errors import ImageError

_BITS = {"gzip": 31, "zlib": 47}  # window bits of zlib.decompressobj; the latter takes gzip as well
_MAGIC = b"\x1f\x8b"
_PIECE = 1 << 20  # bytes handed out at most at a time
_PACKED = 1 << 14  # bytes read at a time; small, as the rest is copied whenever a member ends
LARGEST_RATIO = 1032  # deflate cannot pack more than this many bytes into one


class ByteStream:
    """A file opened for reading at byte `start`; `with ByteStream(path) as stream`.

    `packing` says how it is compressed; "auto" recognises gzip by its first bytes, whatever the name says. Gzip members
    that follow each other are one stream, and the checksum of each is verified when its end is reached. Raises
    ImageError where compressed data is damaged.
    """

    def __init__(
        self, path: Path, *, start: int = 0, packing: Literal["auto", "none", "gzip", "zlib"] = "auto"
    ) -> None:
        self.path = path
        self.size = max(0, path.stat().st_size - start)
        self._start = start
        self._file = path.open("rb")
        self._file.seek(start)
        self._packed = self._file.read(2) if packing == "auto" else b""
        if packing == "auto":
            packing = "gzip" if self._packed == _MAGIC else "none"
        self._packing = packing
        self._engine = zlib.decompressobj(_BITS[packing]) if packing in _BITS else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def most(self) -> int:
        """No more bytes than this can be in the file."""
        return self.size * (LARGEST_RATIO if self._engine else 1)

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count` and at most 1 MiB; none at the end."""
        count = min(count, _PIECE)
        if self._engine is None:
            data, self._packed = self._packed[:count], self._packed[count:]
            return data or self._file.read(count)
        data = b""
        while not data and self._more():
            data = self._unpack(count)
        return data

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or as many as there are; for small pieces such as headers."""
        parts = []
        while count and (part := self.read(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def fill(self, target: UInt8[np.ndarray, " n"]) -> int:
        """Fill `target` with the next bytes; returns how many there were."""
        done = 0
        while done < len(target) and (part := self.read(len(target) - done)):
            target[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return done

    def skip(self, count: int) -> int:
        """Pass over `count` bytes in constant memory; returns how many there were."""
        if self._engine is None:
            at = self._file.tell() - self._start - len(self._packed)
            to = min(at + count, self.size)
            self._packed = b""
            self._file.seek(self._start + to)
            return to - at
        done = 0
        while done < count and (part := self.read(count - done)):
            done += len(part)
        return done

    def _more(self) -> bool:
        """Whether packed bytes are left, at the start of a member if need be."""
        if not self._packed and (self._engine is None or not self._engine.unconsumed_tail):
            self._packed = self._file.read(_PACKED)
        engine = self._engine
        if engine is None or not engine.eof:
            return True
        if self._packing == "zlib":
            return False
        self._packed = self._packed.lstrip(b"\0")  # padding after the last member
        while not self._packed and (block := self._file.read(_PACKED)):
            self._packed = block.lstrip(b"\0")
        if not self._packed:
            return False
        self._engine = zlib.decompressobj(_BITS["gzip"])
        return True

    def _unpack(self, count: int) -> bytes:
        engine = self._engine
        assert engine is not None
        packed, self._packed = engine.unconsumed_tail + self._packed, b""
        if not packed:
            raise self._damaged("it ends early")
        try:
            data = engine.decompress(packed, count)
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        self._packed = engine.unused_data
        return data

    def _damaged(self, reason: str) -> ImageError:
        return ImageError(
            f"compressed data is damaged or cut off ({reason})", where=self.path, hint="copy or export the file again"
        )
