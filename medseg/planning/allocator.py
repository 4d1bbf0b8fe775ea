"""What PyTorch's CUDA caching allocator reserves for a sequence of allocations.

Mirrors the documented rules of its default settings: sizes are rounded to 512 bytes; requests up to 1 MiB come
from 2 MiB segments, below 10 MiB from 20 MiB segments, larger ones from segments of their own rounded to 2 MiB;
the smallest free block that fits is taken and split; freed neighbours in a segment are joined; segments are kept.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

ROUND = 512
SMALL = 1 << 20
SMALL_SEGMENT = 2 << 20
LARGE_FROM = 10 << 20
LARGE_SEGMENT = 20 << 20
LARGE_ROUND = 2 << 20


@dataclass(frozen=True)
class Event:
    """Allocation (`nbytes` > 0) or release (0) of the block `key`."""

    key: int
    nbytes: int


def live_peak(events: Iterable[Event]) -> int:
    """Largest number of bytes in use at once.

    >>> live_peak([Event(1, 5), Event(2, 7), Event(1, 0), Event(3, 4)])
    12
    """
    sizes: dict[int, int] = {}
    now = peak = 0
    for event in events:
        now += event.nbytes - sizes.get(event.key, 0)
        sizes[event.key] = event.nbytes
        peak = max(peak, now)
    return peak


def reserved_peak(events: Iterable[Event]) -> int:
    """Bytes the allocator holds from the device after these events; segments are never given back.

    >>> reserved_peak([Event(1, 1000)]), reserved_peak([Event(1, 3 << 20)]), reserved_peak([Event(1, 11 << 20)])
    (2097152, 20971520, 12582912)
    """
    pools = {True: _Pool(), False: _Pool()}
    taken: dict[int, tuple[bool, tuple[int, int]]] = {}
    for event in events:
        if event.nbytes:
            size = -(-event.nbytes // ROUND) * ROUND
            small = size <= SMALL
            taken[event.key] = small, pools[small].take(size, _segment(size), small)
        elif event.key in taken:
            small, block = taken.pop(event.key)
            pools[small].give(block)
    return sum(pool.reserved for pool in pools.values())


def _segment(size: int) -> int:
    if size <= SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < LARGE_FROM else -(-size // LARGE_ROUND) * LARGE_ROUND


class _Pool:
    """Blocks of one pool as (start, size) in one line of addresses; a gap parts the segments."""

    def __init__(self) -> None:
        self.reserved = 0
        self._end = 0
        self._by_size: list[tuple[int, int]] = []
        self._size_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}

    def take(self, size: int, segment: int, small: bool) -> tuple[int, int]:
        place = bisect.bisect_left(self._by_size, (size, 0))
        if place < len(self._by_size):
            found, start = self._by_size[place]
            self._drop(start)
        else:
            found, start = segment, self._end
            self.reserved += segment
            self._end += segment + ROUND
        rest = found - size
        if rest >= ROUND if small else rest > SMALL:
            self._add(start + size, rest)
            return start, size
        return start, found

    def give(self, block: tuple[int, int]) -> None:
        start, size = block
        if start + size in self._size_at:
            size += self._drop(start + size)
        before = self._start_before.get(start)
        if before is not None:
            size += self._drop(before)
            start = before
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        bisect.insort(self._by_size, (size, start))
        self._size_at[start] = size
        self._start_before[start + size] = start

    def _drop(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, start)))
        return size
