"""metrics.jsonl: one JSON object per epoch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from medseg.io.files import write_text

Row = dict[str, float | None]


def read(path: Path) -> list[Row]:
    """All rows; a line that is no JSON object is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append(path: Path, values: Mapping[str, float]) -> list[Row]:
    """Add one row and return all; numbers that are not finite become null."""
    row = {name: value if math.isfinite(value) else None for name, value in values.items()}
    rows = [*read(path), row]
    _write(path, rows)
    return rows


def truncate(path: Path, epochs: int) -> None:
    """Keep the rows of the first `epochs` epochs, so that a resumed run does not write one twice."""
    rows = read(path)
    kept = [row for row in rows if (row.get("epoch") or 0) < epochs]
    if len(kept) < len(rows):
        _write(path, kept)


def _write(path: Path, rows: list[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
