"""Which files a result was made of, as one hash: a name alone may be that of another patient's scan."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg.io.files import file_sha256
from medseg.io.images import image_stem
from medseg.types.dataset import Case

_NAMED = (".mhd", ".nhdr")  # headers that name the file of their voxels
_NIFTI, _VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
_SAMPLE, _LONGEST_HEADER = 1 << 20, 1 << 20  # bytes


def source_sha256(case: Case, *, lasting: bool = True) -> str:
    """A hash of names, sizes and times of the files of a case, and of which of their series and volumes it is.

    A sample of the voxels is part of it, since archives and exports may give files of many patients the same size and
    time. Where the files are not `lasting`, but unpacked or fetched for one run, names and times say nothing: then it
    is a hash of their whole content. The folder they lie in is no part of it. Raises OSError where a file cannot be
    read.
    """
    lines = [" ".join((*case.series_uids, *map(str, case.volumes)))]
    groups: tuple[tuple[Path, ...], ...] = case.files or ((),) * len(case.images)
    for path, files in zip(case.images, groups, strict=True):
        own = files or tuple(files_of(path))
        lines += ["channel", *(_states(own) if lasting else sorted(map(file_sha256, own)))]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def _states(files: Sequence[Path]) -> list[str]:
    """Name, size and time of every file, and a hash of the middle of the middle one."""
    found = [(file, file.stat()) for file in sorted(files)]
    middle, facts = found[len(found) // 2]
    with middle.open("rb") as stream:
        stream.seek(max(0, (facts.st_size - _SAMPLE) // 2))
        sample = hashlib.sha256(stream.read(_SAMPLE)).hexdigest()
    return [*(f"{file.name} {state.st_size} {state.st_mtime_ns}" for file, state in found), sample]


def files_of(path: Path) -> Iterator[Path]:
    """A scan's files: those of a folder, or a file and what belongs to it."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    else:
        yield path
        yield from _voxel_files(path)


def _voxel_files(path: Path) -> Iterator[Path]:
    """Files with the voxels of a header: those it names, or named like it."""
    name = path.name.lower()
    if name.endswith(_NAMED):
        stated = _DATA_FILE.search(path.read_bytes()[:_LONGEST_HEADER])
        file = path.parent / os.fsdecode(stated[1].strip()) if stated else path
        yield from (file,) if file != path and file.is_file() else ()
    elif name.endswith(_NIFTI):
        wanted = {f"{image_stem(path)}{ending}".lower() for ending in _VOXELS}
        yield from (file for file in sorted(path.parent.iterdir()) if file.name.lower() in wanted)
