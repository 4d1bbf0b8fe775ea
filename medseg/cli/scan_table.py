"""What `medseg inspect` prints: a table for each study, then what is part of no scan."""

import io
import shutil
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg.workflow.inspect import Inspection, ScanInfo

_WIDE = 200  # characters of a line where stdout is no terminal


def scan_table(found: Inspection) -> str:
    """The scans by study, the rest by folder and reason, and a closing count."""
    width = shutil.get_terminal_size((_WIDE, 50)).columns if sys.stdout.isatty() else _WIDE
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    studies: dict[str, list[ScanInfo]] = {}
    for scan in found.scans:
        studies.setdefault(scan.study_uid, []).append(scan)
    for study, scans in studies.items():
        console.print(Text(f"study {study}" if study else "files without a study"))
        console.print(_study(scans))
    for other in found.left_out:
        count = f" and {other.files - 1} more" if other.files > 1 else ""
        console.print(Text(f"left out: {other.path}{count}: {other.reason}"))
    good = sum(scan.error is None for scan in found.scans)
    others = sum(other.files for other in found.left_out)
    console.print(Text(f"{good} can be read, {len(found.scans) - good} cannot, {others} other files"))
    if any("*" in path for path in (*(scan.path for scan in found.scans), *(other.path for other in found.left_out))):
        console.print("names that could be a patient's are *; --keep-identifiers shows them")
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip().splitlines())


def _study(scans: list[ScanInfo]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("scan", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("files", justify="right")
    table.add_column("voxels x y z", no_wrap=True)
    table.add_column("spacing", no_wrap=True)
    table.add_column("axes", no_wrap=True)
    table.add_column("remarks", overflow="fold", ratio=1)
    for scan in scans:
        table.add_row(
            scan.id, Text(scan.path), str(scan.files), _matrix(scan), _spacing(scan), _axes(scan), Text(_remarks(scan))
        )
    return table


def _matrix(scan: ScanInfo) -> str:
    if scan.geometry is None:
        return ""
    size = " x ".join(str(n) for n in reversed(scan.geometry.shape))
    return f"{size}, {scan.frames} frames" if scan.frames > 1 else size


def _spacing(scan: ScanInfo) -> str:
    if scan.geometry is None:
        return ""
    if scan.geometry.unit != "mm":
        return "unknown"
    sides = scan.geometry.spacing_mm[1:] if scan.format == "dicom-us" else scan.geometry.spacing_mm
    return " x ".join(f"{value:.4g}" for value in reversed(sides)) + " mm"


def _axes(scan: ScanInfo) -> str:
    return f"{scan.orientation} {scan.plane}".strip()


def _remarks(scan: ScanInfo) -> str:
    """What a person should know, the fault first; the series UID last."""
    parts = [f"cannot be read: {scan.error}"] if scan.error else []
    parts += [f"warning: {warning}" for warning in scan.warnings]
    parts += [text for text in (scan.description, scan.part) if text]
    return "; ".join([*parts, *([f"series {scan.series_uid}"] if scan.series_uid else [])])
