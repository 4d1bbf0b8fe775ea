"""Which files a result was made of, as one hash: a name alone may be that of another patient's scan."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg.io.files import file_sha256
from medseg.io.images import image_stem
from medseg.types.dataset import Case

_HEADERS = (".mhd", ".nhdr", ".hdr", ".hdr.gz")
_VOXELS = (".raw", ".raw.gz", ".zraw", ".img", ".img.gz")
_SAMPLE = 1 << 20  # bytes


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
        own = files or (path, *_voxel_files(path))
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


def _voxel_files(path: Path) -> Iterator[Path]:
    """Files with the voxels of a header, named like it."""
    if path.name.lower().endswith(_HEADERS):
        beside = (path.with_name(image_stem(path) + ending) for ending in _VOXELS)
        yield from (file for file in beside if file.is_file())
