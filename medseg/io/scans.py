"""Cases to predict among files, folders and trees of any shape."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.io.archives import is_archive
from medseg.io.channels import is_colour_picture
from medseg.io.dicom_headers import Header
from medseg.io.dicom_scan import scan_headers, walk
from medseg.io.dicom_series import Series, group_headers
from medseg.io.files import file_sha256
from medseg.io.identifiers import series_id, writable
from medseg.io.images import image_stem, is_dicom, is_image
from medseg.types.dataset import Case
from medseg.types.progress import Report, silent

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_VOXEL_FILES = {".raw": ".mhd", ".zraw": ".mhd", ".img": ".hdr"}  # and the header beside them that names the case


@dataclass(frozen=True)
class _Scan:
    """One file or series: its path, the name its case gets, the folder it lies in.

    For DICOM also its files, which of their volumes it is, series UID, modality, and what makes it one of a kind.
    """

    path: Path
    stem: str
    folder: Path
    files: tuple[Path, ...] = ()
    volume: int = 0
    series_uid: str = ""
    modality: str = ""
    unique: str = ""


def find_cases(
    inputs: Sequence[Path], channels: tuple[str, ...], *, keep_identifiers: bool = False, report: Report = silent
) -> tuple[tuple[Case, ...], dict[Path, str]]:
    """Cases among files, folders of files and trees of DICOM series (one case per series), and every refused path.

    `scan_0000.nii.gz`, `scan_0001.nii.gz` are the channels of one case if there is more than one channel; with one
    channel, `_0000` is left out of the id if every scan of its folder has it. An id is the file name, and for DICOM
    modality and a short hash of the series UID, or with `keep_identifiers` the name of its folder. Equal ids get the
    name of their folder in front (with `keep_identifiers`, of as many folders as tell them apart), then a number
    behind: these depend on what else is found. Nothing is read but DICOM headers.
    """
    refused: dict[Path, str] = {}
    scans: dict[tuple[Path, int], _Scan] = {}
    folders: dict[Path, list[_Scan]] = {}
    for path in inputs:
        if path.is_dir():
            found = _in_folder(path, refused, report)
        elif not path.exists():
            found, refused[path] = [], "no such file or folder"
        elif is_image(path):
            found = [_Scan(path, image_stem(path), path.parent)]
        elif is_dicom(path):
            if path.parent not in folders:
                folders[path.parent] = _series_in(files_beside(path), {}, report)
            found = [scan for scan in folders[path.parent] if path in scan.files]
            refused.update({} if found else scan_reason(path))
        else:
            found, refused[path] = [], "no image file"
        scans.update({_place(scan): scan for scan in found})
    if inputs and not scans and not refused:
        refused.update({path: "holds no image file" for path in inputs})
    grouped = _group([scans[key] for key in sorted(scans)], channels, refused)
    return _named(grouped, keep_identifiers), refused


def _place(scan: _Scan) -> tuple[Path, int]:
    """What a scan is found by again and sorted by."""
    return (scan.files[0] if scan.files else scan.path).absolute(), scan.volume


def scan_reason(path: Path) -> dict[Path, str]:
    """Why a DICOM file belongs to no series."""
    reason = scan_headers([path])[path]
    return {path: reason if isinstance(reason, str) else "belongs to no series"}


def _in_folder(folder: Path, refused: dict[Path, str], report: Report) -> list[_Scan]:
    """Image files, and one scan per DICOM series."""
    files, wrong = walk(folder)
    images, others, archives = sorted_by_kind(files)
    refused.update(wrong | archives)
    return [_Scan(path, image_stem(path), path.parent) for path in images] + _series_in(others, refused, report)


def sorted_by_kind(files: Sequence[Path]) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Image files by suffix, what may be DICOM, and the archives, which are not looked into, with that reason.

    Files with the voxels of a header beside them are none of these.
    """
    archives = {path: "is an archive; give it by itself" for path in files if is_archive(path)}
    images = [path for path in files if is_image(path)]
    others = [path for path in files if not (is_image(path) or path in archives or _is_voxel_file(path))]
    return images, others, archives


def files_beside(path: Path) -> list[Path]:
    """A DICOM file and the other files of its folder that may be of its series."""
    return sorted(
        other for other in path.parent.iterdir() if other.is_file() and not (is_image(other) or other.name[0] == ".")
    )


def _series_in(files: Sequence[Path], refused: dict[Path, str], report: Report) -> list[_Scan]:
    headers = scan_headers(files, report=report)
    series, wrong = group_headers([header for header in headers.values() if isinstance(header, Header)])
    wrong |= {path: header for path, header in headers.items() if isinstance(header, str)}
    refused.update({path: wrong[path] for path in sorted(wrong) if path.name != "DICOMDIR"})
    homes = [Path(os.path.commonpath([file.parent for file in one.files])) for one in series]
    above = Counter(folder for one in series for folder in _folders_of(one))
    seen: Counter[frozenset[Path]] = Counter()
    scans = []
    for one, home in zip(series, homes, strict=True):
        same = frozenset(one.files)
        unique = series_key(one, headers[one.files[0]])
        scans.append(_series_scan(one, home, unique, shared=above[home] > 1, volume=seen[same]))
        seen[same] += 1
    return scans


def series_key(series: Series, first: Header | str) -> str:
    """What makes a series one of a kind: its UID and part, or that of the object where each is a scan of its own."""
    object_uid = first.sop_uid if isinstance(first, Header) and series.kind != "volume" else ""
    return f"{series.uid} {series.part}{object_uid}".strip() or file_sha256(series.files[0])


def _folders_of(series: Series) -> set[Path]:
    """Every folder that has a file of the series in or below it."""
    homes = {file.parent for file in series.files}
    return homes | {folder for home in homes for folder in home.parents}


def _series_scan(one: Series, home: Path, unique: str, *, shared: bool, volume: int) -> _Scan:
    """A series named after its folder, or its only file, or what tells it from others in its folder."""
    files = tuple(sorted(one.files))
    if not shared:
        path, stem, folder = home, home.resolve().name, home.parent
    elif len(files) == 1:
        path, stem, folder = files[0], image_stem(files[0]), files[0].parent
    else:
        path, stem, folder = home, f"{home.resolve().name}_{series_id(one.modality, unique)}", home.parent
    return _Scan(path, stem, folder, files, volume, one.uid, one.modality, unique)


def _is_voxel_file(path: Path) -> bool:
    """Whether `path` holds the voxels of a detached header beside it."""
    header = _VOXEL_FILES.get(path.suffix.lower())
    return header is not None and path.with_suffix(header).is_file()


def _group(scans: list[_Scan], channels: tuple[str, ...], refused: dict[Path, str]) -> list[list[_Scan]]:
    """Scans by case, one per channel in order, the first under the name of the case; incomplete ones are refused."""
    matches = [_CHANNEL.fullmatch(scan.stem) for scan in scans]
    count = max(len(channels), 1)
    if count == 1:
        plain = {scan.folder for scan, match in zip(scans, matches, strict=True) if not match or match[2] != "0000"}
        return [
            [replace(scan, stem=match[1]) if match and scan.folder not in plain else scan]
            for scan, match in zip(scans, matches, strict=True)
        ]
    parts: dict[tuple[Path, str], dict[int, _Scan]] = {}
    complete: list[list[_Scan]] = []
    for scan, match in zip(scans, matches, strict=True):
        if match is None:
            complete.append([scan])
        elif int(match[2]) < count:
            parts.setdefault((scan.folder, match[1]), {})[int(match[2])] = scan
        else:
            refused[scan.path] = f"channel _{match[2]} is not one of the {count} of the model"
    for (_, stem), found in parts.items():
        missing = [f"_{i:04d} ({channels[i]})" for i in range(count) if i not in found]
        if missing and not is_colour_picture({i: scan.path for i, scan in found.items()}, count):
            refused.update({scan.path: f"channel {', '.join(missing)} is missing" for scan in found.values()})
        else:
            complete.append([replace(found[i], stem=stem) for i in sorted(found)])
    return sorted(complete, key=lambda case: case[0].path.absolute())


def _named(scans: list[list[_Scan]], keep_identifiers: bool) -> tuple[Case, ...]:
    """Cases with unique ids that can be written: equal names get those of folders in front, then a number behind."""
    hashed = [bool(case[0].files) and not keep_identifiers for case in scans]
    names = [_neutral(case) if plain else case[0].stem for case, plain in zip(scans, hashed, strict=True)]
    counts = Counter(name.casefold() for name in names)
    above: list[list[str]] = [
        [] if plain or counts[name.casefold()] == 1 else list(case[0].folder.resolve().parts[1:])
        for name, case, plain in zip(names, scans, hashed, strict=True)
    ]
    bases = [f"{folders.pop()}_{name}" if folders else name for name, folders in zip(names, above, strict=True)]
    bases = _told_apart(bases, above) if keep_identifiers else bases
    unique = numbered([writable(name) for name in bases])
    return tuple(_case(name, parts) for name, parts in zip(unique, scans, strict=True))


def _told_apart(names: Sequence[str], above: Sequence[Sequence[str]]) -> list[str]:
    """Names with those of further folders in front, from the nearest on, as many as tell equal ones apart.

    >>> _told_apart(["CT_ct", "CT_ct", "MR_ct"], [["in", "p1"], ["in", "p2"], ["in"]])
    ['p1_CT_ct', 'p2_CT_ct', 'MR_ct']
    """
    made, left = list(names), [list(folders) for folders in above]
    while True:
        alike: dict[str, list[int]] = {}
        for index, name in enumerate(made):
            alike.setdefault(name.casefold(), []).append(index)
        several = [group for group in alike.values() if len({tuple(left[index]) for index in group}) > 1]
        if not several:
            return made
        for index in (index for group in several for index in group if left[index]):
            made[index] = f"{left[index].pop()}_{made[index]}"


def numbered(names: Sequence[str]) -> list[str]:
    """The names, each once: the second of a kind gets "-2", whatever its case.

    >>> numbered(["a", "A", "b", "a"])
    ['a', 'A-2', 'b', 'a-3']
    """
    taken: set[str] = set()
    unique = []
    for name in names:
        made, number = name, 1
        while made.casefold() in taken:
            number += 1
            made = f"{name}-{number}"
        taken.add(made.casefold())
        unique.append(made)
    return unique


def _case(name: str, parts: list[_Scan]) -> Case:
    case = Case(name, tuple(part.path for part in parts))
    if not any(part.files for part in parts):
        return case
    files, volumes = tuple(part.files for part in parts), tuple(part.volume for part in parts)
    uids = tuple(part.series_uid for part in parts if part.series_uid)
    modalities = tuple(part.modality for part in parts)
    return replace(case, files=files, volumes=volumes, series_uids=uids, modalities=modalities)


def _neutral(case: list[_Scan]) -> str:
    """Modality and a hash of what the series are, so that an id is the same in any order and any folder."""
    return series_id(case[0].modality, " ".join(scan.unique or scan.stem for scan in case))
