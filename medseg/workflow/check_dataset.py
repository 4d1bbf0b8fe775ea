"""medseg check: every fault of a dataset folder, with file and fix; it never stops at the first."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from medseg.errors import DatasetError, GeometryError, MedsegError
from medseg.io.dataset_points import FOLDER
from medseg.io.datasets import survey
from medseg.io.flat_spacing import with_spacing
from medseg.io.images import read_labels
from medseg.io.named_labels import is_named
from medseg.io.pairs import GRID_TOLERANCE, check_label_grid, in_order, read_scan
from medseg.planning.near_duplicates import find_look_alikes, thumbnail
from medseg.planning.splits import make_splits, split_faults
from medseg.types.dataset import Case, Dataset, Fault
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.progress import Progress, Report, silent
from medseg.workflow.check_points import name_faults, point_faults

__all__ = ["Fault", "check_dataset", "format_faults"]
Severity = Literal["error", "warning"]
_SETTLED = "look at the file; reading goes on with this"
_ANY = Labels((Label("any", tuple(range(1, 65536))),))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of a case that was read."""

    faults: tuple[Fault, ...]
    unit: str | None = None
    values: frozenset[int] | None = None
    thumbnail: Float32[np.ndarray, " n"] | None = None
    placed: frozenset[str] | None = None


def check_dataset(folder: Path | str, *, workers: int | None = None, report: Report = silent) -> tuple[Fault, ...]:
    """Every fault of a dataset folder, errors first; empty if there is none.

    Reads every image and label map once: missing, extra and unreadable files; grids of image and label map that
    differ (by more than the larger of 0.01 mm and 1 % of a voxel: error, less: repaired on reading, warning);
    values that are no label, fractions, empty label maps, labels that never occur; NaN, infinite and constant images;
    channel counts; scans with and without spacing; images that look the same in different groups (correlation of
    16 x 16 (x 16) thumbnails above 0.99); given splits with a group on both sides; landmarks with unknown names,
    outside of their scan, in one place, never placed, or with left and right the wrong way round. Never raises for
    what it finds.
    """
    dataset, found = survey(Path(folder))
    faults = list(found)
    if dataset is not None:
        seen: dict[str, _Seen] = {}
        for done, (case, one) in enumerate(in_order(partial(_look, dataset), dataset.cases, workers=workers), start=1):
            seen[case.id] = one
            report(Progress("check", done, len(dataset.cases)))
        faults += [fault for one in seen.values() for fault in one.faults]
        faults += name_faults(dataset, {case: one.placed for case, one in seen.items()})
        faults += [*_units(seen), *_absent_labels(dataset, seen), *split_faults(dataset), *_too_alike(dataset, seen)]
    return tuple(sorted(dict.fromkeys(faults), key=lambda fault: fault.severity != "error"))


def format_faults(faults: Sequence[Fault]) -> str:
    """Faults as plain text for a terminal: one block each, and a last line that counts them.

    >>> print(format_faults([Fault("a", "labelsTr/a.png", "warning", "label map is empty", "check it")]))
    warning  a  labelsTr/a.png
             label map is empty
             fix: check it
    0 errors, 1 warning
    """
    width = max((len(fault.case) for fault in faults), default=0)
    lines = []
    for fault in faults:
        case = fault.case and fault.case.ljust(width)
        place = "  ".join(part for part in (case, fault.file) if part) or "whole dataset"
        lines.append(f"{fault.severity:<7}  {place}".rstrip())
        for text in (fault.what, f"fix: {fault.fix}"):
            lines += textwrap.wrap(text, 110, initial_indent=" " * 9, subsequent_indent=" " * 9)
    errors = sum(fault.severity == "error" for fault in faults)
    lines.append(f"{_count(errors, 'error')}, {_count(len(faults) - errors, 'warning')}")
    return "\n".join(lines)


def _look(dataset: Dataset, case: Case) -> _Seen:
    """Read one case and list its faults."""
    image_file = _relative(case.images[0], dataset.root)
    label_file = _relative(case.label or dataset.root, dataset.root)
    faults: list[Fault] = []
    image, labels = None, None
    try:
        image = read_scan(case, dataset)
    except MedsegError as problem:
        faults.append(_of_error(case.id, image_file, problem, dataset.root))
    try:
        labels = None if case.label is None else _read_labels(dataset, case.label, image)
    except MedsegError as problem:
        faults.append(_of_error(case.id, label_file, problem, dataset.root))
    if image is not None:
        faults += [Fault(case.id, image_file, "warning", note, _SETTLED) for note in image.warnings]
        faults += _constant(case.id, image_file, image)
    if labels is not None:
        faults += [Fault(case.id, label_file, "warning", f"label map: {note}", _SETTLED) for note in labels.warnings]
        faults += _values(case.id, label_file, labels, dataset.labels)
    if image is not None and labels is not None:
        placed = replace(labels, geometry=with_spacing(labels.geometry, dataset.spacing_mm))
        faults += _grids(case.id, label_file, image, placed)
    marked = _points(dataset, case, image, faults)
    values = frozenset(_counts(labels)) if labels is not None else None
    unit = image.geometry.unit if image is not None else None
    return _Seen(tuple(faults), unit, values, thumbnail(image.array) if image is not None else None, marked)


def _points(dataset: Dataset, case: Case, image: Image | None, faults: list[Fault]) -> frozenset[str] | None:
    """The landmarks that a case places, None if that cannot be known."""
    try:
        found, placed = point_faults(dataset, case, image)
    except MedsegError as problem:
        faults.append(_of_error(case.id, FOLDER, problem, dataset.root))
        return None
    faults += found
    return placed


def _read_labels(dataset: Dataset, path: Path, image: Image | None) -> LabelMap | None:
    """Every value of a label map, or its structures that the dataset names; None without the image these need."""
    if not is_named(path):
        return read_labels(path, _ANY)
    return None if image is None else read_labels(path, dataset.labels, image)


def _of_error(case: str, file: str, problem: MedsegError, root: Path) -> Fault:
    """An error while reading as a fault; the file it names wins over `file`."""
    named = Path(problem.where) if problem.where else root
    file = _relative(named, root) if named != root and named.is_relative_to(root) else file
    kind = "label map " if file.startswith("labelsTr") else ""
    return Fault(case, file, "error", kind + problem.what, problem.hint or "replace the file")


def _constant(case: str, file: str, image: Image) -> list[Fault]:
    flat = [name for name, part in zip(image.channels, image.array, strict=True) if part.min() == part.max()]
    if not flat:
        return []
    what = f"every voxel of channel {', '.join(flat)} has the same value"
    severity: Severity = "error" if len(flat) == len(image.channels) else "warning"
    return [Fault(case, file, severity, what, "replace the image or remove the case")]


def _values(case: str, file: str, labels: LabelMap, known: Labels) -> list[Fault]:
    """Values that are no label, and label maps without any."""
    counts = _counts(labels)
    unknown = {value: n for value, n in counts.items() if value not in known.known() and value != known.ignore}
    if unknown:
        shown = ", ".join(f"{value} ({_count(n, 'voxel')})" for value, n in list(unknown.items())[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        fix = f"correct the label map, or add the value to labels in dataset.json ({sorted(known.known())} now)"
        return [Fault(case, file, "error", f"label map holds unknown values {shown}{more}", fix)]
    if not set(counts) & known.known():
        what = "label map is empty: every voxel is background" + (" or ignored" if counts else "")
        return [Fault(case, file, "warning", what, "right if there is nothing to see; else draw it or remove the case")]
    return []


def _grids(case: str, file: str, image: Image, labels: LabelMap) -> list[Fault]:
    try:
        notes = check_label_grid(image.geometry, labels.geometry)
    except GeometryError as problem:
        return [Fault(case, file, "error", problem.what, problem.hint)]
    fix = f"nothing: grids closer than {GRID_TOLERANCE} are one grid"
    return [Fault(case, file, "warning", note, fix) for note in notes]


def _units(seen: Mapping[str, _Seen]) -> list[Fault]:
    bare = [case for case, one in seen.items() if one.unit == "px"]
    if not bare or len(bare) == sum(one.unit is not None for one in seen.values()):
        return []
    what = f"{len(bare)} of {len(seen)} scans state no spacing, the others do (mm): {_some(bare)}"
    return [Fault("", "", "error", what, "give all scans a spacing, or none")]


def _absent_labels(dataset: Dataset, seen: Mapping[str, _Seen]) -> list[Fault]:
    if any(one.values is None for one in seen.values()):
        return []
    present = frozenset().union(*(one.values or () for one in seen.values()))
    names = [item.name for item in dataset.labels.items if not present & set(item.values)]
    fix = "correct labels in dataset.json, or add cases that show it"
    return [Fault("", "dataset.json", "warning", f'label "{name}" is in no label map', fix) for name in names]


def _too_alike(dataset: Dataset, seen: Mapping[str, _Seen]) -> list[Fault]:
    """Images that look the same and are not kept together by one group."""
    thumbnails = {case: one.thumbnail for case, one in seen.items() if one.thumbnail is not None}
    groups = {case.id: case.group for case in dataset.cases}
    faults: list[Fault] = []
    try:
        fold_of = {case: fold for fold, split in enumerate(make_splits(dataset)) for case in split.val}
    except DatasetError as problem:
        fold_of = {}
        if not dataset.splits:  # whose own faults are found elsewhere
            faults.append(Fault("", "", "warning", problem.what, problem.hint or ""))
    for alike in find_look_alikes(thumbnails):
        together = {groups[case] for case in alike.case_ids}
        if len(together) == 1 and None not in together:
            continue
        first, *others = alike.case_ids
        folds = sorted({fold_of[case] for case in alike.case_ids if case in fold_of})
        what = f"looks the same as {_some(others, 10)} (correlation up to {alike.correlation:.4f})"
        if len(folds) > 1:
            what += f"; they would be in folds {', '.join(map(str, folds))}, tested on what was trained on"
        fix = "if they show one patient, give them one group in groups.csv (columns case,group)"
        faults.append(Fault(first, "", "warning", what, fix))
    return faults


def _counts(labels: LabelMap) -> dict[int, int]:
    """Voxels of every value but 0."""
    counts = np.zeros(int(labels.array.max()) + 1, np.int64)
    for plane in labels.array:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
