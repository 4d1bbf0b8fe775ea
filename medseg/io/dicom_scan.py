"""Whole trees of files: which there are, and the DICOM headers of thousands of them, read side by side."""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.io.dicom_headers import Header, read_header
from medseg.io.processes import Limits, Lost, run_apart
from medseg.types.progress import Progress, Report, silent

FEW = 200  # files that are read sooner than processes start
_COMMON = "syntax sop_class modality study_uid series_uid frame_uid concatenation_uid description image_type".split()
_LIMITS = Limits(workers=max(2, min(8, os.cpu_count() or 1)), seconds=60.0, memory_bytes=4 << 30, ahead=32)


def walk(folder: Path) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Every regular file below a folder, sorted, and for what cannot be opened the reason.

    Links are followed, each folder once, so that a loop ends. Hidden files and folders are passed over.
    """
    files: list[Path] = []
    refused: dict[Path, str] = {}
    seen: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            state = here.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            names = sorted(entry.name for entry in os.scandir(here))
        except OSError as error:
            refused[here] = f"cannot be opened ({error.strerror or type(error).__name__})"
            continue
        for path in (here / name for name in names if not name.startswith(".")):
            kind = _kind(path)
            if kind == "folder":
                folders.append(path)
            elif kind == "file":
                files.append(path)
            else:
                refused[path] = kind
    return tuple(sorted(files)), refused


def _kind(path: Path) -> str:
    """ "file", "folder", or the reason why it is neither."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        broken = path.is_symlink()
        return "is a broken link" if broken else f"cannot be opened ({error.strerror or type(error).__name__})"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "is no regular file"


def scan_headers(
    files: Sequence[Path], *, report: Report = silent, few: int = FEW, limits: Limits = _LIMITS
) -> dict[Path, Header | str]:
    """For every file, in the given order, its header or the reason why there is none.

    More than `few` files are read by worker processes under `limits`, so that a file that crashes or hangs the reader,
    or makes it ask for too much memory, costs that file and no other.
    """
    if len(files) <= few:
        found: dict[Path, Header | str] = {}
        for number, path in enumerate(files, start=1):
            found[path] = read_header(path)
            report(Progress("headers", number, len(files)))
        return found
    results: list[Header | str] = [""] * len(files)
    seen: dict[Any, Any] = {}
    for number, (index, result) in enumerate(run_apart(_reader, (), files, limits), start=1):
        told = f"header cannot be read ({result.reason})" if isinstance(result, Lost) else result
        results[index] = told if isinstance(told, str) else _shared(told, files[index], seen)
        report(Progress("headers", number, len(files)))
    return dict(zip(files, results, strict=True))


def _shared(header: Header, path: Path, seen: dict[Any, Any]) -> Header:
    """The header with what it has in common with others held once: a third of the memory of many thousands."""

    def same(value: Any) -> Any:
        return seen.setdefault(value, value)

    planes = tuple(
        replace(
            plane,
            keys=tuple(same(pair) for pair in plane.keys),
            orientation=same(plane.orientation),
            spacing=same(plane.spacing),
            thickness=same(plane.thickness),
            between=same(plane.between),
            slope=same(plane.slope),
            intercept=same(plane.intercept),
        )
        for plane in header.planes
    )
    common = {name: same(getattr(header, name)) for name in _COMMON}
    return replace(header, path=path, planes=planes, pixels=same(header.pixels), **common)


def _reader() -> Callable[[Path], Header | str]:
    return read_header
