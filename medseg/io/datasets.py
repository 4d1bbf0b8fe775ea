"""Dataset folders: which cases there are, and every fault that can be seen without reading a voxel."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.errors import DatasetError
from medseg.io.case_tables import case_table, say_gaps
from medseg.io.channels import is_colour_picture
from medseg.io.dataset_files import belongs_to_header, entries, known_ending, only_file, relative_name
from medseg.io.dataset_json import FILE_NAME, Header, error, parse_splits, read_header, read_json, warning
from medseg.io.dataset_points import find_points, point_names, with_points
from medseg.io.named_labels import ENDINGS
from medseg.io.scans import find_cases
from medseg.types.dataset import Case, Dataset, Fault, Split

__all__ = ["find_cases", "read_dataset", "survey"]
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def read_dataset(folder: Path | str) -> Dataset:
    """The dataset in `folder`, which holds a `dataset.json` in the nnU-Net v2 or the Decathlon layout; reads no voxels.

    Beyond those layouts: optional "groups" ({case: patient}) and "raters" ({case: who annotated it}) in `dataset.json`,
    or a `groups.csv` (case,group) and a `raters.csv` (case,rater); folds in `splits_final.json` or `splits.json`. A
    scan may be a folder of DICOM files, a label map a DICOM SEG, an RTSTRUCT or a .seg.nrrd, whose structures are found
    by the names of "labels", alone in a folder or as a file; "labels" may name an ITK-SNAP label description file; and
    with "landmarks", which may stand instead of "labels", `landmarksTr` holds a file of points per case.
    Raises DatasetError that lists every fault, not only the first.
    """
    folder = Path(folder)
    dataset, faults = survey(folder)
    wrong = [fault for fault in faults if fault.severity == "error"]
    if dataset is not None and not wrong:
        return dataset
    lines = [": ".join(part for part in (fault.case, fault.file, fault.what) if part) for fault in wrong]
    if len(wrong) == 1:
        raise DatasetError(lines[0], where=folder, hint=wrong[0].fix)
    listed = [f"\n  {line} ({fault.fix})" for line, fault in zip(lines, wrong, strict=True)]
    raise DatasetError(f"{len(wrong)} faults{''.join(listed)}", where=folder)


def survey(folder: Path) -> tuple[Dataset | None, tuple[Fault, ...]]:
    """The whole cases of a dataset folder, None if there are none, and every fault in its files and names."""
    if not folder.is_dir():
        return None, (error("no such folder", "give the folder that holds dataset.json", file=""),)
    if not (folder / FILE_NAME).is_file():
        return None, (error("is missing", f"write {FILE_NAME} in the nnU-Net v2 or the Decathlon layout"),)
    header, header_faults = read_header(folder)
    if header is None:
        return None, header_faults
    faults = list(header_faults)
    points = find_points(folder, header, faults)
    listed = header.listed is not None
    found = _listed_cases(folder, header, faults) if listed else _scan(folder, header, points, faults)
    if header.landmarks is not None:
        found = with_points(found, points, header, faults)
    if not found and not any(fault.severity == "error" for fault in faults):
        faults.append(error("no labelled case found", "put scans into imagesTr and label maps into labelsTr", file=""))
    if header.count is not None and found and header.count != len(found):
        what = f"numTraining is {header.count}, but {len(found)} whole cases were found"
        faults.append(warning(what, "add the missing cases or correct the number"))
    cases = _told_about(found, folder, header, faults)
    splits = _splits(folder, faults)
    names = point_names(header, points, faults)
    dataset = Dataset(header.name, folder, header.channels, header.labels, cases, splits, names, header.spacing_mm)
    return dataset if cases else None, tuple(faults)


def _listed_cases(folder: Path, header: Header, faults: list[Fault]) -> list[Case]:
    """Cases that `dataset.json` names one by one, in its order."""
    cases = []
    for case, (names, label_name) in (header.listed or {}).items():
        images = [_present(folder / name, len(header.channels)) for name in names]
        missing = [name for name, paths in zip(names, images, strict=True) if not paths]
        faults.extend(error("image is missing", "restore it or remove the case", case=case, file=n) for n in missing)
        wanted = bool(header.labels.items)
        label = None if label_name is None or not wanted else only_file(folder / label_name)
        if label is None and wanted:
            faults.append(error("has no label", "add a label or remove the case", case=case))
        elif label is not None and not label.is_file():
            fix = "restore it or remove the case"
            faults.append(error("label map is missing", fix, case=case, file=str(label_name)))
        paths = tuple(path for some in images for path in some)
        if not missing and len(paths) not in {1, len(header.channels)}:
            what = f"has {len(paths)} images for {len(header.channels)} channels"
            faults.append(error(what, "list one image per channel", case=case))
        elif not missing and (label.is_file() if label is not None else not wanted):
            cases.append(Case(case, paths, label))
    faults.extend(_unlisted(folder, header))
    return cases


def _unlisted(folder: Path, header: Header) -> list[Fault]:
    """Files beside those that `dataset.json` names."""
    listed: set[Path] = set()
    for names, label in (header.listed or {}).values():
        listed.update(path for name in names for path in _present(folder / name, len(header.channels)))
        listed.update([] if label is None else [folder / label])
    beside = sorted({path.parent for path in listed if path.parent != folder})
    return [
        warning(
            "is not listed in dataset.json and is left out", "list it or remove it", file=relative_name(path, folder)
        )
        for place in beside
        for path in entries(place)
        if path not in listed and not belongs_to_header(path) and not any(one.is_relative_to(path) for one in listed)
    ]


def _present(path: Path, channels: int) -> tuple[Path, ...]:
    """The listed file, or the files of its channels (`scan.nii.gz` listed, `scan_0000.nii.gz` stored)."""
    if path.exists():
        return (path,)
    ending = known_ending(path.name) or path.suffix
    stem = path.name[: len(path.name) - len(ending)] if ending else path.name
    parts = tuple(path.with_name(f"{stem}_{index:04d}{ending}") for index in range(channels))
    return parts if all(part.exists() for part in parts) else ()


@dataclass
class _Files:
    """What lies in imagesTr, labelsTr and landmarksTr, by case id."""

    points: Mapping[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    whole: dict[str, Path] = field(default_factory=dict)
    parts: dict[str, dict[int, Path]] = field(default_factory=dict)


def _scan(folder: Path, header: Header, points: Mapping[str, Path], faults: list[Fault]) -> list[Case]:
    """Cases by the names of files in imagesTr and labelsTr; without labels, of images alone."""
    parts = ("imagesTr", "labelsTr") if header.labels.items else ("imagesTr",)
    absent = [name for name in parts if not (folder / name).is_dir()]
    faults.extend(error("no such folder", "create it or correct its name", file=name) for name in absent)
    ending = header.ending or _inferred_ending(folder, faults)
    if absent or ending is None:
        return []
    files = _Files(points)
    if header.labels.items:
        _scan_labels(folder, ending, files, faults)
    _scan_images(folder, ending, files, faults)
    ids = sorted({*files.labels, *files.whole, *files.parts})
    labelled = sum(case in files.labels for case in ids)
    found = []
    for case in ids:
        images = _images_of(case, files, header, folder, ending, faults)
        if images is None:
            continue
        label = files.labels.get(case)
        if label is not None or not header.labels.items:
            found.append(Case(case, images, label))
        elif header.count == labelled:
            file = relative_name(images[0], folder)
            faults.append(warning("image without label map is left out", "move it to imagesTs", case=case, file=file))
        else:
            fix = "add the label map or move the image to imagesTs"
            faults.append(error("label map is missing", fix, case=case, file=f"labelsTr/{case}{ending}"))
    return found


def _inferred_ending(folder: Path, faults: list[Fault]) -> str | None:
    """The one ending of image files and of label maps by value; where there are none, that of named label maps."""
    found = {
        part: {known_ending(path.name) for path in entries(folder / part) if path.is_file()} - {""}
        for part in ("imagesTr", "labelsTr")
    }
    endings = found["imagesTr"] | {ending for ending in found["labelsTr"] if ending not in ENDINGS}
    endings = endings or set(sorted(found["labelsTr"])[:1])
    if not endings and any(path.is_dir() for path in entries(folder / "imagesTr")):
        return ENDINGS[-1]
    if len(endings) == 1:
        return endings.pop()
    kinds = ", ".join(sorted(endings)) or "no image file"
    faults.append(error(f'has no "file_ending", and the folders hold {kinds}', 'add e.g. "file_ending": ".nii.gz"'))
    return None


def _scan_labels(folder: Path, ending: str, files: _Files, faults: list[Fault]) -> None:
    others = []
    for path in entries(folder / "labelsTr"):
        ends = next((known for known in ENDINGS if path.name.lower().endswith(known)), "")
        if path.is_file() and path.name.lower().endswith(ending.lower()) and not ends:
            files.labels[path.name[: -len(ending)]] = path
        else:
            others.append(path)
    for path in others:
        file = only_file(path)
        ends = known_ending(path.name)
        stem = path.name[: -len(ends)] if ends and file == path else path.name
        if file.is_file() and known_ending(file.name) and stem not in files.labels:
            files.labels[stem] = file
        elif not belongs_to_header(path):
            faults.append(_extra(path, folder, ending))


def _scan_images(folder: Path, ending: str, files: _Files, faults: list[Fault]) -> None:
    for path in entries(folder / "imagesTr"):
        if path.is_file() and not path.name.lower().endswith(ending.lower()):
            if not belongs_to_header(path):
                faults.append(_extra(path, folder, ending))
            continue
        stem = path.name if path.is_dir() else path.name[: -len(ending)]
        match = _CHANNEL.fullmatch(stem)
        named = files.labels.keys() | files.points.keys()
        if match and not (stem in named and match[1] not in named):
            files.parts.setdefault(match[1], {})[int(match[2])] = path
        else:
            files.whole[stem] = path


def _images_of(
    case: str, files: _Files, header: Header, folder: Path, ending: str, faults: list[Fault]
) -> tuple[Path, ...] | None:
    parts = files.parts.get(case, {})
    if case in files.whole and parts:
        what = "has both a file without and files with a channel number"
        faults.append(error(what, "keep one of them", case=case, file=relative_name(files.whole[case], folder)))
        return None
    if case in files.whole:
        return (files.whole[case],)
    if is_colour_picture(parts, len(header.channels)):
        return (parts[0],)
    if not parts:
        fix = "restore the image or remove the label map"
        file = f"imagesTr/{case}_0000{ending}"
        faults.append(error("image is missing for this label map", fix, case=case, file=file))
        return None
    wanted = range(len(header.channels))
    for index in sorted(set(parts) - set(wanted)):
        what = f"channel {index:04d} is not in dataset.json and is left out"
        fix = "add it to channel_names or remove the file"
        faults.append(warning(what, fix, case=case, file=relative_name(parts[index], folder)))
    for index in sorted(set(wanted) - set(parts)):
        file = f"imagesTr/{case}_{index:04d}{ending}"
        what = f"channel {index:04d} ({header.channels[index]}) is missing"
        faults.append(error(what, "restore the file or remove the case", case=case, file=file))
    return None if set(wanted) - set(parts) else tuple(parts[index] for index in wanted)


def _told_about(found: list[Case], folder: Path, header: Header, faults: list[Fault]) -> tuple[Case, ...]:
    """The cases with their groups and raters."""
    ids = [case.id for case in found]
    groups = case_table(folder, "group", header.groups, faults)
    raters = case_table(folder, "rater", header.raters, faults)
    say_gaps(groups, "group", "have no group and count as patients of their own", ids, faults)
    say_gaps(raters, "rater", "name no rater", ids, faults)
    return tuple(replace(case, group=groups.get(case.id), rater=raters.get(case.id)) for case in found)


def _splits(folder: Path, faults: list[Fault]) -> tuple[Split, ...]:
    paths = [folder / name for name in ("splits_final.json", "splits.json") if (folder / name).is_file()]
    if not paths:
        return ()
    if len(paths) > 1:
        faults.append(warning("is not read, because splits_final.json is there", "keep one", file=paths[1].name))
    content, wrong = read_json(paths[0])
    splits, misshapen = ((), []) if wrong else parse_splits(content, paths[0].name)
    faults.extend([*wrong, *misshapen])
    return splits


def _extra(path: Path, folder: Path, ending: str) -> Fault:
    what = f"is no {ending} file and is left out"
    return warning(what, "remove it, or correct file_ending", file=relative_name(path, folder))


def stated_spacing(references: Path) -> tuple[float, float] | None:
    """The spacing (y, x) in mm that the `dataset.json` beside reference files, or above them, states of flat images."""
    folder = references if references.is_dir() else references.parent
    for place in (folder, folder.parent):
        if (place / FILE_NAME).is_file():
            header, _ = read_header(place)
            return None if header is None else header.spacing_mm
    return None
