"""Segment every DICOM series below a folder and write one table of volumes.

    python pipelines/batch_dicom.py MODEL INBOX OUT [--device auto] [--no-tta]

`INBOX` may hold any nesting of studies and series. A series that cannot be read as one regular volume is a line in the
table with its reason, and the others go on. Run it again after new studies have arrived: finished ones are skipped.
Exit code 1 if a case failed.
"""

import argparse
import csv
import sys
from pathlib import Path

import medseg


def main() -> int:
    """Predict all, write the table, say how it went."""
    parser = argparse.ArgumentParser(description="segment all DICOM series below a folder")
    parser.add_argument("model", type=Path, help="model bundle or run folder")
    parser.add_argument("inbox", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()

    options = medseg.PredictOptions(device=arguments.device, tta=arguments.tta, resume=True)
    inner = arguments.model / "bundle"
    bundle = inner if inner.is_dir() else arguments.model
    report = medseg.predict_folder(bundle, [arguments.inbox], arguments.out, options=options)
    table = write_table(report, arguments.out / "volumes.csv")
    failed = [case for case in report.cases if case.status == "failed"]
    segmented = [case for case in report.cases if case.outputs]
    print(f"{len(segmented)} series segmented, {len(failed)} failed, {table}")
    for case in failed:
        print(f"failed: {case.case_id}: {case.error}")
    return 1 if failed else 0


def write_table(report: medseg.RunReport, path: Path) -> Path:
    """One row per series, named by modality and a hash of its UID: status, volume of each class in ml, remarks."""
    names = sorted({name for case in report.cases for name in case.volumes_ml or {}})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "series_uid", "status", *(f"{name}_ml" for name in names), "remarks"])
        for case in report.cases:
            volumes = case.volumes_ml or {}
            remarks = "; ".join([*case.warnings, case.error or ""]).strip("; ")
            uids = " ".join(case.series_uids)
            writer.writerow([case.case_id, uids, case.status, *(volumes.get(name, "") for name in names), remarks])
    return path


if __name__ == "__main__":
    try:
        sys.exit(main())
    except medseg.MedsegError as error:
        sys.exit(f"error: {error}")
