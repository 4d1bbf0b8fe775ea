"""What a dataset says about its cases one by one: which patient they are of, and who annotated them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.io.dataset_json import error, warning
from medseg.types.dataset import Fault

Table = Mapping[str, str]


def case_table(folder: Path, key: str, stated: Table, faults: list[Fault]) -> Table:
    """{case: text} of `<key>s.csv` (columns case and `key`) in `folder`, or what dataset.json states."""
    path = folder / f"{key}s.csv"
    if not path.is_file():
        return stated
    if stated:
        faults.append(warning(f"is not read, because dataset.json has {key}s", "keep one of them", file=path.name))
        return stated
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        faults.append(error(f"cannot be read ({problem})", "write UTF-8 text", file=path.name))
        return {}
    if not rows or not {"case", key} <= set(rows[0]):
        faults.append(error(f"has no columns case and {key}", "name them in the first line", file=path.name))
        return {}
    table: dict[str, str] = {}
    for row in rows:
        case, text = (row["case"] or "").strip(), (row[key] or "").strip()
        if case and text and table.setdefault(case, text) != text:
            faults.append(error(f"is listed with two {key}s", "keep one of the lines", case=case, file=path.name))
    return table


def say_gaps(table: Table, key: str, without: str, ids: Sequence[str], faults: list[Fault]) -> None:
    """Faults of a table that names cases that there are not, or leaves some out; `without` says what these are."""
    for case in sorted(set(table) - set(ids)):
        faults.append(warning(f"has a {key}, but is no whole case", f"correct the {key}s", case=case, file=""))
    bare = sorted(set(ids) - set(table)) if table else []
    if bare:
        some = ", ".join(bare[:5]) + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
        faults.append(warning(f"{len(bare)} cases {without}: {some}", f"give every case a {key}", file=""))
