"""Preprocessed cases on disk as chunked arrays, from which a patch is read without reading the case.

Per case: `<case>.image.b2nd` (exact float32), `<case>.labels.b2nd`, `<case>.foreground.safetensors` (sampled voxel
positions per label value, and the places of landmarks) and, written last, `<case>.json`. Blosc2 with Zstandard; chunks
of one patch, in blocks of at most 128 KiB, so that any patch touches few of them. Half precision would halve size and
reading time, but no longer be the image that was prepared.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blosc2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from medseg.errors import DatasetError, GeometryError, MedsegError
from medseg.io.files import file_sha256, whole_file
from medseg.io.records import read_record, record_sha256, write_record
from medseg.io.scan_sources import files_of
from medseg.types.geometry import Box, Geometry, Size3
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Labels
from medseg.types.plan import Preprocess

VERSION: Literal["medseg.cache/4"] = "medseg.cache/4"  # also of what a prepared case is made of
POSITIONS = 10_000
_BLOCK_VOXELS = 32 * 32 * 32
_INSIDE, _POINTS = "inside", "points"
_PARTS = ("image.b2nd", "labels.b2nd", "foreground.safetensors")


@dataclass(frozen=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Entry:
    """`<case>.json`; `sources` identifies the files the case was made of, `foreground_voxels` counts per value."""

    schema: Literal["medseg.cache/4"]
    case_id: str
    channels: tuple[str, ...]
    geometry: Geometry
    foreground_voxels: dict[str, int]
    sources: str
    files: dict[str, _File]


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A case in the cache; `foreground` holds up to 10,000 voxel positions (z, y, x) per label value.

    `inside` holds as many of the part of the scan that counts, where it is not all: the fan of ultrasound, and what
    somebody annotated.
    `points` are the plan's landmarks, in its order, as places (z, y, x) on the case's grid; NaN where one is not known.
    `rater` is the number of who annotated it, -1 for nobody who is known; None where the plan knows no raters.
    It holds paths, no open files, so it may be sent to other processes and read from several threads.
    """

    case_id: str
    shape: Size3
    channels: tuple[str, ...]
    geometry: Geometry
    foreground: dict[int, Int32[np.ndarray, "n 3"]]
    foreground_voxels: dict[int, int]
    stem: Path
    inside: Int32[np.ndarray, "m 3"] | None = None
    points: Float64[np.ndarray, "p 3"] | None = None
    rater: int | None = None

    def read(self, box: Box) -> tuple[Float32[np.ndarray, "c z y x"], Shaped[np.ndarray, "z y x"]]:
        """Image and labels in `box`, which may reach outside the case: there both are 0.

        Only the blocks that the box touches are read and decompressed, in the calling thread.
        """
        image, labels = (_part(self.stem, part) for part in _PARTS[:2])
        return _read_box(image, box), _read_box(labels, box)


def cache_key(
    preprocess: Preprocess,
    labels: Labels,
    landmarks: Sequence[str] = (),
    stated_spacing_mm: tuple[float, float] | None = None,
) -> str:
    """Name of the cache of all cases prepared in this way; changes with the format of the cache.

    `stated_spacing_mm` (y, x) is what the data set says of flat scans that state none.
    """
    parts = [VERSION, record_sha256(preprocess), record_sha256(labels)]
    parts += [record_sha256(tuple(landmarks))] if landmarks else []
    parts += [str([float(mm) for mm in stated_spacing_mm])] if stated_spacing_mm else []
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def write_case(
    folder: Path,
    case_id: str,
    image: Image,
    labels: LabelMap,
    *,
    patch: Size3,
    sources: Sequence[Path] = (),
    inside: Bool[np.ndarray, "z y x"] | None = None,
    points: Float64[np.ndarray, "p 3"] | None = None,
) -> None:
    """Store a prepared case; it counts as present only when all of it is.

    `sources` are the files or folders it was made of: their sizes and times are recorded, so that `is_complete` sees
    changes. Positions are drawn with a fixed seed, without the ignore value, and also of `inside`. `points` are places
    of landmarks (z, y, x) on the image's grid, NaN where not known. Raises GeometryError if the grids differ,
    DatasetError if there is no room.
    """
    if not image.geometry.same_grid(labels.geometry):
        raise GeometryError("image and labels lie on different grids", where=case_id, hint="prepare both alike")
    stem = _stem(folder, case_id)
    _part(stem, "json").unlink(missing_ok=True)
    _write_array(_part(stem, _PARTS[0]), np.asarray(image.array, np.float32), patch, level=1)
    _write_array(_part(stem, _PARTS[1]), labels.array, patch, level=5)
    positions, counts = _sample_positions(labels)
    stored: dict[str, np.ndarray] = {str(value): found for value, found in positions.items()}
    if inside is not None:
        stored[_INSIDE] = _positions(np.flatnonzero(inside), inside.shape, 0)
    if points is not None:
        stored[_POINTS] = np.ascontiguousarray(points, np.float64)
    with _written(_part(stem, _PARTS[2])) as temporary:
        save_file(stored, temporary)
    files = {part: _File(_part(stem, part).stat().st_size, file_sha256(_part(stem, part))) for part in _PARTS}
    voxels = {str(value): count for value, count in counts.items()}
    entry = _Entry(VERSION, case_id, image.channels, image.geometry, voxels, _identity(sources), files)
    write_record(entry, _part(stem, "json"))


def is_complete(folder: Path, case_id: str, *, sources: Sequence[Path] = (), verify: bool = False) -> bool:
    """Whether all files of the case are there in their full size, made of `sources` as they are now.

    Without `sources` their state is not compared; `verify` also compares the content (SHA-256).
    """
    stem = _stem(folder, case_id)
    try:
        entry = read_record(_part(stem, "json"), _Entry)
        if entry.case_id != case_id or (sources and entry.sources != _identity(sources)):
            return False
        paths = {part: _part(stem, part) for part in _PARTS}
        whole = all(paths[part].stat().st_size == entry.files[part].bytes for part in _PARTS)
        return whole and (not verify or all(file_sha256(paths[part]) == entry.files[part].sha256 for part in _PARTS))
    except (MedsegError, OSError, KeyError):
        return False


def annotation_sha256(folder: Path, case_id: str) -> str:
    """A hash of the label map and the landmarks of a case that `write_case` stored, as they were prepared."""
    stem = _stem(folder, case_id)
    labels = read_record(_part(stem, "json"), _Entry).files[_PARTS[1]].sha256
    points = load_file(_part(stem, _PARTS[2])).get(_POINTS, np.zeros((0, 3)))
    return hashlib.sha256(f"{labels} {points.round(3).tolist()}".encode()).hexdigest()


def open_case(folder: Path, case_id: str) -> CachedCase:
    """A case that `write_case` stored; reads its record and foreground positions, no voxels.

    Raises DatasetError where the case is missing or incomplete.
    """
    if not is_complete(folder, case_id):
        raise DatasetError("not in the cache, or incomplete", where=f"{folder}: {case_id}", hint="prepare it again")
    stem = _stem(folder, case_id)
    entry = read_record(_part(stem, "json"), _Entry)
    stored = load_file(_part(stem, _PARTS[2]))
    inside, points = stored.pop(_INSIDE, None), stored.pop(_POINTS, None)
    positions = {int(value): found for value, found in stored.items()}
    return CachedCase(
        case_id=case_id,
        shape=entry.geometry.shape,
        channels=entry.channels,
        geometry=entry.geometry,
        foreground=dict(sorted(positions.items())),
        foreground_voxels={int(value): count for value, count in entry.foreground_voxels.items()},
        stem=stem,
        inside=inside,
        points=points,
    )


def _stem(folder: Path, case_id: str) -> Path:
    """Path without suffixes; characters that some file systems refuse are written as %XX."""
    if not case_id:
        raise DatasetError("a case has an empty id", where=folder, hint="name it")
    escaped = "".join(f"%{ord(c):02X}" if c in '%/\\:*?"<>|' or ord(c) < 32 else c for c in case_id)
    return folder / (f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped)


def _part(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """`whole_file`, with the errors of the libraries that fill it, e.g. on a full disk, as a DatasetError."""
    with whole_file(path) as temporary:
        try:
            yield temporary
        except (RuntimeError, SafetensorError) as error:
            raise DatasetError(f"cannot be written ({error})", where=path, hint="make room and start again") from error


def _write_array(path: Path, array: Shaped[np.ndarray, "*c z y x"], patch: Size3, *, level: int) -> None:
    chunks = [min(n, p) for n, p in zip(array.shape[-3:], patch, strict=True)]
    blocks = list(chunks)
    while np.prod(blocks) > _BLOCK_VOXELS:
        largest = int(np.argmax(blocks))
        blocks[largest] = -(-blocks[largest] // 2)
    lead = [1] * (array.ndim - 3)
    with _written(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=(*lead, *chunks),
            blocks=(*lead, *blocks),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": level, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        )


def _read_box(path: Path, box: Box) -> np.ndarray:
    array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    shape = array.shape[-3:]
    lead = array.shape[:-3]
    every = (slice(None),) * len(lead)
    starts = [min(max(a, 0), n) for a, n in zip(box.start, shape, strict=True)]
    stops = [min(max(b, a), n) for a, b, n in zip(starts, box.stop, shape, strict=True)]
    inside = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    if (tuple(starts), tuple(stops)) == (box.start, box.stop):
        return np.asarray(array[(*every, *inside)])
    out = np.zeros((*lead, *box.shape), array.dtype)
    if all(b > a for a, b in zip(starts, stops, strict=True)):
        there = tuple(slice(a - o, b - o) for a, b, o in zip(starts, stops, box.start, strict=True))
        out[(*every, *there)] = array[(*every, *inside)]
    return out


def _sample_positions(labels: LabelMap) -> tuple[dict[int, Int32[np.ndarray, "n 3"]], dict[int, int]]:
    """Up to 10,000 voxels (z, y, x) of each foreground value, in scan order, and how many there are."""
    where = np.flatnonzero(labels.array)
    values = labels.array.ravel()[where]
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    positions, counts = {}, {}
    for value, group in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        if value == labels.labels.ignore:
            continue
        counts[value] = len(group)
        positions[value] = _positions(where[group], labels.array.shape, value)
    return positions, counts


def _positions(flat: np.ndarray, shape: tuple[int, ...], seed: int) -> Int32[np.ndarray, "n 3"]:
    """Up to 10,000 of the voxels with these flat indices, as (z, y, x) in scan order."""
    if len(flat) > POSITIONS:
        flat = np.sort(np.random.default_rng([0, seed]).choice(flat, POSITIONS, replace=False))
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int32)


def _identity(sources: Sequence[Path]) -> str:
    """A hash of names, sizes and times of the files in `sources` and of the voxels that belong to headers."""
    lines = [f"{path.name} {(s := path.stat()).st_size} {s.st_mtime_ns}" for path in _files(sources)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _files(sources: Iterable[Path]) -> Iterable[Path]:
    for path in sources:
        yield from files_of(path)
