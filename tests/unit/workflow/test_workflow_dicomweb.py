"""The job around a server; a real one is in tests/integration/test_pacs.py."""

import json
from pathlib import Path

import pytest

from medseg.errors import DatasetError, NetworkError
from medseg.io.dicomweb import RemoteSeries
from medseg.io.inbox import hashed
from medseg.training.lock import locked
from medseg.types.result import CaseReport, RunReport
from medseg.workflow import dicomweb as job
from medseg.workflow.dicomweb import StudyAddress, predict_study, study_address

URL = "https://pacs/dicom-web"


def test_a_server_among_the_inputs_is_an_address():
    address = study_address([f"dicomweb:{URL}"], "1.2", ("1.2.3",), auth=Path("p"))
    assert address == StudyAddress(URL, "1.2", ("1.2.3",), Path("p"))
    assert study_address(["scan.nii.gz"], None) is None


@pytest.mark.parametrize(
    ("inputs", "study", "text"),
    [
        ([f"dicomweb:{URL}"], None, "no study given"),
        ([f"dicomweb:{URL}", "scan.nii.gz"], "1.2", "one server"),
        (["scan.nii.gz"], "1.2", "need a server"),
    ],
)
def test_half_an_address_is_an_error(inputs, study, text):
    with pytest.raises(DatasetError, match=text):
        study_address(inputs, study)


@pytest.fixture
def server(monkeypatch):
    """Two series, of which one is predicted; gives the files that were stored, and what storing raises."""
    stored, faults = [], []
    series = (RemoteSeries("1.2.1", "CT"), RemoteSeries("1.2.2", "CT"))

    def predict(bundle, inputs, out, *, options, report):
        folder = Path(inputs[0])
        assert sorted(path.name for path in folder.iterdir()) == sorted(hashed(one.uid) for one in series)
        assert "dicom-seg" in options.format
        (out / "a.seg.dcm").write_bytes(b"seg")
        (out / "a.nrrd").write_bytes(b"nrrd")
        cases = (
            CaseReport("a", "ok", 1.0, ("a.seg.dcm", "a.nrrd")),
            CaseReport("b", "failed", 1.0, error="a slice is missing"),
        )
        return RunReport("medseg.report/1", "0", "0", "cpu", cases)

    def store(server, study, path):
        stored.append(path.name)
        if faults:
            raise faults.pop()
        return ("stored with warning 0xB000",)

    monkeypatch.setattr(job, "find_image_series", lambda server, study, chosen: series)
    monkeypatch.setattr(job, "fetch_series", lambda server, study, uid, folder: (folder / "1.dcm").write_bytes(b"x"))
    monkeypatch.setattr(job, "predict_folder", predict)
    monkeypatch.setattr(job, "store_file", store)
    return stored, faults


def test_only_segs_of_good_cases_are_stored_and_fetched_scans_are_deleted(server, tmp_path):
    run = predict_study("bundle", StudyAddress(URL, "1.2"), tmp_path)
    assert server[0] == ["a.seg.dcm"]
    assert run.cases[0].warnings == ("stored with warning 0xB000",)
    assert run.cases[1].status == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nrrd", "a.seg.dcm", "report.json"]


def test_scans_that_a_killed_run_left_are_deleted_and_those_of_a_running_one_are_not(server, tmp_path):
    for name in ("killed", "running"):
        (tmp_path / f".fetched-{name}" / "scans").mkdir(parents=True)
        (tmp_path / f".fetched-{name}" / "lock").write_text("1\n")
    with locked(tmp_path / ".fetched-running"):
        predict_study("bundle", StudyAddress(URL, "1.2"), tmp_path)
    assert [path.name for path in tmp_path.glob(".fetched-*")] == [".fetched-running"]


def test_what_is_not_stored_is_a_failed_line_and_stays_in_the_folder(server, tmp_path):
    server[1].append(NetworkError("did not store the object (reason 0xA700)"))
    run = predict_study("bundle", StudyAddress(URL, "1.2"), tmp_path)
    assert run.cases[0].status == "failed"
    assert "0xA700" in run.cases[0].error
    assert (tmp_path / "a.seg.dcm").is_file()
    assert json.loads((tmp_path / "report.json").read_text())["cases"][0]["status"] == "failed"
