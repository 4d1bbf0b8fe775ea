"""Commands that look at scans: inspect."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medseg.cli.terms import FAILED, OK, show


def inspect(
    path: Path,
    /,
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    keep_identifiers: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """List studies and series, their geometry, what can be read and why the rest cannot; exit 1 if a scan cannot.

    Example: medseg inspect DICOM_FOLDER

    Parameters
    ----------
    path
        Folder (with its subfolders), archive or file.
    json
        Print everything as JSON.
    keep_identifiers
        Show names of files and folders in full, and descriptions of series; by default neither, since people type the
        patient's name into both.
    """
    from medseg.cli.progress import shown_progress
    from medseg.cli.scan_table import scan_table
    from medseg.io.records import format_record
    from medseg.workflow import inspect as job

    with shown_progress(lines=False) as report:
        found = job.inspect(path, keep_identifiers=keep_identifiers, report=report)
    if json:
        show(format_record(found).rstrip())
    else:
        show(scan_table(found))
    return FAILED if not found.scans or any(scan.error for scan in found.scans) else OK
