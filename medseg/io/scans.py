"""Cases to predict among files and folders of any shape."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.io.dicom_series import group_files
from medseg.io.images import image_stem, is_dicom, is_image
from medseg.types.dataset import Case

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class _Scan:
    """One file or series: its path, the name its case gets, and the folder it lies in."""

    path: Path
    stem: str
    folder: Path


def find_cases(inputs: Sequence[Path], channels: tuple[str, ...]) -> tuple[tuple[Case, ...], dict[Path, str]]:
    """Cases among files, folders of files and trees of DICOM folders (one case per series), and every refused path.

    `scan_0000.nii.gz`, `scan_0001.nii.gz` are the channels of one case if there is more than one channel; with one
    channel, `_0000` is left out of the id if every scan of its folder has it. Ids come from file and folder names and
    are unique. Nothing is read but DICOM headers.
    """
    refused: dict[Path, str] = {}
    scans: dict[Path, _Scan] = {}
    for path in inputs:
        if path.is_dir():
            found = _in_folder(path, refused)
        elif not path.exists():
            found, refused[path] = [], "no such file or folder"
        elif is_dicom(path) or is_image(path):
            found = [_Scan(path, image_stem(path), path.parent)]
        else:
            found, refused[path] = [], "no image file"
        scans.update({scan.path.absolute(): scan for scan in found})
    if inputs and not scans and not refused:
        refused.update({path: "holds no image file" for path in inputs})
    grouped = _group([scans[key] for key in sorted(scans)], channels, refused)
    return _named(grouped), refused


def _in_folder(folder: Path, refused: dict[Path, str]) -> list[_Scan]:
    """Image files, and one scan per DICOM series: the folder that holds it and no other series, or its only file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder)]
    scans = [_Scan(path, image_stem(path), path.parent) for path in files if is_image(path)]
    series, wrong = group_files(path for path in files if not is_image(path) and not _is_voxel_file(path))
    refused.update({path: reason for path, reason in wrong.items() if path.name != "DICOMDIR"})
    for one in series:
        home = Path(os.path.commonpath([file.parent for file in one.files]))
        others = [file for other in series if other is not one for file in other.files]
        if not any(file.is_relative_to(home) for file in others):
            scans.append(_Scan(home, home.resolve().name, home.parent))
        elif len(one.files) == 1:
            scans.append(_Scan(one.files[0], image_stem(one.files[0]), one.files[0].parent))
        else:
            refused[one.files[0]] = "its folder holds several series; put the files of each into a folder of its own"
    return scans


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_voxel_file(path: Path) -> bool:
    """Whether `path` holds the voxels of a detached header beside it."""
    return path.suffix.lower() in {".raw", ".zraw"} and path.with_suffix(".mhd").is_file()


def _group(scans: list[_Scan], channels: tuple[str, ...], refused: dict[Path, str]) -> list[tuple[_Scan, list[Path]]]:
    """Scans with their channel files, in order; incomplete ones are refused."""
    matches = [_CHANNEL.fullmatch(scan.stem) for scan in scans]
    count = max(len(channels), 1)
    if count == 1:
        plain = {scan.folder for scan, match in zip(scans, matches, strict=True) if not match or match[2] != "0000"}
        stems = [
            match[1] if match and scan.folder not in plain else scan.stem
            for scan, match in zip(scans, matches, strict=True)
        ]
        named = [_Scan(scan.path, stem, scan.folder) for scan, stem in zip(scans, stems, strict=True)]
        return [(scan, [scan.path]) for scan in named]
    parts: dict[tuple[Path, str], dict[int, _Scan]] = {}
    complete: list[tuple[_Scan, list[Path]]] = []
    for scan, match in zip(scans, matches, strict=True):
        if match is None:
            complete.append((scan, [scan.path]))
        elif int(match[2]) < count:
            parts.setdefault((scan.folder, match[1]), {})[int(match[2])] = scan
        else:
            refused[scan.path] = f"channel _{match[2]} is not one of the {count} of the model"
    for (folder, stem), found in parts.items():
        missing = [f"_{i:04d} ({channels[i]})" for i in range(count) if i not in found]
        if missing:
            refused.update({scan.path: f"channel {', '.join(missing)} is missing" for scan in found.values()})
        else:
            paths = [found[i].path for i in range(count)]
            complete.append((_Scan(paths[0], stem, folder), paths))
    return sorted(complete, key=lambda pair: pair[0].path.absolute())


def _named(scans: list[tuple[_Scan, list[Path]]]) -> tuple[Case, ...]:
    """Cases with unique ids: equal names get their folder's name in front, then a number behind."""
    counts = Counter(scan.stem.casefold() for scan, _ in scans)
    names = [
        scan.stem if counts[scan.stem.casefold()] == 1 else f"{scan.folder.resolve().name}_{scan.stem}"
        for scan, _ in scans
    ]
    taken: set[str] = set()
    cases = []
    for name, (_, paths) in zip(names, scans, strict=True):
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        cases.append(Case(unique, tuple(paths)))
    return tuple(cases)
