"""Evaluation of folders of label maps."""

import csv
import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Picture

from medseg.errors import DatasetError
from medseg.io.images import write_labels
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.workflow.evaluate import evaluate, format_table, read_label_names, write_evaluation, write_scores

LABELS = Labels((Label("bone", (1,)), Label("metal", (2,))))
GRID = Geometry((4, 8, 8), (2.0, 1.0, 1.0))


def _cube(value, start=1, shape=GRID.shape):
    array = np.zeros(shape, np.uint8)
    array[1:3, start : start + 4, 1:5] = value
    return array


def _write(folder, name, array, geometry=GRID):
    write_labels(LabelMap(array, geometry, LABELS), folder / name)


@pytest.fixture
def folders(tmp_path):
    guess, truth = tmp_path / "pred", tmp_path / "labelsTs"
    for name in ("a", "b"):
        _write(truth, f"{name}.nii.gz", _cube(1))
    _write(guess, "a.mha", _cube(1))
    _write(guess, "b.nii.gz", _cube(1, start=3))
    return guess, truth


def test_files_are_paired_by_name_whatever_their_format(folders):
    steps = []
    scores = evaluate(*folders, labels=LABELS, report=steps.append)
    assert [(s.case_id, s.labels["bone"].dice) for s in scores] == [("a", 1.0), ("b", 0.5)]
    assert all(s.labels["metal"].state == "both_empty" for s in scores)
    assert [s.done for s in steps] == [1, 2]


def test_palettes_are_numbers_and_colours_are_no_labels(tmp_path):
    """Of PASCAL VOC: read as colours, the second class would have no red and the third that of the first."""
    classes = np.zeros((8, 10), np.uint8)
    classes[1:3], classes[4:6], classes[6:, 5:] = 1, 2, 3
    for folder in ("true", "found"):
        (tmp_path / folder).mkdir()
    palette = Picture.fromarray(classes, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    palette.save(tmp_path / "true" / "a.png")
    Picture.fromarray(np.where(classes == 2, 0, classes).astype(np.uint8)).save(tmp_path / "found" / "a.png")
    (scores,) = evaluate(tmp_path / "found", tmp_path / "true")
    assert {name: row.dice for name, row in scores.labels.items()} == {"1": 1.0, "2": 0.0, "3": 1.0}
    palette.convert("RGB").save(tmp_path / "found" / "a.png")
    (scores,) = evaluate(tmp_path / "found", tmp_path / "true")
    assert scores.status == "failed" and "3 channels" in scores.error


def test_pixels_have_the_size_that_the_data_set_or_the_other_file_states(tmp_path):
    truth, found = np.zeros((1, 40, 40), np.uint8), np.zeros((1, 40, 40), np.uint8)
    truth[0, 10:20, 10:20], found[0, 13:23, 10:20] = 1, 1
    size = Geometry((1, 40, 40), (1.0, 0.3, 0.1))
    for folder, array in (("true/labelsTr", truth), ("found", found)):
        _write(tmp_path / folder, "a.png", array, replace(size, spacing_mm=(1.0, 1.0, 1.0), unit="px"))
    (scores,) = evaluate(tmp_path / "found", tmp_path / "true" / "labelsTr", labels=LABELS)
    assert (scores.unit, scores.labels["bone"].hd95_mm) == ("px", 3.0)
    about = {"channel_names": {"0": "US"}, "labels": {"background": 0, "bone": 1, "metal": 2}, "file_ending": ".png"}
    (tmp_path / "true" / "dataset.json").write_text(json.dumps({**about, "spacing_mm": [0.3, 0.1]}))
    (scores,) = evaluate(tmp_path / "found", tmp_path / "true" / "labelsTr")
    assert scores.unit == "mm" and scores.labels["bone"].hd95_mm == pytest.approx(0.9)
    (tmp_path / "true" / "dataset.json").unlink()
    (tmp_path / "found" / "a.png").unlink()
    _write(tmp_path / "found", "a.nii.gz", found, size)
    (scores,) = evaluate(tmp_path / "found", tmp_path / "true" / "labelsTr", labels=LABELS)
    assert scores.unit == "mm" and scores.labels["bone"].hd95_mm == pytest.approx(0.9)


def test_a_missing_prediction_fails_and_an_extra_one_is_logged(folders, caplog):
    guess, truth = folders
    (guess / "a.mha").rename(guess / "c.mha")
    (guess / "report.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "medseg"):
        scores = evaluate(guess, truth, labels=LABELS)
    assert [(s.case_id, s.status) for s in scores] == [("b", "ok"), ("a", "failed")]
    assert "no prediction" in scores[1].error and "a.nii.gz" in scores[1].error and not scores[1].labels
    assert "no reference for 1 predictions: c" in caplog.text


def test_an_unusable_prediction_fails_alone(folders):
    guess, truth = folders
    (guess / "a.mha").write_bytes(b"")
    scores = evaluate(guess, truth, labels=LABELS)
    assert [s.status for s in scores] == ["ok", "failed"] and "a.mha" in scores[1].error
    (guess / "a.mha").unlink()
    _write(guess, "a.nii.gz", _cube(1), Geometry((4, 8, 8), (2.0, 1.0, 1.0), (0.5, 0.0, 0.0)))
    assert "0.5 mm apart" in evaluate(guess, truth, labels=LABELS)[1].error
    _write(guess, "a.nii.gz", _cube(1), Geometry((4, 8, 8), (2.0, 1.0, 1.0), (1e-4, 0.0, 0.0)))
    assert evaluate(guess, truth, labels=LABELS)[0].labels["bone"].dice == 1.0


def test_hidden_files_are_no_cases(folders):
    guess, truth = folders
    for folder in folders:
        for name in ("._a.nii.gz", "._b.mha", ".part-k2j4-b.nii.gz"):
            (folder / name).write_bytes(b"\x00\x05\x16\x07")
    scores = evaluate(guess, truth, labels=LABELS)
    assert [(case.case_id, case.status) for case in scores] == [("a", "ok"), ("b", "ok")]
    for name in ("a.nii.gz", "b.nii.gz"):
        (truth / name).unlink()
    with pytest.raises(DatasetError, match="holds no label map"):
        evaluate(guess, truth, labels=LABELS)


def test_grids_within_the_tolerance_of_reading_are_one(folders):
    guess, truth = folders
    fine, away = Geometry((4, 8, 8), (0.2, 0.2, 0.2)), Geometry((4, 8, 8), (0.2, 0.2, 0.2), (0.008, 0.0, 0.0))
    _write(truth, "a.nii.gz", _cube(1), fine)
    _write(guess, "a.mha", _cube(1), away)
    assert evaluate(guess, truth, labels=LABELS)[0].labels["bone"].dice == 1.0


def test_labels_come_from_the_dataset_or_from_the_voxels(folders, tmp_path):
    found = evaluate(*folders)
    assert list(found[0].labels) == ["1"]
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "bone": 1, "metal": 2},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert list(evaluate(*folders)[0].labels) == ["bone", "metal"]
    assert read_label_names(tmp_path / "dataset.json").names() == ("bone", "metal")
    with pytest.raises(DatasetError, match="names no classes"):
        read_label_names(folders[0])


def test_two_files_are_a_pair_whatever_their_names(folders):
    guess, truth = folders
    scores = evaluate(guess / "b.nii.gz", truth / "a.nii.gz", labels=LABELS)
    assert [(s.case_id, s.labels["bone"].dice) for s in scores] == [("a", 0.5)]


def test_folders_that_have_nothing_in_common_are_an_error(folders, tmp_path):
    guess, truth = folders
    for path in (guess / "a.mha", guess / "b.nii.gz"):
        path.unlink()
    with pytest.raises(DatasetError, match="holds no label map"):
        evaluate(guess, truth)
    _write(guess, "z.nii.gz", _cube(1))
    with pytest.raises(DatasetError, match="named alike"):
        evaluate(guess, truth)
    with pytest.raises(DatasetError, match="does not exist"):
        evaluate(tmp_path / "nowhere", truth)


def test_json_csv_and_table_state_undefined_and_infinite(folders, tmp_path):
    guess, truth = folders
    _write(guess, "b.nii.gz", _cube(2))
    _write(truth, "missing.nii.gz", _cube(1))
    scores = evaluate(guess, truth, labels=LABELS, tolerance_mm=2.5)
    assert scores[1].labels["metal"].hd95_mm == math.inf
    write_scores(scores, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert stored["summary"]["labels"]["bone"]["dice"]["mean"] == 0.5 and stored["summary"]["failed"] == 1
    assert stored["cases"][0]["labels"]["metal"]["dice"] is None
    assert stored["summary"]["nsd_tolerance_mm"] == [2.5] and stored["cases"][2]["nsd_tolerance_mm"] == 2.5
    assert stored["cases"][1]["labels"]["metal"]["hd95_mm"] == "inf"
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").read_text("utf-8").splitlines()))
    assert [(r["case"], r["label"], r["dice"], r["hd95_mm"]) for r in rows] == [
        ("a", "bone", "1.0", "0.0"),
        ("a", "metal", "", ""),
        ("b", "bone", "0.0", "inf"),
        ("b", "metal", "0.0", "inf"),
        ("missing", "", "", ""),
    ]
    assert rows[-1]["status"] == "failed" and {row["nsd_tolerance_mm"] for row in rows} == {"2.5"}
    lines = format_table(scores).splitlines()
    assert "NSD 2.5 mm" in lines[0]
    assert lines[1].split() == ["bone", "0.500", "0.500", "0.000", "0.000", "0.500", "0.667", "2", "0", "1"]
    assert lines[-1].startswith("failed: missing: no prediction")
    write_evaluation(scores, tmp_path / "x.json", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "out" / "scores.csv").read_bytes()


def test_of_ultrasound_only_the_fan_is_scored(tmp_path):
    picture = np.zeros((1, 64, 64), np.uint8)
    picture[0, 16:, 16:48] = np.random.default_rng(0).integers(60, 200, (48, 32))
    inside, both = np.zeros_like(picture), np.zeros_like(picture)
    inside[0, 30:40, 24:36] = both[0, 30:40, 24:36] = 1
    both[0, 2:8, 2:14] = 1  # beside the fan
    flat = Geometry((1, 64, 64), (1.0, 1.0, 1.0))
    for folder, array in (("pred", both), ("ref", inside)):
        _write(tmp_path / folder, "a.png", array, flat)
    _write(tmp_path / "images", "a_0000.png", picture, flat)
    everywhere = evaluate(tmp_path / "pred", tmp_path / "ref")[0].labels["1"].dice
    within = evaluate(tmp_path / "pred", tmp_path / "ref", ultrasound=tmp_path / "images")[0].labels["1"].dice
    assert everywhere < 0.8 and within == 1
    (tmp_path / "images" / "a_0000.png").rename(tmp_path / "images" / "b.png")
    failed = evaluate(tmp_path / "pred", tmp_path / "ref", ultrasound=tmp_path / "images")[0]
    assert failed.status == "failed" and "fan" in str(failed.error)
