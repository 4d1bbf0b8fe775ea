"""`--resume` keeps the results of a scan, not of a name, and names of files may be no UTF-8."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from dicom_phantoms import grid, write_dicom
from threshold_lab import GRID, LABELS, make_bundle, scan

from medseg.io.images import read_labels
from medseg.io.nifti import write_nifti
from medseg.types.result import CaseReport
from medseg.workflow import journal
from medseg.workflow.predict import PredictOptions, predict_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("model"))


def run(bundle, inputs, out, **options):
    options = PredictOptions(**({"device": "cpu", "trust": ("threshold_lab",), "resume": True} | options))
    return predict_folder(bundle, inputs, out, options=options)


def statuses(report):
    return {case.case_id: case.status for case in report.cases}


def write_scan(path, shift=0):
    """A scan whose labels lie `shift` rows further, as if all were written at once; returns its path and its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array, labels = (np.roll(one, shift, axis=1) for one in scan())
    write_nifti(array, GRID, path)
    os.utime(path, ns=(10**18, 10**18))
    return path, labels


def is_of(out, name, labels):
    return np.array_equal(read_labels(out / f"{name}.nii.gz", LABELS).array, labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_patient_of_the_same_file_name_is_predicted(bundle, tmp_path, workers):
    out = tmp_path / "out"
    first, labels = write_scan(tmp_path / "P1/ct.nii.gz")
    other, others = write_scan(tmp_path / "P2/ct.nii.gz", shift=1)
    assert statuses(run(bundle, [first], out, workers=workers)) == {"ct": "ok"}
    assert statuses(run(bundle, [first], out, workers=workers)) == {"ct": "skipped"}
    assert is_of(out, "ct", labels)
    assert statuses(run(bundle, [other], out, workers=workers)) == {"ct": "ok"}
    assert is_of(out, "ct", others)
    assert statuses(run(bundle, [other], out, workers=workers)) == {"ct": "skipped"}


def test_a_scan_that_was_replaced_is_predicted_again(bundle, tmp_path):
    out = tmp_path / "out"
    path, _ = write_scan(tmp_path / "in/ct.nii.gz")
    write_scan(tmp_path / "in/kept.nii.gz")
    run(bundle, [tmp_path / "in"], out)
    _, labels = write_scan(path, shift=1)
    assert statuses(run(bundle, [tmp_path / "in"], out)) == {"ct": "ok", "kept": "skipped"}
    assert is_of(out, "ct", labels)


def test_ids_that_shift_take_no_results_of_others_along(bundle, tmp_path):
    out, truth = tmp_path / "out", {}
    for number in (1, 2):
        _, truth[number] = write_scan(tmp_path / f"in/p{number}/CT/ct.nii.gz", shift=number)
    assert statuses(run(bundle, [tmp_path / "in"], out)) == {"CT_ct": "ok", "CT_ct-2": "ok"}
    _, truth[0] = write_scan(tmp_path / "in/p0/CT/ct.nii.gz")
    report = run(bundle, [tmp_path / "in"], out)
    assert statuses(report) == {"CT_ct": "ok", "CT_ct-2": "ok", "CT_ct-3": "ok"}
    assert all(is_of(out, name, truth[number]) for number, name in enumerate(("CT_ct", "CT_ct-2", "CT_ct-3")))
    named = run(bundle, [tmp_path / "in"], tmp_path / "named", keep_identifiers=True)
    assert list(statuses(named)) == ["p0_CT_ct", "p1_CT_ct", "p2_CT_ct"]


def test_a_series_of_the_same_uid_and_size_but_another_patient_is_predicted(bundle, tmp_path):
    out = tmp_path / "out"
    for number in (1, 2):
        pixels = np.roll(scan()[0], number, axis=1)
        write_dicom(tmp_path / f"P{number}/s", pixels, grid(pixels.shape), study="1.2", series="1.2.1")
        for path in (tmp_path / f"P{number}/s").iterdir():
            os.utime(path, ns=(10**18, 10**18))
    (first,) = run(bundle, [tmp_path / "P1"], out).cases
    (again,) = run(bundle, [tmp_path / "P1"], out).cases
    (other,) = run(bundle, [tmp_path / "P2"], out).cases
    assert first.case_id == other.case_id and [case.status for case in (first, again, other)] == ["ok", "skipped", "ok"]
    assert is_of(out, other.case_id, np.roll(scan()[1], 2, axis=1))


def test_what_is_unpacked_is_told_by_its_content(bundle, tmp_path):
    out = tmp_path / "out"
    path, _ = write_scan(tmp_path / "in/ct.nii.gz")
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "in")
    assert statuses(run(bundle, [archive], out)) == {"ct": "ok"}
    assert statuses(run(bundle, [archive], out)) == {"ct": "skipped"}
    _, labels = write_scan(path, shift=1)
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "in")
    assert statuses(run(bundle, [archive], out)) == {"ct": "ok"}
    assert is_of(out, "ct", labels)


def test_what_was_fetched_into_the_output_folder_is_told_by_its_content(bundle, tmp_path):
    """As `predict dicomweb:URL` does in every run."""
    out = tmp_path / "out"
    path, _ = write_scan(out / ".fetched-1/scans/ct.nii.gz")
    assert statuses(run(bundle, [path.parent], out)) == {"ct": "ok"}
    again = out / ".fetched-2/scans"
    again.mkdir(parents=True)
    (again / "ct.nii.gz").write_bytes(path.read_bytes())
    assert statuses(run(bundle, [again], out)) == {"ct": "skipped"}


def test_a_line_without_a_source_vouches_for_nothing(bundle, tmp_path):
    out = tmp_path / "out"
    path, _ = write_scan(tmp_path / "in/ct.nii.gz")
    run(bundle, [path], out)
    stored = json.loads((out / "report.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", stored["cases"][0].pop("source_sha256"))
    (out / "report.json").write_text(json.dumps(stored))
    assert statuses(run(bundle, [path], out)) == {"ct": "ok"}


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
@pytest.mark.parametrize("keep_identifiers", [False, True])
def test_a_name_that_is_no_utf_8_costs_nothing(bundle, tmp_path, keep_identifiers):
    folder, out = tmp_path / "in", tmp_path / "out"
    path, labels = write_scan(folder / "ct.nii.gz")
    path.rename(folder / os.fsdecode(b"M\xfcller.nii.gz"))
    (folder / os.fsdecode(b"Br\xfccke.nii.gz")).write_bytes(b"no scan")
    write_scan(folder / "z.nii.gz")
    report = run(bundle, [folder], out, keep_identifiers=keep_identifiers)
    assert statuses(report) == {"Br%FCcke": "failed", "M%FCller": "ok", "z": "ok"}
    assert "Br%FCcke.nii.gz" in report.cases[0].error
    assert is_of(out, "M%FCller", labels)
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [case["case_id"] for case in stored["cases"]] == list(statuses(report))
    again = run(bundle, [folder], out, keep_identifiers=keep_identifiers)
    assert statuses(again) == {"Br%FCcke": "failed", "M%FCller": "skipped", "z": "skipped"}


def test_a_refused_file_whose_name_is_no_utf_8_is_a_line_that_can_be_written(tmp_path):
    line = CaseReport("x\udce4.txt", "failed", 0.0, error="x\udce4.txt: no image file", warnings=("see x\udce4",))
    written = journal.writable_line(line)
    assert (written.case_id, written.error, written.warnings) == ("x%E4.txt", "x%E4.txt: no image file", ("see x%E4",))
    assert journal.writable_line(CaseReport("a", "ok", 1.0)) == CaseReport("a", "ok", 1.0)
