"""Many scans in one batch: worker processes, DICOM trees, archives, what is told of whom."""

import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from dicom_phantoms import grid, write_dicom
from threshold_lab import GRID, HANGS, KILLS, LABELS, make_bundle, scan

from medseg.cli import main
from medseg.errors import DatasetError, MedsegError
from medseg.io.images import read_labels
from medseg.io.nifti import write_nifti
from medseg.training.lock import locked
from medseg.workflow import journal, predict_case
from medseg.workflow.predict import PredictOptions, predict_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("model"))


def run(bundle, inputs, out, **options):
    options = PredictOptions(**({"device": "cpu", "trust": ("threshold_lab",)} | options))
    return predict_folder(bundle, inputs, out, options=options)


def write_scans(folder, count, marks=()):
    folder.mkdir(parents=True)
    for seed in range(count):
        write_nifti(scan(seed, dict(marks).get(seed))[0], GRID, folder / f"s{seed:02d}.nii.gz")
    return folder


def write_study(folder, seed=0, series="1.2.1", **tags):
    """A series whose files are named after its patient."""
    pixels = scan(seed)[0]
    write_dicom(folder, pixels, grid(pixels.shape), series=series, PatientName="Geheim^Person", **tags)
    for path in folder.iterdir():
        path.rename(folder / f"Person {path.name}")


def test_a_scan_that_takes_its_process_down_costs_one_case(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 6, {1: KILLS, 3: HANGS})
    out = tmp_path / "out"
    write_nifti(scan()[1], GRID, out / "s01.nii.gz")
    (out / "report.json").write_text("{}")  # of a run that wrote it
    report = run(bundle, [folder], out, workers=2, case_minutes=0.1)
    lines = {case.case_id: case for case in report.cases}
    assert list(lines) == [f"s{i:02d}" for i in range(6)]
    assert {name for name, case in lines.items() if case.status == "ok"} == {"s00", "s02", "s04", "s05"}
    assert "SIGKILL" in lines["s01"].error and "longer than 6 s" in lines["s03"].error
    assert sorted(path.name for path in out.iterdir()) == [
        *("report.json", "s00.nii.gz", "s02.nii.gz", "s04.nii.gz", "s05.nii.gz")
    ]
    for seed in (0, 2, 4, 5):
        np.testing.assert_array_equal(read_labels(out / f"s{seed:02d}.nii.gz", LABELS).array, scan(seed)[1])
    good = [folder / f"s{seed:02d}.nii.gz" for seed in (0, 2, 4, 5)]
    for case in run(bundle, good, tmp_path / "here", workers=0).cases:
        assert case.volumes_ml == lines[case.case_id].volumes_ml
        assert (tmp_path / "here" / case.outputs[0]).read_bytes() == (out / case.outputs[0]).read_bytes()


def test_a_model_that_cannot_be_loaded_by_workers_is_one_error(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 2)
    with pytest.raises(MedsegError, match="folds are 0"):
        run(bundle, [folder], tmp_path / "out", workers=1, folds=(7,))


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 0, "case_minutes": 1.0}, {"case_minutes": 0.0}])
def test_limits_that_cannot_be_kept_are_refused(bundle, tmp_path, options):
    folder = write_scans(tmp_path / "in", 1)
    with pytest.raises(DatasetError, match=r"--workers|--case-minutes"):
        run(bundle, [folder], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_lines_are_there_before_the_end_and_a_cut_one_is_done_again(bundle, tmp_path, monkeypatch):
    folder, out = write_scans(tmp_path / "in", 4), tmp_path / "out"
    run(bundle, [folder], out)
    report = journal.earlier(out)
    journal.begin(out, report, report.cases[:2])
    assert not (out / "report.json").exists()
    with (out / "report.jsonl").open("ab") as file:
        file.write(b'{"case_id":"s02","status":"ok","outp')
    predicted = []
    whole = predict_case.predict_image

    def counted(image, *arguments, case_id, **options):
        predicted.append(case_id)
        lines = (out / "report.jsonl").read_text().splitlines()
        assert len(lines) == 1 + 2 + len(predicted) - 1 and not (out / "report.json").exists()
        return whole(image, *arguments, case_id=case_id, **options)

    monkeypatch.setattr(predict_case, "predict_image", counted)
    again = run(bundle, [folder], out, resume=True)
    assert predicted == ["s02", "s03"]
    assert [c.status for c in again.cases] == ["skipped", "skipped", "ok", "ok"]
    assert not (out / "report.jsonl").exists()


def test_every_series_of_a_tree_is_a_line_and_no_patient_is_named(bundle, tmp_path):
    tree = tmp_path / "GEHEIM^PERSON"
    write_study(tree / "MEIER 19500131" / "all", 0, series="1.2.1")
    write_study(tree / "MEIER 19500131" / "all2", 1, series="1.2.2")
    for path in (tree / "MEIER 19500131" / "all2").iterdir():
        path.rename(tree / "MEIER 19500131" / "all" / f"Zweite {path.name}")
    write_study(tree / "HUBER" / "gap", 2, series="1.2.3")
    gap = sorted((tree / "HUBER" / "gap").iterdir())
    gap[2].unlink()
    write_study(tree / "HUBER" / "cut", 3, series="1.2.4")
    cut = sorted((tree / "HUBER" / "cut").iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:-40])
    write_study(tree / "HUBER" / "sr", 4, series="1.2.5", Modality="SR")
    write_study(tree / "HUBER" / "scout", 4, series="1.2.6", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tree / "HUBER" / "Brief an Meier.pdf").write_bytes(b"%PDF")
    (tree / "HUBER" / "gap" / "Huber.dcm").write_bytes(b"junk")
    out = tmp_path / "out"
    report = run(bundle, [tree], out)
    by_uid = {case.series_uids: case for case in report.cases if case.series_uids}
    assert {uid: case.status for uid, case in by_uid.items()} == {
        ("1.2.1",): "ok",
        ("1.2.2",): "ok",
        ("1.2.3",): "failed",
        ("1.2.4",): "failed",
    }
    others = [case for case in report.cases if not case.series_uids]
    assert sorted((case.status, case.case_id) for case in others) == [
        ("failed", "*/*/*.dcm"),
        ("skipped", "*/*.pdf"),
        ("skipped", "*/*/*.dcm"),
        ("skipped", "*/*/*.dcm"),
    ]
    assert any("6 files: is a structured report" in case.warnings[0] for case in others if case.warnings)
    assert any("1 other files" in warning for warning in by_uid[("1.2.3",)].warnings)
    written = (out / "report.json").read_text() + " ".join(path.name for path in out.rglob("*"))
    for name in ("GEHEIM", "Geheim", "MEIER", "Meier", "HUBER", "Huber", "19500131", "Zweite", "Person"):
        assert name not in written, name
    for seed, uid in ((0, "1.2.1"), (1, "1.2.2")):
        found = read_labels(out / by_uid[(uid,)].outputs[0], LABELS)
        np.testing.assert_array_equal(found.array, scan(seed)[1])
    again = run(bundle, [tree], out, resume=True)
    assert sum(case.status == "skipped" for case in again.cases if case.series_uids) == 2

    named = run(bundle, [tree], tmp_path / "named", keep_identifiers=True)
    assert any("Person" in case.error for case in named.cases if case.error)
    assert {"gap", "cut"} <= {case.case_id for case in named.cases}


def test_another_modality_than_trained_on_is_a_warning(bundle, tmp_path):
    write_study(tmp_path / "in" / "a", 0, series="1.2.1")
    write_study(tmp_path / "in" / "b", 1, series="1.2.2", Modality="MR")
    warnings = {case.series_uids: case.warnings for case in run(bundle, [tmp_path / "in"], tmp_path / "out").cases}
    assert warnings == {("1.2.1",): (), ("1.2.2",): ("is MR, and the model was trained on CT",)}


def test_free_text_of_tags_is_not_in_the_report(bundle, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_study(tmp_path / "in" / "a", 0, series="Geheim-series", Modality="Geheim")
        write_study(tmp_path / "in" / "b", 1, series="1.2.2", PhotometricInterpretation="GEHEIM")
        lines = {case.status: case for case in run(bundle, [tmp_path / "in"], tmp_path / "out").cases}
    assert lines["ok"].warnings == ("is of an unknown modality, and the model was trained on CT",)
    assert lines["ok"].case_id.removeprefix("DICOM-") == lines["ok"].series_uids[0].removeprefix("invalid-")
    assert "PhotometricInterpretation (0028,0004) is unknown" in lines["failed"].error
    assert "geheim" not in (tmp_path / "out" / "report.json").read_text().casefold()


def predict(bundle, *arguments):
    return main(["predict", str(bundle), *map(str, arguments), "--device", "cpu", "--trust", "threshold_lab"])


def test_an_input_that_is_not_there_is_wrong_usage(bundle, tmp_path, capsys):
    folder = write_scans(tmp_path / "in", 1)
    assert predict(bundle, folder, tmp_path / "Meier 1950" / "nope", "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path}/Meier 1950/nope: no such file or folder. check the path\n"
    assert not (tmp_path / "out").exists()


def test_a_masked_fault_can_be_found(bundle, tmp_path, capsys):
    write_study(tmp_path / "MEIER" / "a", 0, series="1.2.1")
    files = sorted((tmp_path / "MEIER" / "a").iterdir())
    cut = files[2]
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "Brief.txt").write_text("no image")
    assert predict(bundle, tmp_path / "MEIER", tmp_path / "Brief.txt", "-o", tmp_path / "out") == 1
    told = capsys.readouterr().out
    assert f"*.dcm (file 3 of {len(files)}): " in told and "Person" not in told
    assert told.count("--keep-identifiers shows them") == 1
    assert "failed: input 2 (*.txt): no image file\n" in told
    assert predict(bundle, tmp_path / "MEIER", "-o", tmp_path / "named", "--keep-identifiers") == 1
    told = capsys.readouterr().out
    assert cut.name in told and "shows them" not in told


def test_an_archive_is_predicted_as_its_folder(bundle, tmp_path):
    write_study(tmp_path / "MEIER" / "a", 0, series="1.2.1")
    write_scans(tmp_path / "MEIER" / "b", 1)
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    packed = shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "MEIER")
    folder = run(bundle, [tmp_path / "MEIER"], tmp_path / "one")
    report = run(bundle, [packed, tmp_path / "bad.zip"], tmp_path / "two")
    good = {case.case_id: case.outputs for case in report.cases if case.status == "ok"}
    assert good == {case.case_id: case.outputs for case in folder.cases} and len(good) == 2
    for (name,) in good.values():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (failed,) = [case for case in report.cases if case.status == "failed"]
    assert failed.case_id == "input 2 (*.zip)" and "cannot be unpacked" in failed.error
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.nii.gz", b"x")
    (evil,) = run(bundle, [tmp_path / "evil.zip"], tmp_path / "three").cases
    assert evil.status == "failed" and "outside" in evil.error


def test_two_runs_into_one_folder_are_refused(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 1)
    with locked(tmp_path / "out", doing="predicting"), pytest.raises(DatasetError, match="already predicting"):
        run(bundle, [folder], tmp_path / "out")
    assert run(bundle, [folder], tmp_path / "out").cases[0].status == "ok"


def test_leftovers_of_a_killed_run_are_removed(bundle, tmp_path):
    folder, out = write_scans(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / ".part-abc-s00.nii.gz").write_bytes(b"half")
    run(bundle, [folder], out)
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "s00.nii.gz"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path, capsys):
    folder = write_scans(tmp_path / "in", 1)
    (tmp_path / "file").write_text("no folder")
    arguments = ["predict", str(tmp_path / "no bundle"), str(folder), "-o", str(tmp_path / "file" / "out")]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_disk_that_fills_up_fails_the_case_and_leaves_no_part(bundle, tmp_path, monkeypatch):
    folder, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    whole = predict_case.write_checked

    def full(prediction, folder, case_id, *arguments, **options):
        whole(prediction, folder, case_id, *arguments, **options)
        if case_id == "s01":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_case, "write_checked", full)
    report = run(bundle, [folder], out)
    assert [case.status for case in report.cases] == ["ok", "failed", "ok"]
    assert "No space left" in report.cases[1].error and not (out / "s01.nii.gz").exists()
    stored = json.loads((out / "report.json").read_text())["cases"]
    assert [case["status"] for case in stored] == ["ok", "failed", "ok"]
