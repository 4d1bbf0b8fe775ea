"""medseg evaluate: score label maps against references of the same name."""

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from medseg.errors import DatasetError, ImageError, MedsegError
from medseg.io.dataset_files import entries
from medseg.io.dataset_json import read_header
from medseg.io.datasets import stated_spacing
from medseg.io.files import write_text
from medseg.io.flat_spacing import with_spacing
from medseg.io.images import check_same_grid, image_stem, is_image, read_image, read_labels, read_stored
from medseg.io.records import read_record
from medseg.metrics.cases import json_number, score_case, summarise
from medseg.preprocess.fan import cut_to_fan, image_fan
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Plan
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import CaseScores

_LOG = logging.getLogger("medseg")
Read = Callable[[Path], LabelMap]


def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    labels: Labels | None = None,
    tolerance_mm: float = 1.0,
    ultrasound: Path | str | None = None,
    report: Report = silent,
) -> tuple[CaseScores, ...]:
    """Scores of every reference, paired with the prediction of the same name; two folders, or two files.

    Without `labels`, those of a dataset.json in or above the references are taken; without one, every value found
    is a class of its own. The size of pixels that no file states is that of the same dataset.json. A reference whose
    prediction is missing, unreadable or on another grid is a failed case, last in the result; a prediction without
    reference is logged. `ultrasound`: the folder of the images (`x.png` or `x_0000.png` for `x`), or one image; then
    only what lies within the fan of each is scored, and a case without its image fails. Writes nothing. Raises
    DatasetError if there is no reference or no name in common.
    """
    predictions, references = Path(predictions), Path(references)
    truth, guess = _maps(references), _maps(predictions)
    if references.is_file() and predictions.is_file():
        guess = dict(zip(truth, guess.values(), strict=True))
    if not set(truth) & set(guess):
        raise DatasetError(
            f"none of {len(guess)} predictions has the name of one of {len(truth)} references",
            where=references,
            hint="give folders whose label maps are named alike",
        )
    extra = sorted(set(guess) - set(truth))
    if extra:
        _LOG.warning("no reference for %d predictions: %s", len(extra), ", ".join(extra[:10]))
    known = labels or _stated_labels(references)
    names = known or _found_labels([*truth.values(), *guess.values()])
    spacing_mm = stated_spacing(references)
    ours, theirs = (_placed(_reader(names, known, predicted=own), spacing_mm) for own in (True, False))
    fans = None if ultrasound is None else _maps(Path(ultrasound))
    if fans is not None and Path(ultrasound or "").is_file():
        fans = dict(zip(truth, fans.values(), strict=False))
    scores = []
    for number, (name, path) in enumerate(truth.items(), start=1):
        image = None if fans is None else fans.get(name, fans.get(f"{name}_0000"))
        both = (ours, theirs) if fans is None else (_within(image, ours), _within(image, theirs))
        scores.append(_score(name, guess.get(name), path, both, tolerance_mm))
        report(Progress("evaluate", number, len(truth)))
    return tuple(sorted(scores, key=lambda case: case.status != "ok"))


def read_label_names(path: Path) -> Labels:
    """The classes named by a plan, a model bundle, a dataset.json, or a folder that holds one of them.

    Raises DatasetError if there is none.
    """
    folder = path if path.is_dir() else path.parent
    if path.name == "dataset.json" or (path.is_dir() and (path / "dataset.json").is_file()):
        header, faults = read_header(folder)
        if header is None:
            reason = "; ".join(fault.what for fault in faults[:3])
            raise DatasetError(f"names no classes ({reason})", where=folder / "dataset.json", hint="correct the file")
        return header.labels
    plan = path / "plan.json" if path.is_dir() else path
    if not plan.is_file():
        raise DatasetError("names no classes", where=path, hint="give a dataset.json, a plan or a model bundle")
    return read_record(plan, Plan).labels


def write_scores(scores: Sequence[CaseScores], out: Path) -> None:
    """Write `scores.json` (summary, then every case) and `scores.csv` (a row per case and label) to a folder."""
    write_evaluation(scores, out / "scores.json", out / "scores.csv")


def write_evaluation(scores: Sequence[CaseScores], out_json: Path, out_csv: Path) -> None:
    """Write the summary and every case as JSON, and a row per case and label as CSV.

    Undefined values (both masks empty) are null in JSON and empty in CSV; infinite distances (one empty) are the
    text "inf" in both; `state` says which mask was empty.
    """
    cases = [
        {**asdict(case), "labels": {name: _numbers(asdict(row)) for name, row in case.labels.items()}}
        for case in scores
    ]
    text = json.dumps({"summary": summarise(scores), "cases": cases}, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out_json, text + "\n")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    names = list(next((asdict(row) for case in scores for row in case.labels.values()), {}))
    writer.writerow(["case", "label", "unit", "nsd_tolerance_mm", "status", "error", *names])
    for case in scores:
        rows = {name: _numbers(asdict(row)) for name, row in case.labels.items()} or {"": dict.fromkeys(names)}
        for label, row in rows.items():
            facts = [case.case_id, label, case.unit, case.nsd_tolerance_mm, case.status, case.error]
            writer.writerow([*facts, *(row[name] for name in names)])
    write_text(out_csv, table.getvalue())


def format_table(scores: Sequence[CaseScores]) -> str:
    """The summary as text: a line per label, the mean over labels, and every failed case."""
    summary = summarise(scores)
    unit = summary["unit"] or "mm"
    tolerances = "/".join(f"{value:g}" for value in sorted({case.nsd_tolerance_mm for case in scores}))
    distances = [f"HD95 {unit}", f"surface {unit}", f"NSD {tolerances} {unit}"]
    rows = [["label", "Dice", "IoU", *distances, "F1", "n", "undefined", "infinite"]]
    for name, values in _mapping(summary["labels"]).items():
        columns = [_mapping(values[metric]) for metric in ("dice", "iou", "hd95_mm", "mean_surface_mm", "nsd")]
        counts = [columns[0]["n"], columns[0]["n_undefined"], columns[2]["n_infinite"]]
        f1 = _mapping(values["lesions"])["f1"]
        rows.append([name, *(_short(column["mean"]) for column in columns), _short(f1), *map(str, counts)])
    mean = _mapping(summary["mean"])
    rows.append(["mean", *(_short(mean[m]) for m in ("dice", "iou", "hd95_mm", "mean_surface_mm", "nsd"))])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip() for row in rows]
    lines += [f"failed: {case.case_id}: {case.error}" for case in scores if case.status == "failed"]
    return "\n".join(lines)


def _score(
    name: str, prediction: Path | None, reference: Path, read: tuple[Read, Read], tolerance_mm: float
) -> CaseScores:
    if prediction is None:
        error = f"no prediction for {reference}. predict this case"
        return CaseScores(name, {}, status="failed", error=error, nsd_tolerance_mm=tolerance_mm)
    try:
        return score_case(name, read[0](prediction), read[1](reference), tolerance_mm=tolerance_mm)
    except MedsegError as problem:
        return CaseScores(name, {}, status="failed", error=str(problem), nsd_tolerance_mm=tolerance_mm)


def _within(image: Path | None, read: Read) -> Read:
    """How to read a label map without what lies outside of the fan of its ultrasound image."""

    def cut(path: Path) -> LabelMap:
        if image is None:
            raise DatasetError("has no image to find its fan in", where=path, hint="name the image like the label map")
        scan, labels = read_image([image]), read(path)
        check_same_grid(scan.geometry, labels.geometry, where=path)
        return cut_to_fan(labels, image_fan(scan))

    return cut


def _maps(path: Path) -> dict[str, Path]:
    """Label maps of a folder (not below it, not hidden), or one file, by name without suffix."""
    if not path.exists():
        raise DatasetError("does not exist", where=path, hint="give a folder of label maps")
    files = [p for p in entries(path) if p.is_file() and is_image(p)] if path.is_dir() else [path]
    named: dict[str, Path] = {}
    for file in files:
        name = image_stem(file)
        if name in named:
            raise DatasetError(f"holds {named[name].name} and {file.name}", where=path, hint="keep one of them")
        named[name] = file
    if not named:
        raise DatasetError("holds no label map", where=path, hint="give a folder of label maps")
    return named


def _stated_labels(references: Path) -> Labels | None:
    folder = references if references.is_dir() else references.parent
    for place in (folder, folder.parent):
        if (place / "dataset.json").is_file():
            return read_label_names(place / "dataset.json")
    return None


def _placed(read: Read, spacing_mm: tuple[float, float] | None) -> Read:
    """How to read a label map whose pixels have a size that its data set states."""

    def placed(path: Path) -> LabelMap:
        labels = read(path)
        return replace(labels, geometry=with_spacing(labels.geometry, spacing_mm))

    return placed


def _reader(labels: Labels, known: Labels | None, *, predicted: bool = False) -> Read:
    """How to read a label map: only known values, or any whole number where no classes were stated."""
    if known is not None:
        return lambda path: read_labels(path, labels, predicted=predicted)

    def read(path: Path) -> LabelMap:
        image = read_stored(path)
        return LabelMap(_whole(image.array[0], path), image.geometry, labels)

    return read


def _found_labels(paths: Sequence[Path]) -> Labels:
    """A class per value that any of the files holds; unreadable files fail later, with their case."""
    values: set[int] = set()
    for path in paths:
        try:
            values.update(map(int, np.unique(_whole(read_stored(path).array[0], path))))
        except MedsegError:
            continue
    return Labels(tuple(Label(str(value), (value,)) for value in sorted(values - {0}) or [1]))


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > np.iinfo(np.uint16).max or (array != (whole := array.astype(np.uint16))).any():
        raise ImageError("is no label map: its values are not whole numbers from 0 to 65535", where=path, hint="check")
    return whole


def _numbers(row: Mapping[str, object]) -> dict[str, object]:
    return {name: json_number(value) if isinstance(value, float) else value for name, value in row.items()}


def _mapping(value: object) -> Mapping[str, Mapping[str, object]]:
    return value if isinstance(value, Mapping) else {}


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"
