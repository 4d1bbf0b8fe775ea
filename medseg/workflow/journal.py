"""report.jsonl: the lines of a batch as they are written, one at a time; report.json takes its place at the end."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medseg.errors import MedsegError
from medseg.io.files import write_text
from medseg.io.identifiers import writable
from medseg.io.records import parse_record, read_record, to_plain, write_record
from medseg.types.result import CaseReport, RunReport

REPORT = "report.json"
LINES = "report.jsonl"


def begin(out: Path, blank: RunReport, lines: Iterable[CaseReport]) -> None:
    """Start the lines of a run: what it is, then what is known before its first case; the report before it goes."""
    write_text(out / LINES, "".join([_line(blank), *map(_line, lines)]))
    (out / REPORT).unlink(missing_ok=True)


def append(out: Path, line: CaseReport) -> None:
    """Add one line and see it to the disk; the cost does not grow with the number of lines."""
    with (out / LINES).open("ab") as file:
        file.write(_line(line).encode())
        file.flush()
        os.fsync(file.fileno())


def finish(out: Path, report: RunReport) -> None:
    """Write report.json in place of the lines."""
    write_record(report, out / REPORT)
    (out / LINES).unlink(missing_ok=True)


def exists(out: Path) -> bool:
    """Whether a run before this one wrote to a folder, whatever became of it."""
    return any((out / name).is_file() for name in (LINES, REPORT))


def earlier(out: Path) -> RunReport | None:
    """What a run before this one left, finished or killed; of several lines of a case the last one counts.

    None where there is nothing, or nothing that can be read: it then vouches for nothing.
    """
    if not (out / LINES).is_file():
        try:
            return read_record(out / REPORT, RunReport)
        except MedsegError:
            return None
    *lines, _ = (out / LINES).read_text(encoding="utf-8", errors="replace").split("\n")  # what is cut off has no end
    try:
        report = parse_record(lines[0], RunReport, where=LINES)
    except (MedsegError, IndexError):
        return None
    cases = {}
    for line in lines[1:]:
        try:
            case = parse_record(line, CaseReport, where=LINES)
        except MedsegError:
            continue  # damaged by a full disk
        cases[case.case_id] = case
    return replace(report, cases=tuple(cases.values()))


def writable_line(line: CaseReport) -> CaseReport:
    """A line whose texts can be written, also where they name files whose names are no UTF-8."""
    error = None if line.error is None else writable(line.error)
    warnings = tuple(map(writable, line.warnings))
    return replace(line, case_id=writable(line.case_id), error=error, warnings=warnings)


def _line(record: RunReport | CaseReport) -> str:
    return json.dumps(to_plain(record), ensure_ascii=False, separators=(",", ":")) + "\n"
