"""What `dataset.json` says, in the nnU-Net v2 and in the Decathlon layout, before any image file is looked for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.io.label_names import read_snap_labels
from medseg.io.plain_json import once
from medseg.io.regions import region_faults
from medseg.types.dataset import Fault, Split
from medseg.types.labels import Label, Labels

FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class Header:
    """The checked content of `dataset.json`; `listed` maps case ids to image names and a label name, if it has any.

    `landmarks` are the names that it states, none if they are to be found in the files, and null without landmarks.
    `spacing_mm` (y, x) is that of flat images.
    """

    name: str
    channels: tuple[str, ...]
    labels: Labels
    ending: str | None
    count: int | None
    listed: Mapping[str, tuple[tuple[str, ...], str | None]] | None
    groups: Mapping[str, str]
    raters: Mapping[str, str]
    landmarks: tuple[str, ...] | None = None
    spacing_mm: tuple[float, float] | None = None


def error(what: str, fix: str, *, case: str = "", file: str = FILE_NAME) -> Fault:
    """A fault that makes the dataset unusable as it is."""
    return Fault(case, file, "error", what, fix)


def warning(what: str, fix: str, *, case: str = "", file: str = FILE_NAME) -> Fault:
    """A fault that was settled, or that a person should look at."""
    return Fault(case, file, "warning", what, fix)


def read_json(path: Path) -> tuple[Any, list[Fault]]:
    """A JSON file, or None and the fault that says why not."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once), []
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8 text"
        return None, [error(f"cannot be read ({reason})", "restore the file", file=path.name)]
    except (ValueError, RecursionError) as problem:
        return None, [error(f"is not JSON ({problem})", "correct the file at this place", file=path.name)]


def read_header(folder: Path) -> tuple[Header | None, tuple[Fault, ...]]:
    """Everything `folder/dataset.json` says and every fault in it; None where no channel or label table can be had."""
    content, faults = read_json(folder / FILE_NAME)
    if not faults and not isinstance(content, dict):
        faults = [error("holds no JSON object", "see the nnU-Net v2 or the Decathlon description of dataset.json")]
    if faults:
        return None, tuple(faults)
    channels = _channels(content, faults)
    landmarks = _landmarks(content, faults)
    alone = landmarks is not None and content.get("labels") is None
    labels = Labels(()) if alone else _labels(content, folder, faults)
    ending = _text(content, "file_ending", faults)
    count = content.get("numTraining")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        faults.append(error(f"numTraining is {count!r}, not a whole number", "give the number of training cases"))
        count = None
    listed = _listed(content, faults)
    groups, raters = (_case_table(content, key, faults) for key in ("groups", "raters"))
    spacing = _spacing(content, faults)
    if labels is not None and not labels.items and landmarks is None:
        faults.append(error("labels need unique names, at least one", 'add e.g. "liver": 1'))
        labels = None
    if not channels or labels is None:
        return None, tuple(faults)
    name = _text(content, "name", faults) or folder.resolve().name
    ending = ending and "." + ending.removeprefix(".")
    return Header(name, channels, labels, ending, count, listed, groups, raters, landmarks, spacing), tuple(faults)


def parse_splits(content: Any, file: str) -> tuple[tuple[Split, ...], list[Fault]]:
    """Folds written as a list of {"train": [ids], "val": [ids]}."""
    good = isinstance(content, list) and content and all(isinstance(fold, dict) for fold in content)
    if not good or not all(_is_texts(fold.get(key)) for fold in content for key in ("train", "val")):
        shape = 'write a list of {"train": [case ids], "val": [case ids]}, one per fold'
        return (), [error("is no list of folds", shape, file=file)]
    return tuple(Split(tuple(fold["train"]), tuple(fold["val"])) for fold in content), []


def _text(content: Mapping[str, Any], key: str, faults: list[Fault]) -> str | None:
    value = content.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    faults.append(error(f"{key} is {value!r}, not a text", f"correct or remove {key}"))
    return None


def _channels(content: Mapping[str, Any], faults: list[Fault]) -> tuple[str, ...]:
    table = content.get("channel_names", content.get("modality"))
    if table is None:
        faults.append(error('has neither "channel_names" nor "modality"', 'add e.g. "channel_names": {"0": "CT"}'))
        return ()
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        faults.append(error("channel names are no table of index to name", 'write e.g. {"0": "T1", "1": "T2"}'))
        return ()
    wanted = [str(index) for index in range(len(table))]
    if sorted(table) != sorted(wanted):
        faults.append(error(f"channels are numbered {sorted(table)}", f"number them {wanted}"))
        return ()
    return tuple(table[key] for key in wanted)


def _labels(content: Mapping[str, Any], folder: Path, faults: list[Fault]) -> Labels | None:
    table = content.get("labels")
    if isinstance(table, str):
        table = _described(folder / Path(table).name, faults)
        if table is None:
            return None
    if not isinstance(table, dict) or not table:
        what = 'has no "labels"' if table is None else "labels are no table of name to value"
        faults.append(error(what, 'add e.g. "labels": {"background": 0, "liver": 1}'))
        return None
    if all(isinstance(value, str) for value in table.values()):
        table = _turned(table, faults)
    before = len(faults)
    values = {name: _values(name, value, faults) for name, value in table.items()}
    if len(faults) > before:
        return None
    ignore = values.pop("ignore", None)
    if ignore is not None and len(ignore) != 1:
        faults.append(error(f"the ignore label has values {list(ignore)}", "give it exactly one value"))
        return None
    items = [Label(name, value) for name, value in values.items() if value != (0,)]
    items = _with_written(items, content.get("regions_class_order"), faults)
    try:
        labels = Labels(tuple(items), ignore[0] if ignore else None)
    except MedsegError as problem:
        faults.append(error(problem.what, problem.hint))
        return None
    sound = all(fault.severity == "warning" for fault in faults[before:])
    faults.extend(region_faults(labels) if sound else ())
    return labels


def _landmarks(content: Mapping[str, Any], faults: list[Fault]) -> tuple[str, ...] | None:
    table = content.get("landmarks")
    if table is None:
        return None
    stated: Any = table.get("names", []) if isinstance(table, dict) else None
    names = tuple(name.strip() for name in stated) if _is_texts(stated) else ("",)
    if all(names) and len(set(names)) == len(names):
        return names
    fix = 'write "landmarks": {"names": ["nasion", "menton"]}, every name once, or {} for those in the files'
    faults.append(error('"landmarks" has no list of names', fix))
    return ()


def _spacing(content: Mapping[str, Any], faults: list[Fault]) -> tuple[float, float] | None:
    given = content.get("spacing_mm")
    if given is None:
        return None
    both = given if isinstance(given, list) else [given, given]
    good = len(both) == 2 and all(type(v) in {int, float} and 0 < v < float("inf") for v in both)
    if not good:
        faults.append(error(f"spacing_mm is {given!r}", 'write "spacing_mm": [y, x], in mm per pixel'))
        return None
    return float(both[0]), float(both[1])


def _described(path: Path, faults: list[Fault]) -> dict[str, Any] | None:
    """Name to value, from an ITK-SNAP label description file beside `dataset.json`."""
    try:
        return _turned({str(label.values[0]): label.name for label in read_snap_labels(path)}, faults)
    except MedsegError as problem:
        faults.append(error(problem.what, problem.hint, file=path.name))
        return None


def _turned(table: Mapping[str, str], faults: list[Fault]) -> dict[str, Any]:
    """The Decathlon's value to name as name to value."""
    turned: dict[str, Any] = {}
    for value, name in table.items():
        if name in turned:
            faults.append(error(f'label name "{name}" is used twice', "give every label its own name"))
        turned[name] = int(value) if value.strip().isdecimal() else value
    return turned


def _values(name: str, value: Any, faults: list[Fault]) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 65535 for v in values):
        faults.append(error(f'label "{name}" has value {value!r}', "give a whole number from 0 to 65535, or a list"))
    elif name == "background" and values != [0]:
        faults.append(error(f"background has value {value!r}", "background must be 0"))
    elif 0 in values and len(values) > 1:
        faults.append(error(f'region "{name}" holds the background value 0', "list the values of the classes only"))
    elif len(set(values)) < len(values):
        faults.append(error(f'region "{name}" lists a value twice', "list every value once"))
    return tuple(values)


def _with_written(items: list[Label], order: Any, faults: list[Fault]) -> list[Label]:
    """Plain labels sorted by value; regions in file order, each with the value it writes."""
    if not any(len(item.values) > 1 for item in items):
        values = [item.values[0] for item in items]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            faults.append(error(f"label values {twice} have two names", "give every label its own value"))
        return sorted(items, key=lambda item: item.values)
    if order is None:
        written = [item.written for item in items]
        if len(set(written)) < len(written):
            faults.append(error('regions need "regions_class_order"', "add the value each region writes, in order"))
        else:
            fix = f'add "regions_class_order": {written} if that is meant'
            faults.append(warning(f'no "regions_class_order"; every region writes its first value {written}', fix))
        return items
    good = isinstance(order, list) and len(order) == len(items)
    if not good or not all(type(v) is int and 0 < v <= 65535 for v in order):
        fix = f"give {len(items)} whole numbers from 1 to 65535, one per region in the order of labels"
        faults.append(error(f"regions_class_order is {order!r}", fix))
        return items
    return [Label(item.name, item.values, None, value) for item, value in zip(items, order, strict=True)]


def _listed(content: Mapping[str, Any], faults: list[Fault]) -> Mapping[str, tuple[tuple[str, ...], str | None]] | None:
    if "dataset" in content:
        return _mapped(content["dataset"], faults)
    rows = content.get("training")
    if rows is None or rows == []:
        return None
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        faults.append(error('"training" is no list of image and label', 'write [{"image": "...", "label": "..."}]'))
        return None
    cases: dict[str, tuple[tuple[str, ...], str | None]] = {}
    for row in rows:
        case = plain_stem(row["label"])
        if case in cases:
            faults.append(error("is listed twice in training", "list every case once", case=case))
        images = row["image"] if isinstance(row["image"], list) else [row["image"]]
        cases[case] = tuple(images), row["label"]
    return cases


def _mapped(table: Any, faults: list[Fault]) -> Mapping[str, tuple[tuple[str, ...], str | None]] | None:
    good = isinstance(table, dict) and all(isinstance(row, dict) for row in table.values())
    if not good:
        faults.append(error('"dataset" is no table of cases', 'write {"case": {"images": [...], "label": "..."}}'))
        return None
    cases: dict[str, tuple[tuple[str, ...], str | None]] = {}
    for case, row in table.items():
        label = row.get("label")
        if not _is_texts(row.get("images")) or not row["images"] or not (label is None or isinstance(label, str)):
            faults.append(error("needs images (list of files) and label", "correct the entry", case=case))
        elif case in {"", ".", ".."} or Path(case).name != case or "\\" in case:
            faults.append(error("is no possible file name", "use letters, digits, - and _", case=case))
        else:
            cases[case] = tuple(row["images"]), label
    return cases


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        return False
    return isinstance(row.get("image"), str) or (_is_texts(row.get("image")) and bool(row["image"]))


def _case_table(content: Mapping[str, Any], key: str, faults: list[Fault]) -> Mapping[str, str]:
    table = content.get(key, {})
    if isinstance(table, dict) and all(isinstance(value, (str, int)) for value in table.values()):
        return {case: str(value).strip() for case, value in table.items() if str(value).strip()}
    faults.append(error(f'"{key}" is no table by case', 'write e.g. {"case_1": "patient_7"}'))
    return {}


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)


def plain_stem(name: str) -> str:
    """A file name without folder and image suffix.

    >>> plain_stem("./labelsTr/spleen_12.nii.gz"), plain_stem("scan.v2.png"), plain_stem("head.seg.nrrd")
    ('spleen_12', 'scan.v2', 'head')
    """
    stem = Path(name).name
    for ending in (".seg.nrrd", ".seg.dcm", ".rtstruct.dcm"):
        if stem.lower().endswith(ending):
            return stem[: -len(ending)]
    if stem.lower().endswith(".gz"):
        stem = stem[:-3]
    return Path(stem).stem
