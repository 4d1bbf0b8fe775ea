"""Landmark files against references, in Python and through the command line."""

import csv
import json
import logging
import math
import shutil

import numpy as np
import pytest

from medseg.cli.app import main
from medseg.errors import DatasetError
from medseg.io.images import write_labels
from medseg.io.landmarks import write_landmarks
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
from medseg.workflow.evaluate_landmarks import (
    evaluate_landmarks,
    format_landmark_table,
    what_to_score,
    write_landmark_scores,
)

NAMES = ("nasion", "menton")


def points(path, places, names=NAMES):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_landmarks(Landmarks(names, np.array(places, float)), path)


@pytest.fixture
def folders(tmp_path):
    """Case a: errors 5 and 1 mm; case b: 2.2 mm and missing; a second reader of case a, 1 mm off in one landmark."""
    points(tmp_path / "ref/a.csv", [[0, 0, 0], [10, 10, 10]])
    points(tmp_path / "ref/b.fcsv", [[0, 0, 0], [1, 1, 1]])
    points(tmp_path / "pred/a.mrk.json", [[3, 4, 0], [10, 10, 11]])
    points(tmp_path / "pred/a.landmarks.csv", [[9, 9, 9], [9, 9, 9]])
    points(tmp_path / "pred/b.mrk.json", [[0, 2.2, 0], [np.nan] * 3])
    points(tmp_path / "second/a.csv", [[0, 0, 1], [np.nan] * 3])
    return tmp_path


def test_cases_pair_by_name_whatever_the_format(folders):
    scores = evaluate_landmarks(folders / "pred", folders / "ref", second_reader=folders / "second")
    assert [case.case_id for case in scores] == ["a", "b"]
    assert scores[0].errors_mm == pytest.approx({"nasion": 5.0, "menton": 1.0})
    assert scores[0].reader_mm == {"nasion": 1.0} and scores[1].reader_mm == {}
    assert scores[1].errors_mm["nasion"] == pytest.approx(2.2) and math.isnan(scores[1].errors_mm["menton"])


def test_two_files_may_be_named_differently(folders):
    (scores,) = evaluate_landmarks(
        folders / "pred/a.mrk.json", folders / "ref/b.fcsv", second_reader=folders / "second/a.csv"
    )
    assert scores.case_id == "b"
    assert scores.errors_mm == pytest.approx({"nasion": 5.0, "menton": math.sqrt(81 + 81 + 100)})
    assert scores.reader_mm == {"nasion": 1.0}


def test_the_folder_of_a_second_reader_is_searched_by_name_for_one_file_too(folders):
    files = folders / "pred/b.mrk.json", folders / "ref/b.fcsv"
    (scores,) = evaluate_landmarks(*files, second_reader=folders / "second")  # which has case a only
    assert scores.reader_mm == {}


@pytest.mark.parametrize("text", ["no table", "name,x_px,y_px,z_px\nnasion,1,1,1\n"])
def test_a_prediction_is_not_worse_for_a_second_reader_that_cannot_be_compared(folders, caplog, text):
    (folders / "second/a.csv").write_text(text)
    with caplog.at_level(logging.WARNING, "medseg"):
        scores = evaluate_landmarks(folders / "pred", folders / "ref", second_reader=folders / "second")
    assert scores[0].status == "ok" and scores[0].reader_mm == {}
    assert scores[0].errors_mm == pytest.approx({"nasion": 5.0, "menton": 1.0})
    assert "a: the second reader is left out" in caplog.text


@pytest.mark.parametrize("name", ["pred.json", "pred.nii.gz"])
def test_one_prediction_of_no_landmark_file_is_an_error(folders, name):
    (folders / name).write_bytes(b"")
    with pytest.raises(DatasetError, match="none of 0 predictions"):
        evaluate_landmarks(folders / name, folders / "pred/a.mrk.json")


def test_cases_without_a_readable_prediction_fail_and_all_their_landmarks_are_missing(folders, caplog):
    (folders / "pred/a.mrk.json").write_text("{")
    points(folders / "ref/c.csv", [[0, 0, 0], [np.nan] * 3])
    points(folders / "pred/z.csv", [[0, 0, 0], [1, 1, 1]])
    with caplog.at_level(logging.WARNING, "medseg"):
        scores = evaluate_landmarks(folders / "pred", folders / "ref")
    assert [(case.case_id, case.status) for case in scores] == [("b", "ok"), ("a", "failed"), ("c", "failed")]
    assert "a.mrk.json" in scores[1].error and "no prediction" in scores[2].error
    assert list(scores[1].errors_mm) == list(NAMES) and list(scores[2].errors_mm) == ["nasion"]
    assert "no reference for 1 predictions: z" in caplog.text
    assert "failed: c: " in format_landmark_table(scores)


def test_nothing_in_common_is_an_error(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="none of 0 predictions"):
        evaluate_landmarks(tmp_path / "empty", folders / "ref")
    with pytest.raises(DatasetError, match="does not exist"):
        evaluate_landmarks(tmp_path / "nowhere", folders / "ref")


def test_scores_are_written_as_json_and_csv(folders):
    scores = evaluate_landmarks(folders / "pred", folders / "ref", second_reader=folders / "second")
    write_landmark_scores(scores, folders / "out")
    content = json.loads((folders / "out/landmarks.json").read_text())
    assert content["summary"]["all"]["n"] == 4 and content["summary"]["all"]["missing"] == 1
    assert content["summary"]["all"]["sdr"] == {"2": 0.25, "2.5": 0.5, "3": 0.5, "4": 0.5}
    assert content["summary"]["reader"]["all"]["mean_mm"] == 1.0
    assert content["cases"][1]["errors_mm"]["menton"] is None
    with (folders / "out/landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["landmark"], row["radial_error_mm"], row["reader_mm"]) for row in rows] == [
        ("a", "nasion", "5.0", "1.0"), ("a", "menton", "1.0", ""), ("b", "nasion", "2.2", ""), ("b", "menton", "", "")
    ]  # fmt: skip


def test_the_command_scores_landmarks_and_prints_a_line_for_each(folders, capsys):
    out = folders / "out"
    paths = [str(folders / name) for name in ("pred", "ref", "second")]
    code = main(["evaluate", *paths[:2], "--second-reader", paths[2], "-o", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and (out / "landmarks.json").is_file() and not (out / "scores.json").exists()
    assert (
        lines[0].split() == "landmark mean mm SD median largest SDR 2 mm SDR 2.5 mm SDR 3 mm SDR 4 mm n missing".split()
    )
    assert lines[1].split() == "nasion 3.600 1.980 3.600 5.000 0.0 % 50.0 % 50.0 % 50.0 % 2 0".split()
    assert [line.split("  ")[0] for line in lines[1:]] == ["nasion", "menton", "all", "second reader"]
    (folders / "pred/b.mrk.json").unlink()
    assert main(["evaluate", str(folders / "pred"), str(folders / "ref")]) == 1


def test_folders_with_label_maps_and_landmarks_are_scored_as_both(folders, capsys):
    grid, labels = Geometry((2, 4, 4), (1.0, 1.0, 1.0)), Labels((Label("organ", (1,)),))
    mask = np.zeros(grid.shape, np.uint8)
    mask[0, 1:3] = 1
    for place in ("pred", "ref"):
        write_labels(LabelMap(mask, grid, labels), folders / place / "a.nii.gz")
    (folders / "ref/notes.txt").write_text("x")
    assert main(["evaluate", str(folders / "pred"), str(folders / "ref"), "-o", str(folders / "out")]) == 0
    assert (folders / "out/scores.json").is_file() and (folders / "out/landmarks.json").is_file()
    text = capsys.readouterr().out
    assert "Dice" in text and "nasion" in text
    for file in (folders / "pred").glob("*.*json"):
        file.unlink()
    (folders / "pred/a.landmarks.csv").unlink()
    assert main(["evaluate", str(folders / "pred"), str(folders / "ref")]) == 0
    assert "nasion" not in capsys.readouterr().out


def test_distances_in_pixels_are_called_so(tmp_path):
    for place, spot in (("ref", [0.0, 0.0, 0.0]), ("pred", [3.0, 4.0, 0.0])):
        (tmp_path / place).mkdir()
        found = Landmarks(NAMES, np.array([spot, [1.0, 1.0, 0.0]]), unit="px")
        write_landmarks(found, tmp_path / place / "a.mrk.json")
    scores = evaluate_landmarks(tmp_path / "pred", tmp_path / "ref")
    assert scores[0].unit == "px" and scores[0].errors_mm == {"nasion": 5.0, "menton": 0.0}
    head = format_landmark_table(scores).splitlines()[0]
    assert "mean px" in head and "SDR 2 px" in head and "mm" not in head


def test_a_case_in_mm_and_pixels_fails(folders):
    places = np.array([[3.0, 4.0, 0.0], [10.0, 10.0, 11.0]])
    write_landmarks(Landmarks(NAMES, places, unit="px"), folders / "pred/a.mrk.json")
    scores = evaluate_landmarks(folders / "pred", folders / "ref")
    assert [(case.case_id, case.status) for case in scores] == [("b", "ok"), ("a", "failed")]
    assert scores[1].error.startswith("a: prediction is in px, reference is in mm") and "--spacing" in scores[1].error
    assert all(math.isnan(error) for error in scores[1].errors_mm.values()) and len(scores[1].errors_mm) == 2


def test_hidden_files_are_no_cases(folders):
    for place in ("pred", "ref"):
        for name in ("._a.csv", ".part-x-b.mrk.json", "._mask.nii.gz"):
            (folders / place / name).write_bytes(b"\x00\x05\x16\x07")
    assert [case.case_id for case in evaluate_landmarks(folders / "pred", folders / "ref")] == ["a", "b"]
    assert what_to_score(folders / "pred", folders / "ref") == (False, True)


def test_scans_beside_reference_landmarks_are_no_label_maps_to_score(folders, capsys, caplog):
    (folders / "ref/a.png").write_bytes(b"a scan, which nobody reads")
    with caplog.at_level(logging.WARNING, "medseg"):
        assert what_to_score(folders / "pred", folders / "ref") == (False, True)
    assert "images among the references are not scored" in caplog.text
    assert main(["evaluate", str(folders / "pred"), str(folders / "ref")]) == 0
    assert "nasion" in capsys.readouterr().out
    (folders / "pred/a.png").write_bytes(b"")
    assert what_to_score(folders / "pred", folders / "ref") == (True, True)


def test_pixels_of_references_are_mm_where_the_data_set_states_the_spacing(folders):
    ref = folders / "set/landmarksTs"
    for name, places in (("a", [[6.0, 20.0, 0.0], [10.0, 0.0, 0.0]]), ("b", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])):
        ref.mkdir(parents=True, exist_ok=True)
        write_landmarks(Landmarks(NAMES, np.array(places), unit="px"), ref / f"{name}.csv")
        points(folders / f"found/{name}.mrk.json", [[3, 4, 0], [5, 0, 0]])
    assert {case.status for case in evaluate_landmarks(folders / "found", ref)} == {"failed"}
    content = {"channel_names": {"0": "X-ray"}, "landmarks": {}, "spacing_mm": [0.2, 0.5]}
    (folders / "set/dataset.json").write_text(json.dumps(content))
    scores = evaluate_landmarks(folders / "found", ref, second_reader=ref)
    assert [(case.status, case.unit) for case in scores] == [("ok", "mm")] * 2
    assert scores[0].errors_mm == pytest.approx({"nasion": 0.0, "menton": 0.0})
    assert scores[1].errors_mm == pytest.approx({"nasion": 5.0, "menton": math.hypot(4.5, 0.2)})
    assert scores[1].reader_mm == {"nasion": 0.0, "menton": 0.0}
    swapped = folders / "set/mm"
    shutil.copytree(folders / "found", swapped)
    for case in evaluate_landmarks(ref, swapped):
        assert case.unit == "mm" and case.errors_mm == pytest.approx(scores["ab".index(case.case_id)].errors_mm)
    deep = Landmarks(NAMES, np.array([[6.0, 20.0, 1.0], [10.0, 0.0, 0.0]]), unit="px")
    write_landmarks(deep, ref / "a.csv")
    assert evaluate_landmarks(folders / "found", ref)[-1].status == "failed", "of a volume nobody knows the spacing"


def test_what_is_doubtful_in_a_file_is_said(folders, caplog):
    content = json.loads((folders / "pred/a.mrk.json").read_text())
    del content["markups"][0]["coordinateSystem"]
    (folders / "pred/a.mrk.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "medseg"):
        evaluate_landmarks(folders / "pred", folders / "ref")
    assert "a: a.mrk.json: names no coordinate system; LPS is assumed" in caplog.text
